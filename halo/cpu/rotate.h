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

// Rows or columns that a thread gives to the transform at once: the transform works on many vectors side by side.
enum { kRotateTogether = 64 };

// band (rows, x.cols) <- rows of x, from `first` on, times H or H^T
static void rotated_band(float* band, Mat x, int first, int rows, bool transpose) {
    int C = x.cols;
    for (int t = 0; t < rows; t++) values_read(band + (size_t)t * C, row_data(x, first + t), (size_t)C, x.fmt);
    hadamard_rows_f32(band, rows, C, C, transpose);
}

// strip (n, cols) <- H or H^T times columns of x, from `first` on; x may have fewer rows
static void rotated_strip(float* strip, Mat x, int n, int first, int cols, bool transpose, int block) {
    Mat from = mat_cols(x, first, cols);
    for (int t = 0; t < x.rows; t++) values_read(strip + (size_t)t * cols, row_data(from, t), (size_t)cols, x.fmt);
    memset(strip + (size_t)x.rows * cols, 0, (size_t)(n - x.rows) * cols * sizeof(float));
    hadamard_cols_f32(strip, n, cols, cols, block, transpose);
}

static void check_rotation(RotateAxis axis, int n, int block) {
    const char* what = axis == ROTATE_COLS ? "features" : "tokens";
    check(axis == ROTATE_ROWS || block == 0, "rotate: a block of features");
    check(block >= 0 && n % max_int(block, 1) == 0, "rotate %s: %d in blocks of %d", what, n, block);
    check(hadamard_supported(block ? block : n), "rotate %s: no Hadamard transform of order %d", what, block ? block : n);
}

// y = x H, or x H^T
static void rotate_features(Mat y, Mat x, bool transpose, float* total) {
    int C = x.cols;
    check_shape(y, x.rows, C, "rotate features");
    check_rotation(ROTATE_COLS, C, 0);
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.rows; first += kRotateTogether) {
        int rows = min_int(kRotateTogether, x.rows - first);
        float* band = work_floats(&work, (size_t)rows * C);
        rotated_band(band, x, first, rows, transpose);
        for (int t = 0; y.data && t < rows; t++) row_write(y, first + t, band + (size_t)t * C);
        for (int t = 0; !y.data && t < rows; t++) raise_absmax(total, largest_magnitude(band + (size_t)t * C, C, 0));
    }
}

// y = H x, or H^T x; H's order is the larger number of rows, or `block` along the diagonal. A strip of columns is read whole
// before it is written, so y may be x.
static void rotate_tokens(Mat y, Mat x, bool transpose, int block, float* total) {
    int n = max_int(y.rows, x.rows);
    check_shape(y, y.rows, x.cols, "rotate tokens");
    check_rotation(ROTATE_ROWS, n, block);
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.cols; first += kRotateTogether) {
        int cols = min_int(kRotateTogether, x.cols - first);
        float* strip = work_floats(&work, (size_t)n * cols);
        Mat to = mat_cols(y, first, cols);
        rotated_strip(strip, x, n, first, cols, transpose, block);
        for (int t = 0; y.data && t < y.rows; t++) row_write(to, t, strip + (size_t)t * cols);
        for (int t = 0; !y.data && t < y.rows; t++) raise_absmax(total, largest_magnitude(strip + (size_t)t * cols, cols, 0));
    }
}

static void rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* total) {
    check_float(x, "rotate");
    check(axis != ROTATE_NONE && (y.data || total), "rotate: nothing to do");
    if (axis == ROTATE_COLS) rotate_features(y, x, transpose, total);
    else rotate_tokens(y, x, transpose, block, total);
    if (y.data && total) absmax(total, y);
}

// Called by a producer after it has written y: finds the maximum that `prep` asks for.
static void finish(Mat y, Prep prep) {
    if (!prep.absmax) return;
    if (!prep.rotate) absmax(prep.absmax, y);
    else rotate(mat(NULL, y.rows, y.cols, y.fmt), y, ROTATE_COLS, false, 0, prep.absmax);
}

#endif
