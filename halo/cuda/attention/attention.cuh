// Causal attention with grouped heads and [start, i] ranges: which kernel runs, what goes before it, and generation.
//
// Floors per head of a causal sequence: forward 2 T^2 HD flops, backward 5 T^2 HD; bytes (T (2 HD) each of q, k, v, y, dy and the
// gradients) matter only below T of a few hundred. Beside the products the backward pass moves, per query row and head: dy and y once
// for D = rowsum(dY Y), 8 bytes of statistics, and per key block 4 HD bytes of partial dQ to the L2, and back except on Hopper, whose memory adds.
#ifndef HALO_CUDA_ATTENTION_CUH
#define HALO_CUDA_ATTENTION_CUH

#include <utility>

#include "cached.cuh"
#include "sm80.cuh"
#include "sm90.cuh"

// ---- before the backward pass: rows (AttnBackward) <- lse log2(e) and D, and all turns and the ticket are zeroed.
// Eight lanes take a row of a head, 16 bytes at a time; neighbouring groups of lanes take neighbouring heads.
enum { kRowsLanes = 8, kRowsThreads = 256 };

__global__ void attention_rows_kernel(float* rows, unsigned* counters, int counter_count, const bf16* dy, int ld_dy, const bf16* y, int ld_y,
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
    float* pair = rows + 2 * (head * T_padded + t - t % 2) + t % 2;
    pair[0] = valid ? lse[head * T + t] * kLog2e : INFINITY;
    pair[2] = valid ? sum : 0;
}

// ---- launchers
static void check_attention(const char* op, Attn s, Mat qkv, Mat y) {
    check(s.NH % s.NKV == 0, "%s: %d query heads, %d key heads", op, s.NH, s.NKV);
    check(s.HD >= 1 && s.HD <= 128, "%s (cuda): heads of %d: 128 is the most", op, s.HD);
    check(qkv.fmt == BF16 && qkv.rows == s.B * s.T && qkv.cols == (s.NH + 2 * s.NKV) * s.HD, "%s: qkv is (%d, %d) in %s", op, qkv.rows,
          qkv.cols, fmt_name(qkv.fmt));
    check(y.fmt == BF16 && y.rows == qkv.rows && y.cols == s.NH * s.HD, "%s: y is (%d, %d) in %s", op, y.rows, y.cols, fmt_name(y.fmt));
}
// Does each head of each row of m start at a multiple of 16 bytes?
static bool has_vectors(Mat m, int HD) { return (uintptr_t)m.data % 16 == 0 && m.ld % kUnit == 0 && HD % kUnit == 0; }

static float attention_scale(int HD) { return (float)(1.0 / sqrt((double)HD)); }

// Calls run.operator()<kHD>() with the smallest kHD >= HD.
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
    AttnScratch at = cuda_attention_layout(s, scratch);
    bool y_vectors = has_vectors(y, s.HD) && has_vectors(dy, s.HD);
    size_t threads = (size_t)s.B * at.T_padded * s.NH * kRowsLanes;
    LAUNCH(attention_rows_kernel, (unsigned)((threads + kRowsThreads - 1) / kRowsThreads), kRowsThreads, 0, (float*)at.rows, at.counters,
           at.counter_count, (const bf16*)dy.data, dy.ld, (const bf16*)y.data, y.ld, lse, s.B, s.T, at.T_padded, s.NH, s.HD, y_vectors);
    AttnBackward a = {(const bf16*)qkv.data, (const bf16*)dy.data, (bf16*)dqkv.data, (const float4*)at.rows, at.dq_sums, at.counters,
                      at.counters + at.counter_count - 1, s.start, s.end, s.B, s.T, at.T_padded, s.NH, s.NKV, s.HD, qkv.ld, dy.ld, dqkv.ld,
                      s.B * s.NKV, attention_scale(s.HD), attention_scale(s.HD) * kLog2e,
                      has_vectors(qkv, s.HD) && has_vectors(dy, s.HD) && has_vectors(dqkv, s.HD)};
    attention_backward_rows(a);
}

// How many rows at a time have their chunks split into blocks of their own (attention/cached.cuh): with fewer than kCachedBusy blocks for
// each SM, as many as the workspace has room for; else 0, no splitting. Either way gives the same bits.
enum { kCachedBusy = 3 };
static int cached_split_rows(int rows, int NH, int NKV, int HD, int chunks) {
    size_t row_bytes = (size_t)NH * chunks * (HD + 2) * sizeof(float);
    int most = (int)(kWorkspaceBytes / row_bytes), tile = cached_tile_rows(NH / NKV);
    if (chunks == 1 || (size_t)rows * NKV >= (size_t)kCachedBusy * gpu_device().multiprocessors || most == 0) return 0;
    return most >= rows ? rows : max_int(most / tile * tile, 1);
}

static void launch_cached(AttnCached a, int splits) {
    int group = a.NH / a.NKV;
    dim3 grid(a.rows, a.NKV * cached_head_tiles(group), splits);
    with_head_dim(a.HD, [&](auto kHD) {
        constexpr size_t kBytes = sizeof(bf16) * kCachedWarps * 2 * 2 * tile_values<kSliceKeys, kHD()>();
        allow_shared(attention_cached_kernel<kHD()>, kBytes);
        LAUNCH((attention_cached_kernel<kHD()>), grid, kCachedThreads, kBytes, a);
    });
    if (a.parts) LAUNCH(attention_fold_kernel, dim3(a.rows, a.NH), threads_for(a.HD, kCachedThreads), 0, a);
}

static void attention_append(Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD) {
    bool vectors = has_vectors(qkv, HD) && has_vectors(cache, HD);
    LAUNCH(attention_append_kernel, qkv.rows, kCachedThreads, 0, (bf16*)cache.data, cache.ld, (const bf16*)qkv.data + NH * HD, qkv.ld, slot,
           pos, positions, 2 * NKV * HD, vectors);
}

static void attention_cached(Mat y, Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD) {
    int rows = qkv.rows, chunks = ceil_div(positions, kCachedChunk);
    Attn s = {1, rows, NH, NKV, HD, NULL, NULL};
    check_attention("attention_cached", s, qkv, y);
    check(cache.fmt == BF16 && cache.cols == 2 * NKV * HD && positions > 0 && cache.rows % positions == 0,
          "attention_cached: slots of %d positions in a cache of (%d, %d) in %s", positions, cache.rows, cache.cols, fmt_name(cache.fmt));
    bool vectors = has_vectors(qkv, HD) && has_vectors(cache, HD);
    const bf16* q = (const bf16*)qkv.data;
    attention_append(cache, qkv, slot, pos, positions, NH, NKV, HD);
    AttnCached a = {q, (const bf16*)cache.data, (bf16*)y.data, NULL, slot, pos, rows, positions, chunks, NH, NKV, HD, qkv.ld, cache.ld, y.ld,
                    attention_scale(HD) * kLog2e, vectors};
    int at_once = cached_split_rows(rows, NH, NKV, HD, chunks);
    if (at_once == 0) return launch_cached(a, 1);
    a.parts = (float*)cuda_held().workspace;
    for (int first = 0; first < rows; first += at_once) {
        AttnCached part = a;
        part.q += (size_t)first * a.ld_q;
        part.y += (size_t)first * a.ld_y;
        part.slot += first;
        part.pos += first;
        part.rows = min_int(at_once, rows - first);
        launch_cached(part, chunks);
    }
}

#endif
