// Embedding: rows of w (V,C) picked by token.
#ifndef HALO_CPU_EMBED_H
#define HALO_CPU_EMBED_H

#include "rows.h"

static void embed_forward(Mat y, Mat w, const int* tokens) {
    check_float(w, "embed_forward");
    check_shape(y, y.rows, w.cols, "embed_forward");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < y.rows; t++) {
        check(tokens[t] >= 0 && tokens[t] < w.rows, "embed_forward: token %d at %d, vocabulary %d", tokens[t], t, w.rows);
        row_write(y, t, row_read(w, tokens[t], work_floats(&work, (size_t)w.cols)));
    }
}

// One thread sums all positions of a token, in the order of `order`, in double.
static void embed_backward(Mat dw, Mat dy, const int* tokens, const int* order) {
    check_float(dw, "embed_backward");
    check_shape(dy, dy.rows, dw.cols, "embed_backward");
    static __thread WorkBuffer work;
    int C = dw.cols;
#pragma omp parallel for schedule(dynamic, 16)
    for (int first = 0; first < dy.rows; first++) {
        int token = tokens[order[first]];
        check(token >= 0 && token < dw.rows, "embed_backward: token %d at %d, vocabulary %d", token, order[first], dw.rows);
        if (first > 0 && tokens[order[first - 1]] == token) continue;   // not the token's first position
        double* sum = (double*)work_bytes(&work, (size_t)C * (sizeof(double) + sizeof(float)));
        float* buffer = (float*)(sum + C);
        memset(sum, 0, (size_t)C * sizeof(double));
        for (int n = first; n < dy.rows && tokens[order[n]] == token; n++) {
            const float* row = row_read(dy, order[n], buffer);
            for (int c = 0; c < C; c++) sum[c] += row[c];
        }
        const float* before = row_read(dw, token, buffer);
        for (int c = 0; c < C; c++) buffer[c] = (float)(before[c] + sum[c]);
        row_write(dw, token, buffer);
    }
}

#endif
