// The product of every backend against naive double sums: every kind of side, odd shapes, leading dimensions, beta, exact INT8.
#include "../halo/cpu/gemm.h"
#include "../halo/cuda/facts.h"
#include "backends.h"
#include "threads.h"

static const Ops* ops;                         // the backend under test

enum { kOddGuard = 5, kAlignedGuard = 16 };    // columns between cols and ld: rows at any address, or at multiples of 16 bytes
static int guard = kOddGuard;

typedef struct {
    Fmt fmt;
    Gran gran;
    bool transposed, scale_transposed;
} Kind;

typedef struct {
    Side side;
    double* value;   // (rows, K), scales included
    int rows, K;
    void* data;      // the side's, on the host
    float* scale;    // its scales, on the host
} Input;

// A copy on the backend.
static void* put(const void* host, size_t bytes) {
    void* p = ops->alloc(bytes);
    ops->upload(p, host, bytes);
    return p;
}

static double input_scale(const Input* in, int row, int k) {
    if (in->side.gran == PER_TENSOR) return in->scale[0];
    if (in->side.gran == PER_ROW) return in->scale[row];
    if (in->side.gran == NO_SCALE) return in->side.factor;
    if (in->side.scale_transposed) return in->scale[k / 32 * ceil_div(in->rows, 32) + row / 32];
    return in->scale[row / 32 * ceil_div(in->K, 32) + k / 32];
}

enum { kScalesBefore = 1 };
static int scales_before;   // others in the same memory: 0 or kScalesBefore
static Input make_input(int rows, int K, Kind kind) {
    Input in = {plain_side(mat(NULL, kind.transposed ? K : rows, kind.transposed ? rows : K, kind.fmt), kind.transposed),
                (double*)host_alloc((size_t)rows * K * sizeof(double)), rows, K, NULL, NULL};
    in.side.m.ld += guard;
    in.data = host_alloc(mat_bytes(in.side.m));
    in.side.gran = kind.gran;
    in.side.scale_transposed = kind.scale_transposed;
    if (kind.gran == NO_SCALE && kind.transposed) in.side.factor = 1.5f;
    memset(in.data, 0xff, mat_bytes(in.side.m));   // NaN in every float format, also between the rows
    for (int i = 0; i < rows; i++) {
        for (int k = 0; k < K; k++) {
            size_t at = kind.transposed ? (size_t)k * in.side.m.ld + i : (size_t)i * in.side.m.ld + k;
            float x = test_normal();
            if (kind.fmt == F32) {
                ((float*)in.data)[at] = x;
            } else if (kind.fmt == BF16) {
                uint16_t h = bf16_from_f32(x);
                ((uint16_t*)in.data)[at] = h;
                x = f32_from_bf16(h);
            } else {
                uint8_t code = code_from_f32(x * fmt_max(kind.fmt) / 4, kind.fmt);
                ((uint8_t*)in.data)[at] = code;
                x = f32_from_code(code, kind.fmt);
            }
            in.value[(size_t)i * K + k] = x;
        }
    }
    int scales = scale_count(rows, K, kind.gran);
    if (scales) {
        in.scale = (float*)host_alloc((size_t)(kScalesBefore + scales) * sizeof(float)) + kScalesBefore;
        for (int i = 0; i < scales; i++) in.scale[i] = (float)(0.01 + test_uniform());
        in.side.scale = (float*)put(in.scale - scales_before, (size_t)(scales_before + scales) * sizeof(float)) + scales_before;
    }
    in.side.m.data = put(in.data, mat_bytes(in.side.m));
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < K; k++) in.value[(size_t)i * K + k] *= input_scale(&in, i, k);
    return in;
}

static void free_input(Input* in) {
    ops->release(in->side.m.data);
    if (in->scale) ops->release((void*)(in->side.scale - scales_before));
    free(in->value);
    free(in->data);
    if (in->scale) free(in->scale - kScalesBefore);
}

typedef struct {
    Mat c;           // on the host
    Mat there;       // on the backend
    float* before;
} Output;

static const uint32_t kGuardBits = 0x7fc01234u;

static Output make_output(int M, int N, Fmt fmt, bool poisoned) {
    Output o = {mat(NULL, M, N, fmt), mat(NULL, M, N, fmt), (float*)host_alloc((size_t)M * N * sizeof(float))};
    o.there.ld = o.c.ld += guard;
    o.c.data = host_alloc(mat_bytes(o.c));
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < o.c.ld; j++) {
            float x = j >= N ? f32_from_bits(kGuardBits) : poisoned ? NAN : test_normal();
            size_t at = (size_t)i * o.c.ld + j;
            if (fmt == F32) ((float*)o.c.data)[at] = x;
            else ((uint16_t*)o.c.data)[at] = bf16_from_f32(x);
            if (j < N) o.before[(size_t)i * N + j] = fmt == F32 ? x : f32_from_bf16(bf16_from_f32(x));
        }
    }
    o.there.data = put(o.c.data, mat_bytes(o.c));
    return o;
}
static void multiply(Output* o, const Input* a, const Input* b, float beta) {
    ops->gemm(o->there, a->side, b->side, beta);
    ops->download(o->c.data, o->there.data, mat_bytes(o->c));
}
static float output_at(Output o, int i, int j) {
    size_t at = (size_t)i * o.c.ld + j;
    return o.c.fmt == F32 ? ((float*)o.c.data)[at] : f32_from_bf16(((uint16_t*)o.c.data)[at]);
}
static void free_output(Output* o) {
    ops->release(o->there.data);
    free(o->c.data);
    free(o->before);
}

// The largest error, as a share of the sum of magnitudes; infinite if a guard was touched. `planted` is added to the last
// element first: a comparator that does not see it is broken.
static double worst_error(Output o, const Input* a, const Input* b, float beta, double planted) {
    double worst = 0;
    for (int i = 0; i < o.c.rows; i++) {
        for (int j = 0; j < o.c.cols; j++) {
            double sum = 0, magnitude = 0;
            for (int k = 0; k < a->K; k++) {
                double product = a->value[(size_t)i * a->K + k] * b->value[(size_t)j * b->K + k];
                sum += product;
                magnitude += fabs(product);
            }
            if (beta != 0) {
                sum += beta * (double)o.before[(size_t)i * o.c.cols + j];
                magnitude += fabs(beta * o.before[(size_t)i * o.c.cols + j]);
            }
            double got = output_at(o, i, j);
            if (i == o.c.rows - 1 && j == o.c.cols - 1) got += planted * magnitude;
            double error = fabs(got - sum) / (magnitude > 0 ? magnitude : 1);
            if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
        }
        for (int j = o.c.cols; j < o.c.ld; j++)
            if (f32_bits(output_at(o, i, j)) >> 16 != kGuardBits >> 16) return INFINITY;
    }
    return worst;
}

// A 256-long FP32 chunk errs by some sqrt(256) * 2^-24 = 1e-6 of the sum of magnitudes at the very most; BF16 by 2^-8. The tensor
// cores' FP8 adds with 13 bits below the largest term, once in 32 products.
static bool adds_roughly(Kind a, Kind b) {
    bool codes = fmt_bytes(a.fmt) == 1 && fmt_bytes(b.fmt) == 1 && a.fmt != INT8 && b.fmt != INT8;
    return codes && ops != &cpu_f32_ops && guard == kAlignedGuard;
}
// cuBLASLt, which takes BF16, rounds the product, c and the sum.
static double store_error(Kind a, Kind b, Fmt out, float beta) {
    bool rounds_thrice = ops != &cpu_f32_ops && a.fmt == BF16 && b.fmt == BF16 && beta != 0;
    return out == BF16 ? (rounds_thrice ? 1.5 : 1.0) / 256 : 0;
}
static void product_case(int M, int N, int K, Kind ka, Kind kb, Fmt out, float beta) {
    Input a = make_input(M, K, ka), b = make_input(N, K, kb);
    Output o = make_output(M, N, out, beta == 0);
    multiply(&o, &a, &b, beta);
    double tol = store_error(ka, kb, out, beta) + (adds_roughly(ka, kb) ? 5e-4 : 1e-6), err = worst_error(o, &a, &b, beta, 0);
    double planted = worst_error(o, &a, &b, beta, 2.5 * tol);
    ok(err <= tol && planted > tol, "gemm %s %dx%dx%d %s%s gran %d%s | %s%s gran %d%s -> %s beta %g err %.1e (tol %.1e)", ops->name, M, N, K,
       fmt_name(ka.fmt), ka.transposed ? "^T" : "", (int)ka.gran, ka.scale_transposed ? "^T" : "", fmt_name(kb.fmt),
       kb.transposed ? "^T" : "", (int)kb.gran, kb.scale_transposed ? "^T" : "", fmt_name(out), (double)beta, err, tol);
    free_input(&a);
    free_input(&b);
    free_output(&o);
}

static const Kind kKinds[] = {
    {F32, NO_SCALE, false, false},        {F32, NO_SCALE, true, false},         {BF16, NO_SCALE, false, false},
    {BF16, NO_SCALE, true, false},        {INT8, PER_TENSOR, false, false},     {INT8, PER_ROW, false, false},
    {INT8, PER_BLOCK32, false, false},    {INT8, PER_BLOCK32, false, true},     {INT8, NO_SCALE, false, false},
    {FP8_E4M3, PER_TENSOR, false, false}, {FP8_E4M3, PER_BLOCK32, false, true}, {FP8_E5M2, PER_TENSOR, false, false},
    {FP6_E3M2, PER_TENSOR, false, false}, {FP6_E2M3, PER_ROW, false, false},
};

static void kinds_case(void) {
    for (int a = 0; a < COUNT(kKinds); a++)
        for (int b = 0; b < COUNT(kKinds); b++) product_case(37, 45, 101, kKinds[a], kKinds[b], F32, 0);
}

static void shapes_case(void) {
    static const int shapes[][3] = {{1, 1, 1}, {1, 300, 33}, {300, 1, 64}, {15, 33, 257}, {113, 259, 300}, {31, 40, 1025}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int k = 0; k < COUNT(kKinds); k += 2)
            product_case(shapes[s][0], shapes[s][1], shapes[s][2], kKinds[k], kKinds[COUNT(kKinds) - 1 - k], F32, 0);
}

static void beta_case(void) {
    for (int k = 0; k < 8; k++) {
        product_case(29, 70, 65, kKinds[k], kKinds[k], F32, 1);
        product_case(29, 70, 65, kKinds[k], kKinds[k], BF16, 0.5f);
        product_case(29, 70, 65, kKinds[k], kKinds[k], BF16, 0);
    }
}

// Rows at multiples of 16 bytes, as the model has them: the fast ways of a backend.
static void aligned_case(void) {
    static const int shapes[][3] = {{128, 128, 64}, {144, 304, 208}, {70, 45, 96}, {33, 272, 40}};
    guard = kAlignedGuard;
    for (int s = 0; s < COUNT(shapes); s++) {
        for (int k = 0; k < COUNT(kKinds); k++) {
            product_case(shapes[s][0], shapes[s][1], shapes[s][2], kKinds[k], kKinds[k], F32, 0);
            product_case(shapes[s][0], shapes[s][1], shapes[s][2], kKinds[k], kKinds[k], BF16, 1);
        }
    }
    static const Kind row = {FP8_E4M3, PER_ROW, false, false}, tensor = {FP8_E4M3, PER_TENSOR, false, false};
    product_case(144, 304, 208, row, tensor, BF16, 0);
    product_case(144, 304, 208, row, row, F32, 1);
    for (scales_before = kScalesBefore; scales_before; scales_before = 0) product_case(144, 304, 208, tensor, tensor, BF16, 1);
    product_case(144, 304, 208, kKinds[2], kKinds[3], F32, 0);
    product_case(144, 304, 208, kKinds[3], kKinds[2], BF16, 1);
    guard = kOddGuard;
}

// Large products, for which algorithms are tried at the first call: what a product adds to outlasts the trial. In FP32, since BF16 rounds away
// more than c of so long a sum.
static void tried_case(void) {
#if defined(HALO_CUDA) && !defined(HALO_SIMT)
    if (ops != &cuda_ops) return;
    guard = kAlignedGuard;
    for (int call = 0; call < 2; call++) product_case(1536, 1536, 528, kKinds[2], kKinds[2], F32, 1);   // the second call tries nothing
    product_case(1536, 1536, 528, kKinds[2], kKinds[3], F32, 1);
    guard = kOddGuard;
#endif
}

// INT8 sums are exact, so the result is a function of them to the last bit.
typedef struct {
    int M, N, K;
    Gran a, b;
    Fmt out;
    float beta;
    bool extreme;   // codes that make sums which FP32 would round
} Exact;

static char cut[32];   // the cut that was asked for, as a note

static uint32_t exact_bits(float sum, float a_scale, float b_scale, float beta, float before, Fmt fmt) {
    float out = (sum * a_scale) * b_scale;
    if (beta != 0) out += beta * before;
    return f32_bits(fmt == F32 ? out : f32_from_bf16(bf16_from_f32(out)));
}

static void exact_product(Exact e) {
    Kind ka = {INT8, e.a, false, false}, kb = {INT8, e.b, false, false};
    Input a = make_input(e.M, e.K, ka), b = make_input(e.N, e.K, kb);
    const int8_t *ca = (const int8_t*)a.data, *cb = (const int8_t*)b.data;
    if (e.extreme) {
        for (int i = 0; i < e.M; i++)
            for (int k = 0; k < e.K; k++) ((int8_t*)a.data)[(size_t)i * a.side.m.ld + k] = (int8_t)(k % 11 == i ? 1 : -128);
        for (int j = 0; j < e.N; j++)
            for (int k = 0; k < e.K; k++) ((int8_t*)b.data)[(size_t)j * b.side.m.ld + k] = (int8_t)(k % 7 == j ? -127 : -128);
        ops->upload(a.side.m.data, a.data, mat_bytes(a.side.m));
        ops->upload(b.side.m.data, b.data, mat_bytes(b.side.m));
    }
    Output o = make_output(e.M, e.N, e.out, e.beta == 0);
    multiply(&o, &a, &b, e.beta);
    int wrong = 0, planted = 0;
    for (int i = 0; i < e.M; i++) {
        for (int j = 0; j < e.N; j++) {
            int sum = 0;
            for (int k = 0; k < e.K; k++) sum += ca[(size_t)i * a.side.m.ld + k] * cb[(size_t)j * b.side.m.ld + k];
            float a_scale = a.scale[e.a == PER_ROW ? i : 0], b_scale = b.scale[e.b == PER_ROW ? j : 0];
            float before = o.before[(size_t)i * e.N + j];
            uint32_t got = f32_bits(output_at(o, i, j));
            int error = max_int(abs(sum) / 64, 16);   // more than half a unit in the last place of BF16
            wrong += got != exact_bits((float)sum, a_scale, b_scale, e.beta, before, e.out);
            planted += got != exact_bits((float)(sum + error), a_scale, b_scale, e.beta, before, e.out);
        }
    }
    double elements = (double)e.M * e.N;
    ok(wrong == 0 && planted > 0.9 * elements, "gemm %s int8 %dx%dx%d gran %d %d -> %s beta %g, rows %s%s: %d of %.0f bits differ, %d with a planted error",
       ops->name, e.M, e.N, e.K, (int)e.a, (int)e.b, fmt_name(e.out), (double)e.beta, guard == kAlignedGuard ? "aligned" : "anywhere", cut,
       wrong, elements, planted);
    free_input(&a);
    free_input(&b);
    free_output(&o);
}

static void exact_case(void) {
    static const int lengths[] = {1, 255, 256, 257, 1024, 1025, 5000};
    for (guard = kOddGuard; guard; guard = guard == kOddGuard ? kAlignedGuard : 0) {
        for (int n = 0; n < COUNT(lengths); n++) {
            Exact e = {9, 35, guard == kOddGuard ? lengths[n] : ceil_div(lengths[n], 16) * 16, PER_ROW, PER_ROW, F32, 0, true};
            exact_product(e);
        }
        static const Exact kinds[] = {
            {200, 300, 144, PER_TENSOR, PER_TENSOR, BF16, 0, false}, {200, 304, 144, PER_ROW, PER_TENSOR, BF16, 1, false},
            {130, 260, 96, PER_TENSOR, PER_ROW, F32, 1, false},      {129, 513, 272, PER_ROW, PER_ROW, BF16, 0.5f, false},
#ifndef HALO_SIMT
            // more tiles than a large GPU has multiprocessors, with more and with fewer steps than a pipeline has stages
            {2300, 4600, 1040, PER_TENSOR, PER_TENSOR, BF16, 0, false}, {4600, 2304, 112, PER_ROW, PER_TENSOR, F32, 1, false},
#endif
        };
        for (int n = 0; n < COUNT(kinds); n++) exact_product(kinds[n]);
    }
    guard = kOddGuard;
}

// However a product is cut into tiles and stretches of K, and however the launcher cuts it, the bits are the same.
static void cuts_case(void) {
#ifdef HALO_CUDA
    static const Exact narrow[] = {
        {192, 576, 656, PER_TENSOR, PER_TENSOR, F32, 1, false}, {330, 200, 400, PER_ROW, PER_TENSOR, BF16, 1, false},
        {65, 300, 1168, PER_TENSOR, PER_ROW, BF16, 0, false},
    };
    static const int widths[] = {128, 192, 256}, splits[] = {1, 2, 3, 7};
    if (ops != &cuda_ops) return;
    guard = kAlignedGuard;
    for (int w = 0; w < COUNT(widths); w++) {
        for (int s = 0; s < COUNT(splits); s++) {
            cuda_cut_products(widths[w], splits[s]);
            snprintf(cut, sizeof cut, ", cut %d wide, K in %d", widths[w], splits[s]);
            for (int n = 0; n < COUNT(narrow); n++) exact_product(narrow[n]);
        }
    }
    cuda_cut_products(0, 0);
    cut[0] = 0;
    for (int n = 0; n < COUNT(narrow); n++) exact_product(narrow[n]);
#ifndef HALO_SIMT
    static const Exact small_model[] = {
        {8192, 576, 576, PER_TENSOR, PER_TENSOR, BF16, 0, false}, {8192, 576, 192, PER_TENSOR, PER_TENSOR, BF16, 1, false},
        {576, 576, 8192, PER_TENSOR, PER_TENSOR, F32, 1, false},  {192, 576, 8192, PER_TENSOR, PER_TENSOR, F32, 0, false},
        {1536, 576, 8192, PER_TENSOR, PER_TENSOR, F32, 1, false}, {576, 1536, 8192, PER_TENSOR, PER_TENSOR, BF16, 1, false},
    };
    for (int n = 0; n < COUNT(small_model); n++) exact_product(small_model[n]);
#endif
    guard = kOddGuard;
#endif
}

static Input zero_values(int rows, int K) {   // for worst_error alone
    Input in = {plain_side(mat(NULL, 0, 0, F32), false), (double*)host_alloc((size_t)rows * K * sizeof(double)), rows, K, NULL, NULL};
    memset(in.value, 0, (size_t)rows * K * sizeof(double));
    return in;
}

enum { kMostBeside = 4 };
typedef struct {
    int M, columns, W, count, column[kMostBeside], N[kMostBeside];
} NarrowShape;

// Narrow products of matrices side by side, against one product each: xp is x by p with zeros where a column is not xp_i's matrix's, xtq the
// transposed matrices, each in its own stretch of K, by q.
static void narrow_product(const NarrowShape* s, Fmt grad_fmt, float beta) {
    Kind plain = {ops->act, NO_SCALE, false, false}, narrow = {ops->act, NO_SCALE, true, false};
    SideBySide parts = {s->count, s->column, s->N};
    int M = s->M, W = s->W, N = 0, K = s->count * M;
    for (int i = 0; i < s->count; i++) N += s->N[i];
    Input x = make_input(M, s->columns, plain), p = make_input(W, N, narrow), q = make_input(s->count * W, M, narrow);
    Input wide_p = zero_values(s->count * W, s->columns), tall_x = zero_values(N, K), tall_q = zero_values(W, K);
    for (int i = 0, row = 0; i < s->count; row += s->N[i++]) {
        for (int n = 0; n < s->N[i]; n++) {
            int column = s->column[i] + n;
            for (int j = 0; j < W; j++) wide_p.value[(size_t)(i * W + j) * s->columns + column] = p.value[(size_t)j * N + row + n];
            for (int m = 0; m < M; m++) tall_x.value[(size_t)(row + n) * K + i * M + m] = x.value[(size_t)m * s->columns + column];
        }
        for (int j = 0; j < W; j++)   // no factor of x^T q
            for (int m = 0; m < M; m++) tall_q.value[(size_t)j * K + i * M + m] = q.value[(size_t)(i * W + j) * M + m] / q.side.factor;
    }
    Output xp = make_output(M, s->count * W, ops->act, true), xtq = make_output(N, W, grad_fmt, beta == 0);
    ops->gemm_narrow(xp.there, p.side.factor, xtq.there, beta, x.side.m, p.side.m, q.side.m, parts);
    ops->download(xp.c.data, xp.there.data, mat_bytes(xp.c));
    ops->download(xtq.c.data, xtq.there.data, mat_bytes(xtq.c));
    double tol[2] = {store_error(plain, narrow, ops->act, 0) + 1e-6, store_error(plain, narrow, grad_fmt, beta) + 1e-6};
    double err[2] = {worst_error(xp, &x, &wide_p, 0, 0), worst_error(xtq, &tall_x, &tall_q, beta, 0)};
    double planted[2] = {worst_error(xp, &x, &wide_p, 0, 2.5 * tol[0]), worst_error(xtq, &tall_x, &tall_q, beta, 2.5 * tol[1])};
    ok(err[0] <= tol[0] && err[1] <= tol[1] && planted[0] > tol[0] && planted[1] > tol[1],
       "gemm_narrow %s %d of (%d, %d) by %d, gradient in %s, beta %g: err %.1e (tol %.1e) and %.1e (tol %.1e)", ops->name, s->count, M, N, W,
       fmt_name(grad_fmt), (double)beta, err[0], tol[0], err[1], tol[1]);
    free(wide_p.value);
    free(tall_x.value);
    free(tall_q.value);
    free_input(&x);
    free_input(&p);
    free_input(&q);
    free_output(&xp);
    free_output(&xtq);
}
static void narrow_case(void) {
    static const NarrowShape shapes[] = {
        {300, 328, 16, 1, {0}, {328}},    {130, 72, 32, 1, {0}, {72}},      {1, 8, 16, 1, {0}, {8}},   {40, 64, 8, 1, {0}, {64}},
        {37, 21, 16, 1, {0}, {21}},       {520, 1096, 16, 1, {0}, {1096}},  {300, 1096, 32, 1, {0}, {1096}},   // more tiles than stages
        {60, 72, 64, 1, {0}, {72}},       {600, 600, 16, 3, {0, 264, 392}, {264, 128, 208}},
        {270, 400, 32, 2, {8, 264}, {136, 128}},                  // columns of neither
        {200, 96, 16, 4, {0, 16, 40, 80}, {16, 24, 40, 16}},      // one at a time
        {50, 40, 64, 2, {0, 19}, {16, 21}},
    };
    for (guard = kAlignedGuard; guard; guard = guard == kAlignedGuard ? kOddGuard : 0)
        for (int s = 0; s < COUNT(shapes); s++) {
            narrow_product(&shapes[s], F32, s % 2 ? 1.0f : 0.0f);
            narrow_product(&shapes[s], ops->act, s % 2 ? 0.0f : 0.5f);
        }
    guard = kOddGuard;
}

static void mismatched_product(void* arg) {
    (void)arg;
    float x[64] = {0};
    ops->gemm(mat(x, 2, 2, F32), plain_side(mat(x, 2, 3, F32), false), plain_side(mat(x, 2, 4, F32), false), 0);
}
static void transposed_codes(void* arg) {
    (void)arg;
    uint8_t x[64] = {0};
    float c[64];
    ops->gemm(mat(c, 2, 2, F32), plain_side(mat(x, 3, 2, INT8), true), plain_side(mat(x, 2, 3, INT8), false), 0);
}
static void scales_along_k(void* arg) {
    (void)arg;
    uint8_t x[64] = {0};
    float c[64], scale[8] = {0};
    Side a = plain_side(mat(x, 2, 3, INT8), false);
    a.gran = PER_ROW;
    a.scale = scale;
    a.scale_transposed = true;
    ops->gemm(mat(c, 2, 2, F32), a, plain_side(mat(x, 2, 3, INT8), false), 0);
}
static void missing_scales(void* arg) {
    (void)arg;
    uint8_t x[64] = {0};
    float c[64];
    Side a = plain_side(mat(x, 2, 3, INT8), false);
    a.gran = PER_TENSOR;
    ops->gemm(mat(c, 2, 2, F32), a, plain_side(mat(x, 2, 3, INT8), false), 0);
}

static void errors_case(void) {
    expect_exit(mismatched_product, NULL, kExitBug, "gemm: (2, 2) = (2, 3) (2, 4)^T", "gemm K mismatch");
    expect_exit(transposed_codes, NULL, kExitBug, "transposed side in int8", "gemm transposed codes");
    expect_exit(scales_along_k, NULL, kExitBug, "scales along K", "gemm transposed row scales");
    expect_exit(missing_scales, NULL, kExitBug, "without scales", "gemm missing scales");
}

static int print_fingerprint(void) {
    uint64_t hash = kFingerprintStart;
    ops = &cpu_f32_ops;
    for (int k = 0; k < COUNT(kKinds); k++) {
        Input a = make_input(150, 301, kKinds[k]), b = make_input(290, 301, kKinds[k]);
        Output o = make_output(150, 290, F32, false);
        multiply(&o, &a, &b, 1);
        hash = fingerprint_add(hash, o.c.data, mat_bytes(o.c));
        free_input(&a);
        free_input(&b);
        free_output(&o);
    }
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}
static const char* program;
static void threads_case(void) { same_bits_on_any_threads(program, "gemm"); }

#define ON_EVERY_BACKEND(name)                         \
    static void name##_everywhere(void) {              \
        const Ops* backends[kMaxBackends];           \
        int count = test_backends(backends);         \
        for (int b = 0; b < count; b++) {            \
            ops = backends[b];                       \
            if (ops == &cpu_bf16_ops) continue;      \
            name##_case();                             \
        }                                              \
    }
ON_EVERY_BACKEND(errors)
ON_EVERY_BACKEND(kinds)
ON_EVERY_BACKEND(shapes)
ON_EVERY_BACKEND(beta)
ON_EVERY_BACKEND(aligned)
ON_EVERY_BACKEND(tried)
ON_EVERY_BACKEND(exact)
ON_EVERY_BACKEND(cuts)
ON_EVERY_BACKEND(narrow)

static const Case cases[] = {
    {"gemm.errors", errors_everywhere},   {"gemm.kinds", kinds_everywhere}, {"gemm.shapes", shapes_everywhere}, {"gemm.beta", beta_everywhere},
    {"gemm.aligned", aligned_everywhere}, {"gemm.exact", exact_everywhere}, {"gemm.cuts", cuts_everywhere},     {"gemm.narrow", narrow_everywhere},
    {"gemm.tried", tried_everywhere},     {"gemm.threads", threads_case},
};

int main(int argc, char** argv) {
    program = argv[0];
    if (argc == 2 && !strcmp(argv[1], "--fingerprint")) return print_fingerprint();
    unsetenv("XDG_CACHE_HOME");   // no trials are remembered: they are made each time
    unsetenv("HOME");
    return test_main(cases, COUNT(cases), argc, argv);
}
