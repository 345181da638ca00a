// Causal attention on mma.sync: every architecture from sm_80 on.
//
// forward   a block of 4 warps takes kM = 128 queries, 32 a warp, so that each fragment of K and V is used twice, and walks over its keys
//           64 at a time from the diagonal down: S = Q K^T in registers, softmax, P (bf16) straight from the accumulators into P V.
//           V is on its way during S, the next K during P V. 4 T^2 HD / 2 flops a head, causal.
// backward  a block takes kN keys of one K/V head and walks over the queries that see them, head after head of its group. Warps own keys:
//           S^T = K Q^T and dP^T = V dY^T leave P^T and dS^T in the registers from which dV += P^T dY and dK += dS^T Q read them;
//           only dS goes through shared memory, to the product dQ = dS K, which sums over all warps' keys. 5 products,
//           10 T^2 HD / 2 flops a head; nothing is computed twice.
//           dQ is summed over key blocks in FP32 and in a fixed order, so that two runs agree: to a query block the first key block
//           adds first and the diagonal one last, each waiting for its turn. Blocks are started in that order, longest first; a block
//           that runs beside its predecessor waits for it at the first query block, and then follows one query block behind. A partial
//           sum is loaded as the initial value of the next block's accumulators, in the accumulators' order: 16-byte accesses, and no
//           extra additions. The last block writes dQ.
#ifndef HALO_CUDA_ATTENTION_SM80_CUH
#define HALO_CUDA_ATTENTION_SM80_CUH

#include "tiles.cuh"

// ---- products of a warp's 16 kTiles rows
// sums (rows, kCols) += A B^T: A's rows are those from `row` on of a tile of kRows, B is a tile of kCols rows; both are kHD wide.
template <int kRows, int kCols, int kHD, int kTiles>
__device__ __forceinline__ void multiply_rows(float (&sums)[kTiles][kCols / 2], const bf16* a_tile, int row, const bf16* b_tile) {
#pragma unroll
    for (int d = 0; d < kHD / 16; d++) {
        uint32_t a[kTiles][4];
#pragma unroll
        for (int t = 0; t < kTiles; t++) fragment_across<kRows, false>(a[t], a_tile, row + 16 * t, 2 * d);
#pragma unroll
        for (int j = 0; j < kCols / 16; j++) {
            uint32_t b[4];
            fragment_down<kCols, false>(b, b_tile, 16 * j, 2 * d);
#pragma unroll
            for (int t = 0; t < kTiles; t++) {
                mma_bf16(sums[t] + 8 * j, a[t], b[0], b[1]);
                mma_bf16(sums[t] + 8 * j + 4, a[t], b[2], b[3]);
            }
        }
    }
}
// sums (rows, kHD) += A B: A (rows, kDepth) lies in the accumulators of a product before, B is a tile of kDepth rows.
template <int kDepth, int kHD, int kTiles>
__device__ __forceinline__ void multiply_accumulators(float (&sums)[kTiles][kHD / 2], const float (&a)[kTiles][kDepth / 2], const bf16* b_tile) {
#pragma unroll
    for (int i = 0; i < kDepth / 16; i++) {
        uint32_t fragment[kTiles][4];
#pragma unroll
        for (int t = 0; t < kTiles; t++) accumulators_to_fragment(fragment[t], a[t], i);
#pragma unroll
        for (int j = 0; j < kHD / 16; j++) {
            uint32_t b[4];
            fragment_across<kDepth, true>(b, b_tile, 16 * i, 2 * j);
#pragma unroll
            for (int t = 0; t < kTiles; t++) {
                mma_bf16(sums[t] + 8 * j, fragment[t], b[0], b[1]);
                mma_bf16(sums[t] + 8 * j + 4, fragment[t], b[2], b[3]);
            }
        }
    }
}

// ---- forward
enum { kForwardM = 128, kForwardN = 64, kForwardThreads = 128 };

template <int kHD>
constexpr size_t forward_sm80_bytes() {
    return sizeof(bf16) * (tile_values<kForwardM, kHD>() + 2 * tile_values<kForwardN, kHD>());
}

template <int kHD>
__global__ void __launch_bounds__(kForwardThreads, 2) attention_forward_sm80_kernel(AttnForward a) {
    constexpr int kM = kForwardM, kN = kForwardN, kThreads = kForwardThreads, kRowTiles = 2;
    SHARED(bf16, q_tile);   // later y
    bf16 *k_tile = q_tile + tile_values<kM, kHD>(), *v_tile = k_tile + tile_values<kN, kHD>();

    int h = blockIdx.x % a.NH, b = blockIdx.x / a.NH, kv = h / (a.NH / a.NKV);
    int first = (int)(gridDim.y - 1 - blockIdx.y) * kM;   // the longest rows first
    int warp_row = threadIdx.x / kWarp * 16 * kRowTiles;
    const bf16* sequence = a.qkv + (size_t)b * a.T * a.ld_qkv;
    const bf16 *k = sequence + (a.NH + kv) * a.HD, *v = sequence + (a.NH + a.NKV + kv) * a.HD;
    const int* start = a.start ? a.start + (size_t)b * a.T : nullptr;
    int last_query = min(first + kM, a.T) - 1, smallest_start = start ? start[first] : 0, largest_start = start ? start[last_query] : 0;

    float y[kRowTiles][kHD / 2] = {};
    SoftmaxRows rows[kRowTiles];
    int from[kRowTiles][2];
    for (int t = 0; t < kRowTiles; t++) {
        rows[t] = softmax_begin();
        first_keys(from[t], first + warp_row + 16 * t, start, a.T);
    }

    int last_block = last_query / kN, first_block = smallest_start / kN;
    tile_load<kM, kHD, kThreads>(q_tile, sequence + (size_t)first * a.ld_qkv + h * a.HD, a.ld_qkv, a.T - first, a.HD, a.vectors);
    tile_load<kN, kHD, kThreads>(k_tile, k + (size_t)last_block * kN * a.ld_qkv, a.ld_qkv, a.T - last_block * kN, a.HD, a.vectors);
    cp_async_commit();
    for (int n = last_block; n >= first_block; n--) {
        int key = n * kN;
        cp_async_wait<0>();
        __syncthreads();   // K has arrived, and all warps have read V
        tile_load<kN, kHD, kThreads>(v_tile, v + (size_t)key * a.ld_qkv, a.ld_qkv, a.T - key, a.HD, a.vectors);
        cp_async_commit();

        float s[kRowTiles][kN / 2] = {};
        multiply_rows<kM, kN, kHD>(s, q_tile, warp_row, k_tile);
        cp_async_wait<0>();
        __syncthreads();   // V has arrived, and all warps have read K
        if (n > first_block) {
            tile_load<kN, kHD, kThreads>(k_tile, k + (size_t)(key - kN) * a.ld_qkv, a.ld_qkv, kN, a.HD, a.vectors);
            cp_async_commit();
        }

        bool masked = key + kN - 1 > first + warp_row || key < largest_start;
#pragma unroll
        for (int t = 0; t < kRowTiles; t++) {
            if (masked) mask_scores(s[t], key, first + warp_row + 16 * t, from[t]);
            float rescale[2];
            softmax_step(s[t], rows[t], rescale, a.scale_log2);
#pragma unroll
            for (int i = 0; i < kHD / 2; i++) y[t][i] *= rescale[i / 2 % 2];
        }
        multiply_accumulators<kN, kHD>(y, s, v_tile);
    }

    float largest = 0;
    float* lse = a.lse ? a.lse + ((size_t)b * a.NH + h) * a.T : nullptr;
#pragma unroll
    for (int t = 0; t < kRowTiles; t++) forward_end<kM>(a, y[t], rows[t], q_tile, warp_row + 16 * t, first, lse, largest);
    if (a.absmax) raise_absmax_of_warp(a.absmax, largest);
    __syncwarp();   // a warp stores the rows that it wrote, over its own queries
    tile_store<kM, kHD, 16 * kRowTiles>(a.y + ((size_t)b * a.T + first) * a.ld_y + h * a.HD, a.ld_y, q_tile, warp_row, a.T - first, a.HD,
                                        a.vectors);
}

// ---- backward
// kM queries by kN = 16 kKeyTiles kWarps keys at a time.
template <int kHD_, int kM_, int kKeyTiles_, int kWarps_>
struct BackwardSm80 {
    static constexpr int kHD = kHD_, kM = kM_, kKeyTiles = kKeyTiles_, kWarps = kWarps_;
    static constexpr int kThreads = kWarp * kWarps, kN = 16 * kKeyTiles * kWarps;
    // dQ (kM, kHD) is divided among the warps as a grid of rectangles
    static constexpr int kColumnGroups = kHD % 64 == 0 ? 4 : 2, kRowGroups = kWarps / kColumnGroups;
    static constexpr int kRowTiles = kM / 16 / kRowGroups, kColumns = kHD / kColumnGroups;
    static_assert(kRowTiles * 16 * kRowGroups == kM && kColumns % 16 == 0 && kM <= kPanel, "dQ does not divide into the warps");

    struct Shared {
        bf16 k[tile_values<kN, kHD>()], v[tile_values<kN, kHD>()];   // later dk, dv
        bf16 q[2][tile_values<kM, kHD>()], dy[2][tile_values<kM, kHD>()];
        bf16 ds[tile_values<kN, kM>()];                              // (keys, queries)
        float4 rows[2][kM / 2];
        unsigned ticket;
    };
};

// Starts the copy of one query block of one head to shared memory.
template <typename S>
__device__ inline void backward_load(typename S::Shared* shared, int stage, const AttnBackward& a, int b, int h, int first) {
    constexpr int kM = S::kM;
    size_t row = (size_t)b * a.T + first;
    tile_load<kM, S::kHD, S::kThreads>(shared->q[stage], a.qkv + row * a.ld_qkv + h * a.HD, a.ld_qkv, a.T - first, a.HD, a.vectors);
    tile_load<kM, S::kHD, S::kThreads>(shared->dy[stage], a.dy + row * a.ld_dy + h * a.HD, a.ld_dy, a.T - first, a.HD, a.vectors);
    const float4* rows = a.rows + (((size_t)b * a.NH + h) * a.T_padded + first) / 2;
    if (threadIdx.x < kM / 2) cp_async16(shared->rows[stage] + threadIdx.x, rows + threadIdx.x, true);
    cp_async_commit();
}

// One thread passes on the turn at query block `signal` (-1: none is due), then waits for this block's turn at turn.block.
__device__ __forceinline__ void take_turn(unsigned* turns, const DqTurn& turn, int signal, unsigned signal_turn) {
    if (signal >= 0) store_release(turns + signal, signal_turn);
    while (load_acquire(turns + turn.block) != turn.turn) __nanosleep(20);
}

// A warp's rectangle of dQ, which begins at row and unit (of kUnit columns): += dS K.
template <typename S>
using DqShare = float[S::kRowTiles][S::kColumns / 2];

template <typename S>
__device__ __forceinline__ void multiply_dq(DqShare<S>& dq, const bf16* ds_tile, int row, const bf16* k_tile, int unit) {
#pragma unroll
    for (int i = 0; i < S::kN / 16; i++) {
        uint32_t ds[S::kRowTiles][4];
#pragma unroll
        for (int t = 0; t < S::kRowTiles; t++) fragment_down<S::kN, true>(ds[t], ds_tile, 16 * i, row / kUnit + 2 * t);
#pragma unroll
        for (int j = 0; j < S::kColumns / 16; j++) {
            uint32_t columns[4];
            fragment_across<S::kN, true>(columns, k_tile, 16 * i, unit + 2 * j);
#pragma unroll
            for (int t = 0; t < S::kRowTiles; t++) {
                mma_bf16(dq[t] + 8 * j, ds[t], columns[0], columns[1]);
                mma_bf16(dq[t] + 8 * j + 4, ds[t], columns[2], columns[3]);
            }
        }
    }
}

// Stores dK and dV, through the tiles of K and V, which are no longer needed. A warp stores the rows that it wrote.
template <typename S>
__device__ __forceinline__ void backward_store(bf16* to, int keys, typename S::Shared* shared, int warp_key, const AttnBackward& a,
                                               const float (&dk)[S::kKeyTiles][S::kHD / 2], const float (&dv)[S::kKeyTiles][S::kHD / 2]) {
    constexpr int kN = S::kN, kRows = 16 * S::kKeyTiles;
#pragma unroll
    for (int t = 0; t < S::kKeyTiles; t++) {
        accumulators_to_tile<kN>(shared->k, warp_key + 16 * t, dk[t], a.scale, a.scale);
        accumulators_to_tile<kN>(shared->v, warp_key + 16 * t, dv[t], 1, 1);
    }
    __syncwarp();
    tile_store<kN, S::kHD, kRows>(to, a.ld_dqkv, shared->k, warp_key, keys, a.HD, a.vectors);
    tile_store<kN, S::kHD, kRows>(to + a.NKV * a.HD, a.ld_dqkv, shared->v, warp_key, keys, a.HD, a.vectors);
}

// ---- a step of the backward pass: one query block against the block's keys

// Scores and the softmax's gradient: P^T and dS^T (kN, kM), dS also in shared memory.
template <typename S>
using BackwardScores = float[S::kKeyTiles][S::kM / 2];

template <typename S>
__device__ __forceinline__ void backward_scores(BackwardScores<S>& p, BackwardScores<S>& ds, typename S::Shared* shared, int stage, float scale_log2,
                                                bool masked, int warp_key, int key_of_lane, int query, const int (&end_of)[S::kKeyTiles][2]) {
    const float4* row_pairs = shared->rows[stage];
    multiply_rows<S::kN, S::kM, S::kHD>(p, shared->k, warp_key, shared->q[stage]);
    multiply_rows<S::kN, S::kM, S::kHD>(ds, shared->v, warp_key, shared->dy[stage]);   // dP^T
#pragma unroll
    for (int t = 0; t < S::kKeyTiles; t++) {
        scores_to_p(p[t], row_pairs, scale_log2, masked, key_of_lane + 16 * t, query, end_of[t]);
        dp_to_ds(ds[t], p[t], row_pairs);
    }
#pragma unroll
    for (int t = 0; t < S::kKeyTiles; t++) accumulators_to_tile<S::kN>(shared->ds, warp_key + 16 * t, ds[t], 1, 1);
}

// dK += dS^T Q, and this block's share of dQ: the sum over the key blocks before comes from memory, dS K is added, the new sum goes back, or dQ
// itself from the last block.
template <typename S>
__device__ __forceinline__ void backward_gradients(float (&dk)[S::kKeyTiles][S::kHD / 2], const BackwardScores<S>& ds, typename S::Shared* shared,
                                                   const bf16* q_tile, const AttnBackward& a, const DqTurn& turn, int b, int h, int m, int warp) {
    constexpr int kM = S::kM, kHD = S::kHD;
    int dq_row = warp / S::kColumnGroups * 16 * S::kRowTiles, dq_unit = warp % S::kColumnGroups * S::kColumns / kUnit;
    DqShare<S> dq;
#pragma unroll
    for (int t = 0; t < S::kRowTiles; t++)
        dq_load<S::kThreads>(dq[t], dq_sums<kM, kHD>(a, turn) + t * S::kColumns / 8 * S::kThreads + threadIdx.x, turn.turn == 0);
    multiply_accumulators<kM, kHD>(dk, ds, q_tile);   // while the sums come
    multiply_dq<S>(dq, shared->ds, dq_row, shared->k, dq_unit);
#pragma unroll
    for (int t = 0; t < S::kRowTiles; t++) {
        if (turn.last) dq_write(a, dq[t], b, h, m * kM + dq_row + 16 * t, dq_unit * kUnit, a.vectors);
        else dq_store<S::kThreads>(dq_sums<kM, kHD>(a, turn) + t * S::kColumns / 8 * S::kThreads + threadIdx.x, dq[t]);
    }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kThreads == 128 ? 2 : 1) attention_backward_sm80_kernel(AttnBackward a) {
    constexpr int kHD = S::kHD, kM = S::kM, kN = S::kN, kKeyTiles = S::kKeyTiles;
    SHARED(typename S::Shared, shared);
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warp_key = warp * 16 * kKeyTiles;

    if (threadIdx.x == 0) shared->ticket = atomicAdd(a.ticket, 1u);
    __syncthreads();
    BackwardPlace place = backward_place<kN>(a, (int)shared->ticket);
    int b = place.b, kv = place.kv, group = a.NH / a.NKV, key = place.key, keys = min(kN, a.T - key);
    const int* end = a.end + (size_t)b * a.T;
    int first_block = key / kM, end_block = (end[key + keys - 1] + kM - 1) / kM;
    int smallest_end = end[key];

    int end_of[kKeyTiles][2];   // of this lane's keys
    for (int t = 0; t < kKeyTiles; t++) {
        for (int half = 0; half < 2; half++) {
            int j = warp_key + 16 * t + lane / 4 + 8 * half;
            end_of[t][half] = j < keys ? end[key + j] : 0;
        }
    }
    size_t row = (size_t)b * a.T + key;
    const bf16 *k = a.qkv + row * a.ld_qkv + (a.NH + kv) * a.HD, *v = k + a.NKV * a.HD;
    tile_load<kN, kHD, S::kThreads>(shared->k, k, a.ld_qkv, keys, a.HD, a.vectors);
    tile_load<kN, kHD, S::kThreads>(shared->v, v, a.ld_qkv, keys, a.HD, a.vectors);
    backward_load<S>(shared, 0, a, b, kv * group, first_block * kM);

    float dk[kKeyTiles][kHD / 2] = {}, dv[kKeyTiles][kHD / 2] = {};
    int h = kv * group, m = first_block, stage = 0;
    int signal = -1;   // the query block whose next turn is due
    unsigned signal_turn = 0;
    for (int steps = group * (end_block - first_block); steps > 0; steps--, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();   // this step's tiles have arrived, and all warps have read the last step's
        int next_m = m + 1 < end_block ? m + 1 : first_block, next_h = m + 1 < end_block ? h : h + 1;
        if (steps > 1) backward_load<S>(shared, stage ^ 1, a, b, next_h, next_m * kM);
        const bf16 *q_tile = shared->q[stage], *dy_tile = shared->dy[stage];
        float p[kKeyTiles][kM / 2] = {}, ds[kKeyTiles][kM / 2] = {};
        bool masked = m * kM < key + kN - 1 || m * kM + kM > smallest_end;
        backward_scores<S>(p, ds, shared, stage, a.scale_log2, masked, warp_key, key + warp_key + lane / 4, m * kM, end_of);
        multiply_accumulators<kM, kHD>(dv, p, dy_tile);   // dV += P^T dY

        // This block's turn at the query block comes after the turns of earlier key blocks. The last step's sums are released here, half a
        // step after they were stored, so that the release need not wait; the next block needs them half a step from now.
        DqTurn turn = dq_turn<kM, kN>(a, b, h, m, key);
        if (threadIdx.x == 0) take_turn(a.turns, turn, signal, signal_turn);
        __syncthreads();   // all of dS is in shared memory
        signal = turn.last ? -1 : turn.block;
        signal_turn = turn.turn + 1;
        backward_gradients<S>(dk, ds, shared, q_tile, a, turn, b, h, m, warp);
        m = next_m;
        h = next_h;
    }
    __syncthreads();   // all warps have read K
    if (threadIdx.x == 0 && signal >= 0) store_release(a.turns + signal, signal_turn);

    backward_store<S>(a.dqkv + row * a.ld_dqkv + (a.NH + kv) * a.HD, keys, shared, warp_key, a, dk, dv);
}

#endif
