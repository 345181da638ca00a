// SwiGLU (Shazeer 2020): y = silu(gate) * up, silu(g) = g * sigma(g).
//   dgate = dy * up * sigma * (1 + g (1 - sigma))      dup = dy * silu(g)
#ifndef HALO_CPU_SWIGLU_H
#define HALO_CPU_SWIGLU_H

#include "rotate.h"

static void swiglu_forward(Mat y, Mat gate_up, Prep prep) {
    int F = y.cols;
    check_shape(y, y.rows, F, "swiglu_forward");
    check_shape(gate_up, y.rows, 2 * F, "swiglu_forward");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < y.rows; t++) {
        float* out = work_floats(&work, (size_t)F * 3);
        const float *gate = row_read(gate_up, t, out + F), *up = gate + F;
        for (int f = 0; f < F; f++) out[f] = gate[f] / (1.0f + exp_f32(-gate[f])) * up[f];
        row_write(y, t, out);
    }
    finish(y, prep);
}

static void swiglu_backward(Mat dgate_up, Mat dy, Mat gate_up, float* largest) {
    int F = dy.cols;
    check_shape(dy, dy.rows, F, "swiglu_backward");
    check_shape(gate_up, dy.rows, 2 * F, "swiglu_backward");
    check_shape(dgate_up, dy.rows, 2 * F, "swiglu_backward");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < dy.rows; t++) {
        float *dgate = work_floats(&work, (size_t)F * 5), *dup = dgate + F;   // written at the end: dgate_up may be gate_up
        const float *gate = row_read(gate_up, t, dgate + 2 * F), *up = gate + F, *g = row_read(dy, t, dgate + 4 * F);
        for (int f = 0; f < F; f++) {
            float sigma = 1.0f / (1.0f + exp_f32(-gate[f]));
            dgate[f] = g[f] * up[f] * sigma * (1.0f + gate[f] * (1.0f - sigma));
            dup[f] = g[f] * gate[f] * sigma;
        }
        row_write(dgate_up, t, dgate);
    }
    for (int half = 0; largest && half < 2; half++) absmax(largest + half, mat_cols(dgate_up, half * F, F));
}

#endif
