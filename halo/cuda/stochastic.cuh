// Stochastic rounding to BF16 (ops.h, Noise): the bits are those of bf16_from_f32_stochastic.
#ifndef HALO_CUDA_STOCHASTIC_CUH
#define HALO_CUDA_STOCHASTIC_CUH

#include "../rng.h"
#include "device.cuh"

// Stores value `first` of a matrix, or an octet from there on: then noise.offset + first is a multiple of kNoiseOctet. FP32 is stored as it
// is. known_finite: the caller has checked that all values are finite.
template <int kWidth>
__device__ inline void store_stochastic(float* p, Values<kWidth> x, const Noise&, size_t, int, bool = false) {
    store_values(p, x);
}
template <int kWidth>
__device__ inline void store_stochastic(bf16* p, Values<kWidth> x, const Noise& noise, size_t first, int use, bool known_finite = false) {
    uint64_t index = noise.offset + first;
    Philox words = noise_words(noise.seed, index / kNoiseOctet, use, noise.stream);
    Packed<kWidth> out;
    if constexpr (kWidth == 1) {
        out.value = bf16_from_f32_stochastic(x.v[0], noise_half(words, (int)(index % kNoiseOctet)));
    } else {
        float nothing = 0;   // NaN if a value is not finite
#pragma unroll
        for (int i = 0; i < kWidth; i++) nothing = __fmaf_rn(x.v[i], 0.0f, nothing);
        if (known_finite || nothing == 0.0f) {
#pragma unroll
            for (int i = 0; i < kWidth; i += 2)
                out.pair[i / 2] = __byte_perm(f32_bits(x.v[i]) + noise_half(words, i), f32_bits(x.v[i + 1]) + noise_half(words, i + 1), 0x7632);
        } else {
#pragma unroll
            for (int i = 0; i < kWidth; i += 2)
                out.pair[i / 2] = (uint32_t)bf16_from_f32_stochastic(x.v[i + 1], noise_half(words, i + 1)) << 16 |
                                  bf16_from_f32_stochastic(x.v[i], noise_half(words, i));
        }
    }
    store_packed(p, out);
}

#endif
