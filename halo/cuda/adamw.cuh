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

// What one update works on.
template <typename Grad, typename State>
struct AdamWArrays {
    bf16* param;
    float* master;   // NULL: param is the weight
    const Grad* grad;
    State *m, *v;
    size_t groups;
    uint64_t noise_offset;
    float weight_decay;
    int first_block;
};

// The kernel's argument, of which there may be 4 KiB.
template <typename Grad, typename State>
struct AdamWLaunch {
    AdamWArrays<Grad, State> update[kUpdatesAtOnce];   // in the order of their blocks
    int count, turns;
    float* square_sums;
    AdamWConstants constants;
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

// Block b of an update has its groups [b, b + 1) * kAdamWThreads * turns. A block adds to square_sums by its number in the launch: the numbers
// of values alone decide on the sum's order.
template <int kWidth, bool kMaster, typename Grad, typename State>
__global__ void __launch_bounds__(kAdamWThreads, kAdamWResident) adamw_kernel(const __grid_constant__ AdamWLaunch<Grad, State> launch) {
    AdamWConstants a = launch.constants;
    float grad_scale = a.grad_scale ? *a.grad_scale : 1.0f, squares = 0;
    if (grad_scale == 0) return;
    int update = 0, turns = launch.turns;
#pragma unroll
    for (int step = kUpdatesAtOnce / 2; step > 0; step /= 2)
        if (update + step < launch.count && (int)blockIdx.x >= launch.update[update + step].first_block) update += step;
    const AdamWArrays<Grad, State> x = launch.update[update];
    size_t groups = x.groups, n = (size_t)(blockIdx.x - x.first_block) * kAdamWThreads * turns + threadIdx.x;
    a.noise.offset = x.noise_offset;
    a.weight_decay = x.weight_decay;
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
    if (!launch.square_sums) return;
    squares = block_sum(squares);
    if (threadIdx.x == 0) launch.square_sums[blockIdx.x] += squares;
}

// Values [0, whole) of an update are octets.
static size_t whole_octets(const AdamW& a) {
    bool octets = is_octets(a.param, 8, 8) && is_octets(a.master, 8, 8) && is_octets(a.grad, 8, 8) && is_octets(a.m, 8, 8) &&
                  is_octets(a.v, 8, 8) && a.noise.offset % kNoiseOctet == 0;
    return octets ? a.n / 8 * 8 : 0;
}

// The whole octets of all updates (kWidth 8), or their values left over (1).
template <int kWidth, bool kMaster, typename Grad, typename State>
static void launch_adamw(const AdamW* updates, int count, AdamWConstants constants) {
    AdamWLaunch<Grad, State> launch = {};
    size_t all_groups = 0, most_threads = (size_t)kAdamWThreads * (kSquareSums - kUpdatesAtOnce);   // an update's last block may be part empty
    for (int i = 0; i < count; i++) {
        const AdamW& a = updates[i];
        size_t whole = whole_octets(a), first = kWidth == 8 ? 0 : whole, groups = (kWidth == 8 ? whole : a.n - whole) / kWidth;
        if (groups == 0) continue;
        all_groups += groups;
        launch.update[launch.count++] = {(bf16*)a.param + first, kMaster ? a.master + first : NULL, (const Grad*)a.grad + first,
                                         (State*)a.m + first, (State*)a.v + first, groups, a.noise.offset + first, a.weight_decay, 0};
    }
    if (launch.count == 0) return;
    launch.turns = max_int(kAdamWTurns, (int)((all_groups + most_threads - 1) / most_threads));
    size_t groups_a_block = (size_t)kAdamWThreads * launch.turns;
    int blocks = 0;
    for (int i = 0; i < launch.count; i++) {
        launch.update[i].first_block = blocks;
        blocks += (int)((launch.update[i].groups + groups_a_block - 1) / groups_a_block);
    }
    launch.square_sums = updates->square_sums;
    launch.constants = constants;
    LAUNCH((adamw_kernel<kWidth, kMaster, Grad, State>), blocks, kAdamWThreads, 0, launch);
}

template <bool kMaster, typename Grad, typename State>
static void launch_adamw_all(const AdamW* updates, int count, AdamWConstants c) {
    launch_adamw<8, kMaster, Grad, State>(updates, count, c);
    launch_adamw<1, kMaster, Grad, State>(updates, count, c);
}
template <bool kMaster, typename Grad>
static void launch_adamw_states(const AdamW* updates, int count, AdamWConstants c) {
    if (updates->state_fmt == F32) launch_adamw_all<kMaster, Grad, float>(updates, count, c);
    else launch_adamw_all<kMaster, Grad, bf16>(updates, count, c);
}
template <bool kMaster>
static void launch_adamw_formats(const AdamW* updates, int count, AdamWConstants c) {
    if (updates->grad_fmt == F32) launch_adamw_states<kMaster, float>(updates, count, c);
    else launch_adamw_states<kMaster, bf16>(updates, count, c);
}

static void adamw(const AdamW* updates, int count) {
    check_adamw_args(updates, count);
    const AdamW* a = updates;
    float unbias_m = (float)(1 / (1 - pow((double)a->beta1, (double)a->step)));
    float unbias_v = (float)(1 / (1 - pow((double)a->beta2, (double)a->step)));
    AdamWConstants constants = {a->beta1, a->beta2, 1 - a->beta1, 1 - a->beta2, unbias_m, unbias_v, a->lr, a->eps, 0,
                                a->eps >= kAdamWEps.from && a->eps <= kAdamWEps.to, a->grad_scale, a->noise};
    a->master ? launch_adamw_formats<true>(updates, count, constants) : launch_adamw_formats<false>(updates, count, constants);
}

#endif
