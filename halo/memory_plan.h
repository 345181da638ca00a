// The bytes that training needs on a rank's backend, counted by the code that lays them out.
#ifndef HALO_MEMORY_PLAN_H
#define HALO_MEMORY_PLAN_H

#include "llama3.h"

typedef struct {
    ShardBytes shard;
    ModelBytes model;
    size_t staging;    // what comm and the backend hold for themselves from their start (Comm.staging_bytes, Ops.workspace_bytes)
    size_t together;
} MemoryPlan;

// Only counts: nothing is allocated on the backend.
C_API MemoryPlan memory_plan(const Config* config, const Ops* ops, const Comm* comm, const Recipe* recipe, ShardOptions shard, ModelOptions model);

#endif
