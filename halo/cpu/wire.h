// Codes as they travel between ranks: transposed after their arrival, FP6 in six bits.
#ifndef HALO_CPU_WIRE_H
#define HALO_CPU_WIRE_H

#include "rows.h"

enum { kTransposeTile = 64 };   // bytes a side: two tiles stay in the first-level cache

static void transpose_codes(Mat y, Mat x) {
    check(y.rows == x.cols && y.cols == x.rows && y.fmt == x.fmt && fmt_bytes(x.fmt) == 1, "transpose_codes: (%d, %d) to (%d, %d)",
          x.rows, x.cols, y.rows, y.cols);
#pragma omp parallel for schedule(static)
    for (int row = 0; row < x.rows; row += kTransposeTile) {
        int row_end = min_int(row + kTransposeTile, x.rows);
        for (int col = 0; col < x.cols; col += kTransposeTile) {
            int col_end = min_int(col + kTransposeTile, x.cols);
            for (int c = col; c < col_end; c++) {
                uint8_t* to = (uint8_t*)row_data(y, c);
                for (int r = row; r < row_end; r++) to[r] = ((const uint8_t*)row_data(x, r))[c];
            }
        }
    }
}

// Four six-bit codes a, b, c, d are the 24 bits dddddd cccccc bbbbbb aaaaaa, lowest byte first.
static void pack_fp6(uint8_t* packed, Mat codes) {
    const uint8_t* from = (const uint8_t*)codes.data;
    size_t groups = (size_t)codes.rows * codes.ld / 4;
#pragma omp parallel for schedule(static)
    for (size_t g = 0; g < groups; g++) {
        uint32_t bits = 0;
        for (int k = 0; k < 4; k++) bits |= (uint32_t)fp6_pack_code(from[4 * g + k], codes.fmt) << 6 * k;
        for (int k = 0; k < 3; k++) packed[3 * g + k] = (uint8_t)(bits >> 8 * k);
    }
}

static void unpack_fp6(Mat codes, const uint8_t* packed) {
    uint8_t* to = (uint8_t*)codes.data;
    size_t groups = (size_t)codes.rows * codes.ld / 4;
#pragma omp parallel for schedule(static)
    for (size_t g = 0; g < groups; g++) {
        uint32_t bits = 0;
        for (int k = 0; k < 3; k++) bits |= (uint32_t)packed[3 * g + k] << 8 * k;
        for (int k = 0; k < 4; k++) to[4 * g + k] = fp6_unpack_code((uint8_t)(bits >> 6 * k & 0x3fu), codes.fmt);
    }
}

#endif
