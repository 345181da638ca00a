// Choosing the next token: greedy, or by temperature within the smallest set of tokens that holds top_p of the probability
// (Holtzman et al. 2020).
#ifndef HALO_SAMPLER_H
#define HALO_SAMPLER_H

#include "base.h"

typedef struct {
    float temperature;   // 0: greedy
    float top_p;         // 1: all tokens
    uint64_t seed;
} Sampler;

// logits (V). `draw` numbers the tokens of a text, so that the same seed gives the same text.
C_API int sample_token(const Sampler* s, const float* logits, int V, uint64_t draw);

#endif
