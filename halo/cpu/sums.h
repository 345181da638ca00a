// Element-wise sums and conversions, and the norm of the gradient.
#ifndef HALO_CPU_SUMS_H
#define HALO_CPU_SUMS_H

#include "../rng.h"
#include "rows.h"

static void add(Mat y, Mat x, const Noise* noise) {
    check_shape(x, x.rows, x.cols, "add");
    check_shape(y, x.rows, x.cols, "add");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) {
        float* total = work_floats(&work, (size_t)x.cols * 3);
        const float *a = row_read(y, t, total + x.cols), *b = row_read(x, t, total + 2 * (size_t)x.cols);
        for (int c = 0; c < x.cols; c++) total[c] = a[c] + b[c];
        if (!noise || y.fmt == F32) {
            row_write(y, t, total);
            continue;
        }
        uint16_t* out = (uint16_t*)row_data(y, t);
        uint64_t first = noise->offset + (uint64_t)t * (uint64_t)x.cols;
        for (int c = 0; c < x.cols; c++)
            out[c] = bf16_from_f32_stochastic(total[c], noise_of_value(noise->seed, first + (uint64_t)c, kGradNoise, noise->stream));
    }
}

static void convert(Mat y, Mat x) {
    check_shape(x, x.rows, x.cols, "convert");
    check_shape(y, x.rows, x.cols, "convert");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) row_write(y, t, row_read(x, t, work_floats(&work, (size_t)x.cols)));
}

// One double for each row; then the rows' sums are added in order.
static void sum_squares(float* total, Mat x) {
    check_shape(x, x.rows, x.cols, "sum_squares");
    static __thread WorkBuffer work, row_sums;
    double* of_row = (double*)work_bytes(&row_sums, (size_t)x.rows * sizeof(double));
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) {
        const float* row = row_read(x, t, work_floats(&work, (size_t)x.cols));
        of_row[t] = dot(row, row, x.cols);
    }
    double rows = 0;
    for (int t = 0; t < x.rows; t++) rows += of_row[t];
    *total = (float)(*total + rows);
}

static float row_squares(const float* x, int n) {
    float sums[kRowSums] = {0};
    int c = 0;
    for (; c + kRowSums <= n; c += kRowSums)
        for (int l = 0; l < kRowSums; l++) sums[l] += x[c + l] * x[c + l];
    for (int l = 0; c + l < n; l++) sums[l] += x[c + l] * x[c + l];
    if (n == 1) return sums[0];
    for (int step = 4; step > 0; step /= 2)
        for (int octet = 0; octet < kRowSums; octet += 8)
            for (int i = octet; i < octet + step; i++) sums[i] += sums[i + step];
    for (int step = kRowSums / 2; step >= 8; step /= 2)
        for (int octet = 0; octet < step; octet += 8) sums[octet] += sums[octet + step];
    return sums[0];
}

static void sum_row_squares(WideSum* total, Mat x) {
    check_shape(x, x.rows, x.cols, "sum_row_squares");
    static __thread WorkBuffer work, row_sums;
    float* of_row = work_floats(&row_sums, (size_t)x.rows);
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) of_row[t] = row_squares(row_read(x, t, work_floats(&work, (size_t)x.cols)), x.cols);
    uint64_t digits[kWideDigits] = {0};
    for (int t = 0; t < x.rows; t++) {
        uint32_t parts[kWideParts];
        int first = wide_parts(of_row[t], parts);
        for (int i = 0; i < kWideParts && first + i < kWideDigits; i++) digits[first + i] += parts[i];
    }
    wide_add(total, digits);
}

static void clip_scale(float* scale, const WideSum* sum_of_squares, float max_norm) {
    float norm = (float)sqrt(wide_value(*sum_of_squares));
    *scale = !isfinite(norm) ? 0.0f : max_norm > 0 && norm > max_norm ? max_norm / norm : 1.0f;
}

#endif
