// Causal attention on Hopper: wgmma, TMA and specialised warps, for heads of 64 and 128. Forward; the backward pass runs on mma.sync.
//
// A persistent block has one producer warp, which keeps TMA ahead, and consumer warpgroups of 64 queries each: two for heads of 128, three
// for 64 (kM = 128, 192 queries), all walking over the same keys, kN = 128 at a time from the diagonal down. Q has one buffer, K and V
// two each, with a full and an empty mbarrier. Tiles are handed out longest first, round robin: neighbouring rounds are of one length.
//
// Two overlaps keep the tensor cores busy through the exponentials. Within a warpgroup, S = Q K^T of the next keys is issued before
// P V of the last ones, and its softmax runs during P V. Between warpgroups, named barriers let one issue its products at a time, so that
// the others are at their softmax.
//
// The layout of tiles, masks, softmax and the way out are those of attention_tiles.cuh, which also the mma.sync kernels stand on.
//
// State: compiled for sm_90a and read, not yet run on hardware. Until it is, only HALO_ATTENTION=sm90 selects it.
#ifndef HALO_CUDA_ATTENTION_SM90_CUH
#define HALO_CUDA_ATTENTION_SM90_CUH

#include "attention_tiles.cuh"

enum { kBoxRows = 64, kBoxBytes = kBoxRows * kPanel * (int)sizeof(bf16), kWarpgroup = 128 };

template <int kHD_>
struct ForwardSm90 {
    static constexpr int kHD = kHD_, kConsumers = kHD == 64 ? 3 : 2, kM = 64 * kConsumers, kN = 128, kStages = 2;
    static constexpr int kThreads = kWarpgroup * (kConsumers + 1), kPanels = kHD / kPanel;
    // of the 65536 registers; multiples of 8
    static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 24, kConsumerRegisters = kConsumers == 3 ? 160 : 240;

    struct Shared {
        bf16 q[tile_values<kM, kHD>()];   // and y on its way out
        bf16 k[kStages][tile_values<kN, kHD>()], v[kStages][tile_values<kN, kHD>()];
        uint64_t q_full, q_empty, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
    };
};

// What a tile is about: kM queries of one head and the blocks of keys that they see.
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
// A buffer in turn, and the parity of its current use.
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

// kRows rows of a head, box by box, announced to `full`.
template <int kRows, int kPanels>
__device__ inline void forward_fetch(bf16* tile, const CUtensorMap* map, int column, int row, int b, uint64_t* full) {
    mbarrier_expect(full, kRows / kBoxRows * kPanels * kBoxBytes);
#pragma unroll
    for (int p = 0; p < kPanels; p++) {
#pragma unroll
        for (int r = 0; r < kRows; r += kBoxRows)
            tma_load_3d(tile + (p * kRows + r) * kPanel, map, column + p * kPanel, row + r, b, full);
    }
}

template <typename S>
__device__ inline void forward_producer(typename S::Shared* shared, const AttnForward& a, const CUtensorMap* map, int tiles) {
    Ring<S::kStages> ring;
    Ring<1> q_ring;
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        ForwardTile t = forward_tile<S>(a, index);
        int kv = t.h / (a.NH / a.NKV), k_column = (a.NH + kv) * S::kHD, v_column = k_column + a.NKV * S::kHD;
        mbarrier_wait(&shared->q_empty, q_ring.parity ^ 1);
        forward_fetch<S::kM, S::kPanels>(shared->q, map, t.h * S::kHD, t.first, t.b, &shared->q_full);
        q_ring.next();
        for (int n = t.last_block; n >= t.first_block; n--, ring.next()) {
            mbarrier_wait(&shared->k_empty[ring.stage], ring.parity ^ 1);
            forward_fetch<S::kN, S::kPanels>(shared->k[ring.stage], map, k_column, n * S::kN, t.b, &shared->k_full[ring.stage]);
            mbarrier_wait(&shared->v_empty[ring.stage], ring.parity ^ 1);
            forward_fetch<S::kN, S::kPanels>(shared->v[ring.stage], map, v_column, n * S::kN, t.b, &shared->v_full[ring.stage]);
        }
    }
}

// Issues S = Q K^T (64 x kN): both K-major, 16 columns of HD a step, four steps a panel.
template <typename S>
__device__ inline void issue_scores(float (&s)[S::kN / 2], const bf16* q, const bf16* k) {
    uint64_t q_matrix = wgmma_matrix(q, 16), k_matrix = wgmma_matrix(k, 16);
    wgmma_pin(s);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < S::kHD / 16; d++) {
        int in_panel = d % 4 * 32, panel = d / 4;
        wgmma_bf16<0, 0>(s, wgmma_advance(q_matrix, panel * S::kM * kPanel * 2 + in_panel),
                      wgmma_advance(k_matrix, panel * S::kN * kPanel * 2 + in_panel), d > 0);
    }
    wgmma_commit();
}
// Issues y += P V (64 x kHD): V is (keys, HD), so its panels are the instruction's columns, and a step goes 16 rows down.
template <typename S>
__device__ inline void issue_values(float (&y)[S::kHD / 2], const uint32_t (&p)[S::kN / 16][4], const bf16* v) {
    uint64_t v_matrix = wgmma_matrix(v, S::kN * kPanel * 2);
    wgmma_pin(y);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < S::kN / 16; i++) wgmma_bf16<1>(y, p[i], wgmma_advance(v_matrix, i * 16 * kPanel * 2), true);
    wgmma_commit();
}

// The turn of a consumer to issue products: each opens its successor's barrier, the last one the first one's.
enum { kTurnBarrier = 1 };
template <typename S> __device__ inline void turn_wait(int consumer) { named_barrier_sync(kTurnBarrier + consumer, 2 * kWarpgroup); }
template <typename S> __device__ inline void turn_pass(int consumer) {
    named_barrier_arrive(kTurnBarrier + (consumer + 1) % S::kConsumers, 2 * kWarpgroup);
}

template <typename S>
__device__ inline void forward_consumer(typename S::Shared* shared, const AttnForward& a, int tiles, int consumer) {
    constexpr int kHD = S::kHD, kN = S::kN;
    int warp_row = consumer * 64 + threadIdx.x % kWarpgroup / kWarp * 16;   // of this warp's 16 rows
    bool speaks = threadIdx.x % kWarpgroup == 0;                            // for its warpgroup, at mbarriers
    bf16* q = shared->q + consumer * 64 * kPanel;
    Ring<S::kStages> k_ring, v_ring;
    Ring<1> q_ring;
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

        mbarrier_wait(&shared->q_full, q_ring.parity);
        mbarrier_wait(&shared->k_full[k_ring.stage], k_ring.parity);
        turn_wait<S>(consumer);
        issue_scores<S>(s, q, shared->k[k_ring.stage]);
        turn_pass<S>(consumer);
        wgmma_wait<0>();
        scores_are_here();
        softmax_of(t.last_block);
#pragma unroll
        for (int i = 0; i < kN / 16; i++) accumulators_to_fragment(p[i], s, i);
#pragma unroll 1
        for (int n = t.last_block - 1; n >= t.first_block; n--) {
            mbarrier_wait(&shared->k_full[k_ring.stage], k_ring.parity);
            turn_wait<S>(consumer);
            issue_scores<S>(s, q, shared->k[k_ring.stage]);
            mbarrier_wait(&shared->v_full[v_ring.stage], v_ring.parity);
            issue_values<S>(y, p, shared->v[v_ring.stage]);
            turn_pass<S>(consumer);
            wgmma_wait<1>();   // the scores; the values go on
            scores_are_here();
            softmax_of(n);
            values_are_added();
#pragma unroll
            for (int i = 0; i < kHD / 2; i++) y[i] *= rescale[i / 2 % 2];
#pragma unroll
            for (int i = 0; i < kN / 16; i++) accumulators_to_fragment(p[i], s, i);
        }
        mbarrier_wait(&shared->v_full[v_ring.stage], v_ring.parity);
        issue_values<S>(y, p, shared->v[v_ring.stage]);
        values_are_added();

        float* lse = a.lse ? a.lse + ((size_t)t.b * a.NH + t.h) * a.T : nullptr;
        named_barrier_sync(kTurnBarrier + S::kConsumers + consumer, kWarpgroup);   // all four warps have read their queries
        forward_end<S::kM>(a, y, rows, shared->q, warp_row, t.first, lse, largest);
        __syncwarp();
        tile_store<S::kM, kHD, 16>(a.y + ((size_t)t.b * a.T + t.first) * a.ld_y + t.h * kHD, a.ld_y, shared->q, warp_row, a.T - t.first, kHD, true);
        async_proxy_fence();   // before TMA writes the next queries here
        __syncwarp();
        if (threadIdx.x % kWarp == 0) mbarrier_arrive(&shared->q_empty);
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
        mbarrier_init(&shared->q_full, 1);
        mbarrier_init(&shared->q_empty, 4 * S::kConsumers);   // warps
        for (int i = 0; i < S::kStages; i++) {
            mbarrier_init(&shared->k_full[i], 1);
            mbarrier_init(&shared->v_full[i], 1);
            mbarrier_init(&shared->k_empty[i], S::kConsumers);
            mbarrier_init(&shared->v_empty[i], S::kConsumers);
        }
        mbarrier_init_fence();
        tma_prefetch_map(&map);
    }
    __syncthreads();
    int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kWarpgroup, 0);   // the same in a warp, and known to be
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

// ---- launcher
// (B, T, columns) of bf16 in boxes of 64 rows by 64 columns, swizzled; rows beyond a sequence read as zero.
static CUtensorMap sequence_map(const bf16* data, int B, int T, int columns, int ld) {
#ifdef HALO_SIMT
    return CUtensorMap{data, columns, T, B, kBoxRows, (size_t)ld, (size_t)T * ld};
#else
    static decltype(&cuTensorMapEncodeTiled) encode;
    if (!encode) {
        cudaDriverEntryPointQueryResult found;
        cuda_ok(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void**)&encode, 12000, cudaEnableDefault, &found),
                "cuTensorMapEncodeTiled");
        check(found == cudaDriverEntryPointSuccess && encode, "CUDA: the driver has no cuTensorMapEncodeTiled");
    }
    CUtensorMap map;
    cuuint64_t size[3] = {(cuuint64_t)columns, (cuuint64_t)T, (cuuint64_t)B};
    cuuint64_t stride[2] = {(cuuint64_t)ld * sizeof(bf16), (cuuint64_t)T * ld * sizeof(bf16)};
    cuuint32_t box[3] = {kPanel, kBoxRows, 1}, step[3] = {1, 1, 1};
    CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void*)data, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check(status == CUDA_SUCCESS, "attention: no tensor map of (%d, %d, %d) with rows of %d: error %d", B, T, columns, ld, (int)status);
    return map;
#endif
}

// THE SELECTION. The kernel has not been run on hardware yet: it has to be asked for.
static bool attention_sm90_wanted(const AttnForward& a) {
    static int wanted = -1;
    if (wanted < 0) {
        const char* asked = getenv("HALO_ATTENTION");
        int device, major;
        cuda_ok(cudaGetDevice(&device), "the current device");
        cuda_ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
#ifdef HALO_SIMT
        major = 9;   // its stand-in has Hopper's instructions
#endif
        wanted = asked && !strcmp(asked, "sm90") && major == 9;
    }
    return wanted && a.vectors && (a.HD == 64 || a.HD == 128);
}

template <typename S>
static void launch_forward_sm90(const AttnForward& a) {
    static int multiprocessors;
    if (!multiprocessors) {
        int device;
        cuda_ok(cudaGetDevice(&device), "the current device");
        cuda_ok(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
        cuda_ok(cudaFuncSetAttribute(attention_forward_sm90_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     (int)sizeof(typename S::Shared)), "shared memory of attention_forward_sm90_kernel");
    }
    int tiles = a.B * a.NH * ceil_div(a.T, S::kM);
    LAUNCH((attention_forward_sm90_kernel<S>), min_int(tiles, multiprocessors), S::kThreads, sizeof(typename S::Shared), a,
           sequence_map(a.qkv, a.B, a.T, (a.NH + 2 * a.NKV) * a.HD, a.ld_qkv), tiles);
}

static void attention_forward_sm90(const AttnForward& a) {
    if (a.HD == 64) launch_forward_sm90<ForwardSm90<64>>(a);
    else launch_forward_sm90<ForwardSm90<128>>(a);
}

#endif
