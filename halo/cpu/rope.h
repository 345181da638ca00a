// Rotary embedding (Su et al. 2021), rotate-half layout: the pair (a, b) = (x[j], x[j + HD/2]) turns by the angle of its
// position. Turning back is the transpose, so the backward pass is the inverse rotation of the gradient.
#ifndef HALO_CPU_ROPE_H
#define HALO_CPU_ROPE_H

#include "rotate.h"

static void rope(Mat qkv, const float* cos_sin, const int* pos, int NH, int NKV, int HD, bool inverse, float* largest) {
    check_shape(qkv, qkv.rows, (NH + 2 * NKV) * HD, "rope");
    check(HD % 2 == 0, "rope: head_dim %d is odd", HD);
    static __thread WorkBuffer work;
    Mat qk = mat_cols(qkv, 0, (NH + NKV) * HD);
    int half = HD / 2;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < qk.rows; t++) {
        float* x = work_floats(&work, (size_t)qk.cols);
        values_read(x, row_data(qk, t), (size_t)qk.cols, qk.fmt);
        const float *cosine = cos_sin + (size_t)pos[t] * HD, *sine = cosine + half;
        for (int h = 0; h < NH + NKV; h++) {
            float *a = x + (size_t)h * HD, *b = a + half;
            for (int j = 0; j < half; j++) {
                float s = inverse ? -sine[j] : sine[j], turned = a[j] * cosine[j] - b[j] * s;
                b[j] = b[j] * cosine[j] + a[j] * s;
                a[j] = turned;
            }
        }
        row_write(qk, t, x);
    }
    const int heads[3] = {NH, NKV, NKV};
    for (int part = 0, first = 0; largest && part < 3; first += heads[part++]) absmax(largest + part, mat_cols(qkv, first * HD, heads[part] * HD));
}

#endif
