// One vector register of FP32 values and its fused multiply-add, for every kind of CPU.
#ifndef HALO_CPU_VEC_H
#define HALO_CPU_VEC_H

#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512 Vec;
enum { kLanes = 16, kVecRegisters = 32 };
static inline Vec fused(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX__) && defined(__FMA__)
#include <immintrin.h>
typedef __m256 Vec;
enum { kLanes = 8, kVecRegisters = 16 };
static inline Vec fused(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
#elif defined(__ARM_NEON)
#include <arm_neon.h>
typedef float32x4_t Vec;
enum { kLanes = 4, kVecRegisters = 32 };
static inline Vec fused(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
#else
typedef float Vec __attribute__((vector_size(16), may_alias));
enum { kLanes = 4, kVecRegisters = 16 };
static inline Vec fused(Vec a, Vec b, Vec c) { return a * b + c; }
#endif

// x in every lane: scalar - vector broadcasts, and x - 0 is x.
static inline Vec broadcast(float x) {
    const Vec zero = {0};
    return x - zero;
}

#endif
