// Hadamard transforms of every order the trainer uses: n = K0 * 2^k with K0 one of kHadamardBases.
//
// H_n is orthonormal, the Kronecker product of H_K0 and H_2^k over sqrt(n): index i of n is (i / 2^k, i % 2^k), H_2^k is in
// Sylvester order, H_K0 a fixed matrix of signs that need not be symmetric. Undoing a transform is the transposed one.
//
// The FP32 operations are fixed, so that every backend can give the same bits. For each vector:
//   1. within each of the K0 runs of 2^k values, butterflies (a, b) -> (a + b, a - b) of stride 1, then 2, 4, ... 2^(k-1);
//   2. if K0 > 1, across the runs, y_i = sum over j = 0, 1, ... K0-1, in this order and starting at 0, of +-v_j;
//   3. each value times (float)(1 / sqrt((double)n)).
#ifndef HALO_HADAMARD_H
#define HALO_HADAMARD_H

#include "base.h"

// Base orders K0. An order that is a smaller one times a power of two is not listed: 40 = 20 * 2.
enum { kHadamardBaseCount = 13 };
static const int kHadamardBases[kHadamardBaseCount] = {1, 12, 20, 28, 36, 44, 52, 60, 100, 108, 140, 156, 172};

// The K0 of n = K0 * 2^k (it is unique), or 0 if no transform of order n is built in.
C_API int hadamard_base_order(int n);
C_API bool hadamard_supported(int n);
// The smallest supported order >= n, for 1 <= n <= 2^30.
C_API int hadamard_round_up(int n);

// The signs of H_K0, (K0, K0), +1 or -1; K0 must be one of kHadamardBases. Built at first use, shared, safe from any thread.
C_API const int8_t* hadamard_base(int K0);

// x <- x H_n (or x H_n^T) in place for each of `rows` rows of n values, row r at x + r * ld. n must be a supported order.
C_API void hadamard_rows_f32(float* x, int rows, int n, int ld, bool transpose);
// x <- H x (or H^T x) in place, x (rows, cols), row r at x + r * ld. H is H_rows when block is 0; else block-diagonal of
// H_block, and block must divide rows.
C_API void hadamard_cols_f32(float* x, int rows, int cols, int ld, int block, bool transpose);

#endif
