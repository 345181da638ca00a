// Cross entropy: loss = log(sum over v of e^x_v) - x_label;  d loss / d x_v = softmax(x)_v - [v is the label]
//
// Bytes per logit: 2 without gradient; with it 6 (read twice, written once), of which memory sees 4 as long as the second
// read finds the row in the L2: it runs from the end to the beginning, what came last comes first. At 3 TB/s and V = 128256,
// 1024 tokens: 88 us without and 175 us with gradient.
//
// One block a row, two blocks an SM: one computes while the other waits. A thread has kLossBatch loads on their way, and keeps
// the maximum of what it has seen and the sum of exponentials below that maximum; the pairs are merged over lanes and warps in
// a fixed order. The gradient replaces the logits.
#ifndef HALO_CUDA_LOSS_CUH
#define HALO_CUDA_LOSS_CUH

#include "device.cuh"

#include <float.h>

enum { kNotCounted = -100, kLossThreads = 512, kLossBatch = 4 };

// sum = the sum of e^(x - largest). Finite from the start: -inf - -inf would be NaN.
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

template <int kWidth>
__global__ void __launch_bounds__(kLossThreads, 2)
cross_entropy_kernel(float* loss, Rows<bf16> logits, const int* labels, int V, float scale, bool want_grad) {
    __shared__ SoftmaxSum of_warp[kWarp];
    size_t t = blockIdx.x;
    bf16* x = logits[t];
    int label = labels[t], stride = blockDim.x * kWidth, begin = threadIdx.x * kWidth;
    if (label == kNotCounted) {
        if (threadIdx.x == 0) loss[t] = 0;
        Values<kWidth> zero = {};
        if (want_grad)
            for (int v = begin; v < V; v += stride) store_values(x + v, zero);
        return;
    }
    if (label < 0 || label >= V) __trap();
    float at_label = f32_from_bf16(x[label]);

    SoftmaxSum s = {-FLT_MAX, 0};
    Packed<kWidth> batch[kLossBatch];
    for (int from = begin; from < V; from += kLossBatch * stride) {
#pragma unroll
        for (int k = 0; k < kLossBatch; k++)
            if (from + k * stride < V) batch[k] = load_packed<kWidth>(x + from + k * stride);
#pragma unroll
        for (int k = 0; k < kLossBatch; k++) {
            if (from + k * stride >= V) continue;
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
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    s = warp_merged(s);
    if (lane == 0) of_warp[warp] = s;
    __syncthreads();
    SoftmaxSum none = {-FLT_MAX, 0};
    s = warp_merged(lane < (int)blockDim.x / kWarp ? of_warp[lane] : none);
    if (threadIdx.x == 0) loss[t] = logf(s.sum) + s.largest - at_label;
    if (!want_grad) return;

    float factor = scale / s.sum;
    int batches = V > begin ? (V - 1 - begin) / (kLossBatch * stride) + 1 : 0;
    for (int n = batches - 1; n >= 0; n--) {
        int from = begin + n * kLossBatch * stride;
#pragma unroll
        for (int k = 0; k < kLossBatch; k++)
            if (from + k * stride < V) batch[k] = load_packed<kWidth>(x + from + k * stride);
#pragma unroll
        for (int k = 0; k < kLossBatch; k++) {
            int v = from + k * stride;
            if (v >= V) continue;
            Values<kWidth> p = unpack(batch[k]);
#pragma unroll
            for (int i = 0; i < kWidth; i++) {
                p.v[i] = __expf(p.v[i] - s.largest) * factor;
                if (v + i == label) p.v[i] -= scale;
            }
            store_values(x + v, p);
        }
    }
}

template <int kWidth>
static void launch_cross_entropy(float* loss, Mat logits, const int* labels, float scale, bool want_grad) {
    int V = logits.cols;
    LAUNCH((cross_entropy_kernel<kWidth>), logits.rows, threads_for(ceil_div(V, kWidth), kLossThreads), 0, loss, rows_of<bf16>(logits),
           labels, V, scale, want_grad);
}
static void cross_entropy(float* loss, Mat logits, const int* labels, float scale, bool want_grad) {
    check_bf16(logits, logits.rows, logits.cols, "cross_entropy");
    if (is_octets(logits)) launch_cross_entropy<8>(loss, logits, labels, scale, want_grad);
    else launch_cross_entropy<1>(loss, logits, labels, scale, want_grad);
}

#endif
