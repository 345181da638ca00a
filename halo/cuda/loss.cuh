// Cross entropy: loss = log(sum over v of e^x_v) - x_label;  d loss / d x_v = softmax(x)_v - [v is the label]
//
// Bytes per logit: 2 without gradient, 4 with it (read once, written once). At 3 TB/s and V = 128256, 1024 tokens: 88 us and 175 us.
//
// A block takes a row, one block an SM. A thread has kLossBatch loads on their way, and keeps the maximum x_max of its logits so far and
// the sum of e^(x - x_max); these pairs are merged over lanes and warps in a fixed order. The gradient replaces the logits: shared memory
// keeps as much of the row as fits (100k logits on an H100) until then, the rest is read again, from the L2 cache.
#ifndef HALO_CUDA_LOSS_CUH
#define HALO_CUDA_LOSS_CUH

#include "device.cuh"

#include <float.h>

enum { kNotCounted = -100, kLossThreads = 1024, kLossBatch = 4 };

// sum = the sum of e^(x - largest). `largest` starts at a finite value: -inf - -inf would be NaN.
struct SoftmaxSum {
    float largest, sum;
};
__device__ inline SoftmaxSum merged(SoftmaxSum a, SoftmaxSum b) {
    float largest = fmaxf(a.largest, b.largest);
    SoftmaxSum r = {largest, a.sum * __expf(a.largest - largest) + b.sum * __expf(b.largest - largest)};
    return r;
}
__device__ inline SoftmaxSum warp_merged(SoftmaxSum s) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        SoftmaxSum other = {__shfl_xor_sync(0xffffffffu, s.largest, step), __shfl_xor_sync(0xffffffffu, s.sum, step)};
        s = merged(s, other);
    }
    return s;
}

// The SoftmaxSum of this thread's logits of the row x of `groups` groups. The row's first `kept` groups are put into `row` (shared memory).
template <int kWidth>
__device__ __forceinline__ SoftmaxSum softmax_of_thread(Packed<kWidth>* row, const bf16* x, int groups, int kept) {
    int threads = blockDim.x;
    SoftmaxSum s = {-FLT_MAX, 0};
    Packed<kWidth> batch[kLossBatch];
    for (int from = threadIdx.x; from < groups; from += kLossBatch * threads) {
#pragma unroll
        for (int k = 0; k < kLossBatch; k++)
            if (from + k * threads < groups) batch[k] = load_packed<kWidth>(x + (from + k * threads) * kWidth);
#pragma unroll
        for (int k = 0; k < kLossBatch; k++) {
            int g = from + k * threads;
            if (g >= groups) continue;
            if (g < kept) row[g] = batch[k];
            Values<kWidth> in = unpack(batch[k]);
            float largest = s.largest, sum = 0;
#pragma unroll
            for (int i = 0; i < kWidth; i++) largest = fmaxf(largest, in.v[i]);
#pragma unroll
            for (int i = 0; i < kWidth; i++) sum += __expf(in.v[i] - largest);
            s.sum = s.sum * __expf(s.largest - largest) + sum;
            s.largest = largest;
        }
    }
    return s;
}

// The gradient of group g of the row x, over its logits. factor: scale / the sum of exponentials.
template <int kWidth>
__device__ __forceinline__ void store_gradient(bf16* x, int g, Packed<kWidth> logit, float largest, float factor, int label, float scale) {
    Values<kWidth> p = unpack(logit);
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
        p.v[i] = __expf(p.v[i] - largest) * factor;
        if (g * kWidth + i == label) p.v[i] -= scale;
    }
    store_values(x + g * kWidth, p);
}

// `kept` of the row's groups of kWidth logits stay in shared memory, from the first on.
template <int kWidth>
__global__ void __launch_bounds__(kLossThreads, 1)
cross_entropy_kernel(float* loss, Rows<bf16> logits, const int* labels, int V, int kept, float scale, bool want_grad) {
    __shared__ SoftmaxSum of_warp[kWarp];
    SHARED(Packed<kWidth>, row);
    size_t t = blockIdx.x;
    bf16* x = logits[t];
    int label = labels[t], groups = V / kWidth, threads = blockDim.x;
    if (label == kNotCounted) {
        if (threadIdx.x == 0) loss[t] = 0;
        Values<kWidth> zero = {};
        if (want_grad)
            for (int g = threadIdx.x; g < groups; g += threads) store_values(x + g * kWidth, zero);
        return;
    }
    if (label < 0 || label >= V) __trap();
    float at_label = f32_from_bf16(x[label]);

    SoftmaxSum s = softmax_of_thread(row, x, groups, kept);
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    s = warp_merged(s);
    if (lane == 0) of_warp[warp] = s;
    __syncthreads();
    SoftmaxSum none = {-FLT_MAX, 0};
    s = warp_merged(lane < threads / kWarp ? of_warp[lane] : none);
    if (threadIdx.x == 0) loss[t] = logf(s.sum) + s.largest - at_label;
    if (!want_grad) return;

    // No barrier: a thread reads only those groups from shared memory that it put there. The groups that are loaded again come first, since
    // they were loaded last and are the likeliest to be in the cache.
    float factor = scale / s.sum;
    auto gradient = [&](int g, Packed<kWidth> logit) { store_gradient(x, g, logit, s.largest, factor, label, scale); };
    int again = kept + (threadIdx.x - kept % threads + threads) % threads;   // this thread's first group behind the kept ones
#pragma unroll 4
    for (int g = again; g < groups; g += threads) gradient(g, load_packed<kWidth>(x + g * kWidth));
#pragma unroll 4
    for (int g = threadIdx.x; g < kept; g += threads) gradient(g, row[g]);
}

template <int kWidth>
static void launch_cross_entropy(float* loss, Mat logits, const int* labels, float scale, bool want_grad) {
    size_t room = shared_limit();
    allow_shared(cross_entropy_kernel<kWidth>, room);
    int groups = logits.cols / kWidth, kept = want_grad ? min_int(groups, (int)(room / sizeof(Packed<kWidth>))) : 0;
    LAUNCH((cross_entropy_kernel<kWidth>), logits.rows, threads_for(groups, kLossThreads), kept * sizeof(Packed<kWidth>), loss,
           rows_of<bf16>(logits), labels, logits.cols, kept, scale, want_grad);
}
static void cross_entropy(float* loss, Mat logits, const int* labels, float scale, bool want_grad) {
    check_bf16(logits, logits.rows, logits.cols, "cross_entropy");
    if (is_octets(logits)) launch_cross_entropy<8>(loss, logits, labels, scale, want_grad);
    else launch_cross_entropy<1>(loss, logits, labels, scale, want_grad);
}

// ---- the largest logit of a row: a block takes a row

struct Largest {
    float value;
    int at;
};
__device__ inline Largest larger(Largest a, Largest b) { return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a; }
__device__ inline Largest warp_largest(Largest x) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        Largest other = {__shfl_xor_sync(0xffffffffu, x.value, step), __shfl_xor_sync(0xffffffffu, x.at, step)};
        x = larger(x, other);
    }
    return x;
}

__global__ void __launch_bounds__(kLossThreads) argmax_kernel(int* best, const float* logits, int ld, int V) {
    __shared__ Largest of_warp[kWarp];
    const float* x = logits + (size_t)blockIdx.x * ld;
    const Largest none = {-INFINITY, 0};
    Largest mine = none;
    int threads = blockDim.x, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll 8
    for (int v = threadIdx.x; v < V; v += threads)
        if (x[v] > mine.value) mine.value = x[v], mine.at = v;
    mine = warp_largest(mine);
    if (lane == 0) of_warp[warp] = mine;
    __syncthreads();
    mine = warp_largest(lane < threads / kWarp ? of_warp[lane] : none);
    if (threadIdx.x == 0) best[blockIdx.x] = mine.at;
}

static void argmax(int* best, Mat logits) {
    check(logits.fmt == F32, "argmax: logits in %s", fmt_name(logits.fmt));
    LAUNCH(argmax_kernel, logits.rows, threads_for(logits.cols, kLossThreads), 0, best, (const float*)logits.data, logits.ld, logits.cols);
}

#endif
