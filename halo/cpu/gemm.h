// The one product of the CPU backends; see `gemm` in ops.h for what it computes.
#ifndef HALO_CPU_GEMM_H
#define HALO_CPU_GEMM_H

#include "../ops.h"

// c (M,N) = a (M,K) b (N,K)^T + beta * c, any M, N, K >= 1. A side is F32, BF16 or 8-bit codes of any format; c is F32 or
// BF16. Uses all threads, and inside a parallel region only its caller's. The bits do not depend on the number of threads.
C_API void cpu_gemm(Mat c, Side a, Side b, float beta);
static inline void cpu_gemm_narrow(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts) {
    gemm_narrow_by(cpu_gemm, xp, factor, xtq, beta, x, p, q, parts);
}

#endif
