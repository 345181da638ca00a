// Residual add + RMSNorm (Zhang & Sennrich 2019).
//   r = x + delta      y = w * r * rstd      rstd = (mean(r^2) + eps)^-1/2
//   dr += rstd * (w dy - r * rstd^2 * mean(w dy r))      dw += sum over rows of dy * r * rstd
#ifndef HALO_CPU_RMSNORM_H
#define HALO_CPU_RMSNORM_H

#include "rotate.h"

static void rmsnorm_forward(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, Prep prep) {
    int C = y.cols;
    Mat r = delta.data ? res : x;
    check_shape(y, y.rows, C, "rmsnorm_forward");
    check_shape(x, y.rows, C, "rmsnorm_forward");
    check_shape(r, y.rows, C, "rmsnorm_forward");
    check_shape(w, 1, C, "rmsnorm_forward");
    if (delta.data) check_shape(delta, y.rows, C, "rmsnorm_forward");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < y.rows; t++) {
        float* out = work_floats(&work, (size_t)C * 4);
        float *from_r = out + C, *from_delta = out + 2 * C, *from_w = out + 3 * C;
        if (delta.data) {
            const float *a = row_read(x, t, from_r), *b = row_read(delta, t, from_delta);
            for (int c = 0; c < C; c++) out[c] = a[c] + b[c];
            row_write(res, t, out);
        }
        const float *in = row_read(r, t, from_r), *scale = row_read(w, 0, from_w);   // read back: the norm is of the rounded sums
        rstd[t] = (float)(1.0 / sqrt(dot(in, in, C) / C + eps));
        for (int c = 0; c < C; c++) out[c] = in[c] * rstd[t] * scale[c];
        row_write(y, t, out);
    }
    finish(y, prep);
}

// dw's sum over rows is cut into parts of kNormRows rows, whatever the number of threads.
enum { kNormRows = 64 };

// (ceil(BT / kNormRows), C) doubles
static size_t rmsnorm_scratch(int BT, int C) { return (size_t)ceil_div(BT, kNormRows) * (size_t)C * sizeof(double); }

// dw (1,C) += the sums of its parts.
static void rmsnorm_add_dw(Mat dw, const double* parts, int count) {
    static __thread WorkBuffer work;
    int C = dw.cols;
    float* buffer = work_floats(&work, (size_t)C * 2);
    const float* before = row_read(dw, 0, buffer + C);
    for (int c = 0; c < C; c++) {
        double sum = 0;
        for (int p = 0; p < count; p++) sum += parts[(size_t)p * C + c];
        buffer[c] = (float)(before[c] + sum);
    }
    row_write(dw, 0, buffer);
}

static void rmsnorm_backward(Mat dres, Mat dw, Mat dy, Mat res, Mat w, const float* rstd, void* scratch, float* largest) {
    int rows = dres.rows, C = dres.cols, pieces = ceil_div(rows, kNormRows);
    check_shape(dres, rows, C, "rmsnorm_backward");
    check_shape(dy, rows, C, "rmsnorm_backward");
    check_shape(res, rows, C, "rmsnorm_backward");
    check_shape(w, 1, C, "rmsnorm_backward");
    if (dw.data) check_shape(dw, 1, C, "rmsnorm_backward");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int p = 0; p < pieces; p++) {
        double* dw_sum = dw.data ? (double*)scratch + (size_t)p * C : NULL;
        float* buffer = work_floats(&work, (size_t)C * 5);
        const float* scale = row_read(w, 0, buffer + C);
        if (dw_sum) memset(dw_sum, 0, (size_t)C * sizeof(double));
        for (int t = p * kNormRows; t < min_int((p + 1) * kNormRows, rows); t++) {
            const float *g = row_read(dy, t, buffer + 2 * C), *r = row_read(res, t, buffer + 3 * C);
            for (int c = 0; c < C; c++) buffer[c] = g[c] * scale[c];
            for (int c = 0; dw_sum && c < C; c++) dw_sum[c] += (double)(g[c] * r[c]) * rstd[t];
            float along_r = (float)(dot(buffer, r, C) / C * rstd[t] * rstd[t]);
            const float* before = row_read(dres, t, buffer + 4 * C);
            for (int c = 0; c < C; c++) buffer[c] = before[c] + rstd[t] * (buffer[c] - r[c] * along_r);
            row_write(dres, t, buffer);
        }
    }
    if (dw.data) rmsnorm_add_dw(dw, (const double*)scratch, pieces);
    if (largest) absmax(largest, dres);
}

#endif
