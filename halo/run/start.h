// The start of training and of bench: what is run, and whether it fits on every rank.
#ifndef HALO_RUN_START_H
#define HALO_RUN_START_H

#include "../memory_plan.h"
#include "session.h"

C_API MemoryPlan plan_memory(const Session* s);
// Decides which quantized weights are kept (--codes), and rank 0 prints what is run. A user_error that names the tightest rank if a rank has
// not the memory for it; all ranks call it together, before any weights are loaded.
C_API void print_start(Session* s);

#endif
