// The start of training and of bench: what is run, and whether it fits on every rank.
#ifndef HALO_RUN_START_H
#define HALO_RUN_START_H

#include "../memory_plan.h"
#include "session.h"

// The memory that training or bench with these flags needs on this rank.
C_API MemoryPlan plan_memory(const Session* s);
// Rank 0 prints the program's version, the command line that makes the same run (flags at their defaults left out), and what a reader of the
// log will look for even where it is a default: steps, batch, learning rate, seed. `steps`: of the whole run.
C_API void print_run(const Session* s, int steps);
// Decides how many layers keep their quantized weights (--codes), and rank 0 prints what is run. If a rank lacks the memory for it, a
// user_error names the rank that lacks most. All ranks call it together, before any weights are loaded.
C_API void print_start(Session* s);

#endif
