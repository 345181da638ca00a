// Dropout (Srivastava et al. 2014), and products value by value, as adapters need them; see ops.h.
#ifndef HALO_CPU_DROPOUT_H
#define HALO_CPU_DROPOUT_H

#include "../rng.h"
#include "rows.h"

static void dropout(Mat y, Mat x, float p, const Noise* noise) {
    check_shape(x, x.rows, x.cols, "dropout");
    check_shape(y, x.rows, x.cols, "dropout");
    check(x.ld == x.cols && y.ld == y.cols && p >= 0 && p < 1, "dropout: p %g, rows of %d and %d", p, x.ld, y.ld);
    static __thread WorkBuffer work;
    uint32_t threshold = dropout_threshold(p);
    float scale = dropout_factor(p);
    const Noise n = noise_shifted(*noise, x.cols);
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) {
        float* out = work_floats(&work, (size_t)x.cols * 2);
        const float* in = row_read(x, t, out + x.cols);
        uint64_t octet = UINT64_MAX;
        Philox words = {{0, 0, 0, 0}};
        for (int c = 0; c < x.cols; c++) {
            out[c] = in[c] * scale;
            uint64_t index = n.offset + (uint64_t)t * (uint64_t)x.cols + (uint64_t)c;
            if (index / kNoiseOctet != octet) {
                octet = index / kNoiseOctet;
                words = noise_words(n.seed, octet, kDropNoise, n.stream);
            }
            if (noise_half(words, (int)(index % kNoiseOctet)) < threshold) out[c] = 0;
        }
        row_write(y, t, out);
    }
}

static void hadamard(Mat y, Mat x, Mat w, float factor, float offset) {
    check(x.fmt == F32 && x.ld == x.cols && y.ld == y.cols && w.ld == w.cols, "hadamard: (%d, %d) in %s", x.rows, x.cols, fmt_name(x.fmt));
    check_shape(y, x.rows, x.cols, "hadamard");
    check_shape(w, x.rows, x.cols, "hadamard");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < x.rows; t++) {
        float* out = work_floats(&work, (size_t)x.cols * 2);
        const float *in = (const float*)row_data(x, t), *by = row_read(w, t, out + x.cols);
        for (int c = 0; c < x.cols; c++) out[c] = by[c] * (offset + factor * in[c]);
        row_write(y, t, out);
    }
}

#endif
