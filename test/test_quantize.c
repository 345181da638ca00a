// Rotations and quantizers of a backend, against the CPU's.
//
//   F32        a rotation has the CPU's bits (hadamard.h fixes the operations), whatever the shape, stride or block
//   BF16       its error against FP32 is at most twice that of the CPU's bf16
//   maximum    that of what was written, exactly
//   codes      of the same input are the CPU's bits, and so are the scales, transposed codes and what lies between the rows
//   rotated    codes of x H and H x are those of the CPU's FP32 values but for a few, which lie by a tie and are one step off (or by
//              2^-11 of the maximum, where steps are finer than that); the maximum alone is that of the FP32 values
//
// The shapes are chosen to reach every kernel; none is larger than that needs, since CI runs them on the emulator.
#include "../halo/hadamard.h"
#include "../halo/ops.h"
#include "backends.h"

static const Ops* ops;

// ---- matrices: the same on the host and on the backend
enum { kFence = 0xa5 };   // what lies between the rows, and has to stay

// A copy of host's memory on the backend.
static Mat put(Mat host) {
    Mat m = host;
    m.data = ops->alloc(mat_bytes(host));
    ops->upload(m.data, host.data, mat_bytes(host));
    return m;
}
static Mat fenced(int rows, int cols, int ld, Fmt fmt) {
    Mat m = {NULL, rows, cols, ld, fmt};
    m.data = host_alloc(mat_bytes(m));
    memset(m.data, kFence, mat_bytes(m));
    return m;
}
static Mat noise(int rows, int cols, int ld, Fmt fmt, float size) {
    Mat m = fenced(rows, cols, ld, fmt);
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            float x = size * test_normal();
            if (fmt == F32) ((float*)m.data)[(size_t)i * ld + j] = x;
            else ((uint16_t*)m.data)[(size_t)i * ld + j] = bf16_from_f32(x);
        }
    }
    return m;
}
static float at(Mat m, int i, int j) {
    size_t k = (size_t)i * m.ld + j;
    return m.fmt == F32 ? ((float*)m.data)[k] : f32_from_bf16(((uint16_t*)m.data)[k]);
}
static void set(Mat m, int i, int j, float x) {
    size_t k = (size_t)i * m.ld + j;
    if (m.fmt == F32) ((float*)m.data)[k] = x;
    else ((uint16_t*)m.data)[k] = bf16_from_f32(x);
}
static float* values(Mat m) {
    float* v = (float*)host_alloc((size_t)m.rows * m.cols * sizeof(float));
    for (int i = 0; i < m.rows; i++)
        for (int j = 0; j < m.cols; j++) v[(size_t)i * m.cols + j] = at(m, i, j);
    return v;
}
// Bytes of the backend's matrix that are not those of the host's, between the rows too.
static size_t differing_bytes(Mat on_backend, Mat host) {
    size_t bytes = mat_bytes(host), differ = 0;
    unsigned char* got = (unsigned char*)host_alloc(bytes);
    ops->download(got, on_backend.data, bytes);
    for (size_t i = 0; i < bytes; i++) differ += got[i] != ((unsigned char*)host.data)[i];
    free(got);
    return differ;
}
// Scales that differ; one NaN is as good as another.
static int differing_scales(const float* on_backend, const float* host, int count) {
    float* got = (float*)host_alloc(sizeof(float) * (size_t)count);
    int differ = 0;
    ops->download(got, on_backend, sizeof(float) * (size_t)count);
    for (int i = 0; i < count; i++) differ += f32_bits(got[i]) != f32_bits(host[i]) && !(isnan(got[i]) && isnan(host[i]));
    free(got);
    return differ;
}

// ---- rotations
typedef struct {
    RotateAxis axis;
    int x_rows, y_rows, cols, block;
    int slack;   // ld - cols
} RotateShape;

static void rotate_one(RotateShape s, Fmt fmt, bool transpose) {
    char name[128];
    snprintf(name, sizeof name, "rotate %s %s %d -> %d x %d%s block %d slack %d%s", ops->name, s.axis == ROTATE_ROWS ? "rows" : "cols",
             s.x_rows, s.y_rows, s.cols, fmt == F32 ? " f32" : " bf16", s.block, s.slack, transpose ? " ^T" : "");
    Mat x = noise(s.x_rows, s.cols, s.cols + s.slack, fmt, 1), want = fenced(s.y_rows, s.cols, s.cols + s.slack, fmt);
    Mat X = put(x), Y = put(want);
    float most = 0, raised = 0;
    float* largest = (float*)ops->alloc(sizeof(float));
    cpu_f32_ops.rotate(want, x, s.axis, transpose, s.block, &most);
    ops->rotate(Y, X, s.axis, transpose, s.block, largest);
    ops->download(&raised, largest, sizeof raised);

    Mat y = fenced(s.y_rows, s.cols, s.cols + s.slack, fmt);
    ops->download(y.data, Y.data, mat_bytes(y));
    if (fmt == F32) {
        size_t wrong = differing_bytes(Y, want);
        ok(wrong == 0 && raised == most, "%s: %zu bytes differ, maximum %g of %g", name, wrong, (double)raised, (double)most);
    } else {
        Mat exact = fenced(s.y_rows, s.cols, s.cols, F32), x32 = fenced(s.x_rows, s.cols, s.cols, F32);
        cpu_f32_ops.convert(x32, x);
        cpu_f32_ops.rotate(exact, x32, s.axis, transpose, s.block, NULL);
        size_t n = (size_t)s.y_rows * s.cols;
        float *got = values(y), *wanted = values(exact), *plain = values(want);
        close_to(got, wanted, n, 2 * rel_err(plain, wanted, n), "%s", name);
        float written = 0;
        size_t flipped = 0, fence = 0;
        for (size_t i = 0; i < n; i++) {
            written = larger_magnitude(written, got[i]);
            flipped += got[i] != plain[i];
        }
        for (int i = 0; i < s.y_rows; i++)
            for (size_t b = (size_t)s.cols * 2; b < (size_t)y.ld * 2; b++)
                fence += ((unsigned char*)y.data)[(size_t)i * y.ld * 2 + b] != kFence;
        ok(written == raised && fence == 0, "%s: maximum %g of %g, %zu bytes between rows; %.2f%% of the values are rounded otherwise", name,
           (double)raised, (double)written, fence, 100.0 * flipped / n);
        free(got); free(wanted); free(plain); free(exact.data); free(x32.data);
    }
    if (s.x_rows == s.y_rows) {
        ops->rotate(X, X, s.axis, transpose, s.block, NULL);
        size_t wrong = differing_bytes(X, y);
        ok(wrong == 0, "%s in place: %zu bytes differ", name, wrong);
    }
    ops->release(X.data); ops->release(Y.data); ops->release(largest);
    free(x.data); free(y.data); free(want.data);
}

static void rotate_shapes(const RotateShape* shapes, int count) {
    for (int s = 0; s < count; s++) {
        for (int f = 0; f < 2; f++) {
            rotate_one(shapes[s], f ? F32 : BF16, false);
            rotate_one(shapes[s], f ? F32 : BF16, true);
        }
    }
}

static void rotate_cols_case(void) {
    static const int orders[] = {1, 2, 8, 12, 16, 32, 64, 128, 172, 192, 256, 512, 576, 1024, 1376, 1536, 2048, 3072, 4096, 8192};
    for (int o = 0; o < COUNT(orders); o++) {
        RotateShape s = {ROTATE_COLS, o % 3 + 3, o % 3 + 3, orders[o], 0, o % 2 ? 8 : 0};
        rotate_shapes(&s, 1);
    }
    static const RotateShape odd[] = {{ROTATE_COLS, 70, 70, 64, 0, 3}, {ROTATE_COLS, 33, 33, 96, 0, 16}, {ROTATE_COLS, 1, 1, 768, 0, 0}};
    rotate_shapes(odd, COUNT(odd));
}
static void rotate_bases_case(void) {
    for (int b = 1; b < kHadamardBaseCount; b++) {
        RotateShape s = {ROTATE_COLS, 3, 3, kHadamardBases[b] * 32, 0, 0};
        rotate_shapes(&s, 1);
    }
}
static void rotate_large_case(void) {
    static const int orders[] = {11008, 14336, 16384, 20480, 28672, 32768, 1152, 2560, 5120, 6144, 12288, 22016, 22528, 36864, 53248, 71680, 768,
                                 81920, 98304};   // the last two are exact: too many sums for a block
    for (int o = 0; o < COUNT(orders); o++) {
        RotateShape s = {ROTATE_COLS, 2 + o % 2, 2 + o % 2, orders[o], 0, o % 3 == 1 ? 8 : 0};
        rotate_one(s, BF16, o % 2);
        rotate_one(s, F32, o % 2);
    }
}
static void rotate_rows_case(void) {
    static const RotateShape shapes[] = {
        {ROTATE_ROWS, 1, 1, 40, 0, 0},      {ROTATE_ROWS, 8, 8, 24, 0, 0},       {ROTATE_ROWS, 24, 24, 37, 0, 3},
        {ROTATE_ROWS, 19, 20, 72, 0, 8},    {ROTATE_ROWS, 28, 25, 16, 0, 0},     {ROTATE_ROWS, 45, 48, 40, 16, 0},
        {ROTATE_ROWS, 512, 512, 80, 256, 8}, {ROTATE_ROWS, 250, 256, 24, 0, 0},  {ROTATE_ROWS, 1024, 1000, 40, 0, 0},
        {ROTATE_ROWS, 600, 640, 24, 0, 0},  {ROTATE_ROWS, 1536, 1530, 16, 0, 0}, {ROTATE_ROWS, 768, 768, 16, 384, 0},
        {ROTATE_ROWS, 320, 320, 72, 64, 8}, {ROTATE_ROWS, 770, 896, 24, 128, 0},
    };
    rotate_shapes(shapes, COUNT(shapes));
}
static void rotate_many_tokens_case(void) {
    static const RotateShape shapes[] = {
        {ROTATE_ROWS, 2048, 2048, 16, 0, 0}, {ROTATE_ROWS, 4090, 4096, 8, 0, 0}, {ROTATE_ROWS, 6144, 6144, 8, 0, 0},
        {ROTATE_ROWS, 8192, 8180, 16, 0, 0}, {ROTATE_ROWS, 16384, 16380, 8, 0, 0}, {ROTATE_ROWS, 14336, 14336, 8, 0, 0},
        {ROTATE_ROWS, 4096, 4096, 40, 2048, 8}, {ROTATE_ROWS, 4096, 4096, 136, 0, 0}, {ROTATE_ROWS, 9200, 9216, 8, 384, 0},
        {ROTATE_ROWS, 832, 832, 72, 0, 0},   {ROTATE_ROWS, 1600, 1600, 40, 0, 8}, {ROTATE_ROWS, 2752, 2750, 24, 0, 0},
        {ROTATE_ROWS, 1664, 1664, 72, 832, 0}, {ROTATE_ROWS, 20480, 20480, 8, 0, 0}, {ROTATE_ROWS, 24570, 24576, 8, 0, 0},
        {ROTATE_ROWS, 32768, 32768, 8, 0, 0},
    };
    for (int s = 0; s < COUNT(shapes); s++) {
        rotate_one(shapes[s], BF16, s % 2 == 0);
        rotate_one(shapes[s], F32, s % 2);
    }
}
// Between the two halves of a rotation values are FP16, along features twice: an error of 2e-4 to 3e-4 of the deviation of the results, which is
// 1 / 100 of a step of INT8 and half a step of E4M3's smallest. The maximum is a single value, a sum of some that err by up to 2^-12 each.
typedef struct {
    double flipped, far, maximum;   // codes, of all; distances, of the largest code; of the maximum
} RotatedTol;
static const RotatedTol kFeaturesTol = {2.4e-2, 1.0 / 2048, 3.0 / 4096}, kTokensTol = {1.6e-2, 1.0 / 2048, 3e-4};

// Magnitudes that FP16 does not have, and values that are not finite: they stay in their column, but may ruin others' precision.
typedef enum { TOKENS_APART, RUNS_APART, TINY, HUGE_VALUES, NOT_FINITE, kExtremes } Extreme;

static Mat extreme_matrix(RotateShape s, Extreme kind) {
    Mat x = noise(s.x_rows, s.cols, s.cols, BF16, kind == TINY ? 1e-30f : kind == HUGE_VALUES ? 1e30f : 1);
    uint16_t* v = (uint16_t*)x.data;
    for (int i = 0; i < s.x_rows; i++) {
        int power = kind == TOKENS_APART ? i * 7919 % 41 - 20 : kind == RUNS_APART ? i / 256 * 11 % 41 - 20 : 0;
        bool zero = kind == TOKENS_APART && i % 5 == 3;
        for (int j = 0; j < s.cols; j++) v[i * s.cols + j] = zero ? 0 : bf16_from_f32(ldexpf(f32_from_bf16(v[i * s.cols + j]), power));
    }
    if (kind == NOT_FINITE) {
        v[s.x_rows / 3 * s.cols + 1] = bf16_from_f32(NAN);
        v[s.x_rows / 2 * s.cols + 10] = bf16_from_f32(-INFINITY);
    }
    return x;
}
static void rotate_extreme(RotateShape s, Extreme kind) {
    static const char* const kinds[kExtremes] = {"tokens 2^40 apart, some zero", "runs 2^40 apart", "tiny", "huge", "not finite"};
    char name[128];
    snprintf(name, sizeof name, "rotate %s %s %d x %d block %d, %s", s.axis == ROTATE_ROWS ? "rows" : "cols", ops->name, s.x_rows, s.cols, s.block, kinds[kind]);
    Mat x = extreme_matrix(s, kind), y = fenced(s.y_rows, s.cols, s.cols, BF16), X = put(x), Y = put(y);
    Mat plain = fenced(s.y_rows, s.cols, s.cols, BF16), exact = fenced(s.y_rows, s.cols, s.cols, F32), x32 = fenced(s.x_rows, s.cols, s.cols, F32);
    Mat nowhere = {NULL, s.y_rows, s.cols, s.cols, BF16};
    float most = 0, raised = 0, *largest = (float*)ops->alloc(sizeof(float));
    ops->rotate(Y, X, s.axis, false, s.block, NULL);
    ops->rotate(nowhere, X, s.axis, false, s.block, largest);
    ops->download(&raised, largest, sizeof raised);
    ops->download(y.data, Y.data, mat_bytes(y));
    cpu_f32_ops.convert(x32, x);
    cpu_f32_ops.rotate(exact, x32, s.axis, false, s.block, &most);
    cpu_f32_ops.rotate(plain, x, s.axis, false, s.block, NULL);

    size_t n = (size_t)s.y_rows * s.cols, wrong = 0, not_finite = 0;
    float *got = values(y), *wanted = values(exact), *rounded = values(plain);
    for (size_t i = 0; i < n; i++) {
        wrong += isfinite(got[i]) != isfinite(wanted[i]);
        not_finite += !isfinite(wanted[i]);
        if (!isfinite(got[i]) || !isfinite(wanted[i])) got[i] = wanted[i] = rounded[i] = 0;
    }
    ok(wrong == 0 && (not_finite > 0) == (kind == NOT_FINITE), "%s: %zu values are not finite, %zu by mistake", name, not_finite, wrong);
    float scale = kind == TINY ? 1e30f : kind == HUGE_VALUES ? 1e-30f : 1;   // so that squares are in range
    for (size_t i = 0; i < n; i++) got[i] *= scale, wanted[i] *= scale, rounded[i] *= scale;
    if (kind != NOT_FINITE) close_to(got, wanted, n, 2 * rel_err(rounded, wanted, n), "%s", name);
    double tol = (s.axis == ROTATE_ROWS ? kTokensTol : kFeaturesTol).maximum;
    if (kind == TOKENS_APART || kind == RUNS_APART) tol = fmax(tol, 0x1p-11);   // a run is all that counts: the error of its one rounding to FP16
    ok(isfinite(most) ? fabs(raised - most) <= tol * most : !isfinite(raised), "%s: maximum %g of %g", name, (double)raised, (double)most);
    ops->release(X.data); ops->release(Y.data); ops->release(largest);
    free(got); free(wanted); free(rounded); free(x.data); free(y.data); free(plain.data); free(exact.data); free(x32.data);
}
static void rotate_extremes_case(void) {
    static const RotateShape shapes[] = {{ROTATE_ROWS, 512, 512, 24, 256, 0}, {ROTATE_ROWS, 1024, 1024, 16, 0, 0}, {ROTATE_ROWS, 6144, 6144, 16, 0, 0},
                                         {ROTATE_ROWS, 4096, 4096, 24, 0, 0}, {ROTATE_ROWS, 768, 768, 40, 0, 0},
                                         {ROTATE_ROWS, 9216, 9216, 8, 0, 0},  {ROTATE_ROWS, 16384, 16384, 8, 0, 0},
                                         {ROTATE_ROWS, 1600, 1600, 40, 0, 0}, {ROTATE_ROWS, 2752, 2752, 8, 0, 0},
                                         {ROTATE_COLS, 70, 70, 64, 0, 0},     {ROTATE_COLS, 600, 600, 256, 0, 0},
                                         {ROTATE_COLS, 40, 40, 576, 0, 0},    {ROTATE_COLS, 300, 300, 1536, 0, 0},
                                         {ROTATE_COLS, 9, 9, 4096, 0, 0},     {ROTATE_COLS, 7, 7, 14336, 0, 0},
                                         {ROTATE_COLS, 31, 31, 3072, 0, 0},   {ROTATE_COLS, 5, 5, 28672, 0, 0},
                                         {ROTATE_COLS, 7, 7, 22528, 0, 0},    {ROTATE_COLS, 11, 11, 11008, 0, 0}};
    for (int s = 0; s < COUNT(shapes); s++) {
        // Rows that are not whole 256s share an exponent, and products: a row of another magnitude or a NaN is their neighbours' too.
        bool alone = shapes[s].axis == ROTATE_ROWS || shapes[s].cols % 256 == 0;
        for (int kind = 0; kind < kExtremes; kind++)
            if (alone || kind == TINY || kind == HUGE_VALUES) rotate_extreme(shapes[s], (Extreme)kind);
    }
}
static void absmax_case(void) {
    static const int shapes[][3] = {{1, 1, 1}, {3, 45, 47}, {70, 64, 64}, {33, 136, 144}, {300, 512, 512}};
    for (int s = 0; s < COUNT(shapes); s++) {
        for (int f = 0; f < 2; f++) {
            Mat x = noise(shapes[s][0], shapes[s][1], shapes[s][2], f ? F32 : BF16, 3);
            Mat X = put(x);
            float want = 0.5f, got = 0.5f;
            float* largest = (float*)ops->alloc(sizeof(float));
            ops->upload(largest, &got, sizeof got);
            cpu_f32_ops.absmax(&want, x);
            ops->absmax(largest, X);
            ops->download(&got, largest, sizeof got);
            ok(got == want, "absmax %s %d x %d %s: %g of %g", ops->name, x.rows, x.cols, fmt_name(x.fmt), (double)got, (double)want);
            ops->release(X.data); ops->release(largest);
            free(x.data);
        }
    }
}

// ---- quantizers
typedef enum { CODES = 1, TRANSPOSED = 2, BOTH = 3 } Wanted;

static QMat qmat(int rows, int cols, int slack, Fmt fmt, Gran gran, Wanted wanted) {
    QMat q = {{NULL, rows, cols, cols + slack, fmt}, {NULL, cols, rows, rows + slack, fmt}, NULL, gran};
    if (wanted & CODES) q.codes = fenced(rows, cols, cols + slack, fmt);
    if (wanted & TRANSPOSED) q.codes_t = fenced(cols, rows, (int)round_up((size_t)rows, 16) + slack, fmt);
    if (scale_count(rows, cols, gran)) q.scale = (float*)host_alloc(sizeof(float) * (size_t)scale_count(rows, cols, gran));
    return q;
}
static void quantize_one(Mat x, int slack, Fmt fmt, Gran gran, float clip, Wanted wanted) {
    int scales = scale_count(x.rows, x.cols, gran);
    QMat want = qmat(x.rows, x.cols, slack, fmt, gran, wanted), q = want;
    Mat X = put(x);
    if (wanted & CODES) q.codes = put(want.codes);
    if (wanted & TRANSPOSED) q.codes_t = put(want.codes_t);
    if (scales) q.scale = (float*)ops->alloc(sizeof(float) * (size_t)scales);
    float most = 0;
    float* largest = (float*)ops->alloc(sizeof(float));
    cpu_f32_ops.absmax(&most, x);
    ops->upload(largest, &most, sizeof most);
    cpu_f32_ops.quantize(want, x, kRotateNone, &most, fmt, clip);
    ops->quantize(q, X, kRotateNone, largest, fmt, clip);
    size_t wrong = wanted & CODES ? differing_bytes(q.codes, want.codes) : 0;
    size_t wrong_t = wanted & TRANSPOSED ? differing_bytes(q.codes_t, want.codes_t) : 0;
    int wrong_scales = scales ? differing_scales(q.scale, want.scale, scales) : 0;
    ok(wrong == 0 && wrong_t == 0 && wrong_scales == 0,
       "quantize %s %d x %d (%d) %s -> %s gran %d clip %g wanted %d: %zu bytes of codes, %zu transposed, %d scales differ", ops->name,
       x.rows, x.cols, x.ld, fmt_name(x.fmt), fmt_name(fmt), (int)gran, (double)clip, (int)wanted, wrong, wrong_t, wrong_scales);
    ops->release(X.data); ops->release(largest);
    if (wanted & CODES) { ops->release(q.codes.data); free(want.codes.data); }
    if (wanted & TRANSPOSED) { ops->release(q.codes_t.data); free(want.codes_t.data); }
    if (scales) { ops->release(q.scale); free(want.scale); }
}

// ---- several matrices at once: the codes, scales and maxima that each has alone on the same backend
typedef struct {
    int cols, N[3];   // matrices of N[p] rows one above the other; 0: no more
} Stacked;
// What the second matrix of each stack holds: noise as the others do, or nothing but zeros, or one value that is not finite.
typedef enum { ALL_NOISE, ALL_ZERO, ONE_NAN, ONE_INFINITY } Held;

// Lays out the matrices of `stacks` with places for their codes, and fills in m. Returns their number.
static int coded_stacks(Coded* m, const Stacked* stacks, int count, const Mat* X, Fmt fmt, bool transposed, int slack) {
    int n = 0;
    for (int s = 0; s < count; s++) {
        for (int p = 0, row = 0; p < 3 && stacks[s].N[p]; row += stacks[s].N[p++]) {
            int rows = stacks[s].N[p], cols = stacks[s].cols;
            Coded one = {mat_rows(X[s], row, rows), (float*)ops->alloc(sizeof(float)),
                         {{NULL, rows, cols, (int)round_up((size_t)cols, 16) + slack, fmt}, {NULL, cols, rows, (int)round_up((size_t)rows, 16) + slack, fmt},
                          (float*)ops->alloc(sizeof(float)), PER_TENSOR}};
            one.q.codes.data = ops->alloc(mat_bytes(one.q.codes));
            if (transposed) one.q.codes_t.data = ops->alloc(mat_bytes(one.q.codes_t));
            m[n++] = one;
        }
    }
    return n;
}
static bool same_matrix(Mat a, Mat b, int off) {
    if (!a.data && !b.data) return true;
    unsigned char *x = (unsigned char*)host_alloc(mat_bytes(a)), *y = (unsigned char*)host_alloc(mat_bytes(b));
    ops->download(x, a.data, mat_bytes(a));
    ops->download(y, b.data, mat_bytes(b));
    y[mat_bytes(b) / 2] ^= (unsigned char)off;
    bool same = !memcmp(x, y, mat_bytes(a));
    free(x); free(y);
    return same;
}
static bool same_float(const float* a, const float* b) {
    float x, y;
    ops->download(&x, a, sizeof x);
    ops->download(&y, b, sizeof y);
    return f32_bits(x) == f32_bits(y) || (isnan(x) && isnan(y));
}
static void hold(Mat x, int first, int rows, Held held) {
    for (int i = first; i < first + rows && held == ALL_ZERO; i++)
        for (int j = 0; j < x.cols; j++) set(x, i, j, 0);
    if (held == ONE_NAN) set(x, first + rows / 2, x.cols / 3, NAN);
    if (held == ONE_INFINITY) set(x, first + rows / 2, x.cols / 3, -INFINITY);
}
static void each_of(const Stacked* stacks, int count, Fmt fmt, bool rotated, bool transposed, Held held, int slack) {
    Coded got[kCodedAtOnce], want[kCodedAtOnce];
    Mat X[kCodedAtOnce];
    for (int s = 0; s < count; s++) {
        Mat x = noise(stacks[s].N[0] + stacks[s].N[1] + stacks[s].N[2], stacks[s].cols, stacks[s].cols + slack, ops->act, (float)(1 + s));
        if (stacks[s].N[1]) hold(x, stacks[s].N[0], stacks[s].N[1], held);
        X[s] = put(x);
        free(x.data);
    }
    int n = coded_stacks(got, stacks, count, X, fmt, transposed, slack);
    coded_stacks(want, stacks, count, X, fmt, transposed, slack);
    ops->absmax_each(got, n, rotated);
    ops->quantize_each(got, n, rotated, fmt, 0.75f);
    absmax_each_by(ops->absmax, ops->rotate, want, n, rotated);
    quantize_each_by(ops->quantize, want, n, rotated, fmt, 0.75f);
    int wrong = 0, seen = 0;
    for (int i = 0; i < n; i++) {
        wrong += !same_matrix(got[i].q.codes, want[i].q.codes, 0) || !same_matrix(got[i].q.codes_t, want[i].q.codes_t, 0) ||
                 !same_float(got[i].q.scale, want[i].q.scale) || !same_float(got[i].absmax, want[i].absmax);
        seen += !same_matrix(got[i].q.codes, want[i].q.codes, 1);
    }
    ok(wrong == 0 && seen == n, "%d matrices at once %s %s%s%s held %d slack %d: %d differ from each alone (a planted bit is seen in %d)", n, ops->name,
       fmt_name(fmt), rotated ? ", rotated" : "", transposed ? ", transposed too" : "", (int)held, slack, wrong, seen);
    for (int i = 0; i < n; i++) {
        const Coded* const both[] = {&got[i], &want[i]};
        for (int b = 0; b < 2; b++) {
            ops->release(both[b]->absmax); ops->release(both[b]->q.scale); ops->release(both[b]->q.codes.data);
            if (transposed) ops->release(both[b]->q.codes_t.data);
        }
    }
    for (int s = 0; s < count; s++) ops->release(X[s].data);
}
// The layer of a small model, on and off the boundaries of tiles; rows of no whole octets; stacks of orders 2^k and others.
static void each_case(void) {
    static const Stacked layer[] = {{576, {192, 64, 64}}, {192, {96, 0, 0}}, {576, {128, 128, 0}}, {1536, {24, 0, 0}}};
    static const Stacked odd[] = {{512, {33, 40, 7}}, {96, {50, 30, 0}}, {128, {104, 8, 36}}};
    static const Stacked ragged[] = {{45, {13, 6, 0}}, {64, {16, 0, 0}}}, single[] = {{1024, {16, 32, 0}}};
    static const Stacked whole[] = {{512, {32, 4, 4}}, {1536, {4, 3, 5}}, {8, {128, 256, 0}}};
    for (int rotated = 0; rotated < 2; rotated++) {
        for (int transposed = 0; transposed < 2; transposed++) {
            each_of(layer, COUNT(layer), FP8_E4M3, rotated, transposed, ALL_NOISE, 0);
            each_of(odd, COUNT(odd), INT8, rotated, transposed, ALL_NOISE, 0);
            each_of(single, COUNT(single), FP6_E3M2, rotated, transposed, ALL_NOISE, 0);
            for (int held = ALL_ZERO; held <= ONE_INFINITY; held++) {
                each_of(single, COUNT(single), INT8, rotated, transposed, (Held)held, 8);
                each_of(whole, COUNT(whole), FP8_E4M3, rotated, transposed, (Held)held, held == ONE_NAN ? 5 : 16);
            }
        }
    }
    each_of(single, COUNT(single), FP8_E5M2, false, true, ALL_NOISE, 0);
    each_of(single, COUNT(single), FP6_E2M3, false, true, ALL_NOISE, 0);
    each_of(ragged, COUNT(ragged), INT8, false, true, ONE_NAN, 3);
}

// ---- codes of rotated matrices

// Neighbouring codes have neighbouring numbers.
static int code_number(uint8_t code, Fmt fmt) {
    if (fmt == INT8) return (int8_t)code;
    int number = (fmt == FP6_E3M2 || fmt == FP6_E2M3 ? fp6_pack_code(code, fmt) & 0x1f : code & 0x7f);
    return code & 0x80 ? -number : number;
}

static bool is_far(uint8_t a, uint8_t b, Fmt fmt, double tol) {
    return abs(code_number(a, fmt) - code_number(b, fmt)) > 1 && fabsf(f32_from_code(a, fmt) - f32_from_code(b, fmt)) > fmt_max(fmt) * tol;
}

static void rotated_codes_one(RotateShape s, Fmt in, Fmt fmt, float clip, Wanted wanted) {
    char name[160];
    snprintf(name, sizeof name, "rotated codes %s %s %d -> %d x %d block %d slack %d %s -> %s clip %g wanted %d", ops->name,
             s.axis == ROTATE_ROWS ? "rows" : "cols", s.x_rows, s.y_rows, s.cols, s.block, s.slack, fmt_name(in), fmt_name(fmt),
             (double)clip, (int)wanted);
    Mat x = noise(s.x_rows, s.cols, s.cols + s.slack, in, 1e-3f), X = put(x);
    Rotation rotation = {s.axis, s.block};
    QMat want = qmat(s.y_rows, s.cols, s.slack, fmt, PER_TENSOR, wanted), q = want, got = want;
    if (wanted & CODES) q.codes = put(want.codes), got.codes = fenced(s.y_rows, s.cols, want.codes.ld, fmt);
    if (wanted & TRANSPOSED) q.codes_t = put(want.codes_t), got.codes_t = fenced(s.cols, s.y_rows, want.codes_t.ld, fmt);
    float most = 0, raised = 0, *largest = (float*)ops->alloc(sizeof(float));
    Mat nowhere = {NULL, s.y_rows, s.cols, s.cols, in};
    cpu_f32_ops.rotate(nowhere, x, s.axis, false, s.block, &most);
    ops->rotate(nowhere, X, s.axis, false, s.block, largest);
    ops->download(&raised, largest, sizeof raised);
    ops->upload(largest, &most, sizeof most);
    q.scale = (float*)ops->alloc(sizeof(float));
    ops->quantize(q, X, rotation, largest, fmt, clip);
    cpu_f32_ops.quantize(want, x, rotation, &most, fmt, clip);

    RotatedTol tol = s.axis == ROTATE_ROWS ? kTokensTol : kFeaturesTol;
    int flipped = 0, far = 0, torn = 0, fence = 0, plain_differ = 0, wrong_scale = differing_scales(q.scale, want.scale, 1);
    if (wanted & CODES) ops->download(got.codes.data, q.codes.data, mat_bytes(got.codes));
    if (wanted & TRANSPOSED) ops->download(got.codes_t.data, q.codes_t.data, mat_bytes(got.codes_t));
    for (int i = 0; i < s.y_rows; i++) {
        for (int j = 0; j < s.cols; j++) {
            size_t k = (size_t)i * want.codes.ld + j, k_t = (size_t)j * want.codes_t.ld + i;
            uint8_t expected = wanted & CODES ? ((uint8_t*)want.codes.data)[k] : ((uint8_t*)want.codes_t.data)[k_t];
            uint8_t code = wanted & CODES ? ((uint8_t*)got.codes.data)[k] : ((uint8_t*)got.codes_t.data)[k_t];
            flipped += code != expected;
            far += is_far(code, expected, fmt, tol.far);
            torn += wanted == BOTH && ((uint8_t*)got.codes_t.data)[k_t] != code;
            float plain = i < s.x_rows ? at(x, i, j) * quant_inverse(most, fmt, clip) : 0;
            plain_differ += code != code_from_f32(plain, fmt);
        }
    }
    for (int i = 0; wanted & CODES && i < s.y_rows; i++)
        for (int j = s.cols; j < want.codes.ld; j++) fence += ((uint8_t*)got.codes.data)[(size_t)i * want.codes.ld + j] != kFence;
    for (int j = 0; wanted & TRANSPOSED && j < s.cols; j++)
        for (int i = s.y_rows; i < want.codes_t.ld; i++) fence += ((uint8_t*)got.codes_t.data)[(size_t)j * want.codes_t.ld + i] != kFence;
    int n = s.y_rows * s.cols;
    bool exact = ops == &cpu_f32_ops || ops == &cpu_bf16_ops || in == F32;
    ok(flipped <= (exact ? 0 : 2 + tol.flipped * n) && far == 0 && torn == 0 && fence == 0 && wrong_scale == 0 && plain_differ > n / 10,
       "%s: %d of %d flipped, %d far, %d torn, %d bytes between rows, %d scales; %d differ from plain codes", name, flipped, n,
       far, torn, fence, wrong_scale, plain_differ);
    ok(fabs(raised - most) <= (exact ? 0 : tol.maximum) * most, "%s: maximum %g of %g", name, (double)raised, (double)most);
    ops->release(X.data); ops->release(largest); ops->release(q.scale);
    if (wanted & CODES) { ops->release(q.codes.data); free(want.codes.data); free(got.codes.data); }
    if (wanted & TRANSPOSED) { ops->release(q.codes_t.data); free(want.codes_t.data); free(got.codes_t.data); }
    free(x.data); free(want.scale);
}

static void rotated_codes_case(void) {
    static const RotateShape shapes[] = {
        {ROTATE_COLS, 5, 5, 64, 0, 0},        {ROTATE_COLS, 3, 3, 172, 0, 3},      {ROTATE_COLS, 37, 37, 256, 0, 16},
        {ROTATE_COLS, 7, 7, 576, 0, 8},       {ROTATE_COLS, 4, 4, 2048, 0, 0},     {ROTATE_COLS, 130, 130, 96, 0, 0},
        {ROTATE_COLS, 3, 3, 3072, 0, 16},     {ROTATE_COLS, 2, 2, 4096, 0, 0},     {ROTATE_COLS, 2, 2, 11008, 0, 0},
        {ROTATE_COLS, 2, 2, 14336, 0, 0},     {ROTATE_COLS, 2, 2, 28672, 0, 0},    {ROTATE_ROWS, 24, 24, 37, 0, 3},
        {ROTATE_ROWS, 45, 48, 40, 16, 0},     {ROTATE_ROWS, 250, 256, 24, 0, 8},   {ROTATE_ROWS, 512, 512, 80, 256, 0},
        {ROTATE_ROWS, 1000, 1024, 40, 0, 16}, {ROTATE_ROWS, 1530, 1536, 16, 0, 0}, {ROTATE_ROWS, 2048, 2048, 24, 0, 0},
        {ROTATE_ROWS, 4096, 4096, 16, 0, 0},  {ROTATE_ROWS, 6144, 6144, 8, 0, 0},  {ROTATE_ROWS, 8190, 8192, 24, 0, 0},
        {ROTATE_COLS, 11, 11, 8192, 0, 0},    {ROTATE_COLS, 90, 90, 576, 0, 0},    {ROTATE_ROWS, 2048, 2048, 88, 0, 8},
        {ROTATE_ROWS, 3000, 3072, 48, 0, 0},  {ROTATE_ROWS, 5120, 5120, 16, 0, 0}, {ROTATE_ROWS, 9000, 9216, 16, 0, 0},
        {ROTATE_ROWS, 832, 832, 72, 0, 0},    {ROTATE_ROWS, 1600, 1600, 40, 0, 8}, {ROTATE_ROWS, 16384, 16384, 8, 0, 0},
    };
    for (int s = 0; s < COUNT(shapes); s++) {
        for (int fmt = FP8_E4M3; fmt <= INT8; fmt++)
            if (fmt == INT8 || fmt == FP8_E4M3 || fmt == FP6_E3M2 || shapes[s].cols < 500)
                rotated_codes_one(shapes[s], BF16, (Fmt)fmt, fmt == FP6_E3M2 ? 0.75f : 1, (Wanted)(1 + (s + fmt) % 3));
        rotated_codes_one(shapes[s], F32, INT8, 1, BOTH);
    }
}

// Codes of x itself, asked for in one call with those of x rotated.
typedef struct {
    Fmt fmt;
    Wanted wanted;
    int slack;   // ld beyond whole units of 16 codes
} PlainWanted;
static const PlainWanted kPlains[] = {{INT8, TRANSPOSED, 0},     {FP6_E3M2, TRANSPOSED, 16}, {FP8_E4M3, TRANSPOSED, 0}, {FP8_E5M2, TRANSPOSED, 32},
                                      {FP6_E2M3, TRANSPOSED, 0}, {INT8, TRANSPOSED, 5},      {FP8_E4M3, BOTH, 0},       {INT8, CODES, 3}};

// In the backend's memory, and as the CPU makes them.
typedef struct {
    PlainCodes plain;
    QMat want;
    float* absmax;
} PlainCase;
static PlainCase plain_case(Mat x, PlainWanted wanted, float clip) {
    float most = 0;
    float* absmax = (float*)ops->alloc(sizeof most);
    QMat want = qmat(x.rows, x.cols, wanted.slack, wanted.fmt, PER_TENSOR, wanted.wanted), q = want;
    if (q.codes.data) q.codes = put(want.codes);
    if (q.codes_t.data) q.codes_t = put(want.codes_t);
    q.scale = (float*)ops->alloc(sizeof(float));
    cpu_f32_ops.absmax(&most, x);
    ops->upload(absmax, &most, sizeof most);
    cpu_f32_ops.quantize(want, x, kRotateNone, &most, wanted.fmt, clip);
    PlainCase p = {{q, absmax, wanted.fmt, clip}, want, absmax};
    return p;
}
// What differs in codes, between their rows, and in the scale; releases all.
static size_t plain_differs(PlainCase p) {
    QMat q = p.plain.q, want = p.want;
    size_t differ = (size_t)differing_scales(q.scale, want.scale, 1);
    if (want.codes.data) differ += differing_bytes(q.codes, want.codes);
    if (want.codes_t.data) differ += differing_bytes(q.codes_t, want.codes_t);
    if (q.codes.data) ops->release(q.codes.data);
    if (q.codes_t.data) ops->release(q.codes_t.data);
    ops->release(q.scale); ops->release(p.absmax);
    free(want.codes.data); free(want.codes_t.data); free(want.scale);
    return differ;
}

// The maximum and the codes in one call are those of the two calls, to the bit, those of x itself are the CPU's, and the scratch is as large as
// it has to be.
static void tokens_in_one_call(RotateShape s, Fmt in, Fmt fmt, float clip, Wanted wanted, bool with_nan, const PlainWanted* beside) {
    Mat x = noise(s.x_rows, s.cols, s.cols + s.slack, in, 1e-3f);
    if (with_nan) ((uint16_t*)x.data)[(size_t)(s.x_rows / 2) * x.ld + 3] = bf16_from_f32(NAN);
    Mat X = put(x), nowhere = {NULL, s.y_rows, s.cols, s.cols, in};
    int rows = max_int(s.x_rows, s.y_rows);
    size_t bytes = ops->quantize_tokens_scratch(rows, s.cols, s.block);
    Mat fence = fenced(1, (int)bytes + 256, (int)bytes + 256, INT8), scratch = put(fence);
    QMat empty = qmat(s.y_rows, s.cols, s.slack, fmt, PER_TENSOR, wanted), two = empty, one = empty;
    float* numbers = (float*)ops->alloc(4 * sizeof(float));   // maxima and scales of both ways
    two.scale = numbers + 2, one.scale = numbers + 3;
    if (wanted & CODES) two.codes = put(empty.codes), one.codes = put(empty.codes);
    if (wanted & TRANSPOSED) two.codes_t = put(empty.codes_t), one.codes_t = put(empty.codes_t);
    Rotation rotation = {ROTATE_ROWS, s.block};
    ops->rotate(nowhere, X, ROTATE_ROWS, false, s.block, numbers);
    ops->quantize(two, X, rotation, numbers, fmt, clip);
    size_t plain_differ = 0;
    if (beside) {
        PlainCase p = plain_case(x, *beside, 1.75f - clip);
        ops->quantize_tokens(one, X, s.block, numbers + 1, fmt, clip, &p.plain, scratch.data);
        plain_differ = plain_differs(p);
    } else {
        ops->quantize_tokens(one, X, s.block, numbers + 1, fmt, clip, NULL, scratch.data);
    }

    float got[4];
    size_t differ = 0, beyond = 0;
    ops->download(got, numbers, sizeof got);
    if (wanted & CODES) {
        ops->download(empty.codes.data, two.codes.data, mat_bytes(empty.codes));
        differ += differing_bytes(one.codes, empty.codes);
    }
    if (wanted & TRANSPOSED) {
        ops->download(empty.codes_t.data, two.codes_t.data, mat_bytes(empty.codes_t));
        differ += differing_bytes(one.codes_t, empty.codes_t);
    }
    Mat plain = fenced(s.y_rows, s.cols, s.cols, in), back = fenced(s.y_rows, s.cols, s.cols, in), Plain = put(plain), Back = put(back);
    ops->rotate(Plain, X, ROTATE_ROWS, true, s.block, NULL);
    ops->unrotate_tokens(Back, X, s.block, scratch.data);
    ops->download(back.data, Back.data, mat_bytes(back));
    size_t back_differ = with_nan ? 0 : differing_bytes(Plain, back);
    ops->release(Plain.data); ops->release(Back.data); free(plain.data); free(back.data);
    ops->download(fence.data, scratch.data, mat_bytes(fence));
    for (size_t i = bytes; i < bytes + 256; i++) beyond += ((uint8_t*)fence.data)[i] != kFence;
    bool same = f32_bits(got[0]) == f32_bits(got[1]) && f32_bits(got[2]) == f32_bits(got[3]);
    bool nan = isnan(got[0]) && isnan(got[1]) && isnan(got[2]) && isnan(got[3]);
    ok((with_nan ? nan : same && got[0] > 0) && differ == 0 && plain_differ == 0 && back_differ == 0 && beyond == 0,
       "tokens in one call %s %d -> %d x %d block %d slack %d %s -> %s wanted %d, plain %s wanted %d slack %d%s: maximum %g of %g, %zu bytes of codes differ, %zu of "
       "plain codes, %zu of those rotated back, %zu bytes beyond %zu of scratch", ops->name, s.x_rows, s.y_rows, s.cols, s.block, s.slack,
       fmt_name(in), fmt_name(fmt), (int)wanted, beside ? fmt_name(beside->fmt) : "none", beside ? (int)beside->wanted : 0, beside ? beside->slack : 0,
       with_nan ? " NaN" : "", (double)got[1], (double)got[0], differ, plain_differ, back_differ, beyond, bytes);
    ops->release(X.data); ops->release(scratch.data); ops->release(numbers);
    if (wanted & CODES) { ops->release(two.codes.data); ops->release(one.codes.data); free(empty.codes.data); }
    if (wanted & TRANSPOSED) { ops->release(two.codes_t.data); ops->release(one.codes_t.data); free(empty.codes_t.data); }
    free(x.data); free(fence.data); free(empty.scale);
}
static void tokens_in_one_call_case(void) {
    static const RotateShape shapes[] = {
        {ROTATE_ROWS, 24, 24, 37, 0, 3},        {ROTATE_ROWS, 45, 48, 40, 16, 0},       {ROTATE_ROWS, 250, 256, 24, 0, 8},
        {ROTATE_ROWS, 512, 512, 80, 256, 0},    {ROTATE_ROWS, 770, 896, 72, 128, 8},    {ROTATE_ROWS, 1000, 1024, 104, 0, 16},
        {ROTATE_ROWS, 1536, 1530, 16, 0, 0},    {ROTATE_ROWS, 2048, 2048, 88, 0, 8},    {ROTATE_ROWS, 4090, 4096, 40, 2048, 0},
        {ROTATE_ROWS, 6144, 6144, 8, 0, 0},     {ROTATE_ROWS, 8192, 8192, 24, 0, 0},    {ROTATE_ROWS, 9000, 9216, 16, 0, 0},
        {ROTATE_ROWS, 500, 512, 616, 0, 0},     {ROTATE_ROWS, 384, 384, 520, 128, 0},   {ROTATE_ROWS, 832, 832, 136, 0, 8},
        {ROTATE_ROWS, 1600, 1600, 40, 0, 0},    {ROTATE_ROWS, 16384, 16384, 16, 0, 0},
        {ROTATE_ROWS, 2231, 2240, 40, 0, 0},    {ROTATE_ROWS, 2496, 2496, 72, 0, 8},    {ROTATE_ROWS, 15, 4096, 24, 0, 0},
    };
    for (int s = 0; s < COUNT(shapes); s++) {
        tokens_in_one_call(shapes[s], BF16, INT8, 1, CODES, false, &kPlains[s % COUNT(kPlains)]);
        tokens_in_one_call(shapes[s], BF16, s % 2 ? FP8_E5M2 : FP6_E3M2, 0.75f, (Wanted)(1 + s % 3), false, NULL);
        if (shapes[s].x_rows > 3000) continue;
        tokens_in_one_call(shapes[s], F32, FP8_E4M3, 1, s % 2 ? BOTH : CODES, false, &kPlains[(s + 1) % COUNT(kPlains)]);
        tokens_in_one_call(shapes[s], BF16, INT8, 1, CODES, true, &kPlains[0]);
    }
    static const RotateShape ragged[] = {{ROTATE_ROWS, 745, 768, 104, 0, 16}, {ROTATE_ROWS, 1017, 1024, 136, 0, 0}};   // tails of every unit
    for (int s = 0; s < COUNT(ragged); s++) {
        for (int p = 0; p < COUNT(kPlains); p++) tokens_in_one_call(ragged[s], BF16, kPlains[p].fmt, p % 2 ? 0.75f : 1, CODES, false, &kPlains[p]);
    }
}

// Octets and not, tails of every tile, input in both formats.
static void quantize_case(void) {
    static const int shapes[][3] = {{128, 128, 0}, {70, 45, 7}, {33, 72, 8}, {1, 8, 0}, {136, 264, 16}, {200, 136, 0}, {130, 130, 3}};
    for (int s = 0; s < COUNT(shapes); s++) {
        for (int f = 0; f < 2; f++) {
            Mat x = noise(shapes[s][0], shapes[s][1], shapes[s][1] + shapes[s][2], f ? F32 : BF16, 1e-3f);
            for (int fmt = FP8_E4M3; fmt <= INT8; fmt++)
                for (int gran = PER_TENSOR; gran <= NO_SCALE; gran++)
                    quantize_one(x, shapes[s][2], (Fmt)fmt, (Gran)gran, gran == PER_TENSOR ? 0.75f : 1, s % 3 == 2 ? CODES : BOTH);
            quantize_one(x, shapes[s][2], INT8, PER_TENSOR, 1, TRANSPOSED);
            quantize_one(x, shapes[s][2], FP8_E4M3, PER_ROW, 1, TRANSPOSED);
            quantize_one(x, shapes[s][2], BF16, NO_SCALE, 1, BOTH);
            quantize_one(x, shapes[s][2], F32, NO_SCALE, 1, BOTH);
            free(x.data);
        }
    }
}

// Every bf16 value, so that every tie, subnormal and saturation of every format is met; NaN apart from its sign, which the
// conversion instructions drop.
static void quantize_all_values_case(void) {
    Mat x = fenced(256, 256, 256, BF16);
    for (int i = 0; i < 65536; i++) {
        bool negative_nan = (i & 0x7f80) == 0x7f80 && i & 0x7f && i & 0x8000;
        ((uint16_t*)x.data)[i] = (uint16_t)(negative_nan ? i & 0x7fff : i);
    }
    for (int fmt = FP8_E4M3; fmt <= INT8; fmt++) {
        quantize_one(x, 0, (Fmt)fmt, NO_SCALE, 1, BOTH);
        quantize_one(x, 5, (Fmt)fmt, NO_SCALE, 1, BOTH);
    }
    free(x.data);
}

// Inputs that have no ordinary scale: all zero, tiny, and with a NaN.
static void quantize_extremes_case(void) {
    for (int kind = 0; kind < 3; kind++) {
        for (int gran = PER_TENSOR; gran <= PER_BLOCK32; gran++) {
            Mat x = noise(70, 136, 136, F32, kind == 0 ? 0 : 1e-40f);
            if (kind == 2) ((float*)x.data)[1234] = NAN;
            quantize_one(x, 0, INT8, (Gran)gran, 1, BOTH);
            if (kind < 2) quantize_one(x, 0, FP8_E4M3, (Gran)gran, 1, BOTH);
            free(x.data);
        }
    }
}

// ---- what quantization loses
static CodeCounts counted(Mat x, float absmax, Opnd how) {
    const CodeCounts before = {5, 3, 2};   // the op adds
    CodeCounts c;
    Mat X = put(x);
    float* largest = (float*)ops->alloc(sizeof(float));
    CodeCounts* counts = (CodeCounts*)ops->alloc(sizeof before);
    ops->upload(largest, &absmax, sizeof absmax);
    ops->upload(counts, &before, sizeof before);
    ops->count_codes(counts, X, how.gran == PER_TENSOR ? largest : NULL, how);
    ops->download(&c, counts, sizeof c);
    ops->release(X.data); ops->release(largest); ops->release(counts);
    c.nonzero -= before.nonzero, c.clipped -= before.clipped, c.underflow -= before.underflow;
    return c;
}
static bool counts_are(CodeCounts got, CodeCounts want, const char* name) {
    return ok(got.nonzero == want.nonzero && got.clipped == want.clipped && got.underflow == want.underflow,
              "%s %s: of %zu values %zu are clipped, %zu underflow; wanted %zu, %zu, %zu", name, ops->name, (size_t)got.nonzero,
              (size_t)got.clipped, (size_t)got.underflow, (size_t)want.nonzero, (size_t)want.clipped, (size_t)want.underflow);
}

// Values whose fate is known, planted among others that are neither.
static void count_planted_case(void) {
    enum { kRows = 70, kZeros = 41, kBeyond = 29, kTiny = 333 };
    for (int cols = 133; cols <= 136; cols += 3) {
        for (int fmt = FP8_E4M3; fmt <= INT8; fmt++) {
            Opnd how = {(Fmt)fmt, PER_TENSOR, false, 0.5f};
            float absmax = 3, inverse = quant_inverse(absmax, how.fmt, how.clip);
            Mat x = fenced(kRows, cols, cols + 8, F32);
            for (int n = 0; n < kRows * cols; n++) {
                int at = (int)((int64_t)n * 7919 % (kRows * cols));   // spread out
                float value = n < kZeros ? 0 : n < kZeros + kBeyond ? absmax
                            : n < kZeros + kBeyond + kTiny ? 0.9f * code_range(how.fmt).zero / inverse : 0.3f * absmax;
                ((float*)x.data)[(size_t)(at / cols) * x.ld + at % cols] = n % 2 ? value : -value;
            }
            CodeCounts want = {(uint64_t)(kRows * cols - kZeros), kBeyond, kTiny};
            char name[64];
            snprintf(name, sizeof name, "planted %s, %d columns", fmt_name(how.fmt), cols);
            counts_are(counted(x, absmax, how), want, name);
            free(x.data);
        }
    }
}

// Every format and granularity, against the codes themselves.
static CodeCounts counts_by_code(Mat x, Opnd how) {
    CodeCounts c = {0, 0, 0};
    int block_rows = how.gran == PER_BLOCK32 ? 32 : how.gran == PER_ROW ? 1 : x.rows, block_cols = how.gran == PER_BLOCK32 ? 32 : x.cols;
    for (int i = 0; i < x.rows; i++) {
        for (int j = 0; j < x.cols; j++) {
            float largest = 0, value = at(x, i, j);
            for (int r = i / block_rows * block_rows; r < min_int((i / block_rows + 1) * block_rows, x.rows); r++)
                for (int k = j / block_cols * block_cols; k < min_int((j / block_cols + 1) * block_cols, x.cols); k++)
                    largest = larger_magnitude(largest, at(x, r, k));
            float scaled = how.gran == NO_SCALE ? value : value * quant_inverse(largest, how.fmt, how.clip);
            float quantized = f32_from_code(code_from_f32(scaled, how.fmt), how.fmt);
            c.nonzero += value != 0;
            c.underflow += value != 0 && quantized == 0;
            c.clipped += fabsf(scaled) - fabsf(quantized) > code_range(how.fmt).clipped - fmt_max(how.fmt);
        }
    }
    return c;
}
static void count_codes_case(void) {
    static const int shapes[][3] = {{33, 72, 8}, {5, 45, 2}, {64, 40, 0}};
    for (int s = 0; s < COUNT(shapes); s++) {
        for (int f = 0; f < 2; f++) {
            Mat x = noise(shapes[s][0], shapes[s][1], shapes[s][1] + shapes[s][2], f ? F32 : BF16, 20);
            for (int fmt = FP8_E4M3; fmt <= INT8; fmt++) {
                for (int gran = PER_TENSOR; gran <= NO_SCALE; gran++) {
                    Opnd how = {(Fmt)fmt, (Gran)gran, false, gran == NO_SCALE ? 1 : 0.4f};
                    float absmax = 0;
                    char name[96];
                    cpu_f32_ops.absmax(&absmax, x);
                    snprintf(name, sizeof name, "count_codes %d x %d %s as %s, granularity %d", x.rows, x.cols, fmt_name(x.fmt),
                             fmt_name(how.fmt), gran);
                    counts_are(counted(x, absmax, how), counts_by_code(x, how), name);
                }
            }
            free(x.data);
        }
    }
}

// ---- the comparator rejects a wrong matrix, and bad calls end
static void planted_case(void) {
    Mat x = noise(5, 64, 64, F32, 1), y = fenced(5, 64, 64, F32);
    cpu_f32_ops.rotate(y, x, ROTATE_COLS, false, 0, NULL);
    Mat Y = put(y);
    ((float*)y.data)[77] = nextafterf(((float*)y.data)[77], 9);
    ok(differing_bytes(Y, y) > 0, "a value that is one unit in the last place off is seen (%s)", ops->name);
    ops->release(Y.data);
    free(x.data); free(y.data);
}
static void unsupported_order(void* arg) {
    (void)arg;
    float most = 0;
    ops->rotate(mat(NULL, 7, 3, F32), mat(NULL, 7, 3, F32), ROTATE_ROWS, false, 0, &most);
}
static void rotated_rows_of_scales(void* arg) {
    (void)arg;
    float scale[2];
    Rotation features = {ROTATE_COLS, 0};
    QMat q = {mat(scale, 2, 2, INT8), mat(NULL, 2, 2, INT8), scale, PER_ROW};
    ops->quantize(q, mat(NULL, 2, 2, F32), features, NULL, INT8, 1);
}
static void no_maximum(void* arg) {
    (void)arg;
    float scale;
    QMat q = {mat(NULL, 2, 2, INT8), mat(NULL, 2, 2, INT8), &scale, PER_TENSOR};
    ops->quantize(q, mat(NULL, 2, 2, F32), kRotateNone, NULL, INT8, 1);
}
static void errors_case(void) {
    expect_exit(unsupported_order, NULL, kExitBug, "no Hadamard transform of order 7", "rotate order");
    expect_exit(rotated_rows_of_scales, NULL, kExitBug, "a rotated matrix takes one scale", "rotated codes with a scale a row");
    expect_exit(no_maximum, NULL, kExitBug, "no maximum is given", "quantize without a maximum");
}

#define ON_EVERY_BACKEND(which)                      \
    static void which##_everywhere(void) {           \
        const Ops* backends[kMaxBackends];           \
        int count = test_backends(backends);         \
        for (int b = 0; b < count; b++) {            \
            ops = backends[b];                       \
            if (ops == &cpu_bf16_ops) continue;      \
            which##_case();                          \
        }                                            \
    }
ON_EVERY_BACKEND(planted)
ON_EVERY_BACKEND(rotate_cols)
ON_EVERY_BACKEND(rotate_bases)
ON_EVERY_BACKEND(rotate_large)
ON_EVERY_BACKEND(rotate_rows)
ON_EVERY_BACKEND(rotate_many_tokens)
ON_EVERY_BACKEND(rotate_extremes)
ON_EVERY_BACKEND(absmax)
ON_EVERY_BACKEND(quantize)
ON_EVERY_BACKEND(each)
ON_EVERY_BACKEND(rotated_codes)
ON_EVERY_BACKEND(tokens_in_one_call)
ON_EVERY_BACKEND(quantize_all_values)
ON_EVERY_BACKEND(quantize_extremes)
ON_EVERY_BACKEND(count_planted)
ON_EVERY_BACKEND(count_codes)
ON_EVERY_BACKEND(errors)

static const Case cases[] = {
    {"quantize.planted", planted_everywhere},
    {"rotate.cols", rotate_cols_everywhere},
    {"rotate.bases", rotate_bases_everywhere},
    {"rotate.large", rotate_large_everywhere},
    {"rotate.rows", rotate_rows_everywhere},
    {"rotate.many_tokens", rotate_many_tokens_everywhere},
    {"rotate.extremes", rotate_extremes_everywhere},
    {"absmax", absmax_everywhere},
    {"quantize.shapes", quantize_everywhere},
    {"quantize.rotated", rotated_codes_everywhere},
    {"quantize.tokens_in_one_call", tokens_in_one_call_everywhere},
    {"quantize.all_values", quantize_all_values_everywhere},
    {"quantize.extremes", quantize_extremes_everywhere},
    {"quantize.count_planted", count_planted_everywhere},
    {"quantize.count_codes", count_codes_everywhere},
    {"quantize.each", each_everywhere},
    {"quantize.errors", errors_everywhere},
};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
