// The Hadamard matrices and transforms: signs exactly, values against the dense definition in double, and the stated order of
// FP32 operations to the last bit.
#include "../halo/hadamard.h"
#include "test.h"

#include <time.h>

// The base orders of hadamard.h; 40 is 20 doubled.
static const int listed_bases[] = {1, 12, 20, 28, 36, 40, 44, 52, 60, 100, 108, 140, 156, 172};

// Element (i, j) of sqrt(n) H_n, by definition: the Kronecker product of H_K0 and Sylvester's matrix.
static int dense_sign(int n, int i, int j) {
    int K0 = hadamard_base_order(n), run = n / K0;
    int sylvester = __builtin_popcount((unsigned)(i % run & j % run)) % 2 ? -1 : 1;
    return hadamard_base(K0)[i / run * K0 + j / run] * sylvester;
}

// ---- the matrices
static bool is_hadamard(const int8_t* h, int n) {
    for (int i = 0; i < n * n; i++)
        if (h[i] != 1 && h[i] != -1) return false;
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < n; k++) {
            int dot = 0;
            for (int j = 0; j < n; j++) dot += h[i * n + j] * h[k * n + j];
            if (dot != (i == k ? n : 0)) return false;
        }
    }
    return true;
}

static void base_case(void) {
    for (int b = 0; b < COUNT(listed_bases); b++) {
        int n = listed_bases[b];
        int8_t* h = (int8_t*)host_alloc((size_t)n * n);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) h[i * n + j] = (int8_t)dense_sign(n, i, j);
        bool right = is_hadamard(h, n);
        h[n * n / 2] = (int8_t)-h[n * n / 2];
        bool planted = n > 1 && is_hadamard(h, n);
        ok(right && !planted, "hadamard.base %d: H H^T = %d I exactly, and not with one sign changed", n, n);
        free(h);
    }
}

static void supported_case(void) {
    enum { kLargest = 40000 };
    static bool listed[2 * kLargest];
    for (int b = 0; b < COUNT(listed_bases); b++)
        for (int n = listed_bases[b]; n < 2 * kLargest; n *= 2) listed[n] = true;
    int wrong = 0, wrong_up = 0, wrong_split = 0;
    for (int n = 1; n <= kLargest; n++) {
        int up = n;
        while (!listed[up]) up++;
        wrong += hadamard_supported(n) != listed[n];
        wrong_up += hadamard_round_up(n) != up;
        int K0 = hadamard_base_order(n), splits = 0;
        for (int b = 0; b < kHadamardBaseCount; b++)
            for (int order = kHadamardBases[b]; order <= n; order *= 2) splits += order == n;
        wrong_split += splits != (K0 ? 1 : 0);
    }
    ok(wrong == 0, "hadamard.supported: %d of 1..%d differ from brute force", wrong, kLargest);
    ok(wrong_up == 0, "hadamard.round_up: %d of 1..%d differ from brute force", wrong_up, kLargest);
    ok(wrong_split == 0, "hadamard.base_order: %d of 1..%d have another split", wrong_split, kLargest);
    ok(!hadamard_supported(0) && !hadamard_supported(-4) && hadamard_supported(1 << 30) &&
       hadamard_round_up(1 << 30) == 1 << 30, "hadamard.supported at the ends");
}

// ---- the transform against the definition
// Every base, runs of 1, 2, 4 and 8, and the widths of Llama models, from 172 to 14336.
static const int orders[] = {1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 52, 56, 60, 64, 80, 100, 108, 112,
                             128, 140, 156, 172, 256, 288, 344, 576, 688, 1376, 1536, 2048, 3072, 4096, 5504, 8192,
                             11008, 14336, 16384};

static void dense_case(void) {
    for (int o = 0; o < COUNT(orders); o++) {
        for (int transpose = 0; transpose < 2; transpose++) {
            int n = orders[o], sampled = min_int(n, 64);
            float* x = test_normals((size_t)n, 1);
            float* got = (float*)host_alloc((size_t)sampled * sizeof(float));
            float* want = (float*)host_alloc((size_t)sampled * sizeof(float));
            // A long vector's outputs are sampled, evenly.
            for (int s = 0; s < sampled; s++) {
                int j = (int)((int64_t)s * n / sampled);
                double sum = 0;
                for (int i = 0; i < n; i++) sum += (double)x[i] * (transpose ? dense_sign(n, j, i) : dense_sign(n, i, j));
                want[s] = (float)(sum / sqrt(n));
            }
            hadamard_rows_f32(x, 1, n, n, transpose);
            for (int s = 0; s < sampled; s++) got[s] = x[(int64_t)s * n / sampled];
            close_to(got, want, (size_t)sampled, 1e-6, "hadamard.dense x H%s, order %d", transpose ? "^T" : "", n);
            free(x);
            free(got);
            free(want);
        }
    }
}

static void round_trip_case(void) {
    enum { kRows = 19, kPad = 3 };   // more than one tile, the last not full
    for (int o = 0; o < COUNT(orders); o++) {
        int n = orders[o], ld = n + kPad;
        size_t count = (size_t)kRows * ld;
        float* x = test_normals(count, 1);
        float* y = (float*)host_alloc(count * sizeof(float));
        memcpy(y, x, count * sizeof(float));
        hadamard_rows_f32(y, kRows, n, ld, false);
        double moved = rel_err(y, x, count);
        hadamard_rows_f32(y, kRows, n, ld, true);
        int touched = 0;
        for (int r = 0; r < kRows; r++)
            for (int c = n; c < ld; c++) touched += y[(size_t)r * ld + c] != x[(size_t)r * ld + c];
        ok((moved > 0.1 || n == 1) && rel_err(y, x, count) < 1e-6 && touched == 0,
           "hadamard.round_trip order %d: err %.1e, %d values outside the rows changed", n, rel_err(y, x, count), touched);
        free(x);
        free(y);
    }
}

// ---- the order of operations that hadamard.h promises, one vector at a time and as plainly as it can be written
static void stated_operations(float* v, int n, bool transpose) {
    int K0 = hadamard_base_order(n), run = n / K0;
    const int8_t* base = hadamard_base(K0);
    float* y = (float*)host_alloc((size_t)n * sizeof(float));
    for (int stride = 1; stride < run; stride *= 2) {
        for (int i = 0; i < n; i++) {
            if (i % run & stride) continue;
            float a = v[i], b = v[i + stride];
            v[i] = a + b;
            v[i + stride] = a - b;
        }
    }
    for (int i = 0; i < n; i++) {
        float sum = 0;
        for (int j = 0; j < K0; j++) {
            int sign = transpose ? base[i / run * K0 + j] : base[j * K0 + i / run];
            sum += sign > 0 ? v[j * run + i % run] : -v[j * run + i % run];
        }
        y[i] = (K0 > 1 ? sum : v[i]) * (float)(1 / sqrt((double)n));
    }
    memcpy(v, y, (size_t)n * sizeof(float));
    free(y);
}

static void bits_case(void) {
    for (int o = 0; o < COUNT(orders); o++) {
        int n = orders[o];
        bool same = true;
        for (int transpose = 0; transpose < 2; transpose++) {
            float* x = test_normals((size_t)n, 1);
            float* y = (float*)host_alloc((size_t)n * sizeof(float));
            memcpy(y, x, (size_t)n * sizeof(float));
            hadamard_rows_f32(x, 1, n, n, transpose);
            stated_operations(y, n, transpose);
            same = same && !memcmp(x, y, (size_t)n * sizeof(float));
            free(x);
            free(y);
        }
        ok(same, "hadamard.bits order %d: the stated operations, to the last bit", n);
    }
}

// ---- columns: (H x)^T = x^T H^T, with the same bits; blocks are transforms of their own
static bool cols_match_rows(int rows, int cols, int pad, int block, bool transpose) {
    int n = block ? block : rows, ld = cols + pad;
    float* x = test_normals((size_t)rows * ld, 1);
    float* turned = (float*)host_alloc((size_t)cols * rows * sizeof(float));   // (cols, rows)
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) turned[(size_t)c * rows + r] = x[(size_t)r * ld + c];
    float last_pad = x[(size_t)rows * ld - 1];
    for (int first = 0; first < rows; first += n) hadamard_rows_f32(turned + first, cols, n, rows, !transpose);
    hadamard_cols_f32(x, rows, cols, ld, block, transpose);
    bool same = pad == 0 || x[(size_t)rows * ld - 1] == last_pad;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) same = same && turned[(size_t)c * rows + r] == x[(size_t)r * ld + c];
    free(x);
    free(turned);
    return same;
}

static void cols_case(void) {
    static const int shapes[][3] = {{1, 5, 0}, {12, 1, 0}, {16, 16, 0}, {28, 33, 0}, {172, 40, 0}, {512, 17, 0}, {1376, 20, 0},
                                    {64, 21, 16}, {240, 18, 60}, {768, 35, 256}, {36, 3, 12}, {40, 7, 1}, {344, 16, 172}};
    for (int s = 0; s < COUNT(shapes); s++) {
        int rows = shapes[s][0], cols = shapes[s][1], block = shapes[s][2];
        bool same = cols_match_rows(rows, cols, 0, block, false) && cols_match_rows(rows, cols, 5, block, true);
        ok(same, "hadamard.cols (%d, %d) block %d: the rows of the transpose, to the last bit", rows, cols, block);
    }
}

// A rotation of the axis that a product contracts cancels.
static void cancels_case(void) {
    enum { kRows = 6, kOrder = 344 };
    float* x = test_normals(kRows * kOrder, 1);
    float* y = test_normals(kRows * kOrder, 1);
    float want[kRows * kRows], got[kRows * kRows];
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < kRows; i++) {
            for (int j = 0; j < kRows; j++) {
                double sum = 0;
                for (int k = 0; k < kOrder; k++) sum += (double)x[i * kOrder + k] * y[j * kOrder + k];
                (pass ? got : want)[i * kRows + j] = (float)sum;
            }
        }
        hadamard_rows_f32(x, kRows, kOrder, kOrder, false);
        hadamard_rows_f32(y, kRows, kOrder, kOrder, false);
    }
    close_to(got, want, kRows * kRows, 1e-5, "hadamard.cancels: (x H)(y H)^T = x y^T");
    free(x);
    free(y);
}

// ---- time: a power of two takes n log n, so 256 times the order on as many values may not cost 256 times as much
static double best_ms(int n, size_t values) {
    float* x = test_normals(values, 1);
    double best = INFINITY;
    for (int repeat = 0; repeat < 5; repeat++) {
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        hadamard_rows_f32(x, (int)(values / (size_t)n), n, n, repeat % 2);
        clock_gettime(CLOCK_MONOTONIC, &end);
        best = fmin(best, (double)(end.tv_sec - start.tv_sec) * 1e3 + (double)(end.tv_nsec - start.tv_nsec) * 1e-6);
    }
    free(x);
    return best;
}

static void time_case(void) {
    double small_ms = best_ms(64, 1 << 19), large_ms = best_ms(16384, 1 << 19);
    ok(large_ms < 16 * small_ms, "hadamard.time: order 16384 takes %.2f ms, order 64 %.2f ms for as many values", large_ms,
       small_ms);
}

// ---- misuse
static void rows_unsupported(void* order) {
    float x[16] = {0};
    hadamard_rows_f32(x, 1, *(int*)order, 16, false);
}
static void cols_uneven(void* unused) {
    (void)unused;
    float x[12] = {0};
    hadamard_cols_f32(x, 12, 1, 1, 8, false);
}
static void base_unknown(void* order) { hadamard_base(*(int*)order); }
static void round_up_unbounded(void* order) { hadamard_round_up(*(int*)order); }

static void errors_case(void) {
    int eleven = 11, zero = 0, forty = 40, huge = (1 << 30) + 1;
    expect_exit(rows_unsupported, &eleven, kExitBug, "order 11 is not supported", "hadamard.errors order 11");
    expect_exit(rows_unsupported, &zero, kExitBug, "order 0 is not supported", "hadamard.errors order 0");
    expect_exit(cols_uneven, NULL, kExitBug, "blocks of 8 rows do not fill 12 rows", "hadamard.errors uneven blocks");
    expect_exit(base_unknown, &forty, kExitBug, "40 is no base order", "hadamard.errors base 40");
    expect_exit(round_up_unbounded, &zero, kExitBug, "outside [1, 2^30]", "hadamard.errors round_up(0)");
    expect_exit(round_up_unbounded, &huge, kExitBug, "outside [1, 2^30]", "hadamard.errors round_up(2^30 + 1)");
}

static const Case cases[] = {
    {"hadamard.base", base_case},
    {"hadamard.supported", supported_case},
    {"hadamard.dense", dense_case},
    {"hadamard.round_trip", round_trip_case},
    {"hadamard.bits", bits_case},
    {"hadamard.cols", cols_case},
    {"hadamard.cancels", cancels_case},
    {"hadamard.time", time_case},
    {"hadamard.errors", errors_case},
};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
