// The only definition of each rounding: bf16, e4m3, e5m2, e3m2, e2m3, int8; the same lines serve host and device.
//
// A small float format is described by three numbers, and one function rounds to all of them (round to nearest, ties to
// even, saturating). FP6 values are all exact E4M3 values, so the FP6 formats are stored as E4M3 codes and run on FP8
// tensor cores unchanged; `fp6_pack_code`/`fp6_unpack_code` give the 6-bit form that goes over the wire.
//
// Sources: OCP 8-bit Floating Point (OFP8) for E4M3 (no infinity, S.1111.111 is NaN) and E5M2; OCP Microscaling Formats
// (MX) v1.0 for E3M2 and E2M3 (no infinity, no NaN).
#ifndef HALO_NUMFMT_H
#define HALO_NUMFMT_H

#include "base.h"

#include <math.h>

#ifdef __CUDACC__
#define NUMFMT static inline __host__ __device__
#else
#define NUMFMT static inline
#endif

typedef enum { F32, BF16, FP8_E4M3, FP8_E5M2, FP6_E3M2, FP6_E2M3, INT8, kFmtCount } Fmt;

NUMFMT size_t fmt_bytes(Fmt fmt) { return fmt == F32 ? 4 : fmt == BF16 ? 2 : 1; }
// Formats whose codes are E4M3 bytes.
NUMFMT bool fmt_is_fp8_coded(Fmt fmt) { return fmt == FP8_E4M3 || fmt == FP6_E3M2 || fmt == FP6_E2M3; }

static inline const char* fmt_name(Fmt fmt) {
    static const char* const names[kFmtCount] = {"f32", "bf16", "fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "int8"};
    return (unsigned)fmt < kFmtCount ? names[fmt] : "?";
}

// max(fmt): the largest magnitude a scale maps to.
NUMFMT float fmt_max(Fmt fmt) {
    switch (fmt) {
        case INT8: return 127.0f;
        case FP8_E4M3: return 448.0f;
        case FP8_E5M2: return 57344.0f;
        case FP6_E3M2: return 28.0f;
        case FP6_E2M3: return 7.5f;
        default: return 1.0f;
    }
}

NUMFMT uint32_t f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
NUMFMT float f32_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

// ---- bf16: the upper half of a float. NaN stays NaN (quietened), overflow goes to infinity as IEEE rounding says.
NUMFMT float f32_from_bf16(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }
NUMFMT uint16_t bf16_from_f32(float x) {
    uint32_t u = f32_bits(x);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    uint32_t quiet_nan = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);   // a select, so that loops vectorise
}
// Stochastic rounding: `noise` is 16 uniform bits; E[result] = x for |x| up to the largest finite bf16. Infinity and NaN as
// above.
NUMFMT uint16_t bf16_from_f32_stochastic(float x, uint32_t noise) {
    uint32_t u = f32_bits(x);
    if ((u & 0x7f800000u) == 0x7f800000u) return bf16_from_f32(x);
    return (uint16_t)((u + (noise & 0xffffu)) >> 16);
}

// ---- small floats: p explicit mantissa bits, exponent bias, largest finite value.
typedef struct {
    int mantissa_bits, bias;
    float max;
} SmallFloat;

NUMFMT SmallFloat small_float(Fmt fmt) {
    switch (fmt) {
        case FP8_E4M3: { SmallFloat f = {3, 7, 448.0f}; return f; }
        case FP8_E5M2: { SmallFloat f = {2, 15, 57344.0f}; return f; }
        case FP6_E3M2: { SmallFloat f = {2, 3, 28.0f}; return f; }
        default: { SmallFloat f = {3, 1, 7.5f}; return f; }   // FP6_E2M3
    }
}

// The nearest value of the format, ties to even, saturating at +-max; NaN stays NaN.
//
// With a quantum q = 2^(e - p) for |x| in [2^e, 2^(e+1)) (no less than the subnormal quantum), |x| + 2^23 q rounds |x| to a
// multiple of q in one correctly rounded FP32 addition; subtracting 2^23 q gives that multiple exactly.
NUMFMT float small_float_round(float x, SmallFloat f) {
    uint32_t sign = f32_bits(x) & 0x80000000u;
    uint32_t magnitude = f32_bits(x) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return x;
    int exponent = (int)(magnitude >> 23) - 127;
    int smallest = 1 - f.bias;
    if (exponent < smallest) exponent = smallest;
    if (exponent > 100) exponent = 100;                         // saturates below; keeps `magic` finite
    float magic = f32_from_bits((uint32_t)(exponent - f.mantissa_bits + 23 + 127) << 23);
    float a = f32_from_bits(magnitude);
    float rounded = (a + magic) - magic;                        // needs IEEE addition: no fast-math here
    if (rounded > f.max) rounded = f.max;
    return f32_from_bits(f32_bits(rounded) | sign);
}

// The bit pattern, below its sign, of a value that the format represents exactly.
NUMFMT uint32_t small_float_magnitude_code(float value, SmallFloat f) {
    uint32_t magnitude = f32_bits(value) & 0x7fffffffu;
    int exponent = (int)(magnitude >> 23) - 127;
    if (exponent < 1 - f.bias) {   // subnormal (or zero): a multiple of 2^(1 - bias - p)
        float per_quantum = f32_from_bits((uint32_t)(f.bias - 1 + f.mantissa_bits + 127) << 23);
        return (uint32_t)(f32_from_bits(magnitude) * per_quantum);
    }
    uint32_t mantissa = (magnitude & 0x7fffffu) >> (23 - f.mantissa_bits);
    return (uint32_t)(exponent + f.bias) << f.mantissa_bits | mantissa;
}
NUMFMT float small_float_magnitude(uint32_t code, SmallFloat f) {
    uint32_t field = code >> f.mantissa_bits, mantissa = code & ((1u << f.mantissa_bits) - 1);
    if (field == 0) return (float)mantissa * f32_from_bits((uint32_t)(1 - f.bias - f.mantissa_bits + 127) << 23);
    return f32_from_bits((uint32_t)((int)field - f.bias + 127) << 23 | mantissa << (23 - f.mantissa_bits));
}

// ---- one byte a value, as the GEMMs read it. FP6 is rounded to its own grid and written as the E4M3 code of that value.
NUMFMT int8_t int8_from_f32(float x) {
    float clamped = x > 127.0f ? 127.0f : x < -127.0f ? -127.0f : x;
    return (int8_t)(x == x ? rintf(clamped) : 0.0f);
}
NUMFMT uint8_t code_from_f32(float x, Fmt fmt) {
    if (fmt == INT8) return (uint8_t)int8_from_f32(x);
    bool e5m2 = fmt == FP8_E5M2;
    uint32_t sign = f32_bits(x) >> 24 & 0x80u;
    if (x != x) return (uint8_t)(sign | 0x7fu);
    float value = small_float_round(x, small_float(fmt));
    return (uint8_t)(sign | small_float_magnitude_code(value, small_float(e5m2 ? FP8_E5M2 : FP8_E4M3)));
}
NUMFMT float f32_from_code(uint8_t code, Fmt fmt) {
    if (fmt == INT8) return (float)(int8_t)code;
    uint32_t low = code & 0x7fu;
    float sign = code & 0x80u ? -1.0f : 1.0f;
    if (fmt == FP8_E5M2) {
        if (low > 0x7c) return NAN;
        return sign * (low == 0x7c ? INFINITY : small_float_magnitude(low, small_float(FP8_E5M2)));
    }
    return low == 0x7f ? NAN : sign * small_float_magnitude(low, small_float(FP8_E4M3));
}

// ---- FP6 between its E4M3 byte and its own six bits (sign in bit 5). Six bits have no NaN: it becomes the largest
// magnitude, and is not lost, because the scale of an operand that holds a NaN is NaN.
NUMFMT uint8_t fp6_pack_code(uint8_t e4m3, Fmt fp6) {
    bool is_nan = (e4m3 & 0x7fu) == 0x7fu;
    float value = is_nan ? fmt_max(fp6) : f32_from_code(e4m3, FP8_E4M3);
    return (uint8_t)((e4m3 & 0x80u) >> 2 | small_float_magnitude_code(value, small_float(fp6)));
}
NUMFMT uint8_t fp6_unpack_code(uint8_t six_bits, Fmt fp6) {
    float value = small_float_magnitude(six_bits & 0x1fu, small_float(fp6));
    return (uint8_t)((six_bits & 0x20u) << 2 | small_float_magnitude_code(value, small_float(FP8_E4M3)));
}

// ---- scales, those of HALO (arXiv 2501.02625). Comparing magnitudes as integers makes a NaN the largest of all, so that it
// reaches the scale, the product and at last the loss instead of being rounded away.
NUMFMT float larger_magnitude(float a, float b) {
    uint32_t ua = f32_bits(a) & 0x7fffffffu, ub = f32_bits(b) & 0x7fffffffu;
    return f32_from_bits(ua > ub ? ua : ub);
}
// s = clip * absmax / max(fmt); 1 for an all-zero operand. Never below 2^-126, the smallest normal float: the inverse stays
// finite, and an operand too small for FP32 to scale (absmax < 2^-126 max(fmt)) loses precision instead of magnitude.
NUMFMT float quant_scale(float absmax, Fmt fmt, float clip) {
    float scale = clip * absmax / fmt_max(fmt), smallest = f32_from_bits(0x00800000u);
    if (absmax == 0.0f) return 1.0f;
    return scale < smallest ? smallest : scale;   // NaN stays NaN
}
// codes = round(x * inverse), the same on every backend: one division an operand, one multiplication a value. The inverse is
// max / (clip * absmax) rounded once, and not 1/s: values that lie on a tie in exact arithmetic then stay there.
NUMFMT float quant_inverse(float absmax, Fmt fmt, float clip) {
    float scale = quant_scale(absmax, fmt, clip);
    if (absmax == 0.0f || scale == f32_from_bits(0x00800000u)) return 1.0f / scale;
    return fmt_max(fmt) / (clip * absmax);
}

// Scaled magnitudes that a code only rounds: up to `zero` they become 0, beyond `clipped` they are cut off, more than half a step
// from the largest code.
typedef struct {
    float zero, clipped;
} CodeRange;
NUMFMT CodeRange code_range(Fmt fmt) {
    if (fmt == INT8) { CodeRange r = {0.5f, 127.5f}; return r; }
    SmallFloat f = small_float(fmt);
    float smallest = f32_from_bits((uint32_t)(1 - f.bias - f.mantissa_bits + 127) << 23);   // the subnormal quantum
    int top = (int)(f32_bits(f.max) >> 23) - 127;
    float last_step = f32_from_bits((uint32_t)(top - f.mantissa_bits + 127) << 23);
    CodeRange r = {0.5f * smallest, f.max + 0.5f * last_step};
    return r;
}

#endif
