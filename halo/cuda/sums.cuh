// Element-wise sums and conversions, and the norm of the gradient.
//
// Bytes per element: add 6 in BF16; convert 6; sum_squares 2 or 4, all of it read. Each is one pass at the copy bandwidth.
//
// A matrix without gaps between its rows is one long row. sum_squares is cut by the matrix's size alone: kSumOctets octets a
// thread, one partial sum a block, and a second kernel adds those in order in double, so the bits do not depend on the GPU.
#ifndef HALO_CUDA_SUMS_CUH
#define HALO_CUDA_SUMS_CUH

#include "stochastic.cuh"

enum { kSumThreads = 256 };

// ---- a matrix as groups of kWidth values, numbered row after row
struct Groups {
    size_t per_row, rows, count;
};
static inline Groups groups_of(Mat m, bool dense, int width) {
    size_t rows = dense ? 1 : (size_t)m.rows, cols = dense ? (size_t)m.rows * m.cols : (size_t)m.cols;
    Groups g = {cols / width, rows, rows * (cols / width)};
    return g;
}
static inline bool is_dense(Mat m) { return m.rows == 1 || m.ld == m.cols; }

template <int kWidth, typename T>
__device__ inline T* group_at(Rows<T> x, Groups g, size_t n) {
    return g.rows == 1 ? x.data + n * kWidth : x[n / g.per_row] + n % g.per_row * kWidth;
}

// ---- y += x
template <int kWidth, bool kStochastic, typename Y, typename X>
__global__ void __launch_bounds__(kSumThreads) add_kernel(Rows<Y> y, Rows<const X> x, Groups groups, Noise noise) {
    size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= groups.count) return;
    Y* to = group_at<kWidth>(y, groups, n);
    Values<kWidth> a = load_values<kWidth>(to), b = load_values<kWidth>(group_at<kWidth>(x, groups, n));
#pragma unroll
    for (int i = 0; i < kWidth; i++) a.v[i] += b.v[i];
    if (kStochastic) store_stochastic(to, a, noise, n * kWidth, kGradNoise);
    else store_values(to, a);
}

// ---- y = x in another format
template <int kWidth, typename Y, typename X>
__global__ void __launch_bounds__(kSumThreads) convert_kernel(Rows<Y> y, Rows<const X> x, Groups groups) {
    size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (n < groups.count) store_values(group_at<kWidth>(y, groups, n), load_values<kWidth>(group_at<kWidth>(x, groups, n)));
}

// ---- the sum of squares
template <int kWidth, typename X>
__global__ void __launch_bounds__(kSumThreads) sum_squares_kernel(float* partial, Rows<const X> x, Groups groups) {
    float sum[kWidth] = {};
    size_t stride = (size_t)gridDim.x * blockDim.x;
#pragma unroll 4
    for (size_t n = (size_t)blockIdx.x * blockDim.x + threadIdx.x; n < groups.count; n += stride) {
        Values<kWidth> v = load_values<kWidth>(group_at<kWidth>(x, groups, n));
#pragma unroll
        for (int i = 0; i < kWidth; i++) sum[i] += v.v[i] * v.v[i];
    }
    float total = 0;
#pragma unroll
    for (int i = 0; i < kWidth; i++) total += sum[i];
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
__global__ void __launch_bounds__(kSumThreads) add_partial_sums_kernel(float* total, const float* partial, int count) {
    __shared__ double sum[kSumThreads];
    double mine = 0;
    for (int i = threadIdx.x; i < count; i += kSumThreads) mine += partial[i];
    sum[threadIdx.x] = mine;
    for (int half = kSumThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) sum[threadIdx.x] += sum[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *total = (float)(*total + sum[0]);
}

// ---- the sums of squares of rows, a warp a row: lane l has octets l, l + 32, ... Each row's sum goes into the digits of its block,
// those into the tally, and the last block adds that to the total: integers, whose order does not matter.
struct WideTally {
    unsigned long long digit[kWideDigits];
    unsigned blocks_done;
};
static_assert(sizeof(WideTally) <= kWideTallyBytes && kRowSums == 8 * kWarp, "");

template <bool kOctets, typename X>
__global__ void __launch_bounds__(kSumThreads) sum_row_squares_kernel(WideSum* total, WideTally* tally, Rows<const X> x, int rows, int cols) {
    __shared__ unsigned digits[kWideDigits];   // of at most 2^20 rows
    if (threadIdx.x < kWideDigits) digits[threadIdx.x] = 0;
    __syncthreads();
    int lane = threadIdx.x % kWarp, warps = kSumThreads / kWarp;
    for (size_t row = (size_t)blockIdx.x * warps + threadIdx.x / kWarp; row < (size_t)rows; row += (size_t)gridDim.x * warps) {
        const X* from = x[row];
        float s[8] = {};
#pragma unroll 4
        for (int c = lane * 8; c < cols; c += kRowSums) {
            Values<8> v = {};
            if (kOctets) v = load_values<8>(from + c);
            else
                for (int i = 0; i < 8 && c + i < cols; i++) v.v[i] = load_values<1>(from + c + i).v[0];
#pragma unroll
            for (int i = 0; i < 8; i++) s[i] = __fadd_rn(s[i], __fmul_rn(v.v[i], v.v[i]));
        }
        float sum = warp_sum(((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])));
        if (lane != 0) continue;
        uint32_t parts[kWideParts];
        int first = wide_parts(sum, parts);
        for (int i = 0; i < kWideParts; i++)
            if (parts[i]) atomicAdd(&digits[first + i], parts[i]);
    }
    __syncthreads();
    if (threadIdx.x < kWideDigits && digits[threadIdx.x]) atomicAdd(&tally->digit[threadIdx.x], (unsigned long long)digits[threadIdx.x]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x != 0 || atomicAdd(&tally->blocks_done, 1u) != gridDim.x - 1) return;
    __threadfence();
    uint64_t sums[kWideDigits];
    for (int i = 0; i < kWideDigits; i++) sums[i] = atomicExch(&tally->digit[i], 0ull);
    tally->blocks_done = 0;
    wide_add(total, sums);
}

__global__ void clip_scale_kernel(float* scale, const WideSum* sum_of_squares, float max_norm) {
    float norm = (float)sqrt(wide_value(*sum_of_squares));
    *scale = !isfinite(norm) ? 0.0f : max_norm > 0 && norm > max_norm ? max_norm / norm : 1.0f;
}

// ---- launchers
static inline int blocks_for(Groups g) {
    size_t blocks = (g.count + kSumThreads - 1) / kSumThreads;
    check(blocks < (size_t)1 << 31, "%zu groups of values are too many for one launch", g.count);
    return (int)blocks;
}

template <int kWidth, typename Y, typename X>
static void launch_add(Mat y, Mat x, Groups g, const Noise* noise) {
    if (noise) LAUNCH((add_kernel<kWidth, true, Y, X>), blocks_for(g), kSumThreads, 0, rows_of<Y>(y), rows_of<const X>(x), g, *noise);
    else LAUNCH((add_kernel<kWidth, false, Y, X>), blocks_for(g), kSumThreads, 0, rows_of<Y>(y), rows_of<const X>(x), g, Noise{});
}
template <int kWidth, typename Y, typename X>
static void launch_convert(Mat y, Mat x, Groups g, const Noise*) {
    LAUNCH((convert_kernel<kWidth, Y, X>), blocks_for(g), kSumThreads, 0, rows_of<Y>(y), rows_of<const X>(x), g);
}

// launch<width, type of y, type of x>(y, x, groups, noise)
#define LAUNCH_PAIR(launch, op, noise)                                                                                            \
    do {                                                                                                                   \
        check_mat(x, x.rows, x.cols, op);                                                                                  \
        check_mat(y, x.rows, x.cols, op);                                                                                  \
        bool octets = is_octets(y) && is_octets(x) && (!noise || noise->offset % kNoiseOctet == 0);                                                                        \
        Groups g = groups_of(x, is_dense(x) && is_dense(y), octets ? 8 : 1);                                               \
        if (x.fmt == F32 && y.fmt == F32) octets ? launch<8, float, float>(y, x, g, noise) : launch<1, float, float>(y, x, g, noise);    \
        else if (x.fmt == F32) octets ? launch<8, bf16, float>(y, x, g, noise) : launch<1, bf16, float>(y, x, g, noise);                 \
        else if (y.fmt == F32) octets ? launch<8, float, bf16>(y, x, g, noise) : launch<1, float, bf16>(y, x, g, noise);                 \
        else octets ? launch<8, bf16, bf16>(y, x, g, noise) : launch<1, bf16, bf16>(y, x, g, noise);                                     \
    } while (0)

static void add(Mat y, Mat x, const Noise* noise) { LAUNCH_PAIR(launch_add, "add", noise); }
static void convert(Mat y, Mat x) { LAUNCH_PAIR(launch_convert, "convert", ((const Noise*)NULL)); }
#undef LAUNCH_PAIR

template <int kWidth, typename X>
static void launch_sum_squares(float* total, Mat x) {
    Groups g = groups_of(x, is_dense(x), kWidth);
    int blocks = min_int(blocks_for(g), kSumBlocksMax);
    float* partial = cuda_held().partial_sums;
    LAUNCH((sum_squares_kernel<kWidth, X>), blocks, kSumThreads, 0, partial, rows_of<const X>(x), g);
    LAUNCH(add_partial_sums_kernel, 1, kSumThreads, 0, total, partial, blocks);
}
static void sum_squares(float* total, Mat x) {
    check_mat(x, x.rows, x.cols, "sum_squares");
    if (x.fmt == F32) is_octets(x) ? launch_sum_squares<8, float>(total, x) : launch_sum_squares<1, float>(total, x);
    else is_octets(x) ? launch_sum_squares<8, bf16>(total, x) : launch_sum_squares<1, bf16>(total, x);
}

template <typename X>
static void launch_sum_row_squares(WideSum* total, Mat x, bool octets) {
    int blocks = min_int(ceil_div(x.rows, kSumThreads / kWarp), kSumBlocksMax);
    WideTally* tally = cuda_held().wide_tally;
    if (octets) LAUNCH((sum_row_squares_kernel<true, X>), blocks, kSumThreads, 0, total, tally, rows_of<const X>(x), x.rows, x.cols);
    else LAUNCH((sum_row_squares_kernel<false, X>), blocks, kSumThreads, 0, total, tally, rows_of<const X>(x), x.rows, x.cols);
}
static void sum_row_squares(WideSum* total, Mat x) {
    check_mat(x, x.rows, x.cols, "sum_row_squares");
    if (x.fmt == F32) launch_sum_row_squares<float>(total, x, is_octets(x));
    else launch_sum_row_squares<bf16>(total, x, is_octets(x));
}

static void clip_scale(float* scale, const WideSum* sum_of_squares, float max_norm) {
    LAUNCH(clip_scale_kernel, 1, 1, 0, scale, sum_of_squares, max_norm);
}

#endif
