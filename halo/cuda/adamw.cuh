// AdamW (see AdamW in ops.h) in FP32. State kept in BF16, and a BF16 weight without a master copy, are rounded
// stochastically: rounding to nearest would lose every update smaller than half a unit in the last place.
//
// Bytes per value: 14 with everything in BF16 and no master copy, 30 with a master copy and everything else in FP32. The noise of an
// octet is one Philox for each of up to three stores, some 40 integer instructions a value; all in all about 90 a value, of the 130 that
// an H100 could issue while it moves 14 bytes.
//
// Every operation is written as one rounding, so that no two are contracted: the bits are those of the CPU's adamw.
#ifndef HALO_CUDA_ADAMW_CUH
#define HALO_CUDA_ADAMW_CUH

#include "stochastic.cuh"

struct AdamWConstants {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, unbias_m, unbias_v, lr, eps, weight_decay;
    const float* grad_scale;
    Noise noise;
};

template <int kWidth, bool kMaster, typename Grad, typename State>
__global__ void __launch_bounds__(256) adamw_kernel(bf16* param, float* master, const Grad* grad, State* m_state, State* v_state,
                                                   size_t groups, AdamWConstants a) {
    size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    float grad_scale = *a.grad_scale;
    if (n >= groups || grad_scale == 0) return;
    size_t first = n * kWidth;
    Values<kWidth> g = load_values<kWidth>(grad + first), m = load_values<kWidth>(m_state + first),
                   v = load_values<kWidth>(v_state + first), w;
    if constexpr (kMaster) w = load_values<kWidth>(master + first);
    else w = load_values<kWidth>(param + first);
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
        float scaled = __fmul_rn(g.v[i], grad_scale);
        m.v[i] = __fadd_rn(__fmul_rn(a.beta1, m.v[i]), __fmul_rn(a.one_minus_beta1, scaled));
        v.v[i] = __fadd_rn(__fmul_rn(a.beta2, v.v[i]), __fmul_rn(__fmul_rn(a.one_minus_beta2, scaled), scaled));
        float root = __fadd_rn(__fsqrt_rn(__fmul_rn(v.v[i], a.unbias_v)), a.eps);
        float update = __fadd_rn(__fdiv_rn(__fmul_rn(m.v[i], a.unbias_m), root), __fmul_rn(a.weight_decay, w.v[i]));
        w.v[i] = __fsub_rn(w.v[i], __fmul_rn(a.lr, update));
    }
    store_stochastic(m_state + first, m, a.noise, first, kMNoise);
    store_stochastic(v_state + first, v, a.noise, first, kVNoise);
    if constexpr (kMaster) {
        store_values(master + first, w);
        store_values(param + first, w);
    } else {
        store_stochastic(param + first, w, a.noise, first, kParamNoise);
    }
}

// Values [first, first + count) of a; count is a multiple of kWidth.
template <int kWidth, bool kMaster, typename Grad, typename State>
static void launch_adamw(const AdamW* a, AdamWConstants constants, size_t first, size_t count) {
    if (count == 0) return;
    size_t groups = count / kWidth, blocks = (groups + 255) / 256;
    check(blocks < (size_t)1 << 31, "adamw (cuda): %zu values are too many for one launch", a->n);
    constants.noise.offset += first;
    LAUNCH((adamw_kernel<kWidth, kMaster, Grad, State>), (unsigned)blocks, 256, 0, (bf16*)a->param + first,
           kMaster ? a->master + first : NULL, (const Grad*)a->grad + first, (State*)a->m + first, (State*)a->v + first, groups,
           constants);
}

// Octets as far as they go, and what is left one by one.
template <bool kMaster, typename Grad, typename State>
static void launch_adamw_all(const AdamW* a, AdamWConstants constants) {
    bool octets = is_octets(a->param, 8, 8) && is_octets(a->master, 8, 8) && is_octets(a->grad, 8, 8) && is_octets(a->m, 8, 8) &&
                  is_octets(a->v, 8, 8) && a->noise.offset % kNoiseOctet == 0;
    size_t whole = octets ? a->n / 8 * 8 : 0;
    launch_adamw<8, kMaster, Grad, State>(a, constants, 0, whole);
    launch_adamw<1, kMaster, Grad, State>(a, constants, whole, a->n - whole);
}
template <bool kMaster>
static void launch_adamw_formats(const AdamW* a, AdamWConstants c) {
    if (a->grad_fmt == F32) a->state_fmt == F32 ? launch_adamw_all<kMaster, float, float>(a, c) : launch_adamw_all<kMaster, float, bf16>(a, c);
    else a->state_fmt == F32 ? launch_adamw_all<kMaster, bf16, float>(a, c) : launch_adamw_all<kMaster, bf16, bf16>(a, c);
}

static void adamw(const AdamW* a) {
    check((a->grad_fmt == F32 || a->grad_fmt == BF16) && (a->state_fmt == F32 || a->state_fmt == BF16) && a->step >= 1,
          "adamw (cuda): gradient in %s, state in %s, step %d", fmt_name(a->grad_fmt), fmt_name(a->state_fmt), a->step);
    float unbias_m = (float)(1 / (1 - pow((double)a->beta1, (double)a->step)));
    float unbias_v = (float)(1 / (1 - pow((double)a->beta2, (double)a->step)));
    AdamWConstants constants = {a->beta1, a->beta2, 1 - a->beta1, 1 - a->beta2, unbias_m, unbias_v, a->lr, a->eps,
                                a->weight_decay, a->grad_scale, a->noise};
    a->master ? launch_adamw_formats<true>(a, constants) : launch_adamw_formats<false>(a, constants);
}

#endif
