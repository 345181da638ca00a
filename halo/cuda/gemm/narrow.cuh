// Adapters' products of a wide x (M, N) with narrow matrices of R columns (ops.h, narrow), in one pass over x, on mma.sync:
//
//   p (M, R) = factor * x q          g (N, R) = x^T v + beta * g
//
// Bound: x is read once, 2 M N bytes; each value meets only 2 R multiplications. So a block streams tiles of 128 x 64 of x through shared
// memory, with the rows of v and of q beside them, and uses each for both products:
//
//   range     a block's columns, kNarrowSteps tiles wide, whose g stays in registers while the block goes down its slabs
//   slab      128 rows, whose p over the range's columns stays in registers until the range's end
//   partial   what a block has of p (of its range) and of g (of its slabs), FP32 in the workspace; a second kernel adds them in their order,
//             so that the bits hang on the shapes alone
//
// A warp makes p of 32 rows and g of 16 columns. 64 columns of x are 128 bytes a row, in the permuted units of attention/tiles.cuh; so is q
// where it is stored (R, N). q and v stored (., R) lie in rows of R.
#ifndef HALO_CUDA_GEMM_NARROW_CUH
#define HALO_CUDA_GEMM_NARROW_CUH

#include "../attention/tiles.cuh"

enum { kNarrowRows = 128, kNarrowCols = 64, kNarrowThreads = 128, kNarrowMostR = 64, kNarrowBlocks = 264 };   // two blocks of each of 132 multiprocessors
__host__ __device__ constexpr int narrow_steps(int R, bool g) { return !g || R == 16 ? 8 : R == 32 ? 4 : 2; }   // tiles of a range: as many as g's registers allow
__host__ __device__ constexpr int narrow_stages(int R) { return R == 16 ? 4 : R <= 48 ? 3 : 2; }
__host__ __device__ constexpr int narrow_stage_values(int R, bool p, bool g) {
    return kNarrowRows * kNarrowCols + (p ? kNarrowCols * R : 0) + (g ? kNarrowRows * R : 0);
}

struct NarrowShape {
    const bf16 *x, *q, *v;
    float *p, *g;          // partials: (ranges, M, R), and (cuts, N, R)
    int M, N, ld_x, ld_q, ld_v;
    int ranges, cuts;      // of the columns; of the slabs
    int slabs, steps;      // of a block; of a range: narrow_steps, at run time, so that not every tile of a range has addresses of its own
    bool across;           // q is (R, N)
};

// Unit `unit` of a row of kR values: eight rows at one unit fall into all banks.
template <int kR>
__device__ inline int narrow_at(int row, int unit) {
    return row * kR + (unit ^ (kR == 64 ? row % 8 : kR == 32 ? row / 2 % 4 : row / 4 % 2)) * kUnit;
}
// The right sides of two neighbouring products, from a matrix stored (K, kR).
template <int kR>
__device__ inline void narrow_fragment(uint32_t (&r)[4], const bf16* tile, int k, int column) {
    int lane = threadIdx.x % kWarp;
    ldmatrix<true>(r, tile + narrow_at<kR>(k + lane % 16, column / kUnit + lane / 16));
}

// `rows` rows of kR values from row `first` of src on, zero from row `end` on.
template <int kR, int kRows>
__device__ inline void narrow_load(bf16* tile, const bf16* src, int ld, int first, int end) {
    constexpr int kUnits = kR / kUnit;
#pragma unroll
    for (int i = threadIdx.x; i < kRows * kUnits; i += kNarrowThreads) {
        int row = i / kUnits, unit = i % kUnits;
        bool valid = first + row < end;
        cp_async16(tile + narrow_at<kR>(row, unit), valid ? src + (size_t)(first + row) * ld + unit * kUnit : src, valid);
    }
}
// kRows rows of 64 columns, zero beyond `rows` and `cols`.
template <int kRows>
__device__ inline void narrow_load_wide(bf16* tile, const bf16* src, int ld, int row, int rows, int col, int cols) {
    constexpr int kUnits = kNarrowCols / kUnit;
#pragma unroll
    for (int i = threadIdx.x; i < kRows * kUnits; i += kNarrowThreads) {
        int r = i / kUnits, unit = i % kUnits;
        bool valid = row + r < rows && col + unit * kUnit < cols;
        cp_async16(tile + unit_at<kRows>(r, unit), valid ? src + (size_t)(row + r) * ld + col + unit * kUnit : src, valid);
    }
}

template <int kR, bool kP, bool kG>
__device__ inline void narrow_load_tile(bf16* stage, const NarrowShape& s, int row, int col) {
    bf16 *q = stage + kNarrowRows * kNarrowCols, *v = q + (kP ? kNarrowCols * kR : 0);
    narrow_load_wide<kNarrowRows>(stage, s.x, s.ld_x, row, s.M, col, s.N);
    if (kP && s.across) narrow_load_wide<kR>(q, s.q, s.ld_q, 0, kR, col, s.N);
    if (kP && !s.across) narrow_load<kR, kNarrowCols>(q, s.q, s.ld_q, col, s.N);
    if (kG) narrow_load<kR, kNarrowRows>(v, s.v, s.ld_v, row, s.M);
}

// p of this warp's 32 rows += the tile's columns.
template <int kR>
__device__ inline void narrow_multiply_p(float (&p)[2][kR / 8][4], const bf16* stage, bool across) {
    const bf16* q = stage + kNarrowRows * kNarrowCols;
    int row = threadIdx.x / kWarp * 32;
#pragma unroll
    for (int k = 0; k < kNarrowCols; k += 16) {
        uint32_t x[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) fragment_across<kNarrowRows, false>(x[i], stage, row + 16 * i, k / kUnit);
#pragma unroll
        for (int j = 0; j < kR / 16; j++) {
            uint32_t b[4];
            if (across) fragment_down<kR, false>(b, q, 16 * j, k / kUnit);
            else narrow_fragment<kR>(b, q, k, 16 * j);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mma_bf16(p[i][2 * j], x[i], b[0], b[1]);
                mma_bf16(p[i][2 * j + 1], x[i], b[2], b[3]);
            }
        }
    }
}
// g of this warp's 16 columns += the tile's rows.
template <int kR>
__device__ inline void narrow_multiply_g(float (&g)[kR / 8][4], const bf16* stage, const bf16* v) {
    int unit = threadIdx.x / kWarp * 2;
#pragma unroll
    for (int k = 0; k < kNarrowRows; k += 16) {
        uint32_t x[4];
        fragment_down<kNarrowRows, true>(x, stage, k, unit);
#pragma unroll
        for (int j = 0; j < kR / 16; j++) {
            uint32_t b[4];
            narrow_fragment<kR>(b, v, k, 16 * j);
            mma_bf16(g[2 * j], x, b[0], b[1]);
            mma_bf16(g[2 * j + 1], x, b[2], b[3]);
        }
    }
}

// 16 rows of sums, this lane's two of them from `row` on, to (rows, kR).
template <int kR>
__device__ inline void narrow_store(float* to, int row, int rows, float (&sum)[kR / 8][4]) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int r = row + lane / 4 + 8 * half;
#pragma unroll
        for (int j = 0; j < kR / 8; j++) {
            if (r < rows) *reinterpret_cast<float2*>(to + (size_t)r * kR + 8 * j + lane % 4 * 2) = make_float2(sum[j][2 * half], sum[j][2 * half + 1]);
            sum[j][2 * half] = sum[j][2 * half + 1] = 0;
        }
    }
}

template <int kR, bool kP, bool kG>
__global__ void __launch_bounds__(kNarrowThreads, 2) narrow_kernel(NarrowShape s) {
    constexpr int kSteps = narrow_steps(kR, kG), kStages = narrow_stages(kR), kStage = narrow_stage_values(kR, kP, kG);
    SHARED(bf16, stages);
    int first_col = blockIdx.x * kSteps * kNarrowCols, first_row = blockIdx.y * s.slabs * kNarrowRows, warp = threadIdx.x / kWarp;
    int slabs = min(s.slabs, (s.M - 1 - first_row) / kNarrowRows + 1), tiles = slabs * kSteps;
    auto load = [&](int tile) {
        int slab = tile / s.steps, step = tile - slab * s.steps;
        if (tile < tiles)
            narrow_load_tile<kR, kP, kG>(stages + tile % kStages * kStage, s, first_row + slab * kNarrowRows, first_col + step * kNarrowCols);
        cp_async_commit();   // an empty group at the end keeps the count
    };
    for (int tile = 0; tile < kStages - 1; tile++) load(tile);
    float p[2][kR / 8][4] = {}, g[kG ? kSteps : 1][kR / 8][4] = {};
    for (int slab = 0; slab < slabs; slab++) {
#pragma unroll(kG ? kSteps : 1)   // g[step] lies in registers
        for (int step = 0; step < kSteps; step++) {
            int tile = slab * kSteps + step;
            cp_async_wait<kStages - 2>();
            __syncthreads();   // this tile has arrived, and nobody reads the one before it any more
            load(tile + kStages - 1);
            const bf16* stage = stages + tile % kStages * kStage;
            if constexpr (kP) narrow_multiply_p<kR>(p, stage, s.across);
            if constexpr (kG) narrow_multiply_g<kR>(g[step], stage, stage + kNarrowRows * kNarrowCols + (kP ? kNarrowCols * kR : 0));
        }
        if constexpr (kP) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                narrow_store<kR>(s.p + (size_t)blockIdx.x * s.M * kR, first_row + slab * kNarrowRows + warp * 32 + 16 * i, s.M, p[i]);
        }
    }
    cp_async_wait<0>();
    if constexpr (kG) {
#pragma unroll
        for (int step = 0; step < kSteps; step++)
            narrow_store<kR>(s.g + (size_t)blockIdx.y * s.N * kR, first_col + step * kNarrowCols + warp * 16, s.N, g[step]);
    }
}

// out = factor * the sum of `count` partials (rows, R) + beta * out; out is stored (R, rows) if `across`.
template <typename T>
__global__ void __launch_bounds__(256) narrow_sum_kernel(Rows<T> out, const float* partial, int rows, int R, int count, float factor, float beta,
                                                         bool across) {
    int i = blockIdx.x * 256 + threadIdx.x, row = across ? i % rows : i / R, r = across ? i / rows : i % R;
    if (i >= rows * R) return;
    const float* from = partial + (size_t)row * R + r;
    float sum = 0;
#pragma unroll 8
    for (int c = 0; c < count; c++) sum += from[(size_t)c * rows * R];
    T* to = across ? out[r] + row : out[row] + r;
    Values<1> value = {{__fmul_rn(factor, sum)}};
    if (beta != 0) value.v[0] = __fadd_rn(value.v[0], __fmul_rn(beta, load_values<1>(to).v[0]));
    store_values(to, value);
}
static void narrow_sum(Mat out, const float* partial, int rows, int R, int count, float factor, float beta, bool across) {
    int blocks = tiles_over(rows * R, 256);
    if (out.fmt == F32) LAUNCH((narrow_sum_kernel<float>), blocks, 256, 0, rows_of<float>(out), partial, rows, R, count, factor, beta, across);
    else LAUNCH((narrow_sum_kernel<bf16>), blocks, 256, 0, rows_of<bf16>(out), partial, rows, R, count, factor, beta, across);
}

static int narrow_width(const Narrow* n) { return n->p.data ? n->p.cols : n->v.cols; }

static NarrowShape narrow_shape(const Narrow* n) {
    NarrowShape s;
    memset(&s, 0, sizeof s);
    int R = narrow_width(n), slabs = tiles_over(n->x.rows, kNarrowRows);
    s.x = (const bf16*)n->x.data;
    s.q = (const bf16*)n->q.data;
    s.v = (const bf16*)n->v.data;
    s.M = n->x.rows;
    s.N = n->x.cols;
    s.ld_x = n->x.ld;
    s.ld_q = n->q.ld;
    s.ld_v = n->v.ld;
    s.across = n->across;
    s.steps = narrow_steps(R, n->g.data != NULL);
    s.ranges = tiles_over(s.N, s.steps * kNarrowCols);
    s.slabs = tiles_over(slabs * s.ranges, kNarrowBlocks);
    s.cuts = tiles_over(slabs, s.slabs);
    return s;
}
static size_t narrow_p_bytes(const Narrow* n, NarrowShape s) {
    return n->p.data ? round_up(sizeof(float) * (size_t)s.ranges * s.M * narrow_width(n), kArenaAlign) : 0;
}
static size_t narrow_g_bytes(const Narrow* n, NarrowShape s) { return n->g.data ? sizeof(float) * (size_t)s.cuts * s.N * narrow_width(n) : 0; }

static bool narrow_takes(const Narrow* n) {
    int R = narrow_width(n);
    if (n->x.fmt != BF16 || R % 16 != 0 || R < 16 || R > kNarrowMostR || !is_octets(n->x)) return false;
    if (n->p.data && (n->p.fmt != BF16 || n->q.fmt != BF16 || !is_octets(n->q))) return false;
    if (n->g.data && ((n->g.fmt != F32 && n->g.fmt != BF16) || n->v.fmt != BF16 || !is_octets(n->v))) return false;
    NarrowShape s = narrow_shape(n);
    return narrow_p_bytes(n, s) + narrow_g_bytes(n, s) <= kWorkspaceBytes;
}

template <int kR, bool kP, bool kG>
static void launch_narrow(NarrowShape s) {
    constexpr size_t kBytes = sizeof(bf16) * narrow_stages(kR) * narrow_stage_values(kR, kP, kG);
    allow_shared(narrow_kernel<kR, kP, kG>, kBytes);
    LAUNCH((narrow_kernel<kR, kP, kG>), dim3(s.ranges, s.cuts), kNarrowThreads, kBytes, s);
}
template <int kR>
static void launch_narrow_wanted(const NarrowShape& s) {
    if (s.p && s.g) launch_narrow<kR, true, true>(s);
    else if (s.p) launch_narrow<kR, true, false>(s);
    else launch_narrow<kR, false, true>(s);
}

static bool narrow(const Narrow* list, int count) {
    for (int i = 0; i < count; i++)
        if (!narrow_takes(&list[i])) return false;
    for (int i = 0; i < count; i++) {
        const Narrow* n = &list[i];
        NarrowShape s = narrow_shape(n);
        int R = narrow_width(n);
        char* partials = (char*)cuda_held().workspace;
        if (n->p.data) s.p = (float*)partials;
        if (n->g.data) s.g = (float*)(partials + narrow_p_bytes(n, s));
        switch (R) {
            case 16: launch_narrow_wanted<16>(s); break;
            case 32: launch_narrow_wanted<32>(s); break;
            case 48: launch_narrow_wanted<48>(s); break;
            case 64: launch_narrow_wanted<64>(s); break;
            default: die("narrow: %d columns", R);
        }
        if (s.p) narrow_sum(n->p, s.p, s.M, R, s.ranges, n->factor, 0, false);
        if (s.g) narrow_sum(n->g, s.g, s.N, R, s.cuts, 1, n->beta, n->across);
    }
    return true;
}

#endif
