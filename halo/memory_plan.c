// The memory plan; see memory_plan.h.
#include "memory_plan.h"

MemoryPlan memory_plan(const Config* config, const Ops* ops, const Comm* comm, const Recipe* recipe, ShardOptions shard, ModelOptions model) {
    bool codes = shard_would_give_codes(config, comm, shard);
    MemoryPlan plan = {shard_bytes(config, ops, comm, shard), model_bytes(config, ops, recipe, codes, model), 0, 0};
    plan.model.scratch += sizeof(float) * (size_t)shard.micro_steps * (size_t)model.B * (size_t)model.T;   // the losses of a step
    plan.staging = comm->staging_bytes + ops->workspace_bytes();
    plan.together = plan.shard.weights + plan.shard.gradients + plan.shard.optimizer + plan.shard.gathered +
                    model_bytes_together(plan.model) + plan.staging;
    return plan;
}
