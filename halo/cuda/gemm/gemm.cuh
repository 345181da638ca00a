// The one product, c = a b^T + beta c (ops.h), by formats:
//
//   INT8 x INT8                             sm_90a: gemm/sm90.cuh, where rows start at multiples of 16 bytes
//   BF16 x BF16, F32 x F32, FP8/FP6 x same  cuBLASLt, wherever it takes the shape: gemm/cublaslt.cuh
//   all other products                      gemm/sm80.cuh, which takes any product
#ifndef HALO_CUDA_GEMM_CUH
#define HALO_CUDA_GEMM_CUH

#include "sm80.cuh"
#include "sm90.cuh"
#ifndef HALO_SIMT
#include "cublaslt.cuh"
#endif

enum { kGemmBlock = 32 };   // PER_BLOCK32

static const char* gemm_ran_on = "nothing yet";   // the last product

// Called when the backend starts: cuBLASLt takes memory for its handle.
static void gemm_start() {
#ifndef HALO_SIMT
    lt_start();
#endif
}

static bool gemm_rows_aligned(const void* data, int ld, Fmt fmt) {
    return (uintptr_t)data % 16 == 0 && (size_t)ld * fmt_bytes(fmt) % 16 == 0;
}

static GemmSide gemm_side(Side s) {
    check((unsigned)s.m.fmt < kFmtCount && s.m.ld >= s.m.cols, "gemm: a side in %s, (%d, %d) with rows of %d", fmt_name(s.m.fmt),
          s.m.rows, s.m.cols, s.m.ld);
    check(!s.transposed || fmt_bytes(s.m.fmt) > 1, "gemm: a transposed side in %s", fmt_name(s.m.fmt));
    check(s.gran == NO_SCALE ? s.factor != 0 : s.scale && s.factor == 1, "gemm: a scaled side without scales, or a factor of %g", s.factor);
    check(!s.scale_transposed || s.gran != PER_ROW, "gemm: scales along K");
    GemmSide side;
    memset(&side, 0, sizeof side);
    int rows = s.transposed ? s.m.cols : s.m.rows, K = s.transposed ? s.m.rows : s.m.cols;
    side.data = s.m.data;
    side.rows = rows;
    side.ld = s.m.ld;
    side.fmt = s.m.fmt;
    side.transposed = s.transposed;
    side.factor = s.factor;
    side.aligned = gemm_rows_aligned(s.m.data, s.m.ld, s.m.fmt);
    if (s.gran == PER_BLOCK32) {
        side.block_scale = s.scale;
        side.block_row_step = s.scale_transposed ? 1 : ceil_div(K, kGemmBlock);
        side.block_k_step = s.scale_transposed ? ceil_div(rows, kGemmBlock) : 1;
    } else if (s.gran != NO_SCALE) {
        side.scale = s.scale;
        side.scale_step = s.gran == PER_ROW;
    }
    return side;
}

static void gemm(Mat c, Side a, Side b, float beta) {
    Gemm g;
    memset(&g, 0, sizeof g);
    g.a = gemm_side(a);
    g.b = gemm_side(b);
    g.c = c.data;
    g.M = c.rows;
    g.N = c.cols;
    g.K = a.transposed ? a.m.rows : a.m.cols;
    g.ldc = c.ld;
    g.c_fmt = c.fmt;
    g.c_aligned = gemm_rows_aligned(c.data, c.ld, c.fmt);
    g.beta = beta;
    g.splits = 1;
    int b_K = b.transposed ? b.m.rows : b.m.cols;
    check(g.K == b_K && g.a.rows == g.M && g.b.rows == g.N && g.K > 0, "gemm: (%d, %d) = (%d, %d) (%d, %d)^T", g.M, g.N, g.a.rows, g.K,
          g.b.rows, b_K);
    check((c.fmt == F32 || c.fmt == BF16) && c.ld >= c.cols, "gemm: c in %s, (%d, %d) with rows of %d", fmt_name(c.fmt), c.rows, c.cols, c.ld);
    bool int8 = g.a.fmt == INT8 && g.b.fmt == INT8;
    check(!int8 || g.K <= kInt8Longest, "gemm: INT8 sums of %d products, more than %d, do not fit into 32 bits", g.K, (int)kInt8Longest);
    if (g.M == 0 || g.N == 0) return;
    gemm_ran_on = "own kernel for Hopper";
    if (int8 && gemm_int8_sm90(g)) return;
#ifndef HALO_SIMT
    gemm_ran_on = "cuBLASLt";
    if (gemm_cublaslt(g)) return;
#endif
    gemm_ran_on = "own kernel for any GPU";
    gemm_own(g);
}

#endif
