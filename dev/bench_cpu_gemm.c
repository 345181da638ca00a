// Speed of the CPU product: checks each shape against double sums on a few rows, then times it.
// One line per shape: M x N x K format | us (median) | GFLOP/s | share of this machine's peak, measured with independent
// FP32 multiply-adds on as many threads.
#include "../halo/cpu/gemm.h"
#include "../halo/cpu/vec.h"

#include <math.h>
#include <omp.h>

enum { kRuns = 9 };

static int by_value(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

// The highest rate of multiply-adds with everything in registers: the product's own kernel is no part of it.
static double peak_gflops(void) {
    double best = 0;
    for (int run = 0; run < kRuns; run++) {
        double start = omp_get_wtime(), flops = 0, kept = 0;
#pragma omp parallel reduction(+ : flops, kept)
        {
            enum { kSteps = 4000000, kChains = 12 };   // chains enough to hide the latency
            Vec sum[kChains];
            for (int i = 0; i < kChains; i++) sum[i] = broadcast((float)i);
            for (int step = 0; step < kSteps; step++) {
#pragma GCC unroll 16
                for (int i = 0; i < kChains; i++) sum[i] = fused(sum[i], broadcast(0.999f), broadcast(0.001f));
            }
            for (int i = 0; i < kChains; i++) kept += sum[i][0];
            flops += 2.0 * kSteps * kChains * kLanes;
        }
        double rate = flops / (omp_get_wtime() - start) * 1e-9;
        if (rate > best && kept != 0) best = rate;
    }
    return best;
}

typedef struct {
    int M, N, K;
    Fmt fmt;
    bool a_transposed, b_transposed;
} Shape;

static float value_at(Side s, int i, int k) {
    size_t at = s.transposed ? (size_t)k * s.m.ld + i : (size_t)i * s.m.ld + k;
    if (s.m.fmt == F32) return ((const float*)s.m.data)[at];
    if (s.m.fmt == BF16) return f32_from_bf16(((const uint16_t*)s.m.data)[at]);
    return f32_from_code(((const uint8_t*)s.m.data)[at], s.m.fmt);
}

static Side random_side(int rows, int K, Fmt fmt, bool transposed) {
    static uint32_t state = 1;
    size_t n = (size_t)rows * K;
    void* data = host_alloc(n * fmt_bytes(fmt));
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        float x = (float)(state >> 8) / 8388608.0f - 1.0f;
        if (fmt == F32) ((float*)data)[i] = x;
        else if (fmt == BF16) ((uint16_t*)data)[i] = bf16_from_f32(x);
        else ((uint8_t*)data)[i] = code_from_f32(x * fmt_max(fmt), fmt);
    }
    return plain_side(transposed ? mat(data, K, rows, fmt) : mat(data, rows, K, fmt), transposed);
}

static bool agrees(Mat c, Side a, Side b, int K) {
    for (int n = 0; n < 500; n++) {
        int i = (int)((size_t)n * 7919 % (size_t)c.rows), j = (int)((size_t)n * 104729 % (size_t)c.cols);
        double sum = 0, magnitude = 0;
        for (int k = 0; k < K; k++) {
            double product = (double)value_at(a, i, k) * value_at(b, j, k);
            sum += product;
            magnitude += fabs(product);
        }
        if (!(fabs(((float*)c.data)[(size_t)i * c.ld + j] - sum) <= 1e-6 * magnitude)) return false;
    }
    return true;
}

static bool bench(Shape s, double peak) {
    Side a = random_side(s.M, s.K, s.fmt, s.a_transposed), b = random_side(s.N, s.K, s.fmt, s.b_transposed);
    Mat c = mat(host_alloc((size_t)s.M * s.N * sizeof(float)), s.M, s.N, F32);
    cpu_gemm(c, a, b, 0);
    bool right = agrees(c, a, b, s.K);
    double seconds[kRuns];
    for (int run = 0; run < kRuns; run++) {
        double start = omp_get_wtime();
        cpu_gemm(c, a, b, 0);
        seconds[run] = omp_get_wtime() - start;
    }
    qsort(seconds, kRuns, sizeof(double), by_value);
    double median = seconds[kRuns / 2], gflops = 2.0 * s.M * s.N * s.K / median * 1e-9;
    printf("%5d x %5d x %5d %-8s%s%s | %9.0f us | %7.1f GFLOP/s | %3.0f%% of peak%s\n", s.M, s.N, s.K, fmt_name(s.fmt),
           s.a_transposed ? " aT" : "   ", s.b_transposed ? " bT" : "   ", median * 1e6, gflops, 100 * gflops / peak,
           right ? "" : "  WRONG");
    free(a.m.data);
    free(b.m.data);
    free(c.data);
    return right;
}

int main(void) {
    static const Shape shapes[] = {
        {512, 512, 512, F32, false, false},     {1024, 1024, 1024, F32, false, false},
        {2048, 2048, 2048, F32, false, false},  {1024, 1024, 1024, F32, true, true},
        {1024, 1024, 1024, BF16, false, false}, {1024, 1024, 1024, BF16, true, true},
        {1024, 1024, 1024, INT8, false, false}, {1024, 1024, 1024, FP8_E4M3, false, false},
        {2048, 192, 192, BF16, false, false},   {2048, 512, 192, INT8, false, false},
        {192, 512, 2048, INT8, false, false},   {192, 512, 2048, BF16, true, true},
        {2048, 2048, 192, BF16, false, false},  {64, 64, 64, F32, false, false},
        {1, 2048, 512, BF16, false, false},
    };
    double peak = peak_gflops();
    printf("%d threads, peak %.1f GFLOP/s\n", omp_get_max_threads(), peak);
    bool right = true;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) right = bench(shapes[i], peak) && right;
    return right ? 0 : 1;
}
