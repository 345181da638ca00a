// Cross entropy: loss = log(sum over v of e^x_v) - x_label;  d loss / d x_v = softmax(x)_v - [v is the label]
#ifndef HALO_CPU_LOSS_H
#define HALO_CPU_LOSS_H

#include "rows.h"

static void cross_entropy(float* loss, Mat logits, const int* labels, const float* scale) {
    check_shape(logits, logits.rows, logits.cols, "cross_entropy");
    static __thread WorkBuffer work;
    int V = logits.cols;
#pragma omp parallel for schedule(static)
    for (int t = 0; t < logits.rows; t++) {
        int label = labels[t];
        bool counted = label != -100;
        check(!counted || (label >= 0 && label < V), "cross_entropy: label %d in row %d, vocabulary %d", label, t, V);
        float* p = work_floats(&work, (size_t)V * 2);
        loss[t] = 0;
        if (counted) {
            const float* x = row_read(logits, t, p + V);
            float largest = largest_value(x, V);
            for (int v = 0; v < V; v++) p[v] = exp_f32(x[v] - largest);
            double total = sum(p, V);
            loss[t] = (float)(log(total) + largest - x[label]);
            if (!scale) continue;
            float factor = (float)(*scale / total);
            for (int v = 0; v < V; v++) p[v] *= factor;
            p[label] -= *scale;
        } else {
            memset(p, 0, (size_t)V * sizeof(float));
        }
        if (scale) row_write(logits, t, p);
    }
}

static void argmax(int* best, Mat logits) {
    check(logits.fmt == F32, "argmax: logits in %s", fmt_name(logits.fmt));
#pragma omp parallel for schedule(static)
    for (int t = 0; t < logits.rows; t++) {
        const float* x = (const float*)row_data(logits, t);
        float largest = -INFINITY;
        best[t] = 0;
        for (int v = 0; v < logits.cols; v++)
            if (x[v] > largest) largest = x[v], best[t] = v;
    }
}

#endif
