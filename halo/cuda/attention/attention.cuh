// Causal attention with grouped heads and [start, i] ranges: which kernel runs, what goes before it, and generation.
//
// Floors per head of a causal sequence: forward 2 T^2 HD flops, backward 5 T^2 HD; bytes (T (2 HD) each of q, k, v, y, dy and the
// gradients) matter only below T of a few hundred. Beside the products the backward pass moves, per query row and head: dy and y once
// for D = rowsum(dY Y), 8 bytes of statistics, and 4 HD bytes of partial dQ there and back per key block, which stay in the L2.
#ifndef HALO_CUDA_ATTENTION_CUH
#define HALO_CUDA_ATTENTION_CUH

#include <utility>

#include "sm80.cuh"
#include "sm90.cuh"

// ---- before the backward pass: rows (B, NH, T_padded) <- {lse log2(e), D}, and everybody's turn and the ticket are zero.
// Eight lanes take a row of a head, 16 bytes at a time; neighbours take neighbouring heads.
enum { kRowsLanes = 8, kRowsThreads = 256, kRowsPad = 128 };

__global__ void attention_rows_kernel(float2* rows, unsigned* counters, int counter_count, const bf16* dy, int ld_dy, const bf16* y, int ld_y,
                                      const float* lse, int B, int T, int T_padded, int NH, int HD, bool vectors) {
    size_t thread = (size_t)blockIdx.x * kRowsThreads + threadIdx.x;
    if (thread < (size_t)counter_count) counters[thread] = 0;
    size_t item = thread / kRowsLanes;
    int lane = threadIdx.x % kRowsLanes, h = (int)(item % NH), t = (int)(item / NH % T_padded), b = (int)(item / NH / T_padded);
    bool valid = b < B && t < T;
    float sum = 0;
    if (valid) {
        const bf16* dy_row = dy + ((size_t)b * T + t) * ld_dy + h * HD;
        const bf16* y_row = y + ((size_t)b * T + t) * ld_y + h * HD;
        if (vectors) {
            for (int i = lane * kUnit; i < HD; i += kRowsLanes * kUnit) {
                Bf16x8 one = load8(dy_row + i), other = load8(y_row + i);
                for (int j = 0; j < kUnit; j++) sum += f32_from_bf16(one.v[j]) * f32_from_bf16(other.v[j]);
            }
        } else {
            for (int i = lane; i < HD; i += kRowsLanes) sum += f32_from_bf16(dy_row[i]) * f32_from_bf16(y_row[i]);
        }
    }
    for (int step = kRowsLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (b >= B || lane != 0) return;
    size_t head = (size_t)b * NH + h;
    rows[head * T_padded + t] = valid ? make_float2(lse[head * T + t] * kLog2e, sum) : make_float2(INFINITY, 0);
}

// ---- generation: one query row of one head against keys [0, past + row], shared out to gridDim.z blocks. A group of kLanes lanes takes
// one key at a time, 8 columns a lane, kAhead keys in flight; each group keeps its own softmax, and they are merged at the end.
enum { kCachedThreads = 128, kAhead = 4, kMostSplits = 32, kLeastKeys = 256 };

struct AttnCached {
    const bf16 *q, *cache;   // q (rows, NH HD), rows of ld_q; cache (positions, 2 NKV HD), rows of ld_cache
    bf16* y;
    float* parts;            // (rows, NH, splits, HD + 2): sums of e^(s - largest) v, then largest (in powers of two) and total
    int past, NH, NKV, HD, ld_q, ld_cache, ld_y;
    float scale_log2;
    bool vectors;
};

__device__ inline void load_columns(float (&x)[kUnit], const bf16* p, int count, bool vectors) {
    if (vectors && count > 0) {
        Bf16x8 all = load8(p);
        for (int j = 0; j < kUnit; j++) x[j] = f32_from_bf16(all.v[j]);
    } else {
        for (int j = 0; j < kUnit; j++) x[j] = j < count ? f32_from_bf16(p[j]) : 0.0f;
    }
}

__device__ inline void store_value(bf16* y, float x) { *y = bf16_from_f32(x); }

template <int kLanes>
__global__ void __launch_bounds__(kCachedThreads) attention_cached_kernel(AttnCached a) {
    constexpr int kGroups = kCachedThreads / kLanes, kColumns = kLanes * kUnit;
    __shared__ float sums[kGroups][kColumns + 2];
    int row = blockIdx.x, h = blockIdx.y, split = blockIdx.z, splits = gridDim.z;
    int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, count = min(a.HD - lane * kUnit, (int)kUnit);
    int keys = a.past + row + 1, share = (keys + splits - 1) / splits, from = split * share, to = min(keys, from + share);
    const bf16* k = a.cache + h / (a.NH / a.NKV) * a.HD + lane * kUnit;
    const bf16* v = k + a.NKV * a.HD;
    float q[kUnit], sum[kUnit] = {}, largest = -INFINITY, total = 0;
    load_columns(q, a.q + (size_t)row * a.ld_q + h * a.HD + lane * kUnit, count, a.vectors);
    for (int first = from; first < to; first += kGroups * kAhead) {
        float score[kAhead], value[kAhead][kUnit], before = largest;
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
            int key = first + i * kGroups + group, seen = key < to ? count : 0;
            float k_row[kUnit];
            load_columns(k_row, k + (size_t)key * a.ld_cache, seen, a.vectors);
            load_columns(value[i], v + (size_t)key * a.ld_cache, seen, a.vectors);
            score[i] = 0;
            for (int j = 0; j < kUnit; j++) score[i] += q[j] * k_row[j];
        }
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
            for (int step = kLanes / 2; step > 0; step /= 2) score[i] += __shfl_xor_sync(0xffffffffu, score[i], step);
            score[i] = first + i * kGroups + group < to ? score[i] * a.scale_log2 : -INFINITY;
            largest = fmaxf(largest, score[i]);
        }
        float shift = largest == -INFINITY ? 0.0f : largest, rescale = exp2f(before - shift);
        total *= rescale;
        for (int j = 0; j < kUnit; j++) sum[j] *= rescale;
#pragma unroll
        for (int i = 0; i < kAhead; i++) {
            float p = exp2f(score[i] - shift);
            total += p;
            for (int j = 0; j < kUnit; j++) sum[j] += p * value[i][j];
        }
    }
    for (int j = 0; j < kUnit; j++) sums[group][lane * kUnit + j] = sum[j];
    if (lane == 0) {
        sums[group][kColumns] = largest;
        sums[group][kColumns + 1] = total;
    }
    __syncthreads();
    if ((int)threadIdx.x >= a.HD) return;
    float all_largest = -INFINITY, all_total = 0, all_sum = 0;
    for (int g = 0; g < kGroups; g++) all_largest = fmaxf(all_largest, sums[g][kColumns]);
    for (int g = 0; g < kGroups; g++) {
        float weight = all_largest == -INFINITY ? 0.0f : exp2f(sums[g][kColumns] - all_largest);
        all_total += weight * sums[g][kColumns + 1];
        all_sum += weight * sums[g][threadIdx.x];
    }
    if (splits == 1) {
        store_value(a.y + (size_t)row * a.ld_y + h * a.HD + threadIdx.x, all_sum / all_total);
        return;
    }
    float* part = a.parts + (((size_t)row * a.NH + h) * splits + split) * (a.HD + 2);
    part[threadIdx.x] = all_sum;
    if (threadIdx.x == 0) {
        part[a.HD] = all_largest;
        part[a.HD + 1] = all_total;
    }
}

__global__ void __launch_bounds__(kCachedThreads) attention_merge_kernel(AttnCached a, int splits) {
    int row = blockIdx.x, h = blockIdx.y, stride = a.HD + 2;
    if ((int)threadIdx.x >= a.HD) return;
    const float* part = a.parts + ((size_t)row * a.NH + h) * splits * stride;
    float largest = -INFINITY, total = 0, sum = 0;
    for (int s = 0; s < splits; s++) largest = fmaxf(largest, part[s * stride + a.HD]);
    for (int s = 0; s < splits; s++) {
        float weight = exp2f(part[s * stride + a.HD] - largest);
        total += weight * part[s * stride + a.HD + 1];
        sum += weight * part[s * stride + threadIdx.x];
    }
    store_value(a.y + (size_t)row * a.ld_y + h * a.HD + threadIdx.x, sum / total);
}

// cache (rows, cols) <- k and v, one block a row
__global__ void attention_append_kernel(bf16* cache, int ld_cache, const bf16* kv, int ld_kv, int cols, bool vectors) {
    bf16* to = cache + (size_t)blockIdx.x * ld_cache;
    const bf16* from = kv + (size_t)blockIdx.x * ld_kv;
    if (vectors) {
        for (int i = threadIdx.x * kUnit; i < cols; i += blockDim.x * kUnit) store8(to + i, load8(from + i));
    } else {
        for (int i = threadIdx.x; i < cols; i += blockDim.x) to[i] = from[i];
    }
}

// ---- launchers
static void check_attention(const char* op, Attn s, Mat qkv, Mat y) {
    check(s.NH % s.NKV == 0, "%s: %d query heads, %d key heads", op, s.NH, s.NKV);
    check(s.HD >= 1 && s.HD <= 128, "%s (cuda): heads of %d: 128 is the most", op, s.HD);
    check(qkv.fmt == BF16 && qkv.rows == s.B * s.T && qkv.cols == (s.NH + 2 * s.NKV) * s.HD, "%s: qkv is (%d, %d) in %s", op, qkv.rows,
          qkv.cols, fmt_name(qkv.fmt));
    check(y.fmt == BF16 && y.rows == qkv.rows && y.cols == s.NH * s.HD, "%s: y is (%d, %d) in %s", op, y.rows, y.cols, fmt_name(y.fmt));
}
// Whether each head of each row of m starts on 16 bytes.
static bool has_vectors(Mat m, int HD) { return (uintptr_t)m.data % 16 == 0 && m.ld % kUnit == 0 && HD % kUnit == 0; }

static float attention_scale(int HD) { return (float)(1.0 / sqrt((double)HD)); }

// run.operator()<kHD>() with the smallest kHD that holds HD.
template <typename Run>
static void with_head_dim(int HD, Run run) {
    if (HD <= 32) run(std::integral_constant<int, 32>());
    else if (HD <= 64) run(std::integral_constant<int, 64>());
    else if (HD <= 96) run(std::integral_constant<int, 96>());
    else run(std::integral_constant<int, 128>());
}

template <int kHD>
static void launch_forward_sm80(const AttnForward& a) {
    constexpr size_t kBytes = forward_sm80_bytes<kHD>();
    allow_shared(attention_forward_sm80_kernel<kHD>, kBytes);
    LAUNCH((attention_forward_sm80_kernel<kHD>), dim3(a.B * a.NH, ceil_div(a.T, kForwardM)), kForwardThreads, kBytes, a);
}

static void attention_forward_rows(AttnForward a) {
    if (attention_sm90_takes(a.HD, a.vectors)) return attention_forward_sm90(a);
    with_head_dim(a.HD, [&](auto kHD) { launch_forward_sm80<kHD()>(a); });
}

static void attention_forward(Mat y, float* lse, Mat qkv, Attn s, float* absmax) {
    check_attention("attention_forward", s, qkv, y);
    AttnForward a = {(const bf16*)qkv.data, (bf16*)y.data, lse, s.start, absmax, s.B, s.T, s.NH, s.NKV, s.HD, qkv.ld, y.ld,
                     attention_scale(s.HD) * kLog2e, has_vectors(qkv, s.HD) && has_vectors(y, s.HD)};
    attention_forward_rows(a);
}

// What the backward pass keeps for itself: rows, sums of dQ, turns and the ticket.
typedef struct {
    float2* rows;
    float* dq_sums;
    unsigned* counters;
    int T_padded, counter_count;
    size_t bytes;
} AttnScratch;

static AttnScratch lay_out_attention(Attn s, void* scratch) {
    AttnScratch at;
    Arena arena = {(char*)scratch, 0};
    size_t heads = (size_t)s.B * s.NH;
    at.T_padded = ceil_div(s.T, kRowsPad) * kRowsPad;
    at.counter_count = (int)heads * (at.T_padded / 32) + 1;
    at.rows = (float2*)arena_take(&arena, heads * at.T_padded * sizeof(float2));
    at.dq_sums = (float*)arena_take(&arena, heads * at.T_padded * round_up(s.HD, 32) * sizeof(float));
    at.counters = (unsigned*)arena_take(&arena, at.counter_count * sizeof(unsigned));
    at.bytes = arena.used;
    return at;
}
static size_t attention_scratch(Attn s) { return lay_out_attention(s, NULL).bytes; }

template <typename S>
static void launch_backward_sm80(const AttnBackward& a) {
    constexpr size_t kBytes = sizeof(typename S::Shared);
    allow_shared(attention_backward_sm80_kernel<S>, kBytes);
    LAUNCH((attention_backward_sm80_kernel<S>), ceil_div(a.T, S::kN) * a.NKV * a.B, S::kThreads, kBytes, a);
}

// 128 keys at a time where an SM has the shared memory for it (sm_80, 90, 100), else 64 (sm_86, 89, 120).
static void attention_backward_rows(const AttnBackward& a) {
    if (attention_sm90_takes(a.HD, a.vectors)) return attention_backward_sm90(a);
    bool roomy = gpu_device().shared_bytes >= sizeof(BackwardSm80<128, 64, 1, 8>::Shared);
    if (a.HD <= 32) launch_backward_sm80<BackwardSm80<32, 64, 1, 4>>(a);
    else if (a.HD <= 64) launch_backward_sm80<BackwardSm80<64, 32, 2, 4>>(a);
    else if (a.HD <= 96 && roomy) launch_backward_sm80<BackwardSm80<96, 64, 1, 8>>(a);
    else if (a.HD <= 96) launch_backward_sm80<BackwardSm80<96, 32, 1, 4>>(a);
    else if (roomy) launch_backward_sm80<BackwardSm80<128, 64, 1, 8>>(a);
    else launch_backward_sm80<BackwardSm80<128, 32, 1, 4>>(a);
}

static void attention_backward(Mat dqkv, Mat dy, Mat y, Mat qkv, const float* lse, Attn s, void* scratch) {
    check_attention("attention_backward", s, qkv, y);
    check_attention("attention_backward", s, dqkv, dy);
    AttnScratch at = lay_out_attention(s, scratch);
    bool y_vectors = has_vectors(y, s.HD) && has_vectors(dy, s.HD);
    size_t threads = (size_t)s.B * at.T_padded * s.NH * kRowsLanes;
    LAUNCH(attention_rows_kernel, (unsigned)((threads + kRowsThreads - 1) / kRowsThreads), kRowsThreads, 0, at.rows, at.counters,
           at.counter_count, (const bf16*)dy.data, dy.ld, (const bf16*)y.data, y.ld, lse, s.B, s.T, at.T_padded, s.NH, s.HD, y_vectors);
    AttnBackward a = {(const bf16*)qkv.data, (const bf16*)dy.data, (bf16*)dqkv.data, at.rows, at.dq_sums, at.counters,
                      at.counters + at.counter_count - 1, s.start, s.end, s.B, s.T, at.T_padded, s.NH, s.NKV, s.HD, qkv.ld, dy.ld, dqkv.ld,
                      attention_scale(s.HD), attention_scale(s.HD) * kLog2e,
                      has_vectors(qkv, s.HD) && has_vectors(dy, s.HD) && has_vectors(dqkv, s.HD)};
    attention_backward_rows(a);
}

// As many blocks for a row as fill the machine, with at least kLeastKeys keys each.
static int cached_splits(int rows, int NH, int keys) {
    int wanted = 2 * gpu_device().multiprocessors / (rows * NH);
    return max_int(1, min_int(min_int(wanted, keys / kLeastKeys), kMostSplits));
}

static void attention_cached(Mat y, Mat cache, Mat qkv, int past, int NH, int NKV, int HD) {
    int rows = qkv.rows, keys = past + rows;
    Attn s = {1, rows, NH, NKV, HD, NULL, NULL};
    check_attention("attention_cached", s, qkv, y);
    check(cache.fmt == BF16 && cache.cols == 2 * NKV * HD && keys <= cache.rows, "attention_cached: %d positions in a cache of (%d, %d) in %s",
          keys, cache.rows, cache.cols, fmt_name(cache.fmt));
    bool vectors = has_vectors(qkv, HD) && has_vectors(cache, HD);
    const bf16* q = (const bf16*)qkv.data;
    LAUNCH(attention_append_kernel, rows, kCachedThreads, 0, (bf16*)cache.data + (size_t)past * cache.ld, cache.ld, q + NH * HD, qkv.ld,
           2 * NKV * HD, vectors);
    if (past == 0 && rows > 1) {   // a prompt is a sequence
        attention_forward(y, NULL, qkv, s, NULL);
        return;
    }
    // Splitting is for few rows, which bounds their parts: rows * NH * splits is at most two blocks for each SM.
    static float* parts;
    int splits = cached_splits(rows, NH, keys);
    if (!parts) {
        size_t bytes = (size_t)2 * gpu_device().multiprocessors * (128 + 2) * sizeof(float);
        cuda_ok(cudaMalloc((void**)&parts, bytes), "workspace of attention_cached");
    }
    AttnCached a = {q, (const bf16*)cache.data, (bf16*)y.data, parts, past, NH, NKV, HD, qkv.ld, cache.ld, y.ld,
                    attention_scale(HD) * kLog2e, vectors};
    dim3 grid(rows, NH, splits);
    if (HD <= 64) LAUNCH((attention_cached_kernel<8>), grid, kCachedThreads, 0, a);
    else LAUNCH((attention_cached_kernel<16>), grid, kCachedThreads, 0, a);
    if (splits > 1) LAUNCH(attention_merge_kernel, dim3(rows, NH), kCachedThreads, 0, a, splits);
}

#endif
