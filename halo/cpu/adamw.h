// AdamW (see AdamW in ops.h) in FP32. State kept in BF16, and a BF16 weight without a master copy, are rounded
// stochastically: rounding to nearest would lose every update smaller than half a unit in the last place.
#ifndef HALO_CPU_ADAMW_H
#define HALO_CPU_ADAMW_H

#include "sums.h"

static inline float load(const void* x, size_t i, Fmt fmt) {
    return fmt == F32 ? ((const float*)x)[i] : f32_from_bf16(((const uint16_t*)x)[i]);
}
static inline void store_stochastic(void* x, size_t i, Fmt fmt, float value, const AdamW* a, int use) {
    if (fmt == F32) ((float*)x)[i] = value;
    else ((uint16_t*)x)[i] = bf16_from_f32_stochastic(value, noise_of_value(a->noise.seed, a->noise.offset + i, use, a->noise.stream));
}

// Adds the whole sum to square_sums[0]. The gradient is viewed as rows, which `sum_squares` divides among its threads.
static void adamw_sum_squares(const AdamW* a) {
    enum { kRow = 4096 };
    int rows = (int)(a->n / kRow), rest = (int)(a->n % kRow);
    if (rows) sum_squares(a->square_sums, mat((void*)a->grad, rows, kRow, a->grad_fmt));
    if (rest) sum_squares(a->square_sums, mat((char*)a->grad + (size_t)rows * kRow * fmt_bytes(a->grad_fmt), 1, rest, a->grad_fmt));
}

static void adamw_update(const AdamW* a) {
    float unbias_m = (float)(1 / (1 - pow(a->beta1, a->step))), unbias_v = (float)(1 / (1 - pow(a->beta2, a->step)));
    float grad_scale = a->grad_scale ? *a->grad_scale : 1;
    if (grad_scale == 0) return;
    if (a->square_sums) adamw_sum_squares(a);
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < a->n; i++) {
        float g = load(a->grad, i, a->grad_fmt) * grad_scale;
        float m = a->beta1 * load(a->m, i, a->state_fmt) + (1 - a->beta1) * g;
        float v = a->beta2 * load(a->v, i, a->state_fmt) + (1 - a->beta2) * g * g;
        float w = a->master ? a->master[i] : load(a->param, i, kAct);
        w -= a->lr * ((m * unbias_m) / (sqrtf(v * unbias_v) + a->eps) + a->weight_decay * w);
        store_stochastic(a->m, i, a->state_fmt, m, a, kMNoise);
        store_stochastic(a->v, i, a->state_fmt, v, a, kVNoise);
        if (a->master) {
            a->master[i] = w;
            values_write((char*)a->param + i * fmt_bytes(kAct), &w, 1, kAct);
        } else {
            store_stochastic(a->param, i, kAct, w, a, kParamNoise);
        }
    }
}

static void adamw(const AdamW* updates, int count) {
    check_adamw_args(updates, count);
    for (int i = 0; i < count; i++) adamw_update(&updates[i]);
}

#endif
