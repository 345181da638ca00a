// Transposing a square of 16 x 16 values that lies in 16 vector registers, whatever the values: the one definition for Hadamard's floats
// (hadamard.c) and for codes (cpu/quantize.h).
#ifndef HALO_TRANSPOSE_H
#define HALO_TRANSPOSE_H

enum { kSquare = 16 };

// Defines name(Row v[kSquare]), which transposes v; Row: a GCC vector of kSquare values. Four rounds, each of which interleaves the first half
// of the vectors with the second.
#define DEFINE_TRANSPOSE_SQUARE(name, Row)                                                                            \
    static inline void name(Row v[kSquare]) {                                                                         \
        Row x[kSquare];                                                                                               \
        for (int round = 0; round < 4; round++) {                                                                     \
            for (int i = 0; i < kSquare / 2; i++) {                                                                   \
                Row a = v[i], b = v[i + kSquare / 2];                                                                 \
                x[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);     \
                x[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); \
            }                                                                                                         \
            for (int i = 0; i < kSquare; i++) v[i] = x[i];                                                            \
        }                                                                                                             \
    }

#endif
