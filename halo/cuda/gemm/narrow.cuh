// The two narrow products of one matrix (ops.h, gemm_narrow) in one pass over it: xp (M, W) = factor * x p and xtq (N, W) = x^T q + beta * xtq,
// with x (M, N), p (N, W) and q (M, W) in BF16. Each of them alone would be a pass over x, whose bytes are all that counts: W is a LoRA rank.
//
// A block has kRows rows and goes along them in stages of 128 columns of x, each with its 128 rows of p. Three stages of 68 KB are under way, so
// that an SM has 136 KB or more in flight while its only block reads a stage twice, once for each product:
//
//   x p     warp w takes rows 16 w of every 128; its sums stay in registers over all columns
//   x^T q   warp w takes columns 16 w and all rows, whose q it keeps in registers from the start; its sums are the block's
//
// The operands other than x are why a warp takes what it does: p is read once for kTiles products, q never, and no two warps add their sums.
// What a block has summed goes to the workspace, and a second kernel adds the blocks' sums in their order. Rows of shared memory lie so that
// eight neighbouring ones fall on all 32 banks: 16-byte unit u of row r is at u ^ (r % 8), of rows shorter than 8 units at
// u ^ (r / (8 / units) % units).
#ifndef HALO_CUDA_GEMM_NARROW_CUH
#define HALO_CUDA_GEMM_NARROW_CUH

#include "gemm.cuh"

enum {
    kNarrowTile = 128,       // columns of a stage, and a step down its rows: 16 for each warp
    kNarrowThreads = 256,
    kNarrowStages = 3,
    kNarrowSteps = kNarrowTile / 16,   // instructions along K in a tile, of both products
    kNarrowSumThreads = 256,
    kNarrowWays = 4   // lanes that share an octet's parts
};

template <int kW>
struct NarrowSizes {
    enum {
        kTiles = kW < 64 ? 2 : 1,   // as many as leave q in registers
        kRows = kTiles * kNarrowTile,
        kUnits = kW / 8,            // of a row of p or q
        kXUnits = kNarrowTile / 8,
        kXBytes = kRows * kNarrowTile * sizeof(bf16),
        kStageBytes = kXBytes + kNarrowTile * kW * sizeof(bf16),   // x, p
        kSharedBytes = kNarrowStages * kStageBytes
    };
};

struct Narrow {
    const bf16 *x, *p, *q;
    int M, N, x_ld, p_ld, q_ld;
    int cols;           // of a block, a multiple of kNarrowTile
    int across, down;   // blocks
    float* xp_parts;    // (across, M, W)
    float* xtq_parts;   // (down, N, W)
};

template <int kUnits>
__device__ inline char* narrow_unit(char* rows, int row, int unit) {
    int turn = kUnits < 8 ? row / (8 / min(kUnits, 8)) % kUnits : row % 8;
    return rows + (row * kUnits + (unit ^ turn)) * 16;
}

// Starts copying kRows rows of 8 * kUnits columns, the first of which `from` points to. Beyond the `rows` and `cols` left of the matrix, at least
// one of each, there are zeros. A thread's rows are a multiple of 8 apart: they lie alike.
template <int kRows, int kUnits>
__device__ inline void narrow_load(char* to, const bf16* from, int ld, int rows, int cols) {
    const int kApart = kNarrowThreads / kUnits;
    static_assert(kApart % 8 == 0 && kRows % kApart == 0, "every thread has the same number of units");
    int row = threadIdx.x / kUnits, unit = threadIdx.x % kUnits;
    if (8 * unit >= cols) rows = 0;
    const bf16* at = from + (size_t)row * ld + 8 * unit;
    to = narrow_unit<kUnits>(to, row, unit);
#pragma unroll
    for (int i = 0; i < kRows / kApart; i++) {
        bool inside = row + i * kApart < rows;
        cp_async16(to + i * kApart * kUnits * 16, inside ? at : from, inside);
        at += (size_t)kApart * ld;
    }
}

// The instruction's B operand from rows [row, row + 16) of p or q as they lie, columns [8 unit, 8 unit + 16): two blocks of 8 columns.
template <int kUnits>
__device__ inline void narrow_read_b(uint32_t (&b)[4], char* rows, int row, int unit) {
    int lane = threadIdx.x % kWarp;
    ldmatrix<true>(b, (const bf16*)narrow_unit<kUnits>(rows, row + lane % 16, unit + lane / 16));
}

template <int kBlocks>
__device__ inline void narrow_multiply(float (&sum)[kBlocks][4], const uint32_t (&a)[4], const uint32_t (&b)[4], int pair) {
    mma_bf16(sum[2 * pair], a, b[0], b[1]);
    mma_bf16(sum[2 * pair + 1], a, b[2], b[3]);
}

// Stores a warp's 16 rows of W sums, of which those before `rows` exist.
template <int kW>
__device__ inline void narrow_store(float* to, int row, int rows, const float (&sum)[kW / 8][4]) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + lane / 4 + 8 * half;
        if (r >= rows) continue;
#pragma unroll
        for (int j = 0; j < kW / 8; j++)
            *reinterpret_cast<float2*>(to + (size_t)r * kW + 8 * j + 2 * (lane % 4)) = make_float2(sum[j][2 * half], sum[j][2 * half + 1]);
    }
}

template <int kW>
__global__ void __launch_bounds__(kNarrowThreads, 1) gemm_narrow_kernel(Narrow g) {
    typedef NarrowSizes<kW> S;
    const int kPairs = kW / 16;
    SHARED(char, stages);
    int first_row = blockIdx.y * S::kRows, first_col = blockIdx.x * g.cols, rows = g.M - first_row;
    int tiles = tiles_over(min(g.cols, g.N - first_col), kNarrowTile);
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

    auto load = [&](int tile) {
        char* stage = stages + tile % kNarrowStages * S::kStageBytes;
        int col = first_col + tile * kNarrowTile;
        if (tile < tiles) {
            narrow_load<S::kRows, S::kXUnits>(stage, g.x + (size_t)first_row * g.x_ld + col, g.x_ld, rows, g.N - col);
            narrow_load<kNarrowTile, S::kUnits>(stage + S::kXBytes, g.p + (size_t)col * g.p_ld, g.p_ld, g.N - col, kW);
        }
        cp_async_commit();   // an empty group at the end keeps the count
    };
    char* q_rows = stages + (kNarrowStages - 1) * S::kStageBytes;   // before the first tile comes here
    narrow_load<S::kRows, S::kUnits>(q_rows, g.q + (size_t)first_row * g.q_ld, g.q_ld, rows, kW);
    cp_async_commit();
    for (int tile = 0; tile < kNarrowStages - 1; tile++) load(tile);
    cp_async_wait<kNarrowStages - 1>();
    __syncthreads();
    uint32_t q[S::kTiles][kNarrowSteps][kPairs][4];
#pragma unroll
    for (int t = 0; t < S::kTiles; t++)
#pragma unroll
        for (int s = 0; s < kNarrowSteps; s++)
#pragma unroll
            for (int j = 0; j < kPairs; j++) narrow_read_b<S::kUnits>(q[t][s][j], q_rows, t * kNarrowTile + 16 * s, 2 * j);

    float xp[S::kTiles][kW / 8][4] = {};
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        cp_async_wait<kNarrowStages - 2>();
        __syncthreads();   // this tile has arrived, and all warps have read q or the tile before this one
        load(tile + kNarrowStages - 1);
        char *x = stages + tile % kNarrowStages * S::kStageBytes, *p = x + S::kXBytes;
        float xtq[kW / 8][4] = {};
#pragma unroll
        for (int s = 0; s < kNarrowSteps; s++) {
            uint32_t a[4], b[kPairs][4];
#pragma unroll
            for (int j = 0; j < kPairs; j++) narrow_read_b<S::kUnits>(b[j], p, 16 * s, 2 * j);
#pragma unroll
            for (int t = 0; t < S::kTiles; t++) {
                ldmatrix<false>(a, (const bf16*)narrow_unit<S::kXUnits>(x, t * kNarrowTile + 16 * warp + lane % 16, 2 * s + lane / 16));
#pragma unroll
                for (int j = 0; j < kPairs; j++) narrow_multiply(xp[t], a, b[j], j);
                int row = t * kNarrowTile + 16 * s + lane / 16 * 8 + lane % 8;
                ldmatrix<true>(a, (const bf16*)narrow_unit<S::kXUnits>(x, row, 2 * warp + lane / 8 % 2));
#pragma unroll
                for (int j = 0; j < kPairs; j++) narrow_multiply(xtq, a, q[t][s][j], j);
            }
        }
        narrow_store<kW>(g.xtq_parts + (size_t)blockIdx.y * g.N * kW, first_col + tile * kNarrowTile + 16 * warp, g.N, xtq);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int t = 0; t < S::kTiles; t++)
        narrow_store<kW>(g.xp_parts + (size_t)blockIdx.x * g.M * kW, first_row + t * kNarrowTile + 16 * warp, g.M, xp[t]);
}

// An octet of xp or, after all of those, of xtq for kNarrowWays neighbouring lanes. A lane adds every kNarrowWays-th part, so that few reads wait
// for each other, and the lanes add what they have in pairs.
template <typename Grad>
__global__ void __launch_bounds__(kNarrowSumThreads, 4) narrow_sum_kernel(Rows<bf16> xp, float factor, Rows<Grad> xtq, float beta, Narrow g, int W) {
    size_t at = ((size_t)blockIdx.x * kNarrowSumThreads + threadIdx.x) / kNarrowWays * 8, xp_count = (size_t)g.M * W, xtq_count = (size_t)g.N * W;
    bool is_xp = at < xp_count;
    if (!is_xp) at -= xp_count;
    bool inside = is_xp || at < xtq_count;
    const float* parts = (is_xp ? g.xp_parts : g.xtq_parts) + at;
    size_t count = is_xp ? xp_count : xtq_count;
    int n = !inside ? 0 : is_xp ? g.across : g.down, way = threadIdx.x % kNarrowWays;
    Values<8> out = {};
#pragma unroll 4
    for (int part = way; part < n; part += kNarrowWays) {
        Values<8> more = load_values<8>(parts + part * count);
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] += more.v[i];
    }
#pragma unroll
    for (int step = 1; step < kNarrowWays; step *= 2)
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] += __shfl_xor_sync(0xffffffffu, out.v[i], step);
    if (!inside || way != 0) return;
    if (is_xp) {
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] *= factor;
        store_values(xp[at / W] + at % W, out);
    } else {
        Grad* to = xtq[at / W] + at % W;
        if (beta != 0.0f) {
            Values<8> before = load_values<8>(to);
#pragma unroll
            for (int i = 0; i < 8; i++) out.v[i] = __fadd_rn(out.v[i], __fmul_rn(beta, before.v[i]));
        }
        store_values(to, out);
    }
}

// How many blocks share a row of tiles, `down` of them below each other. An estimate of the time in stages: a turn of an SM's blocks has those of a
// block and what a block takes to start and end, and W / 32 stages' bytes are a block's sums of x p, written and read again.
static int narrow_across(int tiles, int down, int W) {
    const double kStartStages = 2;
    int best = 1, sms = gpu_device().multiprocessors;
    double least = INFINITY;
    for (int across = 1; across <= tiles; across++) {
        double blocks = (double)across * down, stages = ceil(blocks / sms) * (tiles_over(tiles, across) + kStartStages) + blocks / sms * W / 32;
        if (stages < least) least = stages, best = across;
    }
    return best;
}

// False, with nothing done, if the blocks' sums do not fit into the workspace or a block's tiles into shared memory.
template <int kW>
static bool gemm_narrow_launch(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q) {
    typedef NarrowSizes<kW> S;
    Narrow g = {(const bf16*)x.data, (const bf16*)p.data, (const bf16*)q.data, x.rows, x.cols, x.ld, p.ld, q.ld, 0, 0, 0, NULL, NULL};
    int tiles = tiles_over(g.N, kNarrowTile);
    g.down = tiles_over(g.M, S::kRows);
    g.cols = tiles_over(tiles, narrow_across(tiles, g.down, kW)) * kNarrowTile;
    g.across = tiles_over(g.N, g.cols);
    size_t xp_values = (size_t)g.across * g.M * kW, xtq_values = (size_t)g.down * g.N * kW;
    if ((xp_values + xtq_values) * sizeof(float) > kWorkspaceBytes || S::kSharedBytes > shared_limit() || g.down > 65535) return false;
    g.xp_parts = (float*)cuda_held().workspace;
    g.xtq_parts = g.xp_parts + xp_values;
    allow_shared(gemm_narrow_kernel<kW>, S::kSharedBytes);
    LAUNCH(gemm_narrow_kernel<kW>, dim3(g.across, g.down), kNarrowThreads, S::kSharedBytes, g);
    const int kOctets = kNarrowSumThreads / kNarrowWays;
    int blocks = (int)(((size_t)(g.M + g.N) * kW / 8 + kOctets - 1) / kOctets);
    if (xtq.fmt == F32) LAUNCH(narrow_sum_kernel<float>, blocks, kNarrowSumThreads, 0, rows_of<bf16>(xp), factor, rows_of<float>(xtq), beta, g, kW);
    else LAUNCH(narrow_sum_kernel<bf16>, blocks, kNarrowSumThreads, 0, rows_of<bf16>(xp), factor, rows_of<bf16>(xtq), beta, g, kW);
    return true;
}

static bool gemm_narrow_at_once(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q) {
    bool plain = x.fmt == BF16 && p.fmt == BF16 && q.fmt == BF16 && xp.fmt == BF16 && x.rows > 0 && x.cols % 8 == 0;
    if (!plain || !is_octets(x) || !is_octets(p) || !is_octets(q) || !is_octets(xp) || !is_octets(xtq)) return false;
    switch (p.cols) {
        case 16: return gemm_narrow_launch<16>(xp, factor, xtq, beta, x, p, q);
        case 32: return gemm_narrow_launch<32>(xp, factor, xtq, beta, x, p, q);
        case 64: return gemm_narrow_launch<64>(xp, factor, xtq, beta, x, p, q);
        default: return false;
    }
}

static void gemm_narrow(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q) {
    bool match = xp.rows == x.rows && xp.cols == p.cols && xtq.rows == x.cols && xtq.cols == q.cols && p.rows == x.cols && q.rows == x.rows;
    check(match && p.cols == q.cols, "gemm_narrow: (%d, %d) with (%d, %d) and (%d, %d)", x.rows, x.cols, p.rows, p.cols, q.rows, q.cols);
    if (!gemm_narrow_at_once(xp, factor, xtq, beta, x, p, q)) gemm_narrow_by(gemm, xp, factor, xtq, beta, x, p, q);
}

#endif
