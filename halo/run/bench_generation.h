// bench --generate: the speed of generation with random weights, beside what bounds it.
#ifndef HALO_RUN_BENCH_GENERATION_H
#define HALO_RUN_BENCH_GENERATION_H

#include "session.h"

// N answers of --max-tokens to prompts of --seq random tokens, side by side: reading the prompts against a forward pass of training, a
// step of decoding against reading weights and cache once at the speed of a copy.
C_API void bench_generation(Session* s);

#endif
