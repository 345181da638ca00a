// The command plan: what training with some flags would take on some GPUs, told without a GPU and without training: memory is counted by the
// code that lays it out, traffic and time are found by a dry run of a step (dry.h, roofline.h).
#ifndef HALO_RUN_PLAN_H
#define HALO_RUN_PLAN_H

#include "../memory_plan.h"
#include "session.h"

C_API int command_plan(Options o);   // the exit code

// The layers whose quantized weights are remade with these flags; --codes auto counts as keep.
C_API int remade_by_flag(const Session* s, const Options* o);
// The same options with a model directory's config.json alone: planning reads no weights.
C_API Options planned_options(Options o);

// What a rank's GPU would hold: the start-up's plan, what a run allocates beside it, and about what the driver and libraries take.
typedef struct {
    MemoryPlan plan;
    size_t tables, libraries, all;
} PlannedMemory;
// Of which `libraries`: the CUDA context, the code of kernels, cuBLASLt, and NCCL where there are several ranks.
C_API size_t planned_libraries(const Ops* ops, const Comm* comm);
// `s` on dry_ops and dry_comm, with `o` for its flags; tables: bytes beside the plan.
C_API PlannedMemory planned_memory(const Session* s, const Options* o, size_t tables);

// ---- the search for flags that fit (plan_search.c); `limit`: bytes of a GPU
// The largest --batch that fits with these flags; 0: not even one example does.
C_API int largest_batch(const Session* s, const Options* o, size_t tables, size_t limit);
// Tries flags in the order of what they cost, each beside those before, until training fits; then leaves away those that were not needed.
// False: nothing fits.
C_API bool cheapest_fit(const Session* s, Options* o, size_t tables, size_t limit);

#endif
