// Rounding to codes, without branches. Codes are those of numfmt.h to the bit (with conversion instructions a NaN loses its sign).
#ifndef HALO_CUDA_CODES_CUH
#define HALO_CUDA_CODES_CUH

#include <type_traits>

#include "device.cuh"

#if !defined(HALO_SIMT) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define HALO_CVT_FP8 1
#else
#define HALO_CVT_FP8 0
#endif

// The nearest value of the format's grid (ties to even, saturating), and NaN as it is: small_float_round with the format known. It clamps
// before rounding, which gives the same value, since the largest magnitude is on the grid.
template <Fmt kFmt>
__device__ inline float round_to_grid(float x) {
    constexpr int kMantissa = kFmt == FP8_E4M3 || kFmt == FP6_E2M3 ? 3 : 2;
    constexpr int kBias = kFmt == FP8_E4M3 ? 7 : kFmt == FP8_E5M2 ? 15 : kFmt == FP6_E3M2 ? 3 : 1;
    float magnitude = fminf(fabsf(x), fmt_max(kFmt));
    uint32_t exponent = max(f32_bits(magnitude) & 0x7f800000u, (uint32_t)(128 - kBias) << 23);
    float magic = f32_from_bits(exponent + ((uint32_t)(23 - kMantissa) << 23));
    float rounded = __fsub_rn(__fadd_rn(magnitude, magic), magic);
    return x == x ? f32_from_bits(f32_bits(rounded) | (f32_bits(x) & 0x80000000u)) : x;
}

// The code of a value that E4M3 or E5M2 represents: the value times 2^(bias - 127) has the code's exponent field, subnormals included.
template <bool kE5m2>
__device__ inline uint32_t code_of_grid(float x) {
    constexpr int kBias = kE5m2 ? 15 : 7, kMantissa = kE5m2 ? 2 : 3;
    uint32_t magnitude = f32_bits(fabsf(x) * f32_from_bits((uint32_t)kBias << 23)) >> (23 - kMantissa);
    return (x == x ? magnitude : 0x7fu) | (f32_bits(x) >> 24 & 0x80u);
}

// Two codes, the first in the lowest byte, those of `upper` above them.
template <Fmt kFmt>
__device__ inline uint32_t code_pair(float low, float high, uint32_t upper = 0) {
    if constexpr (kFmt == INT8) {
#ifdef HALO_SIMT
        return (uint32_t)(uint8_t)int8_from_f32(low) | (uint32_t)(uint8_t)int8_from_f32(high) << 8 | upper << 16;
#else
        auto code = [](float x) {   // above, packing saturates; below it would to -128. NaN stays NaN, and becomes 0
            float bounded;
            int rounded;
            asm("max.NaN.f32 %0, %1, %2;" : "=f"(bounded) : "f"(x), "f"(-127.0f));
            asm("cvt.rni.s32.f32 %0, %1;" : "=r"(rounded) : "f"(bounded));
            return rounded;
        };
        uint32_t codes;
        asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(codes) : "r"(code(high)), "r"(code(low)), "r"(upper));
        return codes;
#endif
    } else {
        constexpr bool kE5m2 = kFmt == FP8_E5M2;
        if (kFmt == FP6_E3M2 || kFmt == FP6_E2M3 || !HALO_CVT_FP8) {
            low = round_to_grid<kFmt>(low);
            high = round_to_grid<kFmt>(high);
        }
#if HALO_CVT_FP8
        uint16_t codes;
        if (kE5m2) asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
        else asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
        return codes | upper << 16;
#else
        return code_of_grid<kE5m2>(low) | code_of_grid<kE5m2>(high) << 8 | upper << 16;
#endif
    }
}
// Four codes, the first in the lowest byte.
template <Fmt kFmt>
__device__ inline uint32_t code_quad(float a, float b, float c, float d) {
    return code_pair<kFmt>(a, b, code_pair<kFmt>(c, d));
}
template <Fmt kFmt>
__device__ inline uint2 code_octet(const Values<8>& x) {
    return make_uint2(code_quad<kFmt>(x.v[0], x.v[1], x.v[2], x.v[3]), code_quad<kFmt>(x.v[4], x.v[5], x.v[6], x.v[7]));
}

// Eight codes in a format known only at run time, the same for all threads.
__device__ inline uint2 code_octet(const Values<8>& x, Fmt fmt) {
    switch (fmt) {
        case INT8: return code_octet<INT8>(x);
        case FP8_E4M3: return code_octet<FP8_E4M3>(x);
        case FP8_E5M2: return code_octet<FP8_E5M2>(x);
        case FP6_E3M2: return code_octet<FP6_E3M2>(x);
        default: return code_octet<FP6_E2M3>(x);
    }
}

// Calls launch(std::integral_constant<Fmt, fmt>()), for a kernel that is compiled for every format of codes.
template <typename Launch>
static auto with_code_fmt(Fmt fmt, const Launch& launch) {
    switch (fmt) {
        case INT8: return launch(std::integral_constant<Fmt, INT8>());
        case FP8_E4M3: return launch(std::integral_constant<Fmt, FP8_E4M3>());
        case FP8_E5M2: return launch(std::integral_constant<Fmt, FP8_E5M2>());
        case FP6_E3M2: return launch(std::integral_constant<Fmt, FP6_E3M2>());
        case FP6_E2M3: return launch(std::integral_constant<Fmt, FP6_E2M3>());
        default: die("cuda: %s is no format of codes", fmt_name(fmt));
    }
}

// Stores 16 neighbouring codes to `to`, of which only the first `inside` are inside the matrix.
__device__ inline void store_codes(uint8_t* to, uint4 codes, int inside) {
    if (inside >= 16) {
        *(uint4*)to = codes;
        return;
    }
    uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (i < inside) to[i] = (uint8_t)(word[i / 4] >> 8 * (i % 4));
}

// One value of any format of codes.
__device__ inline void store_code(void* to, size_t at, float x, Fmt fmt) {
    if (fmt == F32) ((float*)to)[at] = x;
    else if (fmt == BF16) ((bf16*)to)[at] = bf16_from_f32(x);
    else ((uint8_t*)to)[at] = code_from_f32(x, fmt);
}

#endif
