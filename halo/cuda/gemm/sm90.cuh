// INT8 products on Hopper: C = (A B^T) * scales + beta C with A (M, K), B (N, K) in INT8, C in BF16 or F32. sm_90a.
//
//   cluster    two blocks, one above the other: 256 x kWidth of C. Both need the same kWidth rows of B; each loads half of them and
//              TMA's multicast puts that half into both. A stage (128 of K) costs a block, 256 columns wide, 16 KiB of A and 16 of B
//              from the L2 and 1024 clocks of the tensor cores: 32 bytes a clock instead of 48
//   block      a producer warp and two consumer warpgroups of 64 x kWidth, wgmma m64nNk32, kWidth / 2 sums a thread. Persistent
//   stages     four to six, of 32 to 48 KiB. full[s]: the bytes of A's and both halves of B's boxes. empty[s]: all consumer warps of
//              both blocks, because a block also writes into its neighbour's stage
//   epilogue   straight from registers, 16 bytes a lane in BF16 (gemm/tile.cuh). The second warpgroup starts kWgLag stages late
//              and stays behind: while one stores, the other has the tensor cores for itself, and stages keep arriving
//   cut        a width of 256, 192 or 128, whichever leaves fewer columns and multiprocessors unused; and with fewer tiles than
//              clusters, K in stretches that several clusters sum apart (split_sum): the dW of a narrow model has a handful of tiles, and
//              thousands of tokens to sum over. wg_choose weighs both
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
    kWgTileM = 128, kWgTileK = 128,                   // of a block; K in bytes, one row of the 128-byte swizzle
    kWgCluster = 2,
    kWgLag = 2,                                       // in stages; less than a tile's stages
    kWgABytes = kWgTileM * kWgTileK,
    kWgWarpgroup = 128,
    kWgConsumers = 2,                                 // warpgroups
    kWgThreads = (1 + kWgConsumers) * kWgWarpgroup,
    kWgConsumerWarps = 8,
    kWgProducerRegisters = 40,
    kWgConsumerRegisters = 232,                       // (40 + 2 * 232) * 128 <= 65536
    kWgSplitWidth = 192,                              // of the widest tiles that several clusters share: wider ones leave no registers for it
    kWgLagBarrier = 1, kWgSplitBarrier = 2            // named barriers; 0 is __syncthreads; a split barrier for each consumer
};

// The sizes of tiles kWidth wide.
template <int kWidth>
struct WgTile {
    enum {
        kSums = kWidth / 2,                           // of a thread
        kHalfB = kWidth / kWgCluster * kWgTileK,
        kBBytes = kWidth * kWgTileK,
        kStageBytes = kWgABytes + kBBytes,
        kStages = kWidth == 256 ? 4 : kWidth == 192 ? 5 : 6,
        kSharedBytes = kStages * (kStageBytes + 2 * (int)sizeof(uint64_t)) + kWgConsumers * (int)sizeof(unsigned)
    };
};

#if HALO_HOPPER
struct WgStages {
    char *a, *b;
    uint64_t *full, *empty;
    unsigned* ticket;   // of each consumer, for split_sum
};

// The order in which a cluster goes through the stages, the same for its producers and consumers.
template <int kStages>
struct WgPlace {
    unsigned step = 0;   // over all tiles of the cluster
    __device__ int stage() const { return step % kStages; }
    __device__ int stage_before() const { return (step - 1) % kStages; }
    __device__ uint32_t parity() const { return step / kStages % 2; }
};

__device__ inline void wg_release(const WgStages& s, int stage) {
    int lane = threadIdx.x % kWarp;
    if (lane < kWgCluster) mbarrier_arrive_at(&s.empty[stage], lane);
}

// What one cluster makes at a time: a stretch of K of a tile.
struct WgUnit {
    TileAt at;
    int tile, split, first_step, steps;
};
__device__ inline WgUnit wg_unit(const Gemm& g, int index, int tiles_m, int tiles_n) {
    int steps = tiles_over(g.K, kWgTileK);
    WgUnit u;
    u.tile = index % (tiles_m * tiles_n);
    u.split = index / (tiles_m * tiles_n);
    u.at = tile_at(u.tile, tiles_m, tiles_n);
    u.first_step = split_step(g, steps, u.split);
    u.steps = split_step(g, steps, u.split + 1) - u.first_step;
    return u;
}

// ---- the producer: one thread
template <int kWidth>
__device__ inline void wg_produce(const WgStages& s, const CUtensorMap* map_a, const CUtensorMap* map_b, const WgUnit& u, int rank,
                                  WgPlace<WgTile<kWidth>::kStages>& place) {
    typedef WgTile<kWidth> Tile;
    int m = (u.at.m * kWgCluster + rank) * kWgTileM, n = u.at.n * kWidth + rank * (kWidth / kWgCluster);
#pragma unroll 1   // few registers
    for (int k = u.first_step; k < u.first_step + u.steps; k++, place.step++) {
        int stage = place.stage();
        uint64_t* full = &s.full[stage];
        mbarrier_wait(&s.empty[stage], place.parity() ^ 1);   // the first time round a stage is empty
        mbarrier_expect(full, Tile::kStageBytes);
        tma_load_2d(s.a + stage * kWgABytes, map_a, k * kWgTileK, m, full);
        tma_load_2d_multicast(s.b + stage * Tile::kBBytes + rank * Tile::kHalfB, map_b, k * kWgTileK, n, full, (1 << kWgCluster) - 1);
    }
}

// ---- a consumer: sum (64, kWidth) of rows from 64 * consumer on
template <int kWidth>
__device__ inline void wg_multiply(int (&sum)[WgTile<kWidth>::kSums], const WgStages& s, int consumer, int steps, unsigned lag,
                                   WgPlace<WgTile<kWidth>::kStages>& place) {
    for (int k = 0; k < steps; k++, place.step++) {
        int stage = place.stage();
        uint64_t a = wgmma_matrix(s.a + stage * kWgABytes + consumer * (kWgABytes / 2), 16);
        uint64_t b = wgmma_matrix(s.b + stage * WgTile<kWidth>::kBBytes, 16);
        mbarrier_wait(&s.full[stage], place.parity());
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kWgTileK / 32; i++) wgmma_s8(sum, wgmma_advance(a, 32 * i), wgmma_advance(b, 32 * i), k > 0 || i > 0);
        wgmma_commit();
        if (k > 0) {   // the products of the stage before are done, this stage's under way
            wgmma_wait<1>();
            wg_release(s, place.stage_before());
        }
        if (consumer == 0 && place.step + 1 == lag) named_barrier_arrive(kWgLagBarrier, kWgConsumers * kWgWarpgroup);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < WgTile<kWidth>::kSums; i++) asm volatile("" : "+r"(sum[i])::"memory");   // read only after the wait
    wg_release(s, place.stage_before());
}

// With beta: prefetches the rows of C that this warpgroup is going to add to into the L2.
template <Fmt kC, int kWidth>
__device__ inline void wg_prefetch_c(const Gemm& g, int row, int col) {
    const int kBytes = kC == F32 ? 4 : 2, kLine = 128 / kBytes, kLines = kWidth / kLine;
    for (int i = threadIdx.x % kWgWarpgroup; i < 64 * kLines; i += kWgWarpgroup) {
        int r = row + i / kLines, n = col + i % kLines * kLine;
        if (r < g.M && n < g.N) prefetch_l2((const char*)g.c + ((size_t)r * g.ldc + n) * kBytes);
    }
}

// This lane's two rows of C, and the scales that hold for all of their columns: read before the sums are there.
struct WgRows {
    int row[2];
    float a_scale[2], b_scale;
};
__device__ inline WgRows wg_rows(const Gemm& g, int first) {
    WgRows r;
    r.row[0] = first + (int)threadIdx.x % kWgWarpgroup / kWarp * 16 + (int)threadIdx.x % kWarp / 4;
    r.row[1] = r.row[0] + 8;
    for (int half = 0; half < 2; half++) r.a_scale[half] = side_scale(g.a, r.row[half]);
    r.b_scale = side_scale(g.b, 0);
    return r;
}

// Stores kGroups times 32 columns from `col` on. With beta all of their C is read at a time.
template <Fmt kC, bool kWords, int kGroups>
__device__ inline void wg_store_groups(const Gemm& g, const WgRows& r, int col, const int (&sum)[16 * kGroups]) {
    CWords<kC> before[kGroups][2];
    if (g.beta != 0.0f) {
#pragma unroll
        for (int i = 0; i < kGroups; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) before[i][half] = c_load<kC, kWords>(g, r.row[half], col + 32 * i);
    }
#pragma unroll
    for (int i = 0; i < kGroups; i++) {
        float b_scale[4][2];
        column_scales<kWords>(b_scale, g.b, col + 32 * i, r.b_scale);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float out[4][2];
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    out[j][e] = dequantized(__int2float_rn(sum[(i * 4 + j) * 4 + 2 * half + e]), r.a_scale[half], b_scale[j][e]);
            if (g.beta != 0.0f) c_add<kC, kWords>(out, g, before[i][half]);
            c_store<kC, kWords>(g, r.row[half], col + 32 * i, out);
        }
    }
}
template <Fmt kC, int kWidth>
__device__ inline void wg_store(const Gemm& g, const WgRows& r, int col, const int (&sum)[WgTile<kWidth>::kSums]) {
    const int kGroups = kC == F32 ? 2 : kWidth == 192 ? 3 : 4;
#pragma unroll
    for (int batch = 0; batch < kWidth / 32; batch += kGroups) {
        int at = col + 32 * batch;
        const int(&part)[16 * kGroups] = reinterpret_cast<const int(&)[16 * kGroups]>(sum[16 * batch]);
        if (c_in_words(g, at, 32 * kGroups)) wg_store_groups<kC, true, kGroups>(g, r, at, part);
        else if (at < g.N) wg_store_groups<kC, false, kGroups>(g, r, at, part);
    }
}
#endif

template <Fmt kC, int kWidth>
__global__ void __launch_bounds__(kWgThreads, 1)
gemm_int8_sm90_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, const __grid_constant__ Gemm g) {
#if HALO_HOPPER
    typedef WgTile<kWidth> Tile;
    SHARED(char, memory);
    WgStages s;
    s.a = memory;
    s.b = memory + Tile::kStages * kWgABytes;
    s.full = (uint64_t*)(memory + Tile::kStages * Tile::kStageBytes);
    s.empty = s.full + Tile::kStages;
    s.ticket = (unsigned*)(s.empty + Tile::kStages);
    if (threadIdx.x == 0) {
        tma_prefetch_map(&map_a);
        tma_prefetch_map(&map_b);
        if (shared_address(memory) % 1024) __trap();   // the swizzle repeats every 1024 bytes
        for (int i = 0; i < Tile::kStages; i++) {
            mbarrier_init(&s.full[i], 1);
            mbarrier_init(&s.empty[i], kWgCluster * kWgConsumerWarps);
        }
        mbarrier_init_fence();
    }
    cluster_sync();

    int rank = cluster_rank(), cluster = blockIdx.x / kWgCluster, clusters = gridDim.x / kWgCluster;
    int tiles_m = tiles_over(g.M, kWgCluster * kWgTileM), tiles_n = tiles_over(g.N, kWidth), units = tiles_m * tiles_n * g.splits;
    int warpgroup = __shfl_sync(0xffffffffu, (int)threadIdx.x / kWgWarpgroup, 0);   // the shuffle tells the compiler that a warp agrees on it
    WgPlace<Tile::kStages> place;
    if (warpgroup == 0) {
        registers_shrink<kWgProducerRegisters>();
        if (threadIdx.x == 0) {
            for (int index = cluster; index < units; index += clusters)
                wg_produce<kWidth>(s, &map_a, &map_b, wg_unit(g, index, tiles_m, tiles_n), rank, place);
        }
        __syncwarp();
    } else {
        registers_grow<kWgConsumerRegisters>();
        int consumer = warpgroup - 1;
        unsigned lag = min((int)kWgLag, wg_unit(g, cluster, tiles_m, tiles_n).steps);
        if (consumer == 1) named_barrier_sync(kWgLagBarrier, kWgConsumers * kWgWarpgroup);
        for (int index = cluster; index < units; index += clusters) {
            WgUnit u = wg_unit(g, index, tiles_m, tiles_n);
            int col = u.at.n * kWidth;
            WgRows rows = wg_rows(g, (u.at.m * kWgCluster + rank) * kWgTileM + 64 * consumer);
            int sum[Tile::kSums];
            if (g.beta != 0.0f && u.split == 0) wg_prefetch_c<kC, kWidth>(g, (u.at.m * kWgCluster + rank) * kWgTileM + 64 * consumer, col);
            wg_multiply<kWidth>(sum, s, consumer, u.steps, lag, place);
            if constexpr (kWidth <= kWgSplitWidth) {
                int part = (u.tile * kWgCluster + rank) * kWgConsumers + consumer, thread = threadIdx.x % kWgWarpgroup;
                if (!split_sum(sum, g, part, u.split, thread, kWgWarpgroup, kWgSplitBarrier + consumer, &s.ticket[consumer])) continue;
            }
            wg_store<kC, kWidth>(g, rows, col, sum);
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

// About how long the product takes in tiles `width` wide and K in `splits` stretches. Clusters take turns, each of which multiplies, then
// stores; or the L2, which gives all of them some 24 bytes a clock and multiprocessor, takes longer than the multiplications. Sums of
// stretches are stored by all, then read one after another by the last.
static double wg_clocks(const Gemm& g, int width, int splits) {
    const double kL2 = 24, kTurn = 1000, kSumsOfColumn = 11;   // bytes a clock; clocks of a turn's beginning; 128 sums of 4 bytes at 48 a clock
    int clusters = gpu_device().multiprocessors / kWgCluster, steps = tiles_over(g.K, kWgTileK);
    double tiles = (double)tiles_over(g.M, kWgCluster * kWgTileM) * tiles_over(g.N, width);
    double turns = ceil(tiles * splits / clusters), blocks = kWgCluster * (double)clusters;
    double multiply = turns * tiles_over(steps, splits) * 4 * width;
    double load = tiles * kWgCluster * steps * (kWgTileM + width / kWgCluster) * kWgTileK / (kL2 * blocks);
    double store = turns * (kTurn + width * kWgTileM * (double)fmt_bytes(g.c_fmt) / kL2);
    return fmax(multiply, load) + store + (splits > 1 ? splits * width * kSumsOfColumn : 0);
}

struct WgCut {
    int width, splits;
    double clocks;
};
static bool wg_can_cut(const Gemm& g, int width, int splits) {
    int tiles = tiles_over(g.M, kWgCluster * kWgTileM) * tiles_over(g.N, width), parts = kWgCluster * kWgConsumers;
    return splits == 1 || (width <= kWgSplitWidth && split_fits(tiles, parts, splits, sizeof(int) * kWgCluster * kWgTileM * (size_t)width));
}
static WgCut wg_choose(const Gemm& g) {
    WgCut best = {256, 1, INFINITY};
    const int widths[] = {256, 192, 128};
    for (int width : widths) {
        for (int splits = 1; splits <= min_int(kMostSplits, tiles_over(g.K, kWgTileK)) && wg_can_cut(g, width, splits); splits++) {
            WgCut cut = {width, splits, wg_clocks(g, width, splits)};
            bool asked = (!gemm_asked.width || width == gemm_asked.width) && (!gemm_asked.splits || splits == gemm_asked.splits);
            if (asked && cut.clocks < best.clocks) best = cut;
        }
    }
    return best;
}

template <Fmt kC, int kWidth>
static void gemm_int8_sm90_launch(const Gemm& g) {
    typedef WgTile<kWidth> Tile;
    allow_shared(gemm_int8_sm90_kernel<kC, kWidth>, Tile::kSharedBytes);
    int units = tiles_over(g.M, kWgCluster * kWgTileM) * tiles_over(g.N, kWidth) * g.splits;
    int clusters = min_int(units, gpu_device().multiprocessors / kWgCluster);
    LAUNCH_CLUSTERS((gemm_int8_sm90_kernel<kC, kWidth>), kWgCluster, clusters * kWgCluster, kWgThreads, Tile::kSharedBytes,
                    wg_tensor_map(g.a, g.K, kWgTileM), wg_tensor_map(g.b, g.K, kWidth / kWgCluster), g);
}
template <Fmt kC>
static void gemm_int8_sm90_cut(const Gemm& g, int width) {
    if (width == 256) gemm_int8_sm90_launch<kC, 256>(g);
    else if (width == 192) gemm_int8_sm90_launch<kC, 192>(g);
    else gemm_int8_sm90_launch<kC, 128>(g);
}

// False, with nothing done, if the product is not one for this kernel.
static bool gemm_int8_sm90(Gemm g) {
    if (gpu_device().capability != 90 || g.a.block_scale || g.b.block_scale || !g.a.aligned || !g.b.aligned) return false;
    WgCut cut = wg_choose(g);
    split_into(&g, cut.splits);
    if (g.c_fmt == F32) gemm_int8_sm90_cut<F32>(g, cut.width);
    else gemm_int8_sm90_cut<BF16>(g, cut.width);
    return true;
}

#endif
