// bench --generate: the speed of generation with random weights, compared with its bounds.
#ifndef HALO_RUN_BENCH_GENERATION_H
#define HALO_RUN_BENCH_GENERATION_H

#include "session.h"

// Times N answers of --max-tokens tokens to prompts of --seq random tokens, side by side. Reading the prompts is compared with a forward
// pass of training; a step of decoding with reading weights and cache once at the speed of a copy.
C_API void bench_generation(Session* s);

#endif
