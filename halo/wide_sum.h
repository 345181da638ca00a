// A sum of floats that has no order: each is added exactly, so that the sum does not depend on how its terms are dealt out to threads and ranks.
//
// The sum is an integer in units of 2^-149, the smallest float, kept in digits of kWideBits bits, the lowest first. Terms are not negative.
// A digit is a float, for sums over ranks: an all_reduce of floats adds the digits of up to 2^(24 - kWideBits) ranks exactly.
#ifndef HALO_WIDE_SUM_H
#define HALO_WIDE_SUM_H

#include "numfmt.h"

// The highest digit is no digit: it is 0 as long as all terms are finite.
enum { kWideBits = 12, kWideDigits = 28, kWideNotFinite = kWideDigits - 1, kWideParts = 3 };
typedef struct {
    float digit[kWideDigits];
} WideSum;

// A term's digits from the returned one on.
NUMFMT int wide_parts(float x, uint32_t parts[kWideParts]) {
    uint32_t bits = f32_bits(x), exponent = bits >> 23 & 0xff;
    parts[0] = 1;
    parts[1] = parts[2] = 0;
    if (exponent == 0xff) return kWideNotFinite;
    uint32_t shift = exponent ? exponent - 1 : 0;
    uint64_t mantissa = (uint64_t)((bits & 0x7fffffu) | (exponent ? 1u << 23 : 0)) << shift % kWideBits;
    for (int i = 0; i < kWideParts; i++) parts[i] = (uint32_t)(mantissa >> i * kWideBits) & ((1u << kWideBits) - 1);
    return (int)(shift / kWideBits);
}

// Adds digits of any size, or none (more NULL); afterwards each digit is below 2^kWideBits: one sum has one form.
NUMFMT void wide_add(WideSum* sum, const uint64_t* more) {
    uint64_t carry = 0;
    for (int i = 0; i < kWideNotFinite; i++) {
        carry += (uint64_t)sum->digit[i] + (more ? more[i] : 0);
        sum->digit[i] = (float)(carry & ((1u << kWideBits) - 1));
        carry >>= kWideBits;
    }
    if (carry || (more && more[kWideNotFinite])) sum->digit[kWideNotFinite] = 1;
}

// The sum, rounded; NaN if one of its terms was not finite.
NUMFMT double wide_value(WideSum sum) {
    double value = 0;
    wide_add(&sum, NULL);
    for (int i = kWideNotFinite - 1; i >= 0; i--) value = value * (1 << kWideBits) + sum.digit[i];
    return sum.digit[kWideNotFinite] > 0 ? (double)NAN : value * 0x1p-149;
}

#endif
