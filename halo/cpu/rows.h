// What the CPU layers share: rows read as FP32 and written back rounded, work memory that a thread keeps, and two sums.
//
// A layer reads a row with row_read, works in FP32, and rounds once when it writes with row_write; a matrix that is FP32
// already is read in place. So the layers say nothing about formats, and dw may be FP32 beside BF16 activations.
#ifndef HALO_CPU_ROWS_H
#define HALO_CPU_ROWS_H

#include "../ops.h"

// ---- work memory: grows to the largest request and stays. Each user has its own, per thread:
//   static __thread WorkBuffer work;
typedef struct {
    void* data;
    size_t bytes;
} WorkBuffer;

static inline void* work_bytes(WorkBuffer* work, size_t bytes) {
    if (bytes > work->bytes) {
        free(work->data);
        work->bytes = round_up(bytes, 4096);
        work->data = aligned_alloc(64, work->bytes);
        check(work->data, "out of host memory: %zu bytes", bytes);
    }
    return work->data;
}
static inline float* work_floats(WorkBuffer* work, size_t n) { return (float*)work_bytes(work, n * sizeof(float)); }

// ---- rows
static inline void* row_data(Mat m, int i) { return (char*)m.data + (size_t)i * m.ld * fmt_bytes(m.fmt); }

static inline void values_read(float* out, const void* data, size_t n, Fmt fmt) {
    if (fmt == F32) {
        memcpy(out, data, n * sizeof(float));
    } else {
        const uint16_t* h = (const uint16_t*)data;
        for (size_t j = 0; j < n; j++) out[j] = f32_from_bf16(h[j]);
    }
}
static inline void values_write(void* data, const float* values, size_t n, Fmt fmt) {
    if (fmt == F32) {
        if (data != values) memcpy(data, values, n * sizeof(float));
    } else {
        uint16_t* h = (uint16_t*)data;
        for (size_t j = 0; j < n; j++) h[j] = bf16_from_f32(values[j]);
    }
}

// Row i as FP32: the matrix's own memory if it is F32, else converted into buffer (m.cols).
static inline const float* row_read(Mat m, int i, float* buffer) {
    if (m.fmt == F32) return (const float*)row_data(m, i);
    values_read(buffer, row_data(m, i), (size_t)m.cols, m.fmt);
    return buffer;
}
static inline void row_write(Mat m, int i, const float* values) {
    values_write(row_data(m, i), values, (size_t)m.cols, m.fmt);
}

static inline void check_float(Mat m, const char* op) {
    check(m.fmt == F32 || m.fmt == BF16, "%s: a matrix in %s", op, fmt_name(m.fmt));
}
static inline void check_shape(Mat m, int rows, int cols, const char* op) {
    check_float(m, op);
    check(m.rows == rows && m.cols == cols && m.ld >= cols, "%s: a matrix is (%d, %d) with rows of %d, not (%d, %d)", op,
          m.rows, m.cols, m.ld, rows, cols);
}

// ---- sums in double, in eight interleaved parts so that they vectorise without reordering
static inline double dot(const float* a, const float* b, int n) {
    double part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    int j = 0;
    for (; j + 8 <= n; j += 8)
        for (int l = 0; l < 8; l++) part[l] += (double)a[j + l] * b[j + l];
    for (; j < n; j++) part[j % 8] += (double)a[j] * b[j];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

static inline double sum(const float* x, int n) {
    double part[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    int j = 0;
    for (; j + 8 <= n; j += 8)
        for (int l = 0; l < 8; l++) part[l] += (double)x[j + l];
    for (; j < n; j++) part[j % 8] += (double)x[j];
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// ---- maxima; largest_magnitude lets a NaN win (see larger_magnitude), largest_value passes over it
static inline float largest_value(const float* x, int n) {
    float part[16], largest = -INFINITY;
    for (int l = 0; l < 16; l++) part[l] = -INFINITY;
    int j = 0;
    for (; j + 16 <= n; j += 16)
        for (int l = 0; l < 16; l++) part[l] = x[j + l] > part[l] ? x[j + l] : part[l];
    for (; j < n; j++) part[j % 16] = x[j] > part[j % 16] ? x[j] : part[j % 16];
    for (int l = 0; l < 16; l++) largest = part[l] > largest ? part[l] : largest;
    return largest;
}
static inline float largest_magnitude(const float* x, int n, float so_far) {
    uint32_t largest = f32_bits(so_far) & 0x7fffffffu;
    for (int j = 0; j < n; j++) {
        uint32_t magnitude = f32_bits(x[j]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return f32_from_bits(largest);
}
// *total becomes the larger of itself and value; threads may call it in any order.
static inline void raise_absmax(float* total, float value) {
#pragma omp critical(raise_absmax)
    *total = larger_magnitude(*total, value);
}

// exp(x) within 2 units in the last place, in a form that loops vectorise: x = n ln 2 + r, a polynomial in r (its Taylor
// terms; |r| <= 0.35), then 2^n put into the exponent bits. 0 below -87; above 88 it stays at exp(88). NaN stays NaN.
static inline float exp_f32(float x) {
    const float to_integer = 12582912.0f;   // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    float y = x > 88.0f ? 88.0f : x;
    y = y < -87.0f ? -87.0f : y;
    float shifted = y * 1.44269504f + to_integer;
    float n = shifted - to_integer;
    float r = (y - n * 0.693145752f) - n * 1.42860677e-6f;   // ln 2 in two parts, the first with few bits: n * it is exact
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = (p * r) * r + r;
    float result = f32_from_bits(f32_bits(p + 1.0f) + (f32_bits(shifted) << 23));
    return x < -87.0f ? 0.0f : result;
}

#endif
