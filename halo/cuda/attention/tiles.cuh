// What the attention kernels share: their arguments, the layout of a tile in shared memory, and the softmax on fragments.
//
// A tile is rows of one head. It lies in panels of 64 columns, 128 bytes a row; the eight 16-byte units of a row are permuted by
// the row's number modulo 8, so that eight rows at one column fall into all 32 banks. This is TMA's and wgmma's 128-byte swizzle:
// the same tile serves ldmatrix and wgmma. HD that is not a template's kHD is padded with zero columns.
//
// Which keys a query sees (ops.h): j in [start[i], i], the same relation as i in [j, end[j]). From that both arrays never decrease
// within a sequence: if start[i + 1] < start[i] <= i, then key start[i + 1] would be seen by i + 1 and by itself but not by i, and no
// `end` could say so. A block's first start is its smallest, its last end the largest.
#ifndef HALO_CUDA_ATTENTION_TILES_CUH
#define HALO_CUDA_ATTENTION_TILES_CUH

#include "../ptx.cuh"

struct AttnForward {
    const bf16* qkv;     // (BT, (NH + 2 NKV) HD), rows of ld_qkv
    bf16* y;             // (BT, NH HD), rows of ld_y
    float* lse;          // (B, NH, T), or NULL
    const int* start;    // (B, T), or NULL: all 0
    float* absmax;       // raised to the largest |y|, or NULL
    int B, T, NH, NKV, HD, ld_qkv, ld_y;
    float scale_log2;    // log2(e) / sqrt(HD): the softmax is taken in powers of two
    bool vectors;        // every head of every row starts on 16 bytes
};

struct AttnBackward {
    const bf16 *qkv, *dy;
    bf16* dqkv;
    const float4* rows;  // (B, NH, T_padded / 2): {lse log2(e), lse log2(e), D, D} of two queries; {infinity, 0} beyond T: P and dS are zero there
    float* dq_sums;      // (B, NH, query blocks, kM kHD): dQ / scale so far, in the order of the accumulators
    unsigned* turns;     // (B, NH, query blocks): key blocks that have added to dq_sums
    unsigned* ticket;
    const int *start, *end;
    int B, T, T_padded, NH, NKV, HD, ld_qkv, ld_dy, ld_dqkv;
    int heads_at_once;   // K/V heads of all sequences whose key blocks are handed out together (backward_place)
    float scale, scale_log2;
    bool vectors;
};

constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
enum { kPanel = 64, kUnit = 8 };   // bf16 in a panel's row and in 16 bytes

// ---- tiles
template <int kRows, int kHD>
__host__ __device__ constexpr int tile_values() { return kRows * ((kHD + kPanel - 1) / kPanel * kPanel); }

// Where unit `unit` (columns 8 unit .. 8 unit + 7) of a row lies in a tile of kRows rows.
template <int kRows>
__device__ inline int unit_at(int row, int unit) {
    return (unit / 8 * kRows + row) * kPanel + (unit % 8 ^ row % 8) * kUnit;
}

// tile <- the first `rows` rows and HD columns of src, zero beyond. Asynchronous (cp.async) if rows are aligned: the caller commits and waits.
template <int kRows, int kHD, int kThreads>
__device__ inline void tile_load(bf16* tile, const bf16* src, int ld, int rows, int HD, bool vectors) {
    constexpr int kUnits = kHD == 96 ? 16 : kHD / kUnit, kStep = kThreads / kUnits;
    static_assert(kThreads % kUnits == 0 && kStep % 8 == 0 && kRows % kStep == 0, "a tile does not divide into the threads");
    if (!vectors) {
#pragma unroll 1
        for (int i = threadIdx.x; i < kRows * kHD; i += kThreads) {
            int row = i / kHD, column = i % kHD;
            tile[unit_at<kRows>(row, column / kUnit) + column % kUnit] = row < rows && column < HD ? src[(size_t)row * ld + column] : (bf16)0;
        }
        return;
    }
    // A thread keeps its unit and goes down kStep rows at a time, so that all it copies has constant distances.
    int row = threadIdx.x / kUnits, unit = threadIdx.x % kUnits;
    bool valid = unit * kUnit < HD;
    const bf16* from = src + (valid ? (size_t)row * ld + unit * kUnit : 0);
    bf16* to = tile + unit_at<kRows>(row, unit);
    if (unit * kUnit >= kHD) return;
#pragma unroll
    for (int i = 0; i < kRows / kStep; i++) {
        valid = valid && row + i * kStep < rows;
        cp_async16(to + i * kStep * kPanel, valid ? from + (size_t)(i * kStep) * ld : src, valid);
    }
}

// The first `rows` of the kCount rows of a tile that start at `first`, written by one warp to dst, which is the tile's row 0.
template <int kRows, int kHD, int kCount>
__device__ inline void tile_store(bf16* dst, int ld, const bf16* tile, int first, int rows, int HD, bool vectors) {
    constexpr int kUnits = kHD / kUnit;
    if (!vectors) {
#pragma unroll 1
        for (int i = threadIdx.x % kWarp; i < kCount * kHD; i += kWarp) {
            int row = first + i / kHD, column = i % kHD;
            if (row < rows && column < HD) dst[(size_t)row * ld + column] = tile[unit_at<kRows>(row, column / kUnit) + column % kUnit];
        }
        return;
    }
#pragma unroll
    for (unsigned i = threadIdx.x % kWarp; i < kCount * kUnits; i += kWarp) {
        int row = first + i / kUnits, unit = i % kUnits;
        if (row < rows && unit * kUnit < HD) store8(dst + (size_t)row * ld + unit * kUnit, load8(tile + unit_at<kRows>(row, unit)));
    }
}

// Fragments (ptx.cuh) of a tile at (row, unit), 16 x 16 values. From a tile (rows, K), `fragment_across` gives an A, and `fragment_down`
// two neighbouring B, whose N are the tile's rows; from a tile stored (K, rows) `fragment_down` gives an A and `fragment_across` two B, both
// transposed. The two B are {b0, b1} = r[0], r[1] and r[2], r[3].
// `row` is a multiple of 16 and `unit` even, which leaves a lane one offset per column of fragments, the same for all tiles.
template <int kRows>
__device__ inline int fragment_at(int row_of_lane, int unit_of_lane, int row, int unit) {
    return unit / 8 * kRows * kPanel + row * kPanel + (unit_at<kRows>(row_of_lane, unit_of_lane) ^ unit % 8 * kUnit);
}
template <int kRows, bool kTranspose>
__device__ inline void fragment_across(uint32_t (&r)[4], const bf16* tile, int row, int unit) {
    int lane = threadIdx.x % kWarp;
    ldmatrix<kTranspose>(r, tile + fragment_at<kRows>(lane % 16, lane / 16, row, unit));
}
template <int kRows, bool kTranspose>
__device__ inline void fragment_down(uint32_t (&r)[4], const bf16* tile, int row, int unit) {
    int lane = threadIdx.x % kWarp;
    ldmatrix<kTranspose>(r, tile + fragment_at<kRows>(lane % 8 + lane / 16 * 8, lane / 8 % 2, row, unit));
}

// Rounds accumulators (16 x kCount * 2) to bf16 and puts them into a tile at (row, column 0).
template <int kRows, int kCount>
__device__ inline void accumulators_to_tile(bf16* tile, int row, const float (&x)[kCount], float scale_0, float scale_1) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) {
        uint32_t* upper = reinterpret_cast<uint32_t*>(tile + unit_at<kRows>(row + lane / 4, i));
        uint32_t* lower = reinterpret_cast<uint32_t*>(tile + unit_at<kRows>(row + lane / 4 + 8, i));
        upper[lane % 4] = pack_bf16(x[4 * i] * scale_0, x[4 * i + 1] * scale_0);
        lower[lane % 4] = pack_bf16(x[4 * i + 2] * scale_1, x[4 * i + 3] * scale_1);
    }
}

// The k-th A (16 x 16) of accumulators that are the left side of the next product.
template <int kCount>
__device__ inline void accumulators_to_fragment(uint32_t (&a)[4], const float (&x)[kCount], int k) {
#pragma unroll
    for (int j = 0; j < 4; j++) a[j] = pack_bf16(x[8 * k + 2 * j], x[8 * k + 2 * j + 1]);
}

// ---- softmax, updated block by block of scores. The four lanes of a quad hold two rows of a 16-row fragment, `half` 0 and 1;
// x[4 i + 2 half + j] is a lane's value in column 8 i + 2 (lane % 4) + j.
struct SoftmaxRows {
    float largest[2];   // of the unscaled scores
    float total[2];     // this lane's part of the sum of exponentials
};
__device__ inline SoftmaxRows softmax_begin() { return SoftmaxRows{{-INFINITY, -INFINITY}, {0, 0}}; }

// The first key that each of a lane's two rows of the 16 from `query` on sees.
__device__ inline void first_keys(int (&from)[2], int query, const int* start, int T) {
    for (int half = 0; half < 2; half++) from[half] = start ? start[min(query + (int)threadIdx.x % kWarp / 4 + 8 * half, T - 1)] : 0;
}
template <int kCount>
__device__ inline void mask_scores(float (&x)[kCount], int key, int query, const int (&from)[2]) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = query + lane / 4 + 8 * half;
#pragma unroll
        for (int n = 0; n < kCount / 4; n++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int at = key + 8 * n + lane % 4 * 2 + j;
                if (at < from[half] || at > i) x[4 * n + 2 * half + j] = -INFINITY;
            }
        }
    }
}

// x <- 2^(scale x - largest so far); `rescale` is the factor for all that was summed before.
template <int kCount>
__device__ inline void softmax_step(float (&x)[kCount], SoftmaxRows& rows, float (&rescale)[2], float scale_log2) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float largest = rows.largest[half];
#pragma unroll
        for (int n = 0; n < kCount / 4; n++) largest = fmaxf(largest, fmaxf(x[4 * n + 2 * half], x[4 * n + 2 * half + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        float shift = largest == -INFINITY ? 0.0f : __fmul_rn(largest, scale_log2);   // a row that has seen nothing yet
        // Exactly 1 where the largest stays, so that keys which a row does not see change none of its bits: a fused multiply-add would leave
        // the product's rounding error in the exponent.
        rescale[half] = exp2_approx(__fsub_rn(__fmul_rn(rows.largest[half], scale_log2), shift));
        rows.largest[half] = largest;
        float total = rows.total[half] * rescale[half];
#pragma unroll
        for (int n = 0; n < kCount / 4; n++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float& value = x[4 * n + 2 * half + j];
                value = exp2_approx(value * scale_log2 - shift);
                total += value;
            }
        }
        rows.total[half] = total;
    }
}

// After the last step: 1 / total and the log-sum-exp of a row.
__device__ inline void softmax_end(const SoftmaxRows& rows, float scale_log2, float (&inverse)[2], float (&lse)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = rows.total[half];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        inverse[half] = 1.0f / total;
        lse[half] = kLn2 * (rows.largest[half] * scale_log2) + logf(total);
    }
}

// The end of a forward kernel, for one warp's fragments of 16 rows: log-sum-exp, y into `tile` at row `row`, and the largest |y|.
template <int kRows, int kCount>
__device__ inline void forward_end(const AttnForward& a, float (&y)[kCount], const SoftmaxRows& rows, bf16* tile, int row, int first,
                                   float* lse_of_head, float& largest) {
    float inverse[2], lse[2];
    softmax_end(rows, a.scale_log2, inverse, lse);
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = first + row + lane / 4 + 8 * half;
        if (i >= a.T) continue;
        if (lse_of_head && lane % 4 == 0) lse_of_head[i] = lse[half];
#pragma unroll
        for (int n = 0; n < kCount / 4; n++) {
#pragma unroll
            for (int j = 0; j < 2; j++) largest = larger_magnitude(largest, y[4 * n + 2 * half + j] * inverse[half]);
        }
    }
    accumulators_to_tile<kRows>(tile, row, y, inverse[0], inverse[1]);
}
// Raises *absmax to a warp's largest |y|, rounded as y is: rounding is monotonic, so this is the largest of the rounded values.
__device__ inline void raise_absmax_of_warp(float* absmax, float largest) {
    largest = warp_reduce(largest, [](float x, float y) { return larger_magnitude(x, y); });
    if (threadIdx.x % kWarp == 0) raise_absmax(absmax, f32_from_bf16(bf16_from_f32(largest)));
}

// ---- backward, on fragments of 16 keys (rows) by queries (columns)
// `pairs` holds {lse log2(e), D} of two queries each (AttnBackward::rows), from `query` on. p: S^T becomes P^T; `key` is the lane's first
// row, the second is key + 8, and their ends are `end_of`.
template <int kCount>
__device__ inline void scores_to_p(float (&p)[kCount], const float4* pairs, float scale_log2, bool masked, int key, int query,
                                   const int (&end_of)[2]) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) {
        float4 pair = pairs[4 * i + lane % 4];
#pragma unroll
        for (int e = 0; e < 4; e++) p[4 * i + e] = exp2_approx(p[4 * i + e] * scale_log2 - (e % 2 ? pair.y : pair.x));
    }
    if (!masked) return;
#pragma unroll
    for (int i = 0; i < kCount; i++) {
        int at = query + i / 4 * 8 + lane % 4 * 2 + i % 2, half = i / 2 % 2;
        if (at < key + half * 8 || at >= end_of[half]) p[i] = 0;
    }
}
// dP^T becomes dS^T / scale.
template <int kCount>
__device__ inline void dp_to_ds(float (&dp)[kCount], const float (&p)[kCount], const float4* pairs) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) {
        float4 pair = pairs[4 * i + threadIdx.x % 4];
#pragma unroll
        for (int e = 0; e < 4; e++) dp[4 * i + e] = p[4 * i + e] * (dp[4 * i + e] - (e % 2 ? pair.w : pair.z));
    }
}

// The keys of the block of threads that was the `index`th to start. Heads (sequences and K/V heads) are taken a.heads_at_once at a time, the
// last ones together with what is left over. Of those it is first the first key block of each, since it has the most queries, then the next.
// So a block waits only for blocks that have started before it (attention/sm80.cuh).
struct BackwardPlace {
    int b, kv, key;
};
template <int kN>
__device__ inline BackwardPlace backward_place(const AttnBackward& a, int index) {
    int heads = a.B * a.NKV, blocks = (a.T + kN - 1) / kN, most = max(heads / a.heads_at_once - 1, 0);
    int first = min(index / (a.heads_at_once * blocks), most) * a.heads_at_once;
    int count = first < most * a.heads_at_once ? a.heads_at_once : heads - first, within = index - first * blocks, head = first + within % count;
    BackwardPlace p = {head / a.NKV, head % a.NKV, within / count * kN};
    return p;
}

// A block's place among those that add to one query block's dQ (attention/sm80.cuh says how they take turns).
struct DqTurn {
    int block;       // which (b, h, m): its counter is turns[block]
    unsigned turn;   // how many key blocks add to this query block before this block does
    bool last;
};
template <int kM, int kN>
__device__ inline bool dq_turn_is_last(int T, int m, int key) { return key / kN == (min(T, (m + 1) * kM) - 1) / kN; }
template <int kM, int kN>
__device__ inline DqTurn dq_turn(const AttnBackward& a, int b, int h, int m, int key) {
    DqTurn t;
    t.block = (b * a.NH + h) * ((a.T + kM - 1) / kM) + m;
    t.turn = key / kN - a.start[(size_t)b * a.T + m * kM] / kN;
    t.last = dq_turn_is_last<kM, kN>(a.T, m, key);
    return t;
}
template <int kM, int kHD>
__device__ inline float4* dq_sums(const AttnBackward& a, DqTurn t) {
    return reinterpret_cast<float4*>(a.dq_sums + (size_t)t.block * (kM * kHD));
}
// Accumulators of dQ, loaded from and stored to the sums over key blocks.
template <int kThreads, int kCount>
__device__ inline void dq_load(float (&dq)[kCount], const float4* sums, bool empty) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) {
        float4 sum = empty ? make_float4(0, 0, 0, 0) : __ldcg(sums + i * kThreads);
        dq[4 * i] = sum.x;
        dq[4 * i + 1] = sum.y;
        dq[4 * i + 2] = sum.z;
        dq[4 * i + 3] = sum.w;
    }
}
template <int kThreads, int kCount>
__device__ inline void dq_store(float4* sums, const float (&dq)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) __stcg(sums + i * kThreads, make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]));
}
// The same to and from a buffer in shared memory.
template <int kThreads, int kCount>
__device__ inline void dq_put(float4* buffer, const float (&dq)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) buffer[i * kThreads] = make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
}
template <int kThreads, int kCount>
__device__ inline void dq_add(float (&dq)[kCount], const float4* buffer) {
#pragma unroll
    for (int i = 0; i < kCount / 4; i++) {
        float4 sum = buffer[i * kThreads];
        dq[4 * i] += sum.x;
        dq[4 * i + 1] += sum.y;
        dq[4 * i + 2] += sum.z;
        dq[4 * i + 3] += sum.w;
    }
}
// Writes 16 rows of dQ from accumulators: query and column are those of the fragment's corner; `vectors` as in AttnBackward.
template <int kCount>
__device__ inline void dq_write(const AttnBackward& a, const float (&dq)[kCount], int b, int h, int query, int column, bool vectors) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = query + lane / 4 + 8 * half;
        if (i >= a.T) continue;
        bf16* row = a.dqkv + ((size_t)b * a.T + i) * a.ld_dqkv + h * a.HD;
#pragma unroll
        for (int n = 0; n < kCount / 4; n++) {
            int at = column + 8 * n + lane % 4 * 2;
            uint32_t two = pack_bf16(dq[4 * n + 2 * half] * a.scale, dq[4 * n + 2 * half + 1] * a.scale);
            if (vectors) {
                if (at < a.HD) *reinterpret_cast<uint32_t*>(row + at) = two;
            } else {
                if (at < a.HD) row[at] = (bf16)two;
                if (at + 1 < a.HD) row[at + 1] = (bf16)(two >> 16);
            }
        }
    }
}

#endif
