// AdamW (see AdamW in ops.h) in FP32. State kept in BF16, and a BF16 weight without a master copy, are rounded
// stochastically: rounding to nearest would lose every update smaller than half a unit in the last place.
//
// Bytes per value: 14 with everything in BF16 and no master copy, 30 with a master copy and everything else in FP32. All in all some
// 80 instructions a value, half of them for the noise (one Philox an octet for each of up to three stores), where an H100 could issue
// 150 while it moves 14 bytes. The next octet is loaded before this one is worked on, so that memory never waits for instructions.
//
// Every operation is written as one rounding, so that no two are contracted: the bits are those of the CPU's adamw. m and v of a value
// that never had a gradient (most rows of an embedding) are zero and stay so: they are not written, and the weight only decays.
#ifndef HALO_CUDA_ADAMW_CUH
#define HALO_CUDA_ADAMW_CUH

#include "ptx.cuh"
#include "stochastic.cuh"

enum { kAdamWThreads = 128, kAdamWResident = 5, kAdamWTurns = 4 };   // resident: blocks of a multiprocessor; turns: groups of a thread, at least

struct AdamWConstants {
    float beta1, beta2, one_minus_beta1, one_minus_beta2, unbias_m, unbias_v, lr, eps, weight_decay;
    bool moderate_eps;   // eps is within kAdamWEps
    const float* grad_scale;
    Noise noise;
};

// The ranges of v / (1-b2^t), of |m| / (1-b1^t) and of eps in which moderate_sqrt and moderate_quotient (ptx.cuh) are exact: the divisor is
// then between 2^-38 and 2^41, and the quotient between 2^-121 and 2^98.
struct AdamWRange {
    float from, to;
};
static constexpr AdamWRange kAdamWSquare = {0x1p-100f, 0x1p80f}, kAdamWMean = {0x1p-80f, 0x1p60f}, kAdamWEps = {0x1p-38f, 0x1p40f};

// Takes m, v and w one step on. kModerate: by the moderate functions; returns false if a value was out of their ranges, and then m, v and w
// mean nothing.
template <bool kModerate, int kWidth>
__device__ inline bool adamw_values(Values<kWidth>& m, Values<kWidth>& v, Values<kWidth>& w, const Values<kWidth>& g, float grad_scale,
                                    const AdamWConstants& a) {
    bool holds = true;
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
        float scaled = __fmul_rn(g.v[i], grad_scale);
        m.v[i] = __fadd_rn(__fmul_rn(a.beta1, m.v[i]), __fmul_rn(a.one_minus_beta1, scaled));
        v.v[i] = __fadd_rn(__fmul_rn(a.beta2, v.v[i]), __fmul_rn(__fmul_rn(a.one_minus_beta2, scaled), scaled));
        float mean = __fmul_rn(m.v[i], a.unbias_m), square = __fmul_rn(v.v[i], a.unbias_v);
        float root = __fadd_rn(kModerate ? moderate_sqrt(square) : __fsqrt_rn(square), a.eps);
        float direction = kModerate ? moderate_quotient(mean, root) : __fdiv_rn(mean, root);
        float update = __fadd_rn(direction, __fmul_rn(a.weight_decay, w.v[i]));
        w.v[i] = __fsub_rn(w.v[i], __fmul_rn(a.lr, update));
        holds = holds & (square >= kAdamWSquare.from) & (square <= kAdamWSquare.to) & (fabsf(mean) >= kAdamWMean.from) &
                (fabsf(mean) <= kAdamWMean.to);
    }
    return holds;
}

template <typename Grad, typename State>
struct AdamWArrays {
    bf16* param;
    float* master;   // NULL: param is the weight
    const Grad* grad;
    State *m, *v;
};

// One group of kWidth values of the four arrays, as they lie in memory.
template <int kWidth, bool kMaster, typename Grad, typename State>
struct AdamWGroup {
    typename InMemory<kWidth, Grad>::Type g;
    typename InMemory<kWidth, State>::Type m, v;
    typename InMemory<kWidth, typename std::conditional<kMaster, float, bf16>::type>::Type w;
    __device__ void load(const AdamWArrays<Grad, State>& x, size_t first) {
        g = load_packed<kWidth>(x.grad + first);
        m = load_packed<kWidth>(x.m + first);
        v = load_packed<kWidth>(x.v + first);
        if constexpr (kMaster) w = load_packed<kWidth>(x.master + first);
        else w = load_packed<kWidth>(x.param + first);
    }
};

// Block b has groups [b, b + 1) * kAdamWThreads * turns, and adds to square_sums[b]: the number of values alone decides on the sum's order.
template <int kWidth, bool kMaster, typename Grad, typename State>
__global__ void __launch_bounds__(kAdamWThreads, kAdamWResident)
adamw_kernel(AdamWArrays<Grad, State> x, size_t groups, int turns, float* square_sums, AdamWConstants a) {
    float grad_scale = a.grad_scale ? *a.grad_scale : 1.0f, squares = 0;
    if (grad_scale == 0) return;
    size_t n = (size_t)blockIdx.x * kAdamWThreads * turns + threadIdx.x;
    AdamWGroup<kWidth, kMaster, Grad, State> next;
    if (n < groups) next.load(x, n * kWidth);
    for (int turn = 0; turn < turns && n < groups; turn++, n += kAdamWThreads) {
        auto group = next;
        size_t first = n * kWidth;
        if (turn + 1 < turns && n + kAdamWThreads < groups) next.load(x, first + kAdamWThreads * kWidth);

        Values<kWidth> g = unpack(group.g), m = unpack(group.m), v = unpack(group.v), w = unpack(group.w);
        bool untouched = all_zero(group.g) && all_zero(group.m) && all_zero(group.v) && a.eps > 0;
        if (untouched) {
            if (a.weight_decay == 0) continue;
#pragma unroll
            for (int i = 0; i < kWidth; i++) w.v[i] = __fsub_rn(w.v[i], __fmul_rn(a.lr, __fmul_rn(a.weight_decay, w.v[i])));
        } else {
#pragma unroll
            for (int i = 0; i < kWidth; i++) squares += g.v[i] * g.v[i];
            bool moderate = a.moderate_eps && adamw_values<true>(m, v, w, g, grad_scale, a);
            if (!moderate) {
                group.load(x, first);   // loaded once more rather than kept in registers for this rare case
                g = unpack(group.g), m = unpack(group.m), v = unpack(group.v), w = unpack(group.w);
                adamw_values<false>(m, v, w, g, grad_scale, a);
            }
            store_stochastic(x.m + first, m, a.noise, first, kMNoise, moderate);
            store_stochastic(x.v + first, v, a.noise, first, kVNoise, moderate);
        }
        if constexpr (kMaster) {
            store_values(x.master + first, w);
            store_values(x.param + first, w);
        } else {
            store_stochastic(x.param + first, w, a.noise, first, kParamNoise);
        }
    }
    if (!square_sums) return;
    squares = block_sum(squares);
    if (threadIdx.x == 0) square_sums[blockIdx.x] += squares;
}

// Values [first, first + count) of a; count is a multiple of kWidth.
template <int kWidth, bool kMaster, typename Grad, typename State>
static void launch_adamw(const AdamW* a, AdamWConstants constants, size_t first, size_t count) {
    if (count == 0) return;
    size_t groups = count / kWidth, all_threads = (size_t)kAdamWThreads * kSquareSums;
    int turns = max_int(kAdamWTurns, (int)((groups + all_threads - 1) / all_threads));
    int blocks = (int)((groups + (size_t)kAdamWThreads * turns - 1) / ((size_t)kAdamWThreads * turns));
    AdamWArrays<Grad, State> x = {(bf16*)a->param + first, kMaster ? a->master + first : NULL, (const Grad*)a->grad + first,
                                  (State*)a->m + first, (State*)a->v + first};
    constants.noise.offset += first;
    LAUNCH((adamw_kernel<kWidth, kMaster, Grad, State>), blocks, kAdamWThreads, 0, x, groups, turns, a->square_sums, constants);
}

// Whole octets by one launch, the values left over one by one by another.
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
    check_adamw_args(a);
    float unbias_m = (float)(1 / (1 - pow((double)a->beta1, (double)a->step)));
    float unbias_v = (float)(1 / (1 - pow((double)a->beta2, (double)a->step)));
    AdamWConstants constants = {a->beta1, a->beta2, 1 - a->beta1, 1 - a->beta2, unbias_m, unbias_v, a->lr, a->eps, a->weight_decay,
                                a->eps >= kAdamWEps.from && a->eps <= kAdamWEps.to, a->grad_scale, a->noise};
    a->master ? launch_adamw_formats<true>(a, constants) : launch_adamw_formats<false>(a, constants);
}

#endif
