// Hadamard rotations of a matrix from the right (features) or from the left (tokens), and its largest magnitude.
#ifndef HALO_CPU_ROTATE_H
#define HALO_CPU_ROTATE_H

#include "../hadamard.h"
#include "rows.h"

static void absmax(float* total, Mat x) {
    check_float(x, "absmax");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) {
        const float* row = row_read(x, t, work_floats(&work, (size_t)x.cols));
        raise_absmax(total, largest_magnitude(row, x.cols, 0));
    }
}

// Rows or columns that a thread gives to the transform at once: it works on many vectors side by side.
enum { kRotateTogether = 64 };

// y = x H, or x H^T
static void rotate_features(Mat y, Mat x, bool transpose) {
    int C = x.cols;
    check_shape(y, x.rows, C, "rotate features");
    check(hadamard_supported(C), "rotate features: no Hadamard transform of order %d", C);
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.rows; first += kRotateTogether) {
        int rows = min_int(kRotateTogether, x.rows - first);
        float* band = work_floats(&work, (size_t)rows * C);
        for (int t = 0; t < rows; t++) values_read(band + (size_t)t * C, row_data(x, first + t), (size_t)C, x.fmt);
        hadamard_rows_f32(band, rows, C, C, transpose);
        for (int t = 0; t < rows; t++) row_write(y, first + t, band + (size_t)t * C);
    }
}

// y = H x, or H^T x, of the order of the longer of the two, or of `block` along the diagonal. A strip of columns is read
// whole before it is written, so y may be x.
static void rotate_tokens(Mat y, Mat x, bool transpose, int block) {
    int n = max_int(y.rows, x.rows);
    check_shape(y, y.rows, x.cols, "rotate tokens");
    check(block >= 0 && n % max_int(block, 1) == 0, "rotate tokens: %d rows in blocks of %d", n, block);
    check(hadamard_supported(block ? block : n), "rotate tokens: no Hadamard transform of order %d", block ? block : n);
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.cols; first += kRotateTogether) {
        int cols = min_int(kRotateTogether, x.cols - first);
        float* strip = work_floats(&work, (size_t)n * cols);
        Mat from = mat_cols(x, first, cols), to = mat_cols(y, first, cols);
        for (int t = 0; t < x.rows; t++) values_read(strip + (size_t)t * cols, row_data(from, t), (size_t)cols, x.fmt);
        memset(strip + (size_t)x.rows * cols, 0, (size_t)(n - x.rows) * cols * sizeof(float));
        hadamard_cols_f32(strip, n, cols, cols, block, transpose);
        for (int t = 0; t < y.rows; t++) row_write(to, t, strip + (size_t)t * cols);
    }
}

static void rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* total) {
    check_float(x, "rotate");
    if (axis == ROTATE_COLS) {
        check(block == 0, "rotate: a block of features");
        rotate_features(y, x, transpose);
    } else {
        rotate_tokens(y, x, transpose, block);
    }
    if (total) absmax(total, y);
}

// What a producer does to its output on the way out.
static void finish(Mat y, Prep prep) {
    if (prep.rotate) rotate(y, y, ROTATE_COLS, false, 0, prep.absmax);
    else if (prep.absmax) absmax(prep.absmax, y);
}

#endif
