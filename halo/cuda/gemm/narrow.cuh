// The two narrow products of matrices side by side in x (ops.h, gemm_narrow) in one pass over it: for each of them, columns x_i of x,
// xp_i (M, W) = factor * x_i p_i and xtq_i (N_i, W) = x_i^T q_i + beta * xtq_i in BF16, the gradient xtq in any format. Each product alone would be
// a pass over x, whose bytes are all that counts: W is a LoRA rank.
//
// A block has kTiles tiles of 128 rows by some tiles of 128 columns of one matrix, and goes down its rows before it goes on to the next columns.
// A tile of 32 KB comes to shared memory once; up to five are in flight to a multiprocessor, whose only block reads a sixth there, twice:
//
//   x p     warp w takes rows 16 w; its sums stay in registers over all columns
//   x^T q   warp w takes columns 16 w and all rows, whose q it keeps in registers from the start; its sums are the block's
//
// so that q is never read again and no two warps add their sums. What a block has summed goes to the workspace, and a second kernel adds the
// blocks' sums in an order that depends on the shapes and the number of multiprocessors. Rows of shared memory lie so that eight neighbouring
// ones fall on all 32 banks: 16-byte unit u of row r is at u ^ (r % 8), and of rows shorter than 8 units at u ^ (r / (8 / units) % units).
#ifndef HALO_CUDA_GEMM_NARROW_CUH
#define HALO_CUDA_GEMM_NARROW_CUH

#include "gemm.cuh"

enum {
    kNarrowTile = 128,                 // rows and columns: 16 for each warp
    kNarrowThreads = 256,
    kNarrowSteps = kNarrowTile / 16,   // instructions along K in a tile, of both products
    kNarrowTogether = 2,               // tiles below each other that make a stage
    kNarrowStages = 6 / kNarrowTogether,
    kNarrowMatrices = 3,               // at most, side by side
    kNarrowSumThreads = 256,
    kNarrowWays = 4                    // lanes that share an octet's parts
};

template <int kW>
struct NarrowSizes {
    enum {
        kTiles = 64 / kW,                 // as many as leave q in registers
        kRows = kTiles * kNarrowTile,
        kUnits = kW / 8,                  // of a row of p or q
        kXUnits = kNarrowTile / 8,
        kTurns = kTiles / kNarrowTogether,   // stages down a block
        kXBytes = kNarrowTogether * kNarrowTile * kNarrowTile * sizeof(bf16),
        kPBytes = kNarrowTile * kW * sizeof(bf16),
        kPStages = (kNarrowStages + kTurns - 2) / kTurns + 1,   // columns of tiles that kNarrowStages can belong to
        kSharedBytes = kNarrowStages * kXBytes + kPStages * kPBytes
    };
};

struct Narrow {
    const bf16 *x, *p, *q;
    int M, N, x_ld, p_ld, q_ld;          // N: of all matrices
    int matrices;
    int column[kNarrowMatrices];         // a matrix's first column of x
    int row[kNarrowMatrices + 1];        // and row of p and xtq
    int strip[kNarrowMatrices + 1];      // and strip, the columns of a block
    int cols;                            // of a strip, a multiple of kNarrowTile
    int down;                            // blocks of a strip
    float* xp_parts;                     // (strips, M, W)
    float* xtq_parts;                    // (down, N, W)
};

template <int kUnits>
__device__ inline char* narrow_unit(char* rows, int row, int unit) {
    int turn = kUnits < 8 ? row / (8 / min(kUnits, 8)) % kUnits : row % 8;
    return rows + (row * kUnits + (unit ^ turn)) * 16;
}

// Starts copying kRows rows of 8 * kUnits columns, the first of which `from` points to; `rows` (0 or less: none) and `cols` are left of the matrix,
// beyond which there are zeros. A thread's rows are a multiple of 8 apart, so that they lie alike.
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
__global__ void __launch_bounds__(kNarrowThreads, 1) gemm_narrow_kernel(const __grid_constant__ Narrow g) {
    typedef NarrowSizes<kW> S;
    const int kPairs = kW / 16;
    SHARED(char, x_stages);
    char* p_stages = x_stages + kNarrowStages * S::kXBytes;
    int matrix = 0;
    while ((int)blockIdx.x >= g.strip[matrix + 1]) matrix++;
    int first_row = blockIdx.y * S::kRows, first_col = (blockIdx.x - g.strip[matrix]) * g.cols, N = g.row[matrix + 1] - g.row[matrix];
    int col_tiles = tiles_over(min(g.cols, N - first_col), kNarrowTile), all = col_tiles * S::kTurns;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const bf16* x_from = g.x + (size_t)first_row * g.x_ld + g.column[matrix] + first_col;
    const bf16* p_from = g.p + (size_t)(g.row[matrix] + first_col) * g.p_ld;
    const bf16* q_from = g.q + (size_t)first_row * g.q_ld + matrix * kW;

    auto load = [&](int stage) {
        const int kRows = kNarrowTogether * kNarrowTile;
        int col_tile = stage / S::kTurns, row = stage % S::kTurns * kRows, col = col_tile * kNarrowTile;
        if (stage < all) {
            narrow_load<kRows, S::kXUnits>(x_stages + stage % kNarrowStages * S::kXBytes, x_from + (size_t)row * g.x_ld + col, g.x_ld,
                                           g.M - first_row - row, N - first_col - col);
            if (row == 0)
                narrow_load<kNarrowTile, S::kUnits>(p_stages + col_tile % S::kPStages * S::kPBytes, p_from + (size_t)col * g.p_ld, g.p_ld,
                                                    N - first_col - col, kW);
        }
        cp_async_commit();   // an empty group at the end keeps the count
    };
    char* q_rows = x_stages + (kNarrowStages - 1) * S::kXBytes;   // before the first of x comes here
    narrow_load<S::kRows, S::kUnits>(q_rows, q_from, g.q_ld, g.M - first_row, kW);
    cp_async_commit();
    for (int stage = 0; stage < kNarrowStages - 1; stage++) load(stage);
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
    for (int c = 0; c < col_tiles; c++) {
        char* p = p_stages + c % S::kPStages * S::kPBytes;
        float xtq[kW / 8][4] = {};
#pragma unroll
        for (int turn = 0; turn < S::kTurns; turn++) {
            int stage = c * S::kTurns + turn;
            cp_async_wait<kNarrowStages - 2>();
            __syncthreads();   // this stage has arrived, and all warps have read q or the stage before this one
            load(stage + kNarrowStages - 1);
            char* x = x_stages + stage % kNarrowStages * S::kXBytes;
#pragma unroll
            for (int s = 0; s < kNarrowSteps; s++) {
                uint32_t b[kPairs][4];
#pragma unroll
                for (int j = 0; j < kPairs; j++) narrow_read_b<S::kUnits>(b[j], p, 16 * s, 2 * j);
#pragma unroll
                for (int i = 0; i < kNarrowTogether; i++) {
                    uint32_t a[4];
                    int t = turn * kNarrowTogether + i, row = i * kNarrowTile;
                    ldmatrix<false>(a, (const bf16*)narrow_unit<S::kXUnits>(x, row + 16 * warp + lane % 16, 2 * s + lane / 16));
#pragma unroll
                    for (int j = 0; j < kPairs; j++) narrow_multiply(xp[t], a, b[j], j);
                    row += 16 * s + lane / 16 * 8 + lane % 8;
                    ldmatrix<true>(a, (const bf16*)narrow_unit<S::kXUnits>(x, row, 2 * warp + lane / 8 % 2));
#pragma unroll
                    for (int j = 0; j < kPairs; j++) narrow_multiply(xtq, a, q[t][s][j], j);
                }
            }
        }
        float* to = g.xtq_parts + ((size_t)blockIdx.y * g.N + g.row[matrix]) * kW;
        narrow_store<kW>(to, first_col + c * kNarrowTile + 16 * warp, N, xtq);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int t = 0; t < S::kTiles; t++)
        narrow_store<kW>(g.xp_parts + (size_t)blockIdx.x * g.M * kW, first_row + t * kNarrowTile + 16 * warp, g.M, xp[t]);
}

// An octet of xp, matrix by matrix, or after all of those of xtq for kNarrowWays neighbouring lanes. A lane adds every kNarrowWays-th part, so
// that few reads wait for each other, and the lanes add what they have in pairs.
template <typename Grad>
__global__ void __launch_bounds__(kNarrowSumThreads, 4) narrow_sum_kernel(Rows<bf16> xp, float factor, Rows<Grad> xtq, float beta,
                                                                          const __grid_constant__ Narrow g, int W) {
    size_t at = ((size_t)blockIdx.x * kNarrowSumThreads + threadIdx.x) / kNarrowWays * 8, xp_count = (size_t)g.M * W, xtq_count = (size_t)g.N * W;
    int matrix = 0, way = threadIdx.x % kNarrowWays, n = 0;
    for (; matrix < g.matrices && at >= xp_count; matrix++) at -= xp_count;
    bool is_xp = matrix < g.matrices, inside = is_xp || at < xtq_count;
    const float* parts = is_xp ? g.xp_parts + g.strip[matrix] * xp_count : g.xtq_parts;
    size_t count = is_xp ? xp_count : xtq_count;
    if (inside) n = is_xp ? g.strip[matrix + 1] - g.strip[matrix] : g.down;
    Values<8> out = {};
#pragma unroll 4
    for (int part = way; part < n; part += kNarrowWays) {
        Values<8> more = load_values<8>(parts + part * count + at);
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
        store_values(xp[at / W] + matrix * W + at % W, out);
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

// Cuts the matrices into strips of `tiles` columns of tiles.
static void narrow_strips(Narrow* g, int tiles) {
    g->cols = tiles * kNarrowTile;
    for (int i = 0; i < g->matrices; i++) g->strip[i + 1] = g->strip[i] + tiles_over(g->row[i + 1] - g->row[i], g->cols);
}
// Cuts rows and columns by an estimate of the time. Its unit is what reading a tile takes while all multiprocessors read; a block that reads alone
// takes kPace of that at least. kStart: what a block's start and end take. Its sums of x p, written and read again, are the bytes of W / 32 * kTiles
// tiles.
template <int kW>
static void narrow_cut(Narrow* g) {
    typedef NarrowSizes<kW> S;
    const double kPace = 0.75, kStart = 4;
    double least = INFINITY, all = 0, sms = gpu_device().multiprocessors;
    int best = 1, widest = 0;
    g->down = tiles_over(g->M, S::kRows);
    for (int i = 0; i < g->matrices; i++) {
        int tiles = tiles_over(g->row[i + 1] - g->row[i], kNarrowTile);
        widest = max_int(widest, tiles);
        all += (double)tiles * g->down * S::kTiles / sms;
    }
    for (int tiles = 1; tiles <= widest; tiles++) {
        narrow_strips(g, tiles);
        double blocks = (double)g->strip[g->matrices] * g->down, turns = ceil(blocks / sms);
        double time = fmax(turns * tiles * S::kTiles * kPace, all) + turns * kStart + blocks / sms * kW * S::kTiles / 32;
        if (time < least) least = time, best = tiles;
    }
    narrow_strips(g, best);
}

// False, with nothing done, if the sums of blocks do not fit into the workspace or a block's tiles into shared memory.
template <int kW>
static bool gemm_narrow_launch(Mat xp, float factor, Mat xtq, float beta, Narrow g) {
    typedef NarrowSizes<kW> S;
    narrow_cut<kW>(&g);
    size_t strips = (size_t)g.strip[g.matrices], xp_values = strips * g.M * kW, xtq_values = (size_t)g.down * g.N * kW;
    if ((xp_values + xtq_values) * sizeof(float) > kWorkspaceBytes || S::kSharedBytes > shared_limit() || g.down > 65535) return false;
    g.xp_parts = (float*)cuda_held().workspace;
    g.xtq_parts = g.xp_parts + xp_values;
    allow_shared(gemm_narrow_kernel<kW>, S::kSharedBytes);
    LAUNCH(gemm_narrow_kernel<kW>, dim3((unsigned)strips, g.down), kNarrowThreads, S::kSharedBytes, g);
    const int kOctets = kNarrowSumThreads / kNarrowWays;
    unsigned blocks = (unsigned)((((size_t)g.matrices * g.M + g.N) * kW / 8 + kOctets - 1) / kOctets);
    if (xtq.fmt == F32) LAUNCH(narrow_sum_kernel<float>, blocks, kNarrowSumThreads, 0, rows_of<bf16>(xp), factor, rows_of<float>(xtq), beta, g, kW);
    else LAUNCH(narrow_sum_kernel<bf16>, blocks, kNarrowSumThreads, 0, rows_of<bf16>(xp), factor, rows_of<bf16>(xtq), beta, g, kW);
    return true;
}

static bool gemm_narrow_at_once(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts) {
    bool plain = x.fmt == BF16 && p.fmt == BF16 && q.fmt == BF16 && xp.fmt == BF16 && x.rows > 0 && parts.count <= kNarrowMatrices;
    if (!plain || !is_octets(x) || !is_octets(p) || !is_octets(q) || !is_octets(xp) || !is_octets(xtq)) return false;
    Narrow g = {(const bf16*)x.data, (const bf16*)p.data, (const bf16*)q.data, x.rows, p.rows, x.ld, p.ld, q.ld, parts.count, {}, {}, {}, 0, 0, NULL, NULL};
    for (int i = 0; i < parts.count; i++) {
        if (parts.column[i] % 8 || parts.N[i] % 8 || parts.N[i] == 0) return false;
        g.column[i] = parts.column[i];
        g.row[i + 1] = g.row[i] + parts.N[i];
    }
    switch (p.cols) {
        case 16: return gemm_narrow_launch<16>(xp, factor, xtq, beta, g);
        case 32: return gemm_narrow_launch<32>(xp, factor, xtq, beta, g);
        default: return false;   // of rank 64, sums of blocks would be as many bytes as x
    }
}

static void gemm_narrow(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts) {
    int W = p.cols, N = 0;
    for (int i = 0; i < parts.count; N += parts.N[i++])
        check(parts.column[i] >= 0 && parts.column[i] + parts.N[i] <= x.cols, "gemm_narrow: columns %d to %d of %d", parts.column[i],
              parts.column[i] + parts.N[i], x.cols);
    bool match = xp.rows == x.rows && q.rows == x.rows && p.rows == N && xtq.rows == N && xtq.cols == W && xp.cols == parts.count * W;
    check(match && q.cols == xp.cols, "gemm_narrow: %d of (%d, %d) with (%d, %d) and (%d, %d)", parts.count, x.rows, x.cols, p.rows, W, q.rows, q.cols);
    if (gemm_narrow_at_once(xp, factor, xtq, beta, x, p, q, parts)) return;
    if (parts.count == 1) return gemm_narrow_by(gemm, xp, factor, xtq, beta, x, p, q, parts);
    const int none = 0;
    for (int i = 0, row = 0; i < parts.count; row += parts.N[i++])   // one at a time: all together have too many sums of blocks
        gemm_narrow(mat_cols(xp, i * W, W), factor, mat_rows(xtq, row, parts.N[i]), beta, mat_cols(x, parts.column[i], parts.N[i]),
                    mat_rows(p, row, parts.N[i]), mat_cols(q, i * W, W), SideBySide{1, &none, &parts.N[i]});
}

#endif
