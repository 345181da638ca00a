// Products on mma.sync, for every architecture from sm_80 on, any M, N, K, leading dimension, scales and mixture of formats.
//
//   gemm_mma_kernel   both sides INT8: m16n8k32, sums exact in 32-bit integers. Otherwise BF16 m16n8k16, to which codes of 8
//                     and 6 bits are widened on their way into shared memory: exact, since none has more than 8 significant bits
//   gemm_f32_kernel   if a side is F32: plain FP32
//
// A block makes 128 x 128 of C with 8 warps of 64 x 32. A stage is 64 bytes of K of each side (64 INT8 or 32 BF16 values),
// 16 KiB; four of them are in flight through cp.async, 64 KiB, two blocks an SM. In INT8 a stage is 128 * 128 * 64 = 2^20
// multiplications: 512 clocks of an A100's tensor cores (2048 a clock), so that the L2 has to give 32 bytes a clock. Within a
// row of a stage, 16-byte unit u of row r lies at u ^ (r / 2 % 4): eight rows of one unit fall on all 32 banks.
// Where tiles are few, several blocks share a tile of INT8 sums (split_sum).
//
// PER_BLOCK32 (Jetfire): the sum over each 32 of K is multiplied by the two block scales and added in FP32. A warp's 64 x 32
// holds 2 x 1 blocks of scales, so a step of 32 reads three of them, the same in all lanes.
#ifndef HALO_CUDA_GEMM_SM80_CUH
#define HALO_CUDA_GEMM_SM80_CUH

#include "tile.cuh"

enum {
    kMmaTile = 128,                           // M and N of a block
    kMmaWarpM = 64, kMmaWarpN = 32,
    kMmaThreads = 256,
    kMmaRowBytes = 64,
    kMmaSideBytes = kMmaTile * kMmaRowBytes,
    kMmaStageBytes = 2 * kMmaSideBytes,
    kMmaStages = 4,
    kMmaSharedBytes = kMmaStages * kMmaStageBytes,
    kMmaSteps = kMmaRowBytes / 32,            // instructions along K in a stage: each takes 32 bytes
    kMmaRows = kMmaWarpM / 16, kMmaCols = kMmaWarpN / 8
};

// ---- in what the two instructions differ
struct MmaInt8 {
    typedef int Sum;
    enum { kBytes = 1 };
    static __device__ void multiply(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_s8(d, a, b0, b1); }
};
struct MmaBf16 {
    typedef float Sum;
    enum { kBytes = 2 };
    static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(d, a, b0, b1); }
};

// ---- loading: 16-byte units of a stage
__device__ inline char* mma_unit(char* side, int row, int unit) {
    return side + row * kMmaRowBytes + ((unit ^ (row / 2 % 4)) * 16);
}

// The value of an 8-bit code, exactly: its exponent and mantissa moved to where an F32 has them, then the exponents' biases
// made equal by a multiplication, which also puts subnormal codes right.
__device__ inline bf16 bf16_from_code(uint8_t code, Fmt fmt) {
    if (fmt == INT8) return (bf16)(f32_bits((float)(int8_t)code) >> 16);
    uint32_t low = code & 0x7fu, sign = (code & 0x80u) << 8, bits;
    if (fmt == FP8_E5M2) {
        bits = f32_bits(f32_from_bits(low << 21) * 0x1p112f) >> 16;
        if (low >= 0x7c) bits = low == 0x7c ? 0x7f80 : 0x7fc0;
    } else {
        bits = f32_bits(f32_from_bits(low << 20) * 0x1p120f) >> 16;
        if (low == 0x7f) bits = 0x7fc0;
    }
    return (bf16)(sign | bits);
}

// One unit in the instruction's format, element by element: for sides that are widened, transposed or not aligned.
template <typename Mma>
__device__ inline uint4 mma_read_unit(const GemmSide& s, int K, int row, int k) {
    const int kValues = 16 / Mma::kBytes;
    union {
        uint4 whole;
        uint8_t codes[16];
        bf16 values[8];
    } unit;
    unit.whole = make_uint4(0, 0, 0, 0);
    if (row >= s.rows) return unit.whole;
    const uint8_t* codes = (const uint8_t*)s.data + (size_t)row * s.ld + k;
    if (Mma::kBytes == 2 && fmt_bytes(s.fmt) == 1 && s.aligned && k + kValues <= K) {
        uint2 eight = *reinterpret_cast<const uint2*>(codes);
#pragma unroll
        for (int i = 0; i < 8; i++)
            unit.values[i] = bf16_from_code((uint8_t)((i < 4 ? eight.x : eight.y) >> (8 * (i % 4))), s.fmt);
        return unit.whole;
    }
#pragma unroll
    for (int i = 0; i < kValues; i++) {
        if (k + i >= K) continue;
        if (Mma::kBytes == 1) unit.codes[i] = codes[i];
        else if (fmt_bytes(s.fmt) == 1) unit.values[i % 8] = bf16_from_code(codes[i], s.fmt);
        else unit.values[i % 8] = ((const bf16*)s.data)[s.transposed ? (size_t)(k + i) * s.ld + row : (size_t)row * s.ld + k + i];
    }
    return unit.whole;
}

template <typename Mma, bool kAsync>
__device__ inline void mma_load_side(char* side, const GemmSide& s, int K, int first_row, int first_k) {
    const int kUnits = kMmaRowBytes / 16, kValues = 16 / Mma::kBytes;
    for (int i = 0; i < kMmaTile * kUnits / kMmaThreads; i++) {
        int index = i * kMmaThreads + threadIdx.x;
        bool along_rows = !kAsync && s.transposed;   // neighbouring threads read neighbouring addresses
        int r = along_rows ? index % kMmaTile : index / kUnits, unit = along_rows ? index / kMmaTile : index % kUnits;
        int row = first_row + r, k = first_k + unit * kValues;
        char* to = mma_unit(side, r, unit);
        if (kAsync) {   // K is a multiple of a unit
            bool inside = row < s.rows && k < K;
            cp_async16(to, (const char*)s.data + (inside ? ((size_t)row * s.ld + k) * Mma::kBytes : 0), inside);
        } else {
            *reinterpret_cast<uint4*>(to) = mma_read_unit<Mma>(s, K, row, k);
        }
    }
}

// ---- multiplying a stage
// Rows of A, 16 by 32 bytes, as the instruction wants them; and of B two neighbouring 8 by 32 bytes.
__device__ inline void mma_read_a(uint32_t (&a)[4], char* side, int row, int step) {
    int lane = threadIdx.x % kWarp;
    ldmatrix<false>(a, (const bf16*)mma_unit(side, row + lane % 16, step * 2 + lane / 16));
}
__device__ inline void mma_read_b(uint32_t (&b)[4], char* side, int row, int step) {
    int lane = threadIdx.x % kWarp;
    ldmatrix<false>(b, (const bf16*)mma_unit(side, row + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
}

template <typename Mma>
__device__ inline void mma_stage(typename Mma::Sum (&sum)[kMmaRows][kMmaCols][4], char* a_side, char* b_side, int row, int col) {
#pragma unroll
    for (int step = 0; step < kMmaSteps; step++) {
        uint32_t a[kMmaRows][4], b[kMmaCols / 2][4];
#pragma unroll
        for (int i = 0; i < kMmaRows; i++) mma_read_a(a[i], a_side, row + 16 * i, step);
#pragma unroll
        for (int j = 0; j < kMmaCols / 2; j++) mma_read_b(b[j], b_side, col + 16 * j, step);
#pragma unroll
        for (int i = 0; i < kMmaRows; i++)
#pragma unroll
            for (int j = 0; j < kMmaCols; j++) Mma::multiply(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

__device__ inline float mma_block_scale(const GemmSide& s, int K, int row, int k) {
    if (!s.block_scale) return 1.0f;
    int i = min(row, s.rows - 1) / 32, j = min(k, K - 1) / 32;
    return __ldg(s.block_scale + (size_t)i * s.block_row_step + (size_t)j * s.block_k_step);
}

// Multiplies a stage with PER_BLOCK32: a scale for every 32 of K, which is one INT8 instruction or two of BF16. row and col: the warp's
// within the tile; m, n, k: the tile's within the product.
template <typename Mma>
__device__ inline void mma_stage_scaled(float (&total)[kMmaRows][kMmaCols][4], char* a_side, char* b_side, int row, int col,
                                        const Gemm& g, int m, int n, int k) {
    const int kStepsPerBlock = Mma::kBytes;
#pragma unroll
    for (int block = 0; block < kMmaSteps / kStepsPerBlock; block++) {
        int first_step = block * kStepsPerBlock, at = k + 32 * block;
        float b_scale = mma_block_scale(g.b, g.K, n + col, at);
        float scale[2] = {mma_block_scale(g.a, g.K, m + row, at) * b_scale, mma_block_scale(g.a, g.K, m + row + 32, at) * b_scale};
        uint32_t b[kStepsPerBlock][kMmaCols / 2][4];
#pragma unroll
        for (int s = 0; s < kStepsPerBlock; s++)
#pragma unroll
            for (int j = 0; j < kMmaCols / 2; j++) mma_read_b(b[s][j], b_side, col + 16 * j, first_step + s);
#pragma unroll
        for (int i = 0; i < kMmaRows; i++) {
            uint32_t a[kStepsPerBlock][4];
#pragma unroll
            for (int s = 0; s < kStepsPerBlock; s++) mma_read_a(a[s], a_side, row + 16 * i, first_step + s);
#pragma unroll
            for (int j = 0; j < kMmaCols; j++) {
                typename Mma::Sum part[4] = {0, 0, 0, 0};
#pragma unroll
                for (int s = 0; s < kStepsPerBlock; s++)
                    Mma::multiply(part, a[s], b[s][j / 2][j % 2 * 2], b[s][j / 2][j % 2 * 2 + 1]);
#pragma unroll
                for (int e = 0; e < 4; e++) total[i][j][e] += (float)part[e] * scale[i / 2];
            }
        }
    }
}

// ---- C: the warp's 64 x 32 from (row, col) on
template <Fmt kC, bool kWords, typename Sum>
__device__ inline void mma_store_as(const Gemm& g, int row, int col, const Sum (&sum)[kMmaRows][kMmaCols][4]) {
    float b_scale[4][2];
    column_scales<kWords>(b_scale, g.b, col, side_scale(g.b, 0));
#pragma unroll
    for (int i = 0; i < kMmaRows; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = row + 16 * i + 8 * half + threadIdx.x % kWarp / 4;
            float a_scale = side_scale(g.a, r), out[4][2];
#pragma unroll
            for (int j = 0; j < 4; j++)
                for (int e = 0; e < 2; e++) out[j][e] = dequantized((float)sum[i][j][2 * half + e], a_scale, b_scale[j][e]);
            if (g.beta != 0.0f) c_add<kC, kWords>(out, g, c_load<kC, kWords>(g, r, col));
            c_store<kC, kWords>(g, r, col, out);
        }
    }
}
template <Fmt kC, typename Sum>
__device__ inline void mma_store(const Gemm& g, int row, int col, const Sum (&sum)[kMmaRows][kMmaCols][4]) {
    if (c_in_words(g, col, kMmaWarpN)) mma_store_as<kC, true>(g, row, col, sum);
    else mma_store_as<kC, false>(g, row, col, sum);
}

template <typename Mma, bool kAsync, bool kBlocks>
__global__ __launch_bounds__(kMmaThreads, kBlocks ? 1 : 2) void gemm_mma_kernel(Gemm g) {
    typedef typename std::conditional<kBlocks, float, typename Mma::Sum>::type Sum;
    SHARED(char, stages);
    const int kStageValues = kMmaRowBytes / Mma::kBytes;
    int tiles_m = tiles_over(g.M, kMmaTile), tiles_n = tiles_over(g.N, kMmaTile), steps = tiles_over(g.K, kStageValues);
    int number = blockIdx.x % (tiles_m * tiles_n), split = blockIdx.x / (tiles_m * tiles_n);
    int first = split_step(g, steps, split), last = split_step(g, steps, split + 1);
    TileAt tile = tile_at(number, tiles_m, tiles_n);
    int m = tile.m * kMmaTile, n = tile.n * kMmaTile, warp = threadIdx.x / kWarp;
    int row = warp / 4 * kMmaWarpM, col = warp % 4 * kMmaWarpN;

    auto load = [&](int step) {
        char* stage = stages + step % kMmaStages * kMmaStageBytes;
        if (step < last) {
            mma_load_side<Mma, kAsync>(stage, g.a, g.K, m, step * kStageValues);
            mma_load_side<Mma, kAsync>(stage + kMmaSideBytes, g.b, g.K, n, step * kStageValues);
        }
        cp_async_commit();   // an empty group at the end keeps the count
    };
    for (int step = first; step < first + kMmaStages - 1; step++) load(step);

    Sum sum[kMmaRows][kMmaCols][4] = {};
    for (int step = first; step < last; step++) {
        cp_async_wait<kMmaStages - 2>();
        __syncthreads();   // this step's stage has arrived, and all warps have read the stage before it
        load(step + kMmaStages - 1);
        char *a_side = stages + step % kMmaStages * kMmaStageBytes, *b_side = a_side + kMmaSideBytes;
        if constexpr (kBlocks) mma_stage_scaled<Mma>(sum, a_side, b_side, row, col, g, m, n, step * kStageValues);
        else mma_stage<Mma>(sum, a_side, b_side, row, col);
    }
    cp_async_wait<0>();
    if constexpr (std::is_same<Sum, int>::value) {
        __shared__ unsigned ticket;
        int(&flat)[kMmaRows * kMmaCols * 4] = reinterpret_cast<int(&)[kMmaRows * kMmaCols * 4]>(sum);
        if (!split_sum(flat, g, number, split, threadIdx.x, kMmaThreads, 0, &ticket)) return;
    }
    if (g.c_fmt == F32) mma_store<F32>(g, m + row, n + col, sum);
    else mma_store<BF16>(g, m + row, n + col, sum);
}

// ---- F32: 64 x 64 of C a block, 4 x 4 a thread, 32 of K at a time in shared memory. Sums of 32 are added up, with their
// scales where there are any.
enum { kF32Tile = 64, kF32Threads = 256, kF32Depth = 32 };

__device__ inline float side_value(const GemmSide& s, int K, int row, int k) {
    if (row >= s.rows || k >= K) return 0.0f;
    size_t at = s.transposed ? (size_t)k * s.ld + row : (size_t)row * s.ld + k;
    if (s.fmt == F32) return ((const float*)s.data)[at];
    if (s.fmt == BF16) return f32_from_bf16(((const bf16*)s.data)[at]);
    return f32_from_bf16(bf16_from_code(((const uint8_t*)s.data)[at], s.fmt));
}
__device__ inline void f32_load_side(float (*tile)[kF32Tile + 1], const GemmSide& s, int K, int first_row, int first_k) {
    for (int i = threadIdx.x; i < kF32Tile * kF32Depth; i += kF32Threads) {
        int row = s.transposed ? i % kF32Tile : i / kF32Depth, k = s.transposed ? i / kF32Tile : i % kF32Depth;
        tile[k][row] = side_value(s, K, first_row + row, first_k + k);
    }
}

__global__ __launch_bounds__(kF32Threads, 2) void gemm_f32_kernel(Gemm g) {
    __shared__ float a_tile[kF32Depth][kF32Tile + 1], b_tile[kF32Depth][kF32Tile + 1];
    TileAt tile = tile_at(blockIdx.x, tiles_over(g.M, kF32Tile), tiles_over(g.N, kF32Tile));
    int row = threadIdx.x / 16, col = threadIdx.x % 16;   // this thread's elements are (row + 16 i, col + 16 j)
    int m = tile.m * kF32Tile + row, n = tile.n * kF32Tile + col;
    float total[4][4] = {};
    for (int k = 0; k < g.K; k += kF32Depth) {
        __syncthreads();
        f32_load_side(a_tile, g.a, g.K, tile.m * kF32Tile, k);
        f32_load_side(b_tile, g.b, g.K, tile.n * kF32Tile, k);
        __syncthreads();
        float part[4][4] = {};
        for (int d = 0; d < kF32Depth; d++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) part[i][j] = __fmaf_rn(a_tile[d][row + 16 * i], b_tile[d][col + 16 * j], part[i][j]);
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                total[i][j] += part[i][j] * (mma_block_scale(g.a, g.K, m + 16 * i, k) * mma_block_scale(g.b, g.K, n + 16 * j, k));
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            int r = m + 16 * i, c = n + 16 * j;
            if (r >= g.M || c >= g.N) continue;
            size_t at = (size_t)r * g.ldc + c;
            float out = dequantized(total[i][j], side_scale(g.a, r), side_scale(g.b, c));
            float before = g.beta == 0.0f ? 0.0f
                           : g.c_fmt == F32 ? ((const float*)g.c)[at]
                                            : f32_from_bf16(((const bf16*)g.c)[at]);
            if (g.beta != 0.0f) out = __fadd_rn(out, __fmul_rn(g.beta, before));
            if (g.c_fmt == F32) ((float*)g.c)[at] = out;
            else ((bf16*)g.c)[at] = bf16_from_f32(out);
        }
    }
}

// ---- launchers
// In how many stretches K is summed: blocks take turns, two at a time on each multiprocessor, which share its tensor cores; then the last of
// a tile's blocks adds up the sums of all.
static int mma_splits(const Gemm& g) {
    const int kBlocks = 2, kStepClocks = 512 * kBlocks, kSumsClocks = 11 * kMmaTile;
    int tiles = tiles_over(g.M, kMmaTile) * tiles_over(g.N, kMmaTile), steps = tiles_over(g.K, kMmaRowBytes), best = 1;
    double best_clocks = INFINITY;
    for (int splits = 1; splits <= min_int(kMostSplits, steps); splits++) {
        if (!split_fits(tiles, 1, splits, sizeof(int) * kMmaTile * kMmaTile)) break;
        if (gemm_asked.splits && splits != gemm_asked.splits) continue;
        double turns = ceil((double)tiles * splits / (kBlocks * gpu_device().multiprocessors));
        double clocks = turns * tiles_over(steps, splits) * kStepClocks + (splits > 1 ? splits * kSumsClocks : 0);
        if (clocks < best_clocks) best = splits, best_clocks = clocks;
    }
    return best;
}

template <typename Mma, bool kAsync, bool kBlocks>
static void gemm_mma_launch(const Gemm& g) {
    allow_shared(gemm_mma_kernel<Mma, kAsync, kBlocks>, kMmaSharedBytes);
    LAUNCH((gemm_mma_kernel<Mma, kAsync, kBlocks>), tiles_over(g.M, kMmaTile) * tiles_over(g.N, kMmaTile) * g.splits, kMmaThreads,
           kMmaSharedBytes, g);
}
template <typename Mma>
static void gemm_mma_dispatch(Gemm g) {
    bool blocks = g.a.block_scale || g.b.block_scale;
    if (Mma::kBytes == 1 && !blocks) split_into(&g, mma_splits(g));
    bool async = g.a.aligned && g.b.aligned && !g.a.transposed && !g.b.transposed && g.K % (16 / Mma::kBytes) == 0 &&
                 fmt_bytes(g.a.fmt) == Mma::kBytes && fmt_bytes(g.b.fmt) == Mma::kBytes;
    if (blocks && async) gemm_mma_launch<Mma, true, true>(g);
    else if (blocks) gemm_mma_launch<Mma, false, true>(g);
    else if (async) gemm_mma_launch<Mma, true, false>(g);
    else gemm_mma_launch<Mma, false, false>(g);
}

static void gemm_own(const Gemm& g) {
    if (g.a.fmt == F32 || g.b.fmt == F32)
        LAUNCH(gemm_f32_kernel, tiles_over(g.M, kF32Tile) * tiles_over(g.N, kF32Tile), kF32Threads, 0, g);
    else if (g.a.fmt == INT8 && g.b.fmt == INT8) gemm_mma_dispatch<MmaInt8>(g);
    else gemm_mma_dispatch<MmaBf16>(g);
}

#endif
