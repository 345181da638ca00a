// INT8 products on Hopper: C = (A B^T) * scales + beta C with A (M, K), B (N, K) in INT8, C in BF16 or F32. sm_90a.
//
//   cluster    two blocks, one above the other: 256 x 256 of C. Both need the same 256 rows of B; each loads half of them and
//              TMA's multicast puts that half into both. A stage (128 of K) costs a block 16 KiB of A and 16 of B from the
//              L2 and 1024 clocks of the tensor cores: 32 bytes a clock instead of 48
//   block      a producer warp and two consumer warpgroups of 64 x 256, wgmma m64n256k32, 128 sums a thread. Persistent
//   stages     four of 48 KiB. full[s]: the bytes of A's and both halves of B's boxes. empty[s]: all consumer warps of both
//              blocks, because a block also writes into its neighbour's stage
//   epilogue   straight from registers, 16 bytes a lane in BF16 (gemm/tile.cuh). The second warpgroup starts kWgLag stages late
//              and stays behind: while one stores, the other has the tensor cores for itself, and stages keep arriving
//
// Per tile of 128 x 256 the multiplications take K / 32 * 256 clocks (4096 a clock), the epilogue some 900 issue slots of each
// scheduler: 3% at K = 4096 if it were not hidden. It moves 128 * 256 * 2 bytes of C, as much again if beta is not 0, in which
// case C is fetched into the L2 while the tile is multiplied.
//
// Any M, N, K: TMA reads zeros outside of A and B, which add nothing, and stores are masked. Only rows of A and B have to
// start at multiples of 16 bytes.
#ifndef HALO_CUDA_GEMM_SM90_CUH
#define HALO_CUDA_GEMM_SM90_CUH

#include "tile.cuh"
#include "../tensor_map.cuh"

enum {
    kWgTileM = 128, kWgTileN = 256, kWgTileK = 128,   // of a block; K in bytes, one row of the 128-byte swizzle
    kWgCluster = 2,
    kWgStages = 4,
    kWgLag = 2,                                       // in stages; less than kWgStages
    kWgABytes = kWgTileM * kWgTileK,
    kWgBBytes = kWgTileN * kWgTileK,
    kWgHalfB = kWgBBytes / kWgCluster,
    kWgStageBytes = kWgABytes + kWgBBytes,
    kWgSharedBytes = kWgStages * (kWgStageBytes + 2 * (int)sizeof(uint64_t)),
    kWgWarpgroup = 128,
    kWgThreads = 3 * kWgWarpgroup,
    kWgConsumerWarps = 8,
    kWgProducerRegisters = 40,
    kWgConsumerRegisters = 232,                       // (40 + 2 * 232) * 128 <= 65536
    kWgLagBarrier = 1                                 // named barrier; 0 is __syncthreads
};

#if HALO_SM90A
struct WgStages {
    char *a, *b;
    uint64_t *full, *empty;
};

// The order in which a cluster goes through the stages, the same for its producers and consumers.
struct WgPlace {
    unsigned step = 0;   // over all tiles of the cluster
    __device__ int stage() const { return step % kWgStages; }
    __device__ uint32_t parity() const { return step / kWgStages % 2; }
};

__device__ inline void wg_release(const WgStages& s, int stage) {
    int lane = threadIdx.x % kWarp;
    if (lane < kWgCluster) mbarrier_arrive_at(&s.empty[stage], lane);
}

// ---- the producer: one thread
__device__ inline void wg_produce(const WgStages& s, const CUtensorMap* map_a, const CUtensorMap* map_b, int m, int n, int steps, int rank,
                                  WgPlace& place) {
#pragma unroll 1   // few registers
    for (int k = 0; k < steps; k++, place.step++) {
        int stage = place.stage();
        uint64_t* full = &s.full[stage];
        mbarrier_wait(&s.empty[stage], place.parity() ^ 1);   // the first time round a stage is empty
        mbarrier_expect(full, kWgStageBytes);
        tma_load_2d(s.a + stage * kWgABytes, map_a, k * kWgTileK, m, full);
        tma_load_2d_multicast(s.b + stage * kWgBBytes + rank * kWgHalfB, map_b, k * kWgTileK, n + rank * (kWgTileN / kWgCluster), full,
                              (1 << kWgCluster) - 1);
    }
}

// ---- a consumer: sum (64, 256) of rows from 64 * consumer on
__device__ inline void wg_multiply(int (&sum)[128], const WgStages& s, int consumer, int steps, unsigned lag, WgPlace& place) {
    for (int k = 0; k < steps; k++, place.step++) {
        int stage = place.stage();
        uint64_t a = wgmma_matrix(s.a + stage * kWgABytes + consumer * (kWgABytes / 2), 16);
        uint64_t b = wgmma_matrix(s.b + stage * kWgBBytes, 16);
        mbarrier_wait(&s.full[stage], place.parity());
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kWgTileK / 32; i++) wgmma_s8(sum, wgmma_advance(a, 32 * i), wgmma_advance(b, 32 * i), k > 0 || i > 0);
        wgmma_commit();
        if (k > 0) {   // the products of the stage before are done, this stage's under way
            wgmma_wait<1>();
            wg_release(s, (place.step - 1) % kWgStages);
        }
        if (consumer == 0 && place.step + 1 == lag) named_barrier_arrive(kWgLagBarrier, 2 * kWgWarpgroup);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 128; i++) asm volatile("" : "+r"(sum[i])::"memory");   // read only after the wait
    wg_release(s, (place.step - 1) % kWgStages);
}

// With beta: prefetches the rows of C that this warpgroup is going to add to into the L2.
template <Fmt kC>
__device__ inline void wg_prefetch_c(const Gemm& g, int row, int col) {
    const int kBytes = kC == F32 ? 4 : 2, kLine = 128 / kBytes, kLines = kWgTileN / kLine;
    for (int i = threadIdx.x % kWgWarpgroup; i < 64 * kLines; i += kWgWarpgroup) {
        int r = row + i / kLines, n = col + i % kLines * kLine;
        if (r < g.M && n < g.N)
            asm volatile("prefetch.global.L2 [%0];" ::"l"((const char*)g.c + ((size_t)r * g.ldc + n) * kBytes));
    }
}

template <Fmt kC, bool kWords>
__device__ inline void wg_store(const Gemm& g, int row, int col, const int (&sum)[128]) {
    const int kGroups = kWgTileN / 32, kBatch = kC == F32 ? 1 : 4;   // groups of columns whose C is read at a time
    int rows[2] = {row + (int)threadIdx.x % kWgWarpgroup / kWarp * 16 + (int)threadIdx.x % kWarp / 4, 0};
    rows[1] = rows[0] + 8;
    float a_scale[2] = {side_scale(g.a, rows[0]), side_scale(g.a, rows[1])}, b_scale_of_all = side_scale(g.b, 0);
#pragma unroll
    for (int batch = 0; batch < kGroups; batch += kBatch) {
        CWords<kC> before[kBatch][2];
        if (g.beta != 0.0f) {
#pragma unroll
            for (int i = 0; i < kBatch; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) before[i][half] = c_load<kC, kWords>(g, rows[half], col + 32 * (batch + i));
        }
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            int at = col + 32 * (batch + i);
            float b_scale[4][2];
            column_scales<kWords>(b_scale, g.b, at, b_scale_of_all);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float out[4][2];
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        out[j][e] = dequantized(__int2float_rn(sum[((batch + i) * 4 + j) * 4 + 2 * half + e]), a_scale[half], b_scale[j][e]);
                if (g.beta != 0.0f) c_add<kC, kWords>(out, g, before[i][half]);
                c_store<kC, kWords>(g, rows[half], at, out);
            }
        }
    }
}
#endif

#if HALO_SM90A
#define WG_CLUSTER __cluster_dims__(kWgCluster, 1, 1)
#else
#define WG_CLUSTER   // older architectures know no clusters
#endif
template <Fmt kC>
__global__ void WG_CLUSTER __launch_bounds__(kWgThreads, 1)
gemm_int8_sm90_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, const __grid_constant__ Gemm g) {
#if HALO_SM90A
    SHARED(char, memory);
    WgStages s;
    s.a = memory;
    s.b = memory + kWgStages * kWgABytes;
    s.full = (uint64_t*)(memory + kWgStages * kWgStageBytes);
    s.empty = s.full + kWgStages;
    if (threadIdx.x == 0) {
        if (shared_address(memory) % 1024) __trap();   // the swizzle repeats every 1024 bytes
        for (int i = 0; i < kWgStages; i++) {
            mbarrier_init(&s.full[i], 1);
            mbarrier_init(&s.empty[i], kWgCluster * kWgConsumerWarps);
        }
        mbarrier_init_fence();
    }
    cluster_sync();

    int rank = cluster_rank(), cluster = blockIdx.x / kWgCluster, clusters = gridDim.x / kWgCluster;
    int tiles_m = tiles_over(g.M, kWgCluster * kWgTileM), tiles_n = tiles_over(g.N, kWgTileN), steps = tiles_over(g.K, kWgTileK);
    int warpgroup = __shfl_sync(0xffffffffu, (int)threadIdx.x / kWgWarpgroup, 0);   // the shuffle tells the compiler that a warp agrees on it
    WgPlace place;
    if (warpgroup == 0) {
        registers_shrink<kWgProducerRegisters>();
        if (threadIdx.x == 0) {
            tma_prefetch_map(&map_a);
            tma_prefetch_map(&map_b);
            for (int index = cluster; index < tiles_m * tiles_n; index += clusters) {
                TileAt tile = tile_at(index, tiles_m, tiles_n);
                wg_produce(s, &map_a, &map_b, (tile.m * kWgCluster + rank) * kWgTileM, tile.n * kWgTileN, steps, rank, place);
            }
        }
        __syncwarp();
    } else {
        registers_grow<kWgConsumerRegisters>();
        int consumer = warpgroup - 1;
        unsigned lag = min((int)kWgLag, steps);
        if (consumer == 1) named_barrier_sync(kWgLagBarrier, 2 * kWgWarpgroup);
        for (int index = cluster; index < tiles_m * tiles_n; index += clusters) {
            TileAt tile = tile_at(index, tiles_m, tiles_n);
            int row = (tile.m * kWgCluster + rank) * kWgTileM + 64 * consumer, col = tile.n * kWgTileN;
            int sum[128];
            if (g.beta != 0.0f) wg_prefetch_c<kC>(g, row, col);
            wg_multiply(sum, s, consumer, steps, lag, place);
            if (c_in_words(g, col, kWgTileN)) wg_store<kC, true>(g, row, col, sum);
            else wg_store<kC, false>(g, row, col, sum);
        }
    }
    cluster_sync();   // the neighbour may still write into this block's stages or arrive at its barriers
#else
    __trap();
#endif
}

// ---- launcher
// The descriptor of a side (rows, K) of bytes in boxes of box_rows x 128. It is passed as a kernel argument, so no cache of them is needed.
static CUtensorMap wg_tensor_map(const GemmSide& s, int K, int box_rows) {
    return tensor_map(s.data, INT8, K, s.rows, 1, (size_t)s.ld, 0, box_rows);
}

template <Fmt kC>
static void gemm_int8_sm90_launch(const Gemm& g) {
    allow_shared(gemm_int8_sm90_kernel<kC>, kWgSharedBytes);
    int tiles = tiles_over(g.M, kWgCluster * kWgTileM) * tiles_over(g.N, kWgTileN);
    int clusters = min_int(tiles, gpu_device().multiprocessors / kWgCluster);
    LAUNCH((gemm_int8_sm90_kernel<kC>), clusters * kWgCluster, kWgThreads, kWgSharedBytes, wg_tensor_map(g.a, g.K, kWgTileM),
           wg_tensor_map(g.b, g.K, kWgTileN / kWgCluster), g);
}

// False, with nothing done, if the product is not one for this kernel.
static bool gemm_int8_sm90(const Gemm& g) {
    if (gpu_device().capability != 90 || g.a.block_scale || g.b.block_scale || !g.a.aligned || !g.b.aligned) return false;
    if (g.c_fmt == F32) gemm_int8_sm90_launch<F32>(g);
    else gemm_int8_sm90_launch<BF16>(g);
    return true;
}

#endif
