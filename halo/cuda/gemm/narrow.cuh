// The two narrow products of one matrix (ops.h, gemm_narrow) in one pass over it: xp (M, W) = factor * x p and xtq (N, W) = x^T q + beta * xtq,
// with x (M, N), p (N, W) and q (M, W) in BF16. Each of them alone would be a pass over x, whose bytes are all that counts: W is a LoRA rank.
//
// A block has kTiles tiles of 128 rows by some tiles of 64 columns of x, and goes down its rows before it goes on to the next columns. A tile
// comes to shared memory once, four of them are in flight, and two products read it there:
//
//   x p     warp w takes rows 16 w; its sums stay in registers over all columns, kTiles * W / 8 * 4 = 32 a thread
//   x^T q   warp w takes columns 16 (w % 4) and rows 64 (w / 4); its sums stay over all rows, then the two warps of a column add theirs
//
// What a block has summed goes to the workspace, and a second kernel adds the blocks' sums in their order. Rows of shared memory lie so that
// eight neighbouring ones fall on all 32 banks: 16-byte unit u of row r is at u ^ (r / (8 / units) % units).
#ifndef HALO_CUDA_GEMM_NARROW_CUH
#define HALO_CUDA_GEMM_NARROW_CUH

#include "gemm.cuh"

enum { kNarrowRows = 128, kNarrowCols = 64, kNarrowThreads = 256, kNarrowStages = 4, kNarrowResident = 2, kNarrowSumThreads = 256 };

template <int kW>
struct NarrowSizes {
    enum {
        kTiles = 64 / kW,
        kUnits = kW / 8,                                        // of a row of p or q
        kXBytes = kNarrowRows * kNarrowCols * sizeof(bf16),
        kStageBytes = kXBytes + kNarrowCols * kW * sizeof(bf16),   // x, p
        kQBytes = kTiles * kNarrowRows * kW * sizeof(bf16),
        kHalfBytes = kNarrowCols * kW * sizeof(float),             // sums of x^T q over half of the rows
        kSharedBytes = kNarrowStages * kStageBytes + kQBytes + kHalfBytes
    };
};

struct Narrow {
    const bf16 *x, *p, *q;
    int M, N, x_ld, p_ld, q_ld;
    int cols;           // of a block, a multiple of kNarrowCols
    int across, down;   // blocks
    float* xp_parts;    // (across, M, W)
    float* xtq_parts;   // (down, N, W)
};

template <int kUnits>
__device__ inline char* narrow_unit(char* rows, int row, int unit) {
    return rows + (row * kUnits + (unit ^ (row / (8 / kUnits) % kUnits))) * 16;
}

// Starts copying rows [first, first + kRows) of a matrix, 8 * kUnits columns of each from `col` on; outside the matrix there are zeros.
template <int kRows, int kUnits>
__device__ inline void narrow_load(char* to, const bf16* from, int ld, int rows, int cols, int first, int col) {
#pragma unroll
    for (int i = 0; i < kRows * kUnits / kNarrowThreads; i++) {
        int index = i * kNarrowThreads + threadIdx.x, row = index / kUnits, unit = index % kUnits;
        bool inside = first + row < rows && col + 8 * unit < cols;
        cp_async16(narrow_unit<kUnits>(to, row, unit), from + (inside ? (size_t)(first + row) * ld + col + 8 * unit : 0), inside);
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
__global__ void __launch_bounds__(kNarrowThreads, kNarrowResident) gemm_narrow_kernel(Narrow g) {
    typedef NarrowSizes<kW> S;
    const int kXUnits = kNarrowCols / 8, kSteps = 4;   // instructions along K: of a tile's columns, and of half its rows
    SHARED(char, stages);
    char* q_rows = stages + kNarrowStages * S::kStageBytes;
    float* half_sums = (float*)(q_rows + S::kQBytes);
    int first_row = blockIdx.y * S::kTiles * kNarrowRows, first_col = blockIdx.x * g.cols;
    int col_tiles = tiles_over(min(g.cols, g.N - first_col), kNarrowCols), tiles = col_tiles * S::kTiles;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, col_block = warp % 4, row_half = warp / 4;

    auto load = [&](int tile) {
        char* stage = stages + tile % kNarrowStages * S::kStageBytes;
        int col = first_col + tile / S::kTiles * kNarrowCols;
        if (tile < tiles) {
            narrow_load<kNarrowRows, kXUnits>(stage, g.x, g.x_ld, g.M, g.N, first_row + tile % S::kTiles * kNarrowRows, col);
            for (int i = threadIdx.x; i < kNarrowCols * S::kUnits; i += kNarrowThreads) {
                int row = i / S::kUnits, unit = i % S::kUnits;
                bool inside = col + row < g.N;
                cp_async16(narrow_unit<S::kUnits>(stage + S::kXBytes, row, unit), g.p + (inside ? (size_t)(col + row) * g.p_ld + 8 * unit : 0), inside);
            }
        }
        cp_async_commit();   // an empty group at the end keeps the count
    };
    narrow_load<S::kTiles * kNarrowRows, S::kUnits>(q_rows, g.q, g.q_ld, g.M, kW, first_row, 0);
    for (int tile = 0; tile < kNarrowStages - 1; tile++) load(tile);

    float xp[S::kTiles][kW / 8][4] = {};
    for (int c = 0; c < col_tiles; c++) {
        float xtq[kW / 8][4] = {};
        uint32_t p[kSteps][kW / 16][4];
#pragma unroll
        for (int t = 0; t < S::kTiles; t++) {
            int tile = c * S::kTiles + t;
            cp_async_wait<kNarrowStages - 2>();
            __syncthreads();   // this tile has arrived, and all warps have read the tile before it
            load(tile + kNarrowStages - 1);
            char* x = stages + tile % kNarrowStages * S::kStageBytes;
#pragma unroll
            for (int s = 0; s < kSteps; s++) {
                uint32_t a[4], b[4];
                ldmatrix<false>(a, (const bf16*)narrow_unit<kXUnits>(x, 16 * warp + lane % 16, 2 * s + lane / 16));
#pragma unroll
                for (int j = 0; j < kW / 16; j++) {
                    if (t == 0) narrow_read_b<S::kUnits>(p[s][j], x + S::kXBytes, 16 * s, 2 * j);   // the same for all tiles of these columns
                    narrow_multiply(xp[t], a, p[s][j], j);
                }
                int row = 64 * row_half + 16 * s;
                ldmatrix<true>(a, (const bf16*)narrow_unit<kXUnits>(x, row + lane / 16 * 8 + lane % 8, 2 * col_block + lane / 8 % 2));
#pragma unroll
                for (int j = 0; j < kW / 16; j++) {
                    narrow_read_b<S::kUnits>(b, q_rows, t * kNarrowRows + row, 2 * j);
                    narrow_multiply(xtq, a, b, j);
                }
            }
        }
        if (row_half == 1) narrow_store<kW>(half_sums, 16 * col_block, kNarrowCols, xtq);
        __syncthreads();
        if (row_half == 1) continue;
#pragma unroll
        for (int j = 0; j < kW / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) xtq[j][e] += half_sums[(16 * col_block + lane / 4 + e / 2 * 8) * kW + 8 * j + 2 * (lane % 4) + e % 2];
        narrow_store<kW>(g.xtq_parts + (size_t)blockIdx.y * g.N * kW, first_col + c * kNarrowCols + 16 * col_block, g.N, xtq);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int t = 0; t < S::kTiles; t++)
        narrow_store<kW>(g.xp_parts + (size_t)blockIdx.x * g.M * kW, first_row + t * kNarrowRows + 16 * warp, g.M, xp[t]);
}

// An octet's sum over parts, (n, count), in their order.
__device__ inline Values<8> narrow_total(const float* parts, size_t count, int n, size_t at) {
    Values<8> total = {};
#pragma unroll 4
    for (int part = 0; part < n; part++) {
        Values<8> more = load_values<8>(parts + part * count + at);
#pragma unroll
        for (int i = 0; i < 8; i++) total.v[i] += more.v[i];
    }
    return total;
}

// An octet a thread: first those of xp, then those of xtq.
template <typename Grad>
__global__ void __launch_bounds__(kNarrowSumThreads) narrow_sum_kernel(Rows<bf16> xp, float factor, Rows<Grad> xtq, float beta, Narrow g, int W) {
    size_t at = ((size_t)blockIdx.x * kNarrowSumThreads + threadIdx.x) * 8, xp_count = (size_t)g.M * W, xtq_count = (size_t)g.N * W;
    if (at < xp_count) {
        Values<8> out = narrow_total(g.xp_parts, xp_count, g.across, at);
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] *= factor;
        store_values(xp[at / W] + at % W, out);
    } else if (at - xp_count < xtq_count) {
        at -= xp_count;
        Values<8> out = narrow_total(g.xtq_parts, xtq_count, g.down, at);
        Grad* to = xtq[at / W] + at % W;
        if (beta != 0.0f) {
            Values<8> before = load_values<8>(to);
#pragma unroll
            for (int i = 0; i < 8; i++) out.v[i] = __fadd_rn(out.v[i], __fmul_rn(beta, before.v[i]));
        }
        store_values(to, out);
    }
}

// False, with nothing done, if the blocks' sums do not fit into the workspace or a block's tiles into shared memory.
template <int kW>
static bool gemm_narrow_launch(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q) {
    typedef NarrowSizes<kW> S;
    Narrow g = {(const bf16*)x.data, (const bf16*)p.data, (const bf16*)q.data, x.rows, x.cols, x.ld, p.ld, q.ld, 0, 0, 0, NULL, NULL};
    int col_tiles = tiles_over(g.N, kNarrowCols);
    g.down = tiles_over(g.M, S::kTiles * kNarrowRows);
    int across = min_int(col_tiles, max_int(1, kNarrowResident * gpu_device().multiprocessors / g.down));
    g.cols = tiles_over(col_tiles, across) * kNarrowCols;
    g.across = tiles_over(g.N, g.cols);
    size_t xp_values = (size_t)g.across * g.M * kW, xtq_values = (size_t)g.down * g.N * kW;
    if ((xp_values + xtq_values) * sizeof(float) > kWorkspaceBytes || S::kSharedBytes > shared_limit() || g.down > 65535) return false;
    g.xp_parts = (float*)cuda_held().workspace;
    g.xtq_parts = g.xp_parts + xp_values;
    allow_shared(gemm_narrow_kernel<kW>, S::kSharedBytes);
    LAUNCH(gemm_narrow_kernel<kW>, dim3(g.across, g.down), kNarrowThreads, S::kSharedBytes, g);
    int blocks = (int)(((size_t)(g.M + g.N) * kW / 8 + kNarrowSumThreads - 1) / kNarrowSumThreads);
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
