// The command bench: the speed and the memory of optimizer steps on random tokens.
#ifndef HALO_RUN_BENCH_H
#define HALO_RUN_BENCH_H

#include "session.h"

// Returns the exit code.
C_API int command_bench(Options o);

#endif
