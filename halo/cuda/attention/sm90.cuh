// Causal attention on Hopper: wgmma, TMA and specialised warps, for heads of 64 and 128. A producer warp keeps TMA ahead through full and
// empty mbarriers; consumer warpgroups multiply.
//
// forward   A persistent block has two consumers of 64 queries each (kM = 128), which walk over the same keys, kN = 128 at a time from
//           the diagonal down. Q, K and V have two buffers each. Tiles are handed out longest first, round robin: those of one round are
//           of one length.
//           Two overlaps keep the tensor cores busy through the exponentials. Within a warpgroup, S = Q K^T of the next keys is issued
//           before P V of the last ones, and its softmax runs during P V. Between warpgroups, named barriers let one issue its products
//           at a time, so that the others are at their softmax.
// backward  The scheme of attention/sm80.cuh with warpgroups for warps: two consumers of 64 keys each, kM queries at a time (64, or 128
//           for heads of 64); Q, dY, dS and dQ have two buffers each. Of dQ each consumer forms 64 x 64.
//           Products are queued so that one runs during each stretch of other work: dP during the exponentials; dV during dS = P (dP - D);
//           dK while dS goes to shared memory and the consumers wait for each other; S of the next queries while dQ goes there.
//           dQ leaves by shared memory: for each buffer a thread of the producer's warpgroup waits for the block's turn and has the memory
//           add the buffer to the sums. So the consumers hold no sums in registers, and wait for a turn only if they are two steps ahead, or
//           at a query block's last turn, where the same buffer brings them the sums so far and they write the total.
//           Registers decide: of 240 a thread dK, dV, P, dP and P in bf16 take 208. ptxas warns (C75xx) if it finds no room, or if a product
//           is under way where the loop closes, and then lets each product end before the next: such a build must not pass.
//
// Flops: 2 T^2 HD a head forward, 5 T^2 HD backward. A K/V tile of 64 KB serves 4 kM kN HD flops forward: 128 flops a byte of the L2 for
// heads of 128. The layout of tiles, masks, softmax and dQ's turns are those of attention/tiles.cuh, which the mma.sync kernels share.
#ifndef HALO_CUDA_ATTENTION_SM90_CUH
#define HALO_CUDA_ATTENTION_SM90_CUH

#include "tiles.cuh"
#include "../tensor_map.cuh"

enum { kBoxRows = 64, kWarpgroup = 128 };

template <int kHD_>
struct ForwardSm90 {
    static constexpr int kHD = kHD_, kConsumers = 2, kM = 64 * kConsumers, kN = 128, kStages = 2;
    static constexpr int kThreads = kWarpgroup * (kConsumers + 1), kPanels = kHD / kPanel;
    static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;   // of the 65536; multiples of 8

    struct Shared {
        bf16 q[kStages][tile_values<kM, kHD>()];   // and y on its way out
        bf16 k[kStages][tile_values<kN, kHD>()], v[kStages][tile_values<kN, kHD>()];
        uint64_t q_full[kStages], q_empty[kStages], k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    };
};

// A tile of the forward pass: kM queries of one head and the blocks of keys that they see.
struct ForwardTile {
    int b, h, first, last_block, first_block;
};
template <typename S>
__device__ inline ForwardTile forward_tile(const AttnForward& a, int index) {
    int heads = a.B * a.NH, blocks = (a.T + S::kM - 1) / S::kM, head = index % heads;
    ForwardTile t;
    t.b = head / a.NH;
    t.h = head % a.NH;
    t.first = (blocks - 1 - index / heads) * S::kM;
    t.last_block = (min(t.first + S::kM, a.T) - 1) / S::kN;
    t.first_block = a.start ? a.start[(size_t)t.b * a.T + t.first] / S::kN : 0;
    return t;
}

#if HALO_HOPPER
// Which of kStages buffers is next, and the parity of its mbarriers in this use.
template <int kStages>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ void next() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Starts the load of kRows rows of a head, box by box; the barrier `full` must already expect their bytes.
template <int kRows, int kPanels>
__device__ inline void tile_fetch(bf16* tile, const CUtensorMap* map, int column, int row, int b, uint64_t* full) {
#pragma unroll
    for (int p = 0; p < kPanels; p++) {
#pragma unroll
        for (int r = 0; r < kRows; r += kBoxRows)
            tma_load_3d(tile + (p * kRows + r) * kPanel, map, column + p * kPanel, row + r, b, full);
    }
}

template <typename S>
__device__ inline void forward_producer(typename S::Shared* shared, const AttnForward& a, const CUtensorMap* map, int tiles) {
    Ring<S::kStages> ring, q_ring;
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        ForwardTile t = forward_tile<S>(a, index);
        int kv = t.h / (a.NH / a.NKV), k_column = (a.NH + kv) * S::kHD, v_column = k_column + a.NKV * S::kHD;
        mbarrier_wait(&shared->q_empty[q_ring.stage], q_ring.parity ^ 1);
        mbarrier_expect(&shared->q_full[q_ring.stage], S::kM * S::kHD * sizeof(bf16));
        tile_fetch<S::kM, S::kPanels>(shared->q[q_ring.stage], map, t.h * S::kHD, t.first, t.b, &shared->q_full[q_ring.stage]);
        q_ring.next();
        for (int n = t.last_block; n >= t.first_block; n--, ring.next()) {
            mbarrier_wait(&shared->k_empty[ring.stage], ring.parity ^ 1);
            mbarrier_expect(&shared->k_full[ring.stage], S::kN * S::kHD * sizeof(bf16));
            tile_fetch<S::kN, S::kPanels>(shared->k[ring.stage], map, k_column, n * S::kN, t.b, &shared->k_full[ring.stage]);
            mbarrier_wait(&shared->v_empty[ring.stage], ring.parity ^ 1);
            mbarrier_expect(&shared->v_full[ring.stage], S::kN * S::kHD * sizeof(bf16));
            tile_fetch<S::kN, S::kPanels>(shared->v[ring.stage], map, v_column, n * S::kN, t.b, &shared->v_full[ring.stage]);
        }
    }
}

// Issues x (64 x kRowsB) = rows of a times b^T: both K-major, (rows, HD), 16 columns of HD a step, four steps a panel.
template <int kHD, int kRowsA, int kRowsB>
__device__ inline void issue_rows_by_rows(float (&x)[kRowsB / 2], const bf16* a, const bf16* b) {
    uint64_t a_matrix = wgmma_matrix(a, 16), b_matrix = wgmma_matrix(b, 16);
    wgmma_pin(x);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < kHD / 16; d++) {
        int in_panel = d % 4 * 32, panel = d / 4;
        wgmma_bf16<0, 0>(x, wgmma_advance(a_matrix, panel * kRowsA * kPanel * 2 + in_panel),
                         wgmma_advance(b_matrix, panel * kRowsB * kPanel * 2 + in_panel), d > 0);
    }
    wgmma_commit();
}
// Issues y (64 x kHD) += p times rows, which are (kRows, HD): their panels are the instruction's columns, and a step goes 16 rows down.
template <int kHD, int kRows>
__device__ inline void issue_times_rows(float (&y)[kHD / 2], const uint32_t (&p)[kRows / 16][4], const bf16* rows) {
    uint64_t matrix = wgmma_matrix(rows, kRows * kPanel * 2);
    wgmma_pin(y);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kRows / 16; i++) wgmma_bf16<1>(y, p[i], wgmma_advance(matrix, i * 16 * kPanel * 2), true);
    wgmma_commit();
}

// The consumers issue products in turn: each opens the barrier of the next consumer, the last that of the first.
enum { kTurnBarrier = 1 };
template <typename S> __device__ inline void turn_wait(int consumer) { named_barrier_sync(kTurnBarrier + consumer, 2 * kWarpgroup); }
template <typename S> __device__ inline void turn_pass(int consumer) {
    named_barrier_arrive(kTurnBarrier + (consumer + 1) % S::kConsumers, 2 * kWarpgroup);
}

// All of a warpgroup's accumulators as the left operand of its next product.
template <int kSteps, int kCount>
__device__ __forceinline__ void accumulators_to_fragments(uint32_t (&fragment)[kSteps][4], const float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kSteps; i++) accumulators_to_fragment(fragment[i], x, i);
}

// Store: y and lse of a warp's 16 queries, through the tile of its queries. TMA may write the next queries there afterwards.
template <typename S>
__device__ __forceinline__ void forward_store(bf16* tile, const AttnForward& a, const ForwardTile& t, float (&y)[S::kHD / 2],
                                              SoftmaxRows& rows, int warp_row, float& largest) {
    float* lse = a.lse ? a.lse + ((size_t)t.b * a.NH + t.h) * a.T : nullptr;
    forward_end<S::kM>(a, y, rows, tile, warp_row, t.first, lse, largest);
    __syncwarp();
    tile_store<S::kM, S::kHD, 16>(a.y + ((size_t)t.b * a.T + t.first) * a.ld_y + t.h * S::kHD, a.ld_y, tile, warp_row, a.T - t.first,
                                  S::kHD, true);
    async_proxy_fence();   // before TMA writes the next queries here
    __syncwarp();
}

template <typename S>
__device__ inline void forward_consumer(typename S::Shared* shared, const AttnForward& a, int tiles, int consumer) {
    constexpr int kHD = S::kHD, kN = S::kN;
    int warp_row = consumer * 64 + threadIdx.x % kWarpgroup / kWarp * 16;   // of this warp's 16 rows
    bool speaks = threadIdx.x % kWarp == 0;                                 // for its warp, at mbarriers
    Ring<S::kStages> k_ring, v_ring, q_ring;
    float largest = 0;
    if (consumer == S::kConsumers - 1) turn_pass<S>(consumer);
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        ForwardTile t = forward_tile<S>(a, index);
        const int* start = a.start ? a.start + (size_t)t.b * a.T : nullptr;
        int first_query = t.first + consumer * 64, largest_start = start ? start[min(first_query + 63, a.T - 1)] : 0;
        int from[2];
        first_keys(from, t.first + warp_row, start, a.T);
        float s[kN / 2], y[kHD / 2] = {}, rescale[2];
        uint32_t p[kN / 16][4];
        SoftmaxRows rows = softmax_begin();

        auto softmax_of = [&](int n) {
            int key = n * kN;
            if (key + kN - 1 > first_query || key < largest_start) mask_scores(s, key, t.first + warp_row, from);
            softmax_step(s, rows, rescale, a.scale_log2);
        };
        auto scores_are_here = [&] {
            wgmma_pin(s);
            if (speaks) mbarrier_arrive(&shared->k_empty[k_ring.stage]);
            k_ring.next();
        };
        auto values_are_added = [&] {
            wgmma_wait<0>();
            wgmma_pin(y);
            if (speaks) mbarrier_arrive(&shared->v_empty[v_ring.stage]);
            v_ring.next();
        };

        const bf16* q = shared->q[q_ring.stage] + consumer * 64 * kPanel;
        mbarrier_wait(&shared->q_full[q_ring.stage], q_ring.parity);
        mbarrier_wait(&shared->k_full[k_ring.stage], k_ring.parity);
        turn_wait<S>(consumer);
        issue_rows_by_rows<S::kHD, S::kM, S::kN>(s, q, shared->k[k_ring.stage]);
        turn_pass<S>(consumer);
        wgmma_wait<0>();
        scores_are_here();
        softmax_of(t.last_block);
        accumulators_to_fragments(p, s);
        if (t.last_block > t.first_block) mbarrier_wait(&shared->k_full[k_ring.stage], k_ring.parity);
#pragma unroll 1
        for (int n = t.last_block - 1; n >= t.first_block; n--) {
            turn_wait<S>(consumer);
            issue_rows_by_rows<S::kHD, S::kM, S::kN>(s, q, shared->k[k_ring.stage]);
            mbarrier_wait(&shared->v_full[v_ring.stage], v_ring.parity);
            issue_times_rows<S::kHD, S::kN>(y, p, shared->v[v_ring.stage]);
            turn_pass<S>(consumer);
            wgmma_wait<1>();   // the scores are done; P V may go on
            scores_are_here();
            softmax_of(n);
            // ptxas moves the wait for P V up to the last branch, if that is before the softmax: hence this one here, on softmax's results.
            wgmma_pin(s);
            if (n > t.first_block) mbarrier_wait(&shared->k_full[k_ring.stage], k_ring.parity);
            values_are_added();
#pragma unroll
            for (int i = 0; i < kHD / 2; i++) y[i] *= rescale[i / 2 % 2];
            accumulators_to_fragments(p, s);
        }
        mbarrier_wait(&shared->v_full[v_ring.stage], v_ring.parity);
        issue_times_rows<S::kHD, S::kN>(y, p, shared->v[v_ring.stage]);
        values_are_added();

        named_barrier_sync(kTurnBarrier + S::kConsumers + consumer, kWarpgroup);   // all four warps have read their queries
        forward_store<S>(shared->q[q_ring.stage], a, t, y, rows, warp_row, largest);
        if (speaks) mbarrier_arrive(&shared->q_empty[q_ring.stage]);
        q_ring.next();
    }
    if (a.absmax) raise_absmax_of_warp(a.absmax, largest);
}
#endif

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
attention_forward_sm90_kernel(AttnForward a, const __grid_constant__ CUtensorMap map, int tiles) {
#if HALO_HOPPER
    SHARED(typename S::Shared, shared);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::kStages; i++) {
            mbarrier_init(&shared->q_full[i], 1);
            mbarrier_init(&shared->q_empty[i], 4 * S::kConsumers);   // warps
            mbarrier_init(&shared->k_full[i], 1);
            mbarrier_init(&shared->v_full[i], 1);
            mbarrier_init(&shared->k_empty[i], 4 * S::kConsumers);
            mbarrier_init(&shared->v_empty[i], 4 * S::kConsumers);
        }
        mbarrier_init_fence();
        tma_prefetch_map(&map);
    }
    __syncthreads();
    int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);   // the shuffle tells the compiler that a warp agrees on it
    if (warpgroup == 0) {
        registers_shrink<S::kProducerRegisters>();
        if (threadIdx.x == 0) forward_producer<S>(shared, a, &map, tiles);
    } else {
        registers_grow<S::kConsumerRegisters>();
        forward_consumer<S>(shared, a, tiles, warpgroup - 1);
    }
#else
    __trap();
#endif
}

// ---- backward
template <int kHD_>
struct BackwardSm90 {
    static constexpr int kHD = kHD_, kM = kHD == 64 ? 128 : 64, kN = 128, kStages = 2, kConsumers = 2, kConsumerThreads = kConsumers * kWarpgroup;
    static constexpr int kThreads = kConsumerThreads + kWarpgroup, kPanels = kHD / kPanel;
    static constexpr int kDqBytes = kM * kHD * (int)sizeof(float);
    static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;   // together what a block has at launch: 168 a thread

    struct Shared {
        bf16 k[tile_values<kN, kHD>()], v[tile_values<kN, kHD>()];   // later dk, dv
        bf16 q[kStages][tile_values<kM, kHD>()], dy[kStages][tile_values<kM, kHD>()];
        bf16 ds[kStages][tile_values<kN, kM>()];                     // (keys, queries)
        float dq[kStages][kM * kHD];                                 // in the order of the accumulators, as in AttnBackward::dq_sums
        float4 rows[kStages][kM / 2];                                // comes with q
        uint64_t kv_full, q_full[kStages], q_empty[kStages], dy_full[kStages], dy_empty[kStages], dq_given[kStages], dq_returned[kStages];
        bool alone[kStages];   // comes with dq_given: no other block adds to this dQ before
        unsigned ticket;
    };
};

// kN keys of one K/V head and the queries that see them: blocks of queries from the last one down, and in each block every head of the
// group. So the query blocks that later keys do not reach come last, and delay none of the blocks of later keys, which wait for this
// block's turns.
struct BackwardWork {
    int b, kv, key, first_block, end_block, group;
    __device__ int steps() const { return group * (end_block - first_block); }
};
struct BackwardStep {
    int h, m;
    __device__ explicit BackwardStep(const BackwardWork& w) : h(w.kv * w.group), m(w.end_block - 1) {}
    __device__ void next(const BackwardWork& w) {
        if (++h < (w.kv + 1) * w.group) return;
        h = w.kv * w.group;
        m--;
    }
};
template <typename S>
__device__ inline BackwardWork backward_work(const AttnBackward& a, int index) {
    BackwardPlace p = backward_place<S::kN>(a, index);
    BackwardWork w;
    w.key = p.key;
    w.kv = p.kv;
    w.b = p.b;
    w.group = a.NH / a.NKV;
    w.first_block = w.key / S::kM;
    w.end_block = (a.end[(size_t)w.b * a.T + min(w.key + S::kN, a.T) - 1] + S::kM - 1) / S::kM;
    return w;
}

#if HALO_HOPPER
template <typename S>
__device__ inline void backward_producer(typename S::Shared* shared, const AttnBackward& a, const CUtensorMap* qkv, const CUtensorMap* dy,
                                         const BackwardWork& w) {
    constexpr int kM = S::kM, kHD = S::kHD, kPanels = S::kPanels;
    constexpr int kKeysBytes = S::kN * kHD * (int)sizeof(bf16), kQueriesBytes = kM * kHD * (int)sizeof(bf16);
    constexpr int kRowsBytes = kM / 2 * (int)sizeof(float4);
    int k_column = (a.NH + w.kv) * kHD, v_column = k_column + a.NKV * kHD;
    mbarrier_expect(&shared->kv_full, 2 * kKeysBytes);
    tile_fetch<S::kN, kPanels>(shared->k, qkv, k_column, w.key, w.b, &shared->kv_full);
    tile_fetch<S::kN, kPanels>(shared->v, qkv, v_column, w.key, w.b, &shared->kv_full);
    Ring<S::kStages> ring;
    BackwardStep at(w);
    for (int steps = w.steps(); steps > 0; steps--, at.next(w), ring.next()) {
        mbarrier_wait(&shared->q_empty[ring.stage], ring.parity ^ 1);
        mbarrier_expect(&shared->q_full[ring.stage], kQueriesBytes + kRowsBytes);
        tile_fetch<kM, kPanels>(shared->q[ring.stage], qkv, at.h * kHD, at.m * kM, w.b, &shared->q_full[ring.stage]);
        const float4* rows = a.rows + (((size_t)w.b * a.NH + at.h) * a.T_padded + at.m * kM) / 2;
        bulk_load(shared->rows[ring.stage], rows, kRowsBytes, &shared->q_full[ring.stage]);
        mbarrier_wait(&shared->dy_empty[ring.stage], ring.parity ^ 1);
        mbarrier_expect(&shared->dy_full[ring.stage], kQueriesBytes);
        tile_fetch<kM, kPanels>(shared->dy[ring.stage], dy, at.h * kHD, at.m * kM, w.b, &shared->dy_full[ring.stage]);
    }
}

// Each buffer of dQ has a thread that adds it to the sums in memory, every kStages-th step. The thread gives the buffer to the consumers, who
// return it with their dQ; at a query block's last turn it gives them the sums so far in it, from which they write the total. These threads
// alone wait for turns, and for the memory to have added; the consumers wait for a buffer if they are kStages steps ahead, or for those sums.
__device__ inline void wait_for_turn(const AttnBackward& a, DqTurn t) {
    if (t.turn == 0) return;
    while (load_acquire(a.turns + t.block) != t.turn) __nanosleep(20);
    bulk_fence();
}

template <typename S>
__device__ inline void backward_add_dq(typename S::Shared* shared, const AttnBackward& a, const BackwardWork& w, int stage) {
    uint32_t parity = 0;
    BackwardStep at(w);
    for (int i = 0; i < stage; i++) at.next(w);
    for (int step = stage; step < w.steps(); step += S::kStages, parity ^= 1) {
        DqTurn turn = dq_turn<S::kM, S::kN>(a, w.b, at.h, at.m, w.key);
        float *sums = reinterpret_cast<float*>(dq_sums<S::kM, S::kHD>(a, turn)), *dq = shared->dq[stage];
        shared->alone[stage] = turn.turn == 0;
        if (turn.last && turn.turn > 0) {
            wait_for_turn(a, turn);
            mbarrier_expect(&shared->dq_given[stage], S::kDqBytes);
            bulk_load(dq, sums, S::kDqBytes, &shared->dq_given[stage]);
        } else {
            mbarrier_arrive(&shared->dq_given[stage]);
        }
        if (!turn.last) wait_for_turn(a, turn);
        mbarrier_wait(&shared->dq_returned[stage], parity);
        if (!turn.last) {
            if (turn.turn == 0) bulk_store(sums, dq, S::kDqBytes);
            else bulk_add(sums, dq, S::kDqBytes);
            bulk_wait();
            store_release(a.turns + turn.block, turn.turn + 1);
        }
        for (int i = 0; i < S::kStages; i++) at.next(w);
    }
}

// Issues x (64 queries x 64 columns) = dS K: ds is one panel of (keys, queries), k one panel of (keys, HD).
template <typename S>
__device__ inline void issue_dq(float (&x)[32], const bf16* ds, const bf16* k) {
    uint64_t ds_matrix = wgmma_matrix(ds, 16), k_matrix = wgmma_matrix(k, 16);
    wgmma_pin(x);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < S::kN / 16; i++)
        wgmma_bf16<1, 1>(x, wgmma_advance(ds_matrix, i * 16 * kPanel * 2), wgmma_advance(k_matrix, i * 16 * kPanel * 2), i > 0);
    wgmma_commit();
}

// Stores fragments of dS into a tile of kRows: `at` is where this lane's first pair of the first fragment belongs. The other places are formed
// from `at` in each step (unit_at says how), so that they need no registers in between.
template <int kRows, int kSteps>
__device__ inline void fragments_to_tiles(bf16* tiles, int at, const uint32_t (&fragment)[kSteps][4]) {
#pragma unroll
    for (int i = 0; i < kSteps; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int unit = 2 * i + j / 2, lower = j % 2 * 8;
            *reinterpret_cast<uint32_t*>(tiles + (at ^ unit % 8 * kUnit) + (unit / 8 * kRows + lower) * kPanel) = fragment[i][j];
        }
    }
}

// Store: dK and dV of a warp's 16 keys, through the tiles of K and V, which are no longer needed.
template <typename S>
__device__ __forceinline__ void backward_store_sm90(typename S::Shared* shared, const AttnBackward& a, const BackwardWork& w, int warp_key, int keys,
                                                    const float (&dk)[S::kHD / 2], const float (&dv)[S::kHD / 2]) {
    constexpr int kHD = S::kHD, kN = S::kN;
    accumulators_to_tile<kN>(shared->k, warp_key, dk, a.scale, a.scale);
    accumulators_to_tile<kN>(shared->v, warp_key, dv, 1, 1);
    __syncwarp();
    bf16* to = a.dqkv + ((size_t)w.b * a.T + w.key) * a.ld_dqkv + (a.NH + w.kv) * kHD;
    tile_store<kN, kHD, 16>(to, a.ld_dqkv, shared->k, warp_key, keys, kHD, true);
    tile_store<kN, kHD, 16>(to + a.NKV * kHD, a.ld_dqkv, shared->v, warp_key, keys, kHD, true);
}

template <typename S>
__device__ inline void backward_consumer(typename S::Shared* shared, const AttnBackward& a, const BackwardWork& w, int consumer) {
    constexpr int kHD = S::kHD, kM = S::kM, kN = S::kN, kThreads = S::kConsumerThreads;
    enum { kDsBarrier = 1, kEndBarrier = 2 };
    constexpr bool kEarly = kM == 64;   // dV is issued before dS is formed; 128 queries leave no registers for P in bf16 beside P
    int thread = threadIdx.x - kWarpgroup, lane = thread % kWarp, warp_key = thread / kWarp * 16, keys = min(kN, a.T - w.key);
    bool speaks = lane == 0;   // for its warp, at mbarriers
    const int* end = a.end + (size_t)w.b * a.T + w.key;
    int smallest_end = end[0], end_of[2];
    for (int half = 0; half < 2; half++) {
        int j = warp_key + lane / 4 + 8 * half;
        end_of[half] = j < keys ? end[j] : 0;
    }
    int ds_at = unit_at<kN>(warp_key + lane / 4, 0) + lane % 4 * 2;   // this lane's first pair of dS
    // dQ (kM, kHD) is 64 x 64 for each consumer: its half of the columns, or of the queries
    int dq_panel = kHD == 64 ? 0 : consumer, ds_panel = kHD == 64 ? consumer : 0;

    float dk[kHD / 2] = {}, dv[kHD / 2] = {}, p[kM / 2], ds[kM / 2];
    Ring<S::kStages> ring;
    BackwardStep at(w);
    const bf16 *k = shared->k + consumer * 64 * kPanel, *v = shared->v + consumer * 64 * kPanel;   // this consumer's rows
    mbarrier_wait(&shared->kv_full, 0);
    mbarrier_wait(&shared->q_full[0], 0);
    issue_rows_by_rows<kHD, kN, kM>(p, k, shared->q[0]);
    wgmma_wait<0>();
    wgmma_pin(p);
#pragma unroll 1
    for (int steps = w.steps(); steps > 0; steps--) {
        int stage = ring.stage;
        uint32_t parity = ring.parity;
        ring.next();
        const bf16 *q = shared->q[stage], *dy = shared->dy[stage];
        const float4* row_pairs = shared->rows[stage];
        float dq[32];
        uint32_t p_fragment[kM / 16][4], ds_fragment[kM / 16][4];

        mbarrier_wait(&shared->dy_full[stage], parity);
        issue_rows_by_rows<kHD, kN, kM>(ds, v, dy);
        bool masked = at.m * kM < w.key + kN - 1 || at.m * kM + kM > smallest_end;
        scores_to_p(p, row_pairs, a.scale_log2, masked, w.key + warp_key + lane / 4, at.m * kM, end_of);
        if (kEarly) {
            accumulators_to_fragments(p_fragment, p);
            issue_times_rows<kHD, kM>(dv, p_fragment, dy);
        }
        wgmma_wait<kEarly ? 1 : 0>();   // dP is done; dV may go on
        wgmma_pin(ds);
        dp_to_ds(ds, p, row_pairs);
        accumulators_to_fragments(ds_fragment, ds);
        if (!kEarly) {
            accumulators_to_fragments(p_fragment, p);
            issue_times_rows<kHD, kM>(dv, p_fragment, dy);
        }
        issue_times_rows<kHD, kM>(dk, ds_fragment, q);
        fragments_to_tiles<kN>(shared->ds[0], stage * tile_values<kN, kM>() + ds_at, ds_fragment);
        async_proxy_fence();
        named_barrier_sync(kDsBarrier, kThreads);   // all of dS is in shared memory; the other consumer may still read the buffer before
        issue_dq<S>(dq, shared->ds[stage] + ds_panel * kN * kPanel, shared->k + dq_panel * kN * kPanel);
        wgmma_wait<1>();   // dV and dK are done
        __syncwarp();
        if (speaks) mbarrier_arrive(&shared->q_empty[stage]);
        if (speaks) mbarrier_arrive(&shared->dy_empty[stage]);

        // Scores of the next queries. After the last ones they are formed of old queries and not used: a branch would end the overlap.
        if (steps > 1) mbarrier_wait(&shared->q_full[ring.stage], ring.parity);
        issue_rows_by_rows<kHD, kN, kM>(p, k, shared->q[ring.stage]);
        wgmma_wait<1>();   // dQ is done
        wgmma_pin(dq);
        float4* buffer = reinterpret_cast<float4*>(shared->dq[stage]) + thread;
        mbarrier_wait(&shared->dq_given[stage], parity);
        if (dq_turn_is_last<kM, kN>(a.T, at.m, w.key)) {
            if (!shared->alone[stage]) dq_add<kThreads>(dq, buffer);
            dq_write(a, dq, w.b, at.h, at.m * kM + ds_panel * 64 + warp_key % 64, dq_panel * kPanel, true);
        } else {
            dq_put<kThreads>(buffer, dq);
            async_proxy_fence();
        }
        __syncwarp();
        if (speaks) mbarrier_arrive(&shared->dq_returned[stage]);
        at.next(w);
        wgmma_wait<0>();
        wgmma_pin(p);
    }
    wgmma_pin(dv);
    wgmma_pin(dk);
    named_barrier_sync(kEndBarrier, kThreads);   // both consumers have read K
    backward_store_sm90<S>(shared, a, w, warp_key, keys, dk, dv);
}
#endif

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
attention_backward_sm90_kernel(AttnBackward a, const __grid_constant__ CUtensorMap qkv, const __grid_constant__ CUtensorMap dy) {
#if HALO_HOPPER
    SHARED(typename S::Shared, shared);
    if (threadIdx.x == 0) {
        shared->ticket = atomicAdd(a.ticket, 1u);   // work in the order in which blocks start: a block waits only for blocks that have started
        mbarrier_init(&shared->kv_full, 1);
        for (int i = 0; i < S::kStages; i++) {
            mbarrier_init(&shared->q_full[i], 1);
            mbarrier_init(&shared->dy_full[i], 1);
            mbarrier_init(&shared->dq_given[i], 1);
            mbarrier_init(&shared->q_empty[i], 4 * S::kConsumers);   // warps
            mbarrier_init(&shared->dy_empty[i], 4 * S::kConsumers);
            mbarrier_init(&shared->dq_returned[i], 4 * S::kConsumers);
        }
        mbarrier_init_fence();
        tma_prefetch_map(&qkv);
        tma_prefetch_map(&dy);
    }
    __syncthreads();
    BackwardWork w = backward_work<S>(a, (int)shared->ticket);
    int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);
    if (warpgroup == 0) {
        registers_shrink<S::kProducerRegisters>();
        if (threadIdx.x == 0) backward_producer<S>(shared, a, &qkv, &dy, w);
        int dq_stage = threadIdx.x / kWarp - 1;   // the first warp is TMA's
        if (threadIdx.x % kWarp == 0 && dq_stage >= 0 && dq_stage < S::kStages) backward_add_dq<S>(shared, a, w, dq_stage);
    } else {
        registers_grow<S::kConsumerRegisters>();
        backward_consumer<S>(shared, a, w, warpgroup - 1);
    }
#else
    __trap();
#endif
}

// ---- launcher
// (B, T, columns) of bf16; rows beyond a sequence read as zero. Always three dimensions: the kernels address a plane.
static CUtensorMap sequence_map(const bf16* data, int B, int T, int columns, int ld) {
    return tensor_map(data, BF16, columns, T, B, (size_t)ld * sizeof(bf16), (size_t)T * ld * sizeof(bf16), kBoxRows);
}

static bool attention_sm90_takes(int HD, bool vectors) { return gpu_device().capability == 90 && vectors && (HD == 64 || HD == 128); }

template <typename S>
static void launch_forward_sm90(const AttnForward& a) {
    allow_shared(attention_forward_sm90_kernel<S>, sizeof(typename S::Shared));
    int tiles = a.B * a.NH * ceil_div(a.T, S::kM);
    LAUNCH((attention_forward_sm90_kernel<S>), min_int(tiles, gpu_device().multiprocessors), S::kThreads, sizeof(typename S::Shared), a,
           sequence_map(a.qkv, a.B, a.T, (a.NH + 2 * a.NKV) * a.HD, a.ld_qkv), tiles);
}

static void attention_forward_sm90(const AttnForward& a) {
    if (a.HD == 64) launch_forward_sm90<ForwardSm90<64>>(a);
    else launch_forward_sm90<ForwardSm90<128>>(a);
}

// As many heads at once as fill the GPU, if sequences are short: then a query block's dQ, Q and dY stay in the L2 from one of its key blocks to
// the next. Long sequences have enough key blocks of each head at work for that; taken in few heads at a time, their longest blocks would end last.
enum { kShortBlocks = 16 };
static int backward_heads_at_once(int heads, int blocks) {
    return blocks <= kShortBlocks ? min_int(heads, ceil_div(gpu_device().multiprocessors, blocks)) : heads;
}

template <typename S>
static void launch_backward_sm90(AttnBackward a) {
    allow_shared(attention_backward_sm90_kernel<S>, sizeof(typename S::Shared));
    int blocks = ceil_div(a.T, S::kN);
    a.heads_at_once = backward_heads_at_once(a.B * a.NKV, blocks);
    LAUNCH((attention_backward_sm90_kernel<S>), blocks * a.NKV * a.B, S::kThreads, sizeof(typename S::Shared), a,
           sequence_map(a.qkv, a.B, a.T, (a.NH + 2 * a.NKV) * a.HD, a.ld_qkv), sequence_map(a.dy, a.B, a.T, a.NH * a.HD, a.ld_dy));
}

static void attention_backward_sm90(const AttnBackward& a) {
    if (a.HD == 64) launch_backward_sm90<BackwardSm90<64>>(a);
    else launch_backward_sm90<BackwardSm90<128>>(a);
}

#endif
