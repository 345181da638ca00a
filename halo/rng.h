// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a random stream without state. The
// same counter and key give the same four words on every backend, so that a value's noise depends on the value's place and use,
// and never on the thread that draws it. GPUs take cuRAND's device function, whose
// words are these: the tests of dropout and of stochastic rounding hold what GPUs draw against the definition below.
#ifndef HALO_RNG_H
#define HALO_RNG_H

#include "numfmt.h"

#ifdef __CUDACC__
#include <curand_philox4x32_x.h>
#endif

typedef struct {
    uint32_t word[4];
} Philox;

NUMFMT Philox philox4x32(Philox counter, uint32_t key0, uint32_t key1) {
#ifdef __CUDA_ARCH__
    uint4 words = curand_Philox4x32_10(make_uint4(counter.word[0], counter.word[1], counter.word[2], counter.word[3]), make_uint2(key0, key1));
    return Philox{{words.x, words.y, words.z, words.w}};
#else
    Philox c = counter;
    for (int round = 0; round < 10; round++) {
        uint64_t left = (uint64_t)0xd2511f53u * c.word[0], right = (uint64_t)0xcd9e8d57u * c.word[2];
        uint32_t first = (uint32_t)(right >> 32) ^ c.word[1] ^ key0, third = (uint32_t)(left >> 32) ^ c.word[3] ^ key1;
        c.word[0] = first;
        c.word[1] = (uint32_t)right;
        c.word[2] = third;
        c.word[3] = (uint32_t)left;
        key0 += 0x9e3779b9u;   // the golden ratio
        key1 += 0xbb67ae85u;   // sqrt(3) - 1
    }
    return c;
#endif
}

// Four words named by (seed, index, stream); `stream` separates uses of one seed, such as optimizer steps.
NUMFMT Philox random_words(uint64_t seed, uint64_t index, uint64_t stream) {
    Philox counter = {{(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)}};
    return philox4x32(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

// Noise for stochastic rounding: 16 bits a value. Eight neighbouring values share the words of one octet, value i of all takes half
// i % 8; `use` (0 to 3) separates values of the same index that are rounded for different purposes.
enum { kNoiseOctet = 8 };
enum { kParamNoise, kMNoise, kVNoise, kGradNoise };   // uses: an update's three stores, and gradients that add up
enum { kDropNoise = kParamNoise };                    // dropout, whose streams are its own (llama3.c)
NUMFMT Philox noise_words(uint64_t seed, uint64_t octet, int use, uint64_t stream) {
    return random_words(seed, octet * 4 + (uint64_t)use, stream);
}
NUMFMT uint32_t noise_half(Philox words, int half) { return words.word[half / 2] >> 16 * (half % 2) & 0xffffu; }
NUMFMT uint32_t noise_of_value(uint64_t seed, uint64_t index, int use, uint64_t stream) {
    return noise_half(noise_words(seed, index / kNoiseOctet, use, stream), (int)(index % kNoiseOctet));
}

// Dropout drops a value whose 16 bits of noise are below the threshold. Kept values are multiplied by the factor: 1 / (their probability).
NUMFMT uint32_t dropout_threshold(float p) { return (uint32_t)(p * 65536.0f + 0.5f); }
NUMFMT float dropout_factor(float p) { return 65536.0f / (65536.0f - (float)dropout_threshold(p)); }

// Uniform in [0, 1), from the upper 24 bits.
NUMFMT float uniform_from_word(uint32_t word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }

#endif
