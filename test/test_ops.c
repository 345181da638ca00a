// Every layer of a backend, through the Ops table alone.
//
//   forward    against a naive version in double, written here
//   backward   directional finite differences of that double version: for random directions d, the gradient times d must be
//              (L(x + h d) - L(x - h d)) / 2h. Each check first has to reject the gradient scaled by 1.01 and with one value
//              in sixteen left out
//   tolerance  cpu_f32: a fixed small one. cpu_bf16: that of bf16 stores. Any other backend: twice the error that cpu_bf16
//              made in the same check, plus kAtol
// A case runs once per backend with the same random numbers; inputs are rounded to `act` first, so every version sees the same.
#include "../halo/hadamard.h"
#include "../halo/ops.h"
#include "../halo/rng.h"
#include "backends.h"
#include "threads.h"

enum { kMaxChecks = 512, kMaxInputs = 4, kDirections = 16 };
static const double kAtol = 1e-5;

static const Ops* ops;                      // the backend under test
static double bf16_errors[kMaxChecks];      // of cpu_bf16, by number of the check in its case
static int check_number;

// ---- judging
static double tolerance(double f32_tol, double bf16_tol) {
    if (ops == &cpu_f32_ops) return f32_tol;
    if (ops == &cpu_bf16_ops) return bf16_tol;
    return 2 * bf16_errors[check_number] + kAtol;
}
static void next_check(double err) {
    check(check_number < kMaxChecks, "more than %d checks in a case", kMaxChecks);
    if (ops == &cpu_bf16_ops) bf16_errors[check_number] = err;
    check_number++;
}
static void close_case(const char* name, const float* got, const float* want, size_t n, double f32_tol, double bf16_tol) {
    close_to(got, want, n, tolerance(f32_tol, bf16_tol), "%s %s", name, ops->name);
    next_check(rel_err(got, want, n));
}
// Rounding once to bf16 errs by 2^-9 / sqrt(3) on average over a binade at most, 1.1e-3; the margin is threefold.
static const double kF32Tol = 2e-6, kBf16Tol = 3.5e-3, kTiny = 1e-12;

// ---- matrices of a backend
static void round_to(float* x, size_t n, Fmt fmt) {
    if (fmt == BF16)
        for (size_t i = 0; i < n; i++) x[i] = f32_from_bf16(bf16_from_f32(x[i]));
}
// Rounds x in place to fmt and puts it on the backend, with rows a little longer than needed.
static Mat put(float* x, int rows, int cols, Fmt fmt) {
    Mat m = mat(NULL, rows, cols, fmt);
    m.ld += rows > 1 ? 16 : 0;
    round_to(x, (size_t)rows * cols, fmt);
    char* host = (char*)host_alloc(mat_bytes(m));
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            size_t at = (size_t)i * m.ld + j;
            if (fmt == F32) ((float*)host)[at] = x[(size_t)i * cols + j];
            else ((uint16_t*)host)[at] = bf16_from_f32(x[(size_t)i * cols + j]);
        }
    }
    m.data = ops->alloc(mat_bytes(m));
    ops->upload(m.data, host, mat_bytes(m));
    free(host);
    return m;
}
static Mat put_zeros(int rows, int cols, Fmt fmt) {
    float* zeros = (float*)host_alloc((size_t)rows * cols * sizeof(float));
    Mat m = put(zeros, rows, cols, fmt);
    free(zeros);
    return m;
}
static void fetch(float* out, Mat m) {
    char* host = (char*)host_alloc(mat_bytes(m));
    ops->download(host, m.data, mat_bytes(m));
    for (int i = 0; i < m.rows; i++) {
        for (int j = 0; j < m.cols; j++) {
            size_t at = (size_t)i * m.ld + j;
            out[(size_t)i * m.cols + j] = m.fmt == F32 ? ((float*)host)[at] : m.fmt == BF16 ? f32_from_bf16(((uint16_t*)host)[at])
                                                                                             : (float)((uint8_t*)host)[at];
        }
    }
    free(host);
}
static float* fetched(Mat m) {
    float* out = (float*)host_alloc((size_t)m.rows * m.cols * sizeof(float));
    fetch(out, m);
    return out;
}
static void* put_bytes(const void* host, size_t bytes) {
    void* p = ops->alloc(bytes);
    ops->upload(p, host, bytes);
    return p;
}
static float fetch_float(const float* p) {
    float x;
    ops->download(&x, p, sizeof x);
    return x;
}
static float* put_float(float x) { return (float*)put_bytes(&x, sizeof x); }

// ---- gradients
typedef struct {
    const void* shape;
    const float* upstream;            // the loss is the sum of upstream * output
    const float* x[kMaxInputs];       // the inputs
    size_t n[kMaxInputs];
    double (*loss)(const double* const* x, const void* shape, const float* upstream);
} Problem;

static double* doubles(const float* x, size_t n) {
    double* out = (double*)host_alloc(n * sizeof(double));
    for (size_t i = 0; i < n; i++) out[i] = x[i];
    return out;
}
static float* floats(const double* x, size_t n) {
    float* out = (float*)host_alloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) out[i] = (float)x[i];
    return out;
}

// For a random direction d, the error e of a gradient g shows as e.d, of the size of |e|: the root mean square over the
// directions divided by |g| estimates the relative error. The plants change g before it is compared.
typedef enum { AS_IT_IS, SCALED, WITH_HOLES } Plant;

static void gradient_case(const char* name, const Problem* p, int input, const float* gradient, double f32_tol, double bf16_tol) {
    const double h = 1e-5;
    size_t n = p->n[input];
    double errors[3] = {0, 0, 0}, norm = 0;
    for (size_t i = 0; i < n; i++) norm += (double)gradient[i] * gradient[i];
    double* direction = (double*)host_alloc(n * sizeof(double));
    const double* x[kMaxInputs];
    double* copies[kMaxInputs];
    for (int k = 0; k < kMaxInputs; k++) x[k] = copies[k] = p->x[k] ? doubles(p->x[k], p->n[k]) : NULL;
    for (int trial = 0; trial < kDirections; trial++) {
        for (size_t i = 0; i < n; i++) direction[i] = test_normal();
        double ends[2];
        for (int side = 0; side < 2; side++) {
            for (size_t i = 0; i < n; i++) copies[input][i] = p->x[input][i] + (side ? h : -h) * direction[i];
            ends[side] = p->loss(x, p->shape, p->upstream);
        }
        double slope = (ends[1] - ends[0]) / (2 * h);
        for (int plant = AS_IT_IS; plant <= WITH_HOLES; plant++) {
            double product = 0;
            for (size_t i = 0; i < n; i++)
                if (plant != WITH_HOLES || i % 16 != 3 % n) product += gradient[i] * direction[i];
            if (plant == SCALED) product *= 1.01;
            errors[plant] += (product - slope) * (product - slope);
        }
    }
    for (int plant = AS_IT_IS; plant <= WITH_HOLES; plant++) errors[plant] = sqrt(errors[plant] / kDirections / norm);
    double tol = tolerance(f32_tol, bf16_tol);
    ok(errors[AS_IT_IS] <= tol && errors[SCALED] > tol && errors[WITH_HOLES] > tol,
       "%s %s err %.2e (%.0f%% of tol; planted %.1e, %.1e)", name, ops->name, errors[AS_IT_IS], 100 * errors[AS_IT_IS] / tol,
       errors[SCALED], errors[WITH_HOLES]);
    next_check(errors[AS_IT_IS]);
    for (int k = 0; k < kMaxInputs; k++) free(copies[k]);
    free(direction);
}
static const double kF32Grad = 5e-6, kBf16Grad = 5e-3;

static double weighted(const double* y, const float* upstream, size_t n) {
    double total = 0;
    for (size_t i = 0; i < n; i++) total += y[i] * upstream[i];
    return total;
}

// Releases what a case has put on the backend.
static void release_all(const Mat* mats, int count) {
    for (int i = 0; i < count; i++) ops->release(mats[i].data);
}

// ---- embedding
// One token in `often` is always the same.
static void embed_shape(int V, int C, int BT, int often) {
    int *tokens = (int*)host_alloc((size_t)BT * 2 * sizeof(int)), *order = tokens + BT, placed = 0;
    for (int t = 0; t < BT; t++) tokens[t] = t % often == 0 ? 7 : (int)(test_uniform() * V);
    for (int v = 0; v < V; v++)
        for (int t = 0; t < BT; t++)
            if (tokens[t] == v) order[placed++] = t;
    float *w = test_normals((size_t)V * C, 1), *dy = test_normals((size_t)BT * C, 1), *dw = test_normals((size_t)V * C, 0.1f);
    Mat W = put(w, V, C, ops->act), Y = put_zeros(BT, C, ops->act), DY = put(dy, BT, C, ops->act);
    int *device_tokens = (int*)put_bytes(tokens, (size_t)BT * sizeof(int)), *device_order = (int*)put_bytes(order, (size_t)BT * sizeof(int));
    ops->embed_forward(Y, W, device_tokens);
    float* y = fetched(Y);
    bool same = true;
    for (int t = 0; t < BT; t++) same = same && !memcmp(y + t * C, w + tokens[t] * C, (size_t)C * sizeof(float));
    ok(same, "embed.forward %s: the same bits", ops->name);
    static const Fmt formats[] = {F32, BF16};
    for (int f = 0; f < 2; f++) {
        Mat DW = put(dw, V, C, formats[f]);
        double* want = doubles(dw, (size_t)V * C);
        for (int t = 0; t < BT; t++)
            for (int c = 0; c < C; c++) want[tokens[t] * C + c] += dy[t * C + c];
        ops->embed_backward(DW, DY, device_tokens, device_order);
        float *got = fetched(DW), *wanted = floats(want, (size_t)V * C);
        close_case(f ? "embed.dw bf16" : "embed.dw f32", got, wanted, (size_t)V * C, f ? kBf16Tol : kF32Tol, f ? kBf16Tol : kF32Tol);
        free(got);
        free(want);
        free(wanted);
        ops->release(DW.data);
    }
    Mat all[] = {W, Y, DY};
    release_all(all, 3);
    ops->release(device_tokens);
    ops->release(device_order);
    free(tokens);
    free(w);
    free(dy);
    free(dw);
    free(y);
}
static void embed_case(void) {
    embed_shape(23, 37, 41, 5);
    embed_shape(23, 72, 300, 2);    // a long run among short ones
    embed_shape(40, 61, 130, 1);    // one token alone
}

// ---- rmsnorm
static const float kEps = 1e-5f;

static void naive_rmsnorm(double* y, const double* r, const double* w, int rows, int C) {
    for (int t = 0; t < rows; t++) {
        double squares = 0;
        for (int c = 0; c < C; c++) squares += r[t * C + c] * r[t * C + c];
        double rstd = 1 / sqrt(squares / C + kEps);
        for (int c = 0; c < C; c++) y[t * C + c] = w[c] * r[t * C + c] * rstd;
    }
}
static double rmsnorm_loss(const double* const* x, const void* shape, const float* upstream) {
    const int *s = (const int*)shape, rows = s[0], C = s[1];
    double* y = (double*)host_alloc((size_t)rows * C * sizeof(double));
    naive_rmsnorm(y, x[0], x[1], rows, C);
    double total = weighted(y, upstream, (size_t)rows * C);
    free(y);
    return total;
}

static void rmsnorm_shape(int BT, int C, bool with_delta) {
    size_t n = (size_t)BT * C;
    int shape[2] = {BT, C};
    float *x = test_normals(n, 2), *delta = test_normals(n, 1), *w = test_normals((size_t)C, 1), *dy = test_normals(n, 1);
    float *dres = test_normals(n, 0.1f), *dw = test_normals((size_t)C, 0.1f);
    Mat X = put(x, BT, C, ops->act), Delta = put(delta, BT, C, ops->act), W = put(w, 1, C, ops->act),
        DY = put(dy, BT, C, ops->act);
    Mat Y = put_zeros(BT, C, ops->act), Res = put_zeros(BT, C, ops->act), DRes = put(dres, BT, C, ops->act),
        DW = put(dw, 1, C, F32);
    float* rstd = (float*)ops->alloc((size_t)BT * sizeof(float));
    void* scratch = ops->alloc(ops->rmsnorm_scratch(BT, C));
    Mat none = Delta;
    none.data = NULL;
    ops->rmsnorm_forward(Y, rstd, with_delta ? Res : X, X, with_delta ? Delta : none, W, kEps, kPrepNone);
    float* r = fetched(with_delta ? Res : X);
    if (with_delta) {
        for (size_t i = 0; i < n; i++) x[i] += delta[i];
        round_to(x, n, ops->act);
        close_case("rmsnorm.res", r, x, n, 1e-7, 1e-7);
    }
    double *rd = doubles(r, n), *wd = doubles(w, (size_t)C), *yd = (double*)host_alloc(n * sizeof(double));
    naive_rmsnorm(yd, rd, wd, BT, C);
    float *y = fetched(Y), *want = floats(yd, n);
    close_case("rmsnorm.y", y, want, n, kF32Tol, kBf16Tol);

    ops->rmsnorm_backward(DRes, DW, DY, with_delta ? Res : X, W, rstd, scratch, NULL);
    float *got_dres = fetched(DRes), *got_dw = fetched(DW);
    Mat frozen = put(dres, BT, C, ops->act), no_dw = DW;
    no_dw.data = NULL;
    ops->rmsnorm_backward(frozen, no_dw, DY, with_delta ? Res : X, W, rstd, NULL, NULL);
    float* frozen_dres = fetched(frozen);
    ok(!memcmp(frozen_dres, got_dres, n * sizeof(float)), "rmsnorm.dres %s (%d, %d): the same without dw", ops->name, BT, C);
    for (size_t i = 0; i < n; i++) got_dres[i] -= dres[i];
    for (int c = 0; c < C; c++) got_dw[c] -= dw[c];
    Problem p = {shape, dy, {r, w, NULL, NULL}, {n, (size_t)C, 0, 0}, rmsnorm_loss};
    gradient_case("rmsnorm.dres", &p, 0, got_dres, kF32Grad, kBf16Grad);
    gradient_case("rmsnorm.dw", &p, 1, got_dw, kF32Grad, kBf16Grad);

    Mat all[] = {X, Delta, W, DY, Y, Res, DRes, DW, frozen};
    release_all(all, COUNT(all));
    ops->release(rstd);
    ops->release(scratch);
    free(x); free(delta); free(w); free(dy); free(dres); free(dw); free(r); free(rd); free(wd); free(yd); free(y);
    free(want);
    free(got_dres); free(got_dw); free(frozen_dres);
}
static void rmsnorm_case(void) {
    rmsnorm_shape(13, 48, true);
    rmsnorm_shape(131, 172, false);
    rmsnorm_shape(1, 7, true);
    rmsnorm_shape(35, 320, true);
    rmsnorm_shape(2, 5000, false);
    rmsnorm_shape(2, 8200, true);
    rmsnorm_shape(2, 16400, true);
}
// Widths of small models, of which the GPU's backward pass takes 16 rows at a time when dw is wanted.
static void rmsnorm_narrow_case(void) {
    rmsnorm_shape(43, 576, false);
    rmsnorm_shape(16, 768, true);
    rmsnorm_shape(17, 1024, true);
}

// ---- rope
typedef struct {
    int rows, heads, values, HD;   // heads: those that turn
    const float* cos_sin;
    const int* pos;
} RopeShape;

static void naive_rope(double* y, const double* x, const RopeShape* s, int cols) {
    memcpy(y, x, (size_t)s->rows * cols * sizeof(double));
    for (int t = 0; t < s->rows; t++) {
        for (int h = 0; h < s->heads; h++) {
            for (int j = 0; j < s->HD / 2; j++) {
                double c = s->cos_sin[s->pos[t] * s->HD + j], sn = s->cos_sin[s->pos[t] * s->HD + s->HD / 2 + j];
                double* pair = y + (size_t)t * cols + h * s->HD + j;
                double a = pair[0], b = pair[s->HD / 2];
                pair[0] = a * c - b * sn;
                pair[s->HD / 2] = b * c + a * sn;
            }
        }
    }
}
static double rope_loss(const double* const* x, const void* shape, const float* upstream) {
    const RopeShape* s = (const RopeShape*)shape;
    int cols = (s->heads + s->values) * s->HD;
    double* y = (double*)host_alloc((size_t)s->rows * cols * sizeof(double));
    naive_rope(y, x[0], s, cols);
    double total = weighted(y, upstream, (size_t)s->rows * cols);
    free(y);
    return total;
}
static void rope_shape(int BT, int NH, int NKV, int HD) {
    enum { POSITIONS = 32 };
    int COLS = (NH + 2 * NKV) * HD, *pos = (int*)host_alloc((size_t)BT * sizeof(int));
    size_t table_bytes = (size_t)POSITIONS * HD * sizeof(float);
    float* table = (float*)host_alloc(table_bytes);
    for (int p = 0; p < POSITIONS; p++) {
        for (int j = 0; j < HD / 2; j++) {
            table[p * HD + j] = (float)cos(p * pow(10000, -2.0 * j / HD));
            table[p * HD + HD / 2 + j] = (float)sin(p * pow(10000, -2.0 * j / HD));
        }
    }
    for (int t = 0; t < BT; t++) pos[t] = (t * 5) % POSITIONS;
    RopeShape shape = {BT, NH + NKV, NKV, HD, table, pos};
    size_t n = (size_t)BT * COLS;
    float *x = test_normals(n, 1), *dy = test_normals(n, 1);
    Mat X = put(x, BT, COLS, ops->act), DY = put(dy, BT, COLS, ops->act);
    float* device_table = (float*)put_bytes(table, table_bytes);
    int* device_pos = (int*)put_bytes(pos, (size_t)BT * sizeof(int));
    ops->rope(X, device_table, device_pos, NH, NKV, HD, false, NULL);
    double *xd = doubles(x, n), *yd = (double*)host_alloc(n * sizeof(double));
    naive_rope(yd, xd, &shape, COLS);
    float *y = fetched(X), *want = floats(yd, n);
    close_case("rope.forward", y, want, n, kF32Tol, kBf16Tol);
    bool values_untouched = true;
    for (int t = 0; t < BT; t++)
        values_untouched = values_untouched && !memcmp(y + t * COLS + (NH + NKV) * HD, x + t * COLS + (NH + NKV) * HD,
                                                       (size_t)NKV * HD * sizeof(float));
    ok(values_untouched, "rope.forward %s leaves v alone", ops->name);
    ops->rope(DY, device_table, device_pos, NH, NKV, HD, true, NULL);
    float* dx = fetched(DY);
    Problem p = {&shape, dy, {x, NULL, NULL, NULL}, {n, 0, 0, 0}, rope_loss};
    gradient_case("rope.backward", &p, 0, dx, kF32Grad, kBf16Grad);
    Mat all[] = {X, DY};
    release_all(all, 2);
    ops->release(device_table);
    ops->release(device_pos);
    free(table); free(pos); free(x); free(dy); free(xd); free(yd); free(y); free(want); free(dx);
}
static void rope_case(void) {
    rope_shape(19, 4, 2, 16);
    rope_shape(5, 32, 8, 128);
    rope_shape(7, 3, 1, 36);
}

// ---- attention
static void naive_attention(double* y, double* lse, const double* qkv, const Attn* s) {
    int cols = (s->NH + 2 * s->NKV) * s->HD, HD = s->HD;
    double* p = (double*)host_alloc((size_t)s->T * sizeof(double));
    for (int b = 0; b < s->B; b++) {
        for (int h = 0; h < s->NH; h++) {
            int k_at = (s->NH + h / (s->NH / s->NKV)) * HD, v_at = k_at + s->NKV * HD;
            for (int i = 0; i < s->T; i++) {
                const double* q = qkv + (size_t)(b * s->T + i) * cols + h * HD;
                double *out = y + (size_t)(b * s->T + i) * s->NH * HD + h * HD, largest = -INFINITY, total = 0;
                int first = s->start[b * s->T + i];
                for (int j = first; j <= i; j++) {
                    p[j] = 0;
                    for (int d = 0; d < HD; d++) p[j] += q[d] * qkv[(size_t)(b * s->T + j) * cols + k_at + d] / sqrt(HD);
                    if (p[j] > largest) largest = p[j];
                }
                for (int j = first; j <= i; j++) total += exp(p[j] - largest);
                if (lse) lse[((size_t)b * s->NH + h) * s->T + i] = largest + log(total);
                for (int d = 0; d < HD; d++) out[d] = 0;
                for (int j = first; j <= i; j++)
                    for (int d = 0; d < HD; d++)
                        out[d] += exp(p[j] - largest) / total * qkv[(size_t)(b * s->T + j) * cols + v_at + d];
            }
        }
    }
    free(p);
}
static double attention_loss(const double* const* x, const void* shape, const float* upstream) {
    const Attn* s = (const Attn*)shape;
    size_t n = (size_t)s->B * s->T * s->NH * s->HD;
    double* y = (double*)host_alloc(n * sizeof(double));
    naive_attention(y, NULL, x[0], s);
    double total = weighted(y, upstream, n);
    free(y);
    return total;
}

// Documents of `doc` tokens (0: one sequence), the last `padding` tokens of each row alone.
static void document_ranges(int* start, int* end, int B, int T, int doc, int padding) {
    for (int i = 0; i < B * T; i++) {
        int t = i % T, length = doc ? doc : T;
        bool pad = t >= T - padding;
        start[i] = pad ? t : t / length * length;
        end[i] = pad ? t + 1 : min_int((t / length + 1) * length, T - padding);
    }
}

static void attention_shape(int B, int T, int NH, int NKV, int HD, int doc, int padding) {
    int cols = (NH + 2 * NKV) * HD;
    size_t n = (size_t)B * T * cols, y_n = (size_t)B * T * NH * HD, lse_n = (size_t)B * NH * T;
    int* ranges = (int*)host_alloc((size_t)2 * B * T * sizeof(int));
    document_ranges(ranges, ranges + B * T, B, T, doc, padding);
    int* device_ranges = (int*)put_bytes(ranges, (size_t)2 * B * T * sizeof(int));
    Attn shape = {B, T, NH, NKV, HD, ranges, ranges + B * T}, device = {B, T, NH, NKV, HD, device_ranges, device_ranges + B * T};
    float *qkv = test_normals(n, 1.5f), *dy = test_normals(y_n, 1);
    Mat QKV = put(qkv, B * T, cols, ops->act), Y = put_zeros(B * T, NH * HD, ops->act),
        DY = put(dy, B * T, NH * HD, ops->act);
    Mat DQKV = put_zeros(B * T, cols, ops->act), LSE = mat(ops->alloc(lse_n * sizeof(float)), 1, (int)lse_n, F32);
    float* largest = put_float(0);
    void* scratch = ops->alloc(ops->attention_scratch(device));

    ops->attention_forward(Y, (float*)LSE.data, QKV, device, largest);
    double *qkvd = doubles(qkv, n), *yd = (double*)host_alloc(y_n * sizeof(double)),
        *lsed = (double*)host_alloc(lse_n * sizeof(double));
    naive_attention(yd, lsed, qkvd, &shape);
    float *y = fetched(Y), *lse = fetched(LSE), *want_y = floats(yd, y_n), *want_lse = floats(lsed, lse_n);
    char name[64];
    snprintf(name, sizeof name, "attention B%d T%d %d/%d HD%d doc%d .y", B, T, NH, NKV, HD, doc);
    close_case(name, y, want_y, y_n, kF32Tol, kBf16Tol);
    memcpy(strrchr(name, '.'), ".lse", 5);
    double squares = 0;
    for (size_t i = 0; i < lse_n; i++) squares += (double)want_lse[i] * want_lse[i];
    double tol = kF32Tol * fmax(1, sqrt((double)lse_n / squares));   // sums of products near one may leave a number near zero
    close_case(name, lse, want_lse, lse_n, tol, tol);
    float most = 0;
    for (size_t i = 0; i < y_n; i++) most = larger_magnitude(most, y[i]);
    ok(fetch_float(largest) == most, "attention %s takes the maximum of what it wrote", ops->name);

    ops->attention_backward(DQKV, DY, Y, QKV, (const float*)LSE.data, device, scratch);
    float* dqkv = fetched(DQKV);
    Problem p = {&shape, dy, {qkv, NULL, NULL, NULL}, {n, 0, 0, 0}, attention_loss};
    memcpy(strrchr(name, '.'), ".dqkv", 6);
    gradient_case(name, &p, 0, dqkv, kF32Grad, kBf16Grad);
    ops->attention_backward(DQKV, DY, Y, QKV, (const float*)LSE.data, device, scratch);
    float* again = fetched(DQKV);
    ok(!memcmp(again, dqkv, n * sizeof(float)), "attention %s B%d T%d: backward gives the same bits again", ops->name, B, T);
    free(again);

    Mat all[] = {QKV, Y, DY, DQKV, LSE};
    release_all(all, COUNT(all));
    ops->release(device_ranges);
    ops->release(largest);
    ops->release(scratch);
    free(ranges); free(qkv); free(dy); free(qkvd); free(yd); free(lsed); free(y); free(lse); free(want_y);
    free(want_lse); free(dqkv);
}
static void attention_case(void) {
    attention_shape(2, 37, 4, 2, 16, 0, 5);
    attention_shape(1, 70, 6, 2, 64, 23, 0);
    attention_shape(1, 67, 2, 1, 128, 0, 0);
    attention_shape(1, 131, 2, 2, 8, 50, 3);
    attention_shape(1, 1, 1, 1, 16, 0, 0);
    // several blocks of keys take turns at dQ (attention/sm80.cuh), in Hopper's kernels too
    attention_shape(1, 262, 2, 1, 128, 0, 0);
    attention_shape(1, 290, 1, 1, 128, 150, 7);
    attention_shape(5, 270, 1, 1, 64, 0, 0);   // on a GPU of four multiprocessors heads are taken two at a time, then the last three
    attention_shape(3, 140, 2, 2, 64, 0, 3);
}

// What other documents hold must not show, not even in the last bit.
static void attention_isolation_case(void) {
    enum { T = 80, NH = 2, NKV = 1, HD = 16, COLS = (NH + 2 * NKV) * HD, DOC = 30 };
    int ranges[2 * T];
    document_ranges(ranges, ranges + T, 1, T, DOC, 0);
    int* device_ranges = (int*)put_bytes(ranges, sizeof ranges);
    Attn shape = {1, T, NH, NKV, HD, device_ranges, device_ranges + T};
    float *qkv = test_normals(T * COLS, 1), *y[2], *dy = test_normals(T * NH * HD, 1), *dqkv[2];
    for (int poisoned = 0; poisoned < 2; poisoned++) {
        if (poisoned)
            for (int t = 0; t < T; t++)
                for (int c = 0; c < COLS; c++)
                    if (t < DOC || t >= 2 * DOC) qkv[t * COLS + c] *= -50;
        Mat QKV = put(qkv, T, COLS, ops->act), Y = put_zeros(T, NH * HD, ops->act), DY = put(dy, T, NH * HD, ops->act);
        Mat DQKV = put_zeros(T, COLS, ops->act);
        float* lse = (float*)ops->alloc(NH * T * sizeof(float));
        void* scratch = ops->alloc(ops->attention_scratch(shape));
        ops->attention_forward(Y, lse, QKV, shape, NULL);
        ops->attention_backward(DQKV, DY, Y, QKV, lse, shape, scratch);
        y[poisoned] = fetched(Y);
        dqkv[poisoned] = fetched(DQKV);
        Mat all[] = {QKV, Y, DY, DQKV};
        release_all(all, 4);
        ops->release(lse);
        ops->release(scratch);
    }
    ok(!memcmp(y[0] + DOC * NH * HD, y[1] + DOC * NH * HD, DOC * NH * HD * sizeof(float)) &&
       !memcmp(dqkv[0] + DOC * COLS, dqkv[1] + DOC * COLS, DOC * COLS * sizeof(float)) &&
       memcmp(y[0], y[1], DOC * NH * HD * sizeof(float)), "attention %s: documents do not see each other", ops->name);
    ops->release(device_ranges);
    for (int i = 0; i < 2; i++) {
        free(y[i]);
        free(dqkv[i]);
    }
    free(qkv);
    free(dy);
}

// ---- cached attention: sequences in slots of a cache. A call takes rows of several; `rows_of` new ones of each slot, 0: none.
typedef struct {
    int NH, NKV, HD, slots, positions;
    const float* const* qkv;   // by slot: (positions, (NH + 2 NKV) HD), what the sequence feeds
} CachedShape;

static void cached_call(const CachedShape* s, Mat Cache, const int* rows_of, int* used, float* const* y_of) {
    int rows = 0, cols = (s->NH + 2 * s->NKV) * s->HD, y_cols = s->NH * s->HD, n = 0;
    for (int i = 0; i < s->slots; i++) rows += rows_of[i];
    int* places = (int*)host_alloc((size_t)2 * rows * sizeof(int));
    float* x = (float*)host_alloc((size_t)rows * cols * sizeof(float));
    for (int i = s->slots - 1; i >= 0; i--) {   // not in the order of slots
        for (int r = 0; r < rows_of[i]; r++, n++) {
            places[n] = i;
            places[rows + n] = used[i] + r;
            memcpy(x + (size_t)n * cols, s->qkv[i] + (size_t)(used[i] + r) * cols, (size_t)cols * sizeof(float));
        }
    }
    int* device = (int*)put_bytes(places, (size_t)2 * rows * sizeof(int));
    Mat X = put(x, rows, cols, ops->act), Y = put_zeros(rows, y_cols, ops->act);
    ops->attention_cached(Y, Cache, X, device, device + rows, s->positions, s->NH, s->NKV, s->HD);
    float* y = fetched(Y);
    for (n = 0; n < rows; n++) memcpy(y_of[places[n]] + (size_t)places[rows + n] * y_cols, y + (size_t)n * y_cols, (size_t)y_cols * sizeof(float));
    for (int i = 0; i < s->slots; i++) used[i] += rows_of[i];
    Mat all[] = {X, Y};
    release_all(all, 2);
    ops->release(device);
    free(places); free(x); free(y);
}

// Slot i feeds a prompt of prompts[i] rows and then row by row to its end at positions - i, all slots at once or each on its own.
static float** cached_answers(const CachedShape* s, const int* prompts, bool together) {
    size_t y_bytes = (size_t)s->positions * s->NH * s->HD * sizeof(float);
    float** y = (float**)host_alloc((size_t)s->slots * sizeof(float*));
    int *rows = (int*)host_alloc((size_t)s->slots * sizeof(int)), *used = (int*)host_alloc((size_t)s->slots * sizeof(int));
    Mat Cache = put_zeros(s->slots * s->positions, 2 * s->NKV * s->HD, ops->act);
    for (int i = 0; i < s->slots; i++) {
        y[i] = (float*)host_alloc(y_bytes);
        memset(y[i], 0, y_bytes);
        used[i] = 0;
    }
    for (int alone = 0; alone < (together ? 1 : s->slots); alone++) {
        for (int left = 1; left > 0;) {
            left = 0;
            for (int i = 0; i < s->slots; i++) {
                rows[i] = !together && i != alone ? 0 : min_int(used[i] ? 1 : prompts[i], s->positions - i - used[i]);
                left += rows[i];
            }
            if (left > 0) cached_call(s, Cache, rows, used, y);
        }
    }
    ops->release(Cache.data);
    free(rows); free(used);
    return y;
}

static void cached_shape(int NH, int NKV, int HD, int positions, int slots, const int* prompts) {
    int cols = (NH + 2 * NKV) * HD, y_cols = NH * HD;
    const float** qkv = (const float**)host_alloc((size_t)slots * sizeof(float*));
    for (int i = 0; i < slots; i++) {
        float* values = test_normals((size_t)positions * cols, 1.5f);
        ops->release(put(values, positions, cols, ops->act).data);   // rounded to what the backend holds
        qkv[i] = values;
    }
    CachedShape s = {NH, NKV, HD, slots, positions, qkv};
    float **together = cached_answers(&s, prompts, true), **alone = cached_answers(&s, prompts, false);
    int different = 0, total = 0;
    for (int i = 0; i < slots; i++) {
        int T = positions - i;
        size_t n = (size_t)T * y_cols;
        int* ranges = (int*)host_alloc((size_t)2 * T * sizeof(int));
        document_ranges(ranges, ranges + T, 1, T, 0, 0);
        Attn shape = {1, T, NH, NKV, HD, ranges, ranges + T};
        double *x = doubles(qkv[i], (size_t)T * cols), *yd = (double*)host_alloc(n * sizeof(double));
        naive_attention(yd, NULL, x, &shape);
        float* want = floats(yd, n);
        char name[64];
        snprintf(name, sizeof name, "attention_cached %d/%d HD%d, %d of %d", NH, NKV, HD, T, positions);
        close_case(name, together[i], want, n, kF32Tol, kBf16Tol);
        different += memcmp(together[i], alone[i], n * sizeof(float)) != 0;
        total += memcmp(together[i], together[(i + 1) % slots], (size_t)y_cols * sizeof(float)) != 0;   // could they differ?
        free(ranges); free(x); free(yd); free(want);
    }
    ok(different == 0 && total == slots, "attention_cached %s %d/%d HD%d: %d sequences together have the bits they have alone", ops->name, NH, NKV,
       HD, slots);
    for (int i = 0; i < slots; i++) {
        free((void*)qkv[i]); free(together[i]); free(alone[i]);
    }
    free(qkv); free(together); free(alone);
}
// Prompts of all lengths and token by token; tiles of several rows and heads, groups that do not fill one, several chunks of keys.
static void attention_cached_case(void) {
    const int prompts[] = {68, 1, 5, 71}, long_prompts[] = {505, 255, 509, 2}, many[] = {510, 508, 500, 500, 500, 500, 500, 500};
    for (int values = 0; values < 8; values++) cached_shape(4, 2, 16, 75, 4, prompts);   // a last bit of a sum seldom reaches one of BF16
    cached_shape(8, 2, 64, 75, 4, prompts);
    cached_shape(3, 1, 36, 75, 2, prompts);
    cached_shape(20, 1, 8, 75, 2, prompts);
    cached_shape(4, 1, 128, 515, 2, long_prompts + 1);
    cached_shape(2, 2, 8, 514, 8, many);
}

// ---- swiglu
static void naive_swiglu(double* y, const double* x, int rows, int F) {
    for (int t = 0; t < rows; t++) {
        for (int f = 0; f < F; f++) {
            double g = x[t * 2 * F + f];
            y[t * F + f] = g / (1 + exp(-g)) * x[t * 2 * F + F + f];
        }
    }
}
static double swiglu_loss(const double* const* x, const void* shape, const float* upstream) {
    const int *s = (const int*)shape, rows = s[0], F = s[1];
    double* y = (double*)host_alloc((size_t)rows * F * sizeof(double));
    naive_swiglu(y, x[0], rows, F);
    double total = weighted(y, upstream, (size_t)rows * F);
    free(y);
    return total;
}
static void swiglu_shape(int BT, int F) {
    size_t n = (size_t)BT * F;
    int shape[2] = {BT, F};
    float *x = test_normals(2 * n, 3), *dy = test_normals(n, 1);
    x[0] = 95; x[1] = -95; x[2] = 0;   // where sigma is 1, 0 and 1/2
    Mat X = put(x, BT, 2 * F, ops->act), Y = put_zeros(BT, F, ops->act), DY = put(dy, BT, F, ops->act);
    ops->swiglu_forward(Y, X, kPrepNone);
    double *xd = doubles(x, 2 * n), *yd = (double*)host_alloc(n * sizeof(double));
    naive_swiglu(yd, xd, BT, F);
    float *y = fetched(Y), *want = floats(yd, n);
    close_case("swiglu.forward", y, want, n, kF32Tol, kBf16Tol);
    ops->swiglu_backward(X, DY, X, NULL);   // in place
    float* dx = fetched(X);
    Problem p = {shape, dy, {x, NULL, NULL, NULL}, {2 * n, 0, 0, 0}, swiglu_loss};
    gradient_case("swiglu.backward", &p, 0, dx, kF32Grad, kBf16Grad);
    Mat all[] = {X, Y, DY};
    release_all(all, 3);
    free(x); free(dy); free(xd); free(yd); free(y); free(want); free(dx);
}
static void swiglu_case(void) {
    swiglu_shape(21, 75);
    swiglu_shape(3, 2304);
}

// A producer that is asked for a maximum writes the same y, and finds what the plain pieces find one after the other.
static void prep_shape(int BT, int F) {
    float *x = test_normals((size_t)BT * 2 * F, 1), *w = test_normals((size_t)F, 1);
    Mat X = put(x, BT, 2 * F, ops->act), W = put(w, 1, F, ops->act), Plain = put_zeros(BT, F, ops->act),
        Asked = put_zeros(BT, F, ops->act);
    Mat in = mat_cols(X, 0, F), delta = mat_cols(X, F, F), res = put_zeros(BT, F, ops->act), turned = mat(NULL, BT, F, ops->act);
    float *rstd = (float*)ops->alloc((size_t)BT * sizeof(float)), *expected = put_float(0), *raised = put_float(0);
    for (int producer = 0; producer < 2; producer++) {
        for (int rotates = 0; rotates < 2; rotates++) {
            const char* name = producer ? "swiglu.prep" : "rmsnorm.prep";
            ops->zero(expected, sizeof(float));
            ops->zero(raised, sizeof(float));
            Prep prep = {rotates == 1, raised};
            if (producer) {
                ops->swiglu_forward(Plain, X, kPrepNone);
                ops->swiglu_forward(Asked, X, prep);
            } else {
                ops->rmsnorm_forward(Plain, rstd, res, in, delta, W, kEps, kPrepNone);
                ops->rmsnorm_forward(Asked, rstd, res, in, delta, W, kEps, prep);
            }
            if (rotates) ops->rotate(turned, Plain, ROTATE_COLS, false, 0, expected);
            else ops->absmax(expected, Plain);
            float *plain = fetched(Plain), *asked = fetched(Asked), a = fetch_float(expected), b = fetch_float(raised);
            size_t differ = 0;
            for (size_t i = 0; i < (size_t)BT * F; i++) differ += plain[i] != asked[i];
            double allowed = rotates && ops != &cpu_f32_ops && ops != &cpu_bf16_ops ? 3.0 / 4096 * a : 0;   // roundings to FP16
            ok(differ == 0 && a > 0 && fabs(a - b) <= allowed, "%s %s %d x %d%s: %zu values differ, maximum %g, of the plain pieces %g", name,
               ops->name, BT, F, rotates ? " rotated" : "", differ, (double)b, (double)a);
            free(plain);
            free(asked);
        }
    }
    Mat all[] = {X, W, Plain, Asked, res};
    release_all(all, COUNT(all));
    ops->release(rstd);
    ops->release(expected);
    ops->release(raised);
    free(x);
    free(w);
}
static void prep_case(void) {
    prep_shape(9, 48);
    prep_shape(5, 172);
    prep_shape(3, 256);   // whose runs would be shorter than a warp takes
    prep_shape(3, 768);
    prep_shape(3, 4096);
    prep_shape(2, 3072);
    prep_shape(2, 5120);
    prep_shape(2, 8192);
    prep_shape(2, 14336);
}

// The maxima that backward producers raise are those of what they wrote, matrix by matrix; a larger one that is there stays.
static void maxima_are(const char* name, float* maxima, const Mat* written, int count) {
    float got[3], *expected = put_float(0);
    ops->download(got, maxima, sizeof(float) * (size_t)count);
    for (int i = 0; i < count; i++) {
        ops->zero(expected, sizeof(float));
        ops->absmax(expected, written[i]);
        float want = fetch_float(expected);
        ok(got[i] == want && want > 0, "%s %s maximum %d: %g, of what is written %g", name, ops->name, i, got[i], want);
    }
    ops->release(expected);
}
static void backward_maxima_case(void) {
    enum { BT = 70, NH = 3, NKV = 1, HD = 16, C = (NH + 2 * NKV) * HD, F = 2 * C };
    const float zeros[3] = {0, 0, 0}, large[3] = {1e6f, 1e6f, 1e6f};
    float *maxima = (float*)put_bytes(zeros, sizeof zeros), *rstd_host = test_normals(BT, 1);
    float *x = test_normals(BT * 2 * F, 1), *y = test_normals(BT * F, 1), *w = test_normals(C, 1), table[2 * HD];
    for (int i = 0; i < 2 * HD; i++) table[i] = test_normal();
    int pos[BT];
    for (int t = 0; t < BT; t++) pos[t] = t % 2;
    float *rstd = (float*)put_bytes(rstd_host, BT * sizeof(float)), *cos_sin = (float*)put_bytes(table, sizeof table);
    int* positions = (int*)put_bytes(pos, sizeof pos);
    Mat X = put(x, BT, 2 * F, ops->act), Y = put(y, BT, F, ops->act), W = put(w, 1, C, ops->act), DW = put_zeros(1, C, F32);
    void* scratch = ops->alloc(ops->rmsnorm_scratch(BT, C));

    Mat dres = mat_cols(X, 0, C), dy = mat_cols(Y, 0, C), qkv = dres;
    ops->rmsnorm_backward(dres, DW, dy, dy, W, rstd, scratch, maxima);
    maxima_are("rmsnorm.backward", maxima, &dres, 1);
    ops->upload(maxima, zeros, sizeof zeros);
    ops->rope(qkv, cos_sin, positions, NH, NKV, HD, true, maxima);
    Mat parts[3] = {mat_cols(qkv, 0, NH * HD), mat_cols(qkv, NH * HD, NKV * HD), mat_cols(qkv, (NH + NKV) * HD, NKV * HD)};
    maxima_are("rope", maxima, parts, 3);
    ops->upload(maxima, zeros, sizeof zeros);
    ops->swiglu_backward(X, Y, X, maxima);
    Mat halves[2] = {mat_cols(X, 0, F), mat_cols(X, F, F)};
    maxima_are("swiglu.backward", maxima, halves, 2);
    ops->upload(maxima, large, sizeof large);
    ops->swiglu_backward(X, Y, X, maxima);
    ok(fetch_float(maxima) == 1e6f && fetch_float(maxima + 1) == 1e6f, "swiglu.backward %s keeps a larger maximum", ops->name);

    Mat all[] = {X, Y, W, DW};
    release_all(all, COUNT(all));
    void* const rest[] = {maxima, rstd, cos_sin, positions, scratch};
    for (int i = 0; i < COUNT(rest); i++) ops->release(rest[i]);
    free(x); free(y); free(w); free(rstd_host);
}

// ---- loss
static double naive_loss(const double* x, int label, int V) {
    if (label < 0) return 0;
    double largest = -INFINITY, total = 0;
    for (int v = 0; v < V; v++) largest = x[v] > largest ? x[v] : largest;
    for (int v = 0; v < V; v++) total += exp(x[v] - largest);
    return log(total) + largest - x[label];
}
typedef struct {
    int rows, V;
    const int* labels;
} LossShape;
static double loss_loss(const double* const* x, const void* shape, const float* upstream) {
    const LossShape* s = (const LossShape*)shape;
    double total = 0;
    for (int t = 0; t < s->rows; t++) total += upstream[t] * naive_loss(x[0] + (size_t)t * s->V, s->labels[t], s->V);
    return total;
}
static void cross_entropy_shape(int rows, int V, float spread) {
    int* labels = (int*)host_alloc((size_t)rows * sizeof(int));
    for (int t = 0; t < rows; t++) labels[t] = t % 4 == 2 ? -100 : (int)(test_uniform() * V);
    size_t n = (size_t)rows * V;
    float *x = test_normals(n, spread), *upstream = (float*)host_alloc((size_t)rows * sizeof(float)), scale = 0.125f;
    for (int t = 0; t < rows; t++) upstream[t] = scale;
    Mat X = put(x, rows, V, ops->act), Loss = put_zeros(1, rows, F32);
    int* device_labels = (int*)put_bytes(labels, (size_t)rows * sizeof(int));
    float* device_scale = (float*)put_bytes(&scale, sizeof scale);
    float* want = (float*)host_alloc((size_t)rows * sizeof(float));
    double* xd = doubles(x, n);
    for (int t = 0; t < rows; t++) want[t] = (float)naive_loss(xd + (size_t)t * V, labels[t], V);
    ops->cross_entropy((float*)Loss.data, X, device_labels, NULL);
    float *loss = fetched(Loss), *untouched = fetched(X);
    close_case("cross_entropy.loss", loss, want, (size_t)rows, kF32Tol, kF32Tol);
    ok(!memcmp(untouched, x, n * sizeof(float)), "cross_entropy %s leaves the logits when no gradient is wanted", ops->name);
    ops->cross_entropy((float*)Loss.data, X, device_labels, device_scale);
    float* dx = fetched(X);
    LossShape shape = {rows, V, labels};
    Problem p = {&shape, upstream, {x, NULL, NULL, NULL}, {n, 0, 0, 0}, loss_loss};
    if (V < 2000 && spread < 10) {   // else few values count, and the planted holes would miss them
        gradient_case("cross_entropy.dlogits", &p, 0, dx, kF32Grad, kBf16Grad);
    } else {
        float* softmax = (float*)host_alloc(n * sizeof(float));
        for (int t = 0; t < rows; t++) {
            const double* row = xd + (size_t)t * V;
            if (labels[t] < 0) continue;
            double log_total = naive_loss(row, labels[t], V) + row[labels[t]];
            for (int v = 0; v < V; v++) softmax[(size_t)t * V + v] = (float)(scale * (exp(row[v] - log_total) - (v == labels[t])));
        }
        close_case("cross_entropy.dlogits", dx, softmax, n, kF32Tol, kBf16Tol);
        free(softmax);
    }
    bool zero = true;
    for (int v = 0; v < V; v++) zero = zero && dx[2 * (size_t)V + v] == 0;
    ok(zero, "cross_entropy %s: no gradient where there is no label", ops->name);
    Mat all[] = {X, Loss};
    release_all(all, 2);
    ops->release(device_labels);
    ops->release(device_scale);
    free(labels); free(x); free(upstream); free(want); free(xd); free(loss); free(untouched); free(dx);
}
// Equals, infinities and NaN in known places of rows of random logits.
static void argmax_shape(int rows, int V) {
    size_t n = (size_t)rows * V;
    float* x = test_normals(n, 1);
    int *want = (int*)host_alloc((size_t)rows * sizeof(int)), *got = (int*)host_alloc((size_t)rows * sizeof(int));
    for (int t = 0; t < rows; t++) {
        float* row = x + (size_t)t * V;
        int first = (int)((unsigned)t * 7919u % (unsigned)V), second = (int)((unsigned)t * 104729u % (unsigned)V);
        row[first] = row[second] = t % 2 ? INFINITY : 50;
        want[t] = first < second ? first : second;
        if (t % 3 == 2) row[want[t] ? 0 : V - 1] = NAN;   // V - 1 is neither, with these rows
    }
    Mat X = put(x, rows, V, F32);
    int* best = (int*)put_bytes(got, (size_t)rows * sizeof(int));
    ops->argmax(best, X);
    ops->download(got, best, (size_t)rows * sizeof(int));
    ok(!memcmp(got, want, (size_t)rows * sizeof(int)), "argmax %s (%d, %d): the first of the largest", ops->name, rows, V);
    for (size_t i = 0; i < n; i++) x[i] = i % 2 ? NAN : -INFINITY;
    ops->release(X.data);
    X = put(x, rows, V, F32);
    ops->argmax(best, X);
    ops->download(got, best, (size_t)rows * sizeof(int));
    for (int t = 0; t < rows; t++) want[t] = 0;
    ok(!memcmp(got, want, (size_t)rows * sizeof(int)), "argmax %s (%d, %d): 0 where nothing is larger than the rest", ops->name, rows, V);
    ops->release(best);
    ops->release(X.data);
    free(x); free(want); free(got);
}
static void argmax_case(void) {
    argmax_shape(1, 1);
    argmax_shape(9, 31);
    argmax_shape(5, 1000);
    argmax_shape(3, 50257);
}

static void cross_entropy_case(void) {
    cross_entropy_shape(7, 101, 2);
    cross_entropy_shape(5, 1023, 30);
    cross_entropy_shape(3, 20000, 4);
}

// ---- rotations
static void naive_hadamard(double* y, const float* x, int rows, int cols, bool from_left, bool transpose, int block) {
    int n = from_left ? (block ? block : rows) : cols;
    float* H = (float*)host_alloc((size_t)n * n * sizeof(float));
    for (int i = 0; i < n; i++) H[(size_t)i * n + i] = 1;
    hadamard_rows_f32(H, n, n, n, false);   // I H
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            double total = 0;
            for (int k = 0; k < n; k++) {
                int r = i % n;
                if (from_left) total += (transpose ? H[(size_t)k * n + r] : H[(size_t)r * n + k]) * (double)x[(size_t)(i - r + k) * cols + j];
                else total += (transpose ? H[(size_t)j * n + k] : H[(size_t)k * n + j]) * (double)x[(size_t)i * cols + k];
            }
            y[(size_t)i * cols + j] = total;
        }
    }
    free(H);
}

// x (x_rows, cols) -> y (y_rows, cols)
static void rotate_shape(int x_rows, int y_rows, int cols, RotateAxis axis, int block) {
    int n = max_int(x_rows, y_rows);
    for (int transpose = 0; transpose < 2; transpose++) {
        float *x = test_normals((size_t)x_rows * cols, 1), *padded = (float*)host_alloc((size_t)n * cols * sizeof(float));
        Mat X = put(x, x_rows, cols, ops->act), Y = put_zeros(y_rows, cols, ops->act);
        float* largest = put_float(0);
        memcpy(padded, x, (size_t)x_rows * cols * sizeof(float));
        double* want_double = (double*)host_alloc((size_t)n * cols * sizeof(double));
        naive_hadamard(want_double, padded, n, cols, axis == ROTATE_ROWS, transpose, block);
        ops->rotate(Y, X, axis, transpose, block, largest);
        float *y = fetched(Y), *want = floats(want_double, (size_t)y_rows * cols), most = 0;
        char name[64];
        snprintf(name, sizeof name, "rotate %s %d -> %d x %d block %d%s", axis == ROTATE_ROWS ? "rows" : "cols", x_rows, y_rows, cols,
                 block, transpose ? " ^T" : "");
        close_case(name, y, want, (size_t)y_rows * cols, kF32Tol, kBf16Tol);
        for (size_t i = 0; i < (size_t)y_rows * cols; i++) most = larger_magnitude(most, y[i]);
        ok(fetch_float(largest) == most, "%s %s: the maximum of what it wrote", name, ops->name);
        if (x_rows == y_rows) {
            ops->rotate(X, X, axis, transpose, block, NULL);
            float* in_place = fetched(X);
            close_case("rotate in place", in_place, y, (size_t)y_rows * cols, kTiny, kTiny);
            free(in_place);
        }
        Mat all[] = {X, Y};
        release_all(all, 2);
        ops->release(largest);
        free(x); free(padded); free(want_double); free(y); free(want);
    }
}
static void rotate_case(void) {
    rotate_shape(5, 5, 64, ROTATE_COLS, 0);
    rotate_shape(3, 3, 172, ROTATE_COLS, 0);
    rotate_shape(24, 24, 37, ROTATE_ROWS, 0);
    rotate_shape(19, 20, 70, ROTATE_ROWS, 0);
    rotate_shape(28, 25, 9, ROTATE_ROWS, 0);
    rotate_shape(45, 48, 33, ROTATE_ROWS, 16);
}

// ---- quantization: exact
static void quantize_shape(int rows, int cols, Fmt fmt, Gran gran, float clip, bool all_zero) {
    float* x = test_normals((size_t)rows * cols, all_zero ? 0 : 1e-3f);
    Mat X = put(x, rows, cols, ops->act);
    QMat q = {mat(NULL, rows, cols, fmt), mat(NULL, cols, rows, fmt), NULL, gran};
    q.codes.ld += 7;
    q.codes_t.ld += 3;
    size_t code_bytes = fmt_bytes(fmt);
    q.codes.data = ops->alloc(mat_bytes(q.codes));
    q.codes_t.data = ops->alloc(mat_bytes(q.codes_t));
    int scales = scale_count(rows, cols, gran);
    if (scales) q.scale = (float*)ops->alloc((size_t)scales * sizeof(float));
    float* largest = put_float(0);
    ops->absmax(largest, X);
    ops->quantize(q, X, kRotateNone, largest, fmt, clip);
    unsigned char *codes = (unsigned char*)host_alloc(mat_bytes(q.codes)), *codes_t = (unsigned char*)host_alloc(mat_bytes(q.codes_t));
    float* scale = (float*)host_alloc((size_t)scales * sizeof(float));
    ops->download(codes, q.codes.data, mat_bytes(q.codes));
    ops->download(codes_t, q.codes_t.data, mat_bytes(q.codes_t));
    if (scales) ops->download(scale, q.scale, (size_t)scales * sizeof(float));

    int wrong = 0, wrong_t = 0, wrong_scale = 0, distinct[256] = {0}, used = 0;
    float* maxima = (float*)host_alloc((size_t)(scales ? scales : 1) * sizeof(float));
    for (int pass = 0; pass < 2; pass++) {   // first the maxima, then the codes
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < cols; j++) {
                int s = gran == PER_ROW ? i : gran == PER_BLOCK32 ? i / 32 * ceil_div(cols, 32) + j / 32 : 0;
                float value = x[(size_t)i * cols + j];
                if (pass == 0) {
                    maxima[s] = larger_magnitude(maxima[s], value);
                    continue;
                }
                unsigned char want[4];
                uint16_t half = bf16_from_f32(value);
                if (fmt == BF16) memcpy(want, &half, 2);
                else want[0] = code_from_f32(value * (scales ? quant_inverse(maxima[s], fmt, clip) : 1), fmt);
                wrong += memcmp(codes + ((size_t)i * q.codes.ld + j) * code_bytes, want, code_bytes) != 0;
                wrong_t += memcmp(codes_t + ((size_t)j * q.codes_t.ld + i) * code_bytes, want, code_bytes) != 0;
                distinct[want[0]]++;
            }
        }
    }
    for (int s = 0; s < scales; s++) wrong_scale += scale[s] != quant_scale(maxima[s], fmt, clip);
    for (int c = 0; c < 256; c++) used += distinct[c] > 0;
    ok(wrong == 0 && wrong_t == 0 && wrong_scale == 0 && (all_zero || gran == NO_SCALE || used > 20 || cols == 1),
       "quantize %s %dx%d %s gran %d clip %g: %d codes, %d transposed, %d scales differ (%d distinct codes)", ops->name, rows, cols,
       fmt_name(fmt), (int)gran, (double)clip, wrong, wrong_t, wrong_scale, used);
    Mat all[] = {X, q.codes, q.codes_t};
    release_all(all, 3);
    if (scales) ops->release(q.scale);
    ops->release(largest);
    free(x); free(codes); free(codes_t); free(scale); free(maxima);
}
static void quantize_case(void) {
    for (int fmt = FP8_E4M3; fmt <= INT8; fmt++)
        for (int gran = PER_TENSOR; gran <= NO_SCALE; gran++) quantize_shape(70, 45, (Fmt)fmt, (Gran)gran, gran ? 1 : 0.75f, false);
    quantize_shape(33, 64, BF16, NO_SCALE, 1, false);
    quantize_shape(33, 64, INT8, PER_TENSOR, 1, true);
    quantize_shape(1, 1, INT8, PER_BLOCK32, 1, false);
}

// ---- the product, as the table gives it (test_gemm.c has the rest)
static void gemm_case(void) {
    enum { M = 35, N = 41, K = 300 };
    float *a = test_normals(M * K, 1), *b = test_normals(K * N, 1), *want = (float*)host_alloc(M * N * sizeof(float));
    Mat A = put(a, M, K, ops->act), B = put(b, K, N, ops->act), C = put_zeros(M, N, ops->act);
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double total = 0;
            for (int k = 0; k < K; k++) total += (double)a[i * K + k] * b[k * N + j];
            want[i * N + j] = (float)total;
        }
    }
    ops->gemm(C, plain_side(A, false), plain_side(B, true), 0);
    float* c = fetched(C);
    close_case("gemm", c, want, M * N, kF32Tol, kBf16Tol);
    Mat all[] = {A, B, C};
    release_all(all, 3);
    free(a); free(b); free(c); free(want);
}

// ---- sums

// Rows' sums of squares have the CPU's bits, whichever rows come with which.
static void row_sums_bits(Mat x, WideSum got) {
    WideSum* whole = (WideSum*)ops->alloc(sizeof(WideSum));
    ops->sum_row_squares(whole, x);
    WideSum all;
    ops->download(&all, whole, sizeof all);
    ok(!memcmp(&all, &got, sizeof got), "sum_row_squares %s (%d, %d): all rows at once and row by row, from the last: the same bits", ops->name,
       x.rows, x.cols);
    float* values = fetched(x);
    WideSum want;
    memset(&want, 0, sizeof want);
    cpu_f32_ops.sum_row_squares(&want, mat(values, x.rows, x.cols, F32));
    ok(!memcmp(&all, &want, sizeof want), "sum_row_squares %s (%d, %d): the CPU's bits", ops->name, x.rows, x.cols);
    values[x.rows * x.cols - 1] += 10;
    memset(&want, 0, sizeof want);
    cpu_f32_ops.sum_row_squares(&want, mat(values, x.rows, x.cols, F32));
    ok(memcmp(&all, &want, sizeof want), "sum_row_squares %s (%d, %d): another value, other bits", ops->name, x.rows, x.cols);
    free(values);
    ops->release(whole);
}

static void sums_shape(int ROWS, int COLS) {
    size_t N = (size_t)ROWS * COLS;
    float *x = test_normals(N, 1), *y = test_normals(N, 1), *want = (float*)host_alloc(N * sizeof(float));
    Mat X = put(x, ROWS, COLS, ops->act), Y = put(y, ROWS, COLS, ops->act), Wide = put_zeros(ROWS, COLS, F32),
        Narrow = put_zeros(ROWS, COLS, BF16);
    double squares = 3;
    float most = 0;
    for (size_t i = 0; i < N; i++) {
        want[i] = x[i] + y[i];
        squares += (double)x[i] * x[i];
        most = larger_magnitude(most, x[i]);
    }
    ops->add(Y, X, NULL);
    float* sum = fetched(Y);
    close_case("add", sum, want, N, 1e-7, kBf16Tol);
    float *total = put_float(3), *scale = put_float(0), *largest = put_float(0.25f);
    ops->sum_squares(total, X);
    float got = fetch_float(total), wanted = (float)squares;
    close_case("sum_squares", &got, &wanted, 1, 1e-6, 1e-6);
    WideSum *row_total = (WideSum*)ops->alloc(sizeof(WideSum)), row_sums;
    for (int first = ROWS; first-- > 0;) ops->sum_row_squares(row_total, mat_rows(X, first, 1));
    ops->download(&row_sums, row_total, sizeof row_sums);
    got = (float)wide_value(row_sums) + 3;
    close_case("sum_row_squares", &got, &wanted, 1, 1e-5, 1e-5);
    row_sums_bits(X, row_sums);
    ops->clip_scale(scale, row_total, 10);
    got = fetch_float(scale);
    wanted = (float)(10 / sqrt(squares - 3));
    close_case("clip_scale", &got, &wanted, 1, 1e-5, 1e-5);
    ops->clip_scale(scale, row_total, 1e9f);
    ok(fetch_float(scale) == 1, "clip_scale %s below the limit is 1", ops->name);
    ops->clip_scale(scale, row_total, 0);
    ok(fetch_float(scale) == 1, "clip_scale %s without a limit is 1", ops->name);
    ops->absmax(largest, X);
    ok(fetch_float(largest) == most, "absmax %s is raised", ops->name);
    *x = NAN;
    Mat WithNan = put(x, ROWS, COLS, ops->act);
    ops->sum_row_squares(row_total, WithNan);
    ops->clip_scale(scale, row_total, 0);
    ok(fetch_float(scale) == 0, "clip_scale %s of a gradient with a NaN is 0", ops->name);
    ops->release(row_total);
    ops->absmax(largest, WithNan);
    ok(isnan(fetch_float(largest)), "absmax %s keeps a NaN", ops->name);
    ops->convert(Wide, X);
    ops->convert(Narrow, Wide);
    float *wide = fetched(Wide), *narrow = fetched(Narrow), *before = fetched(X);
    ok(!memcmp(wide, before, N * sizeof(float)), "convert %s to f32: the same values", ops->name);
    round_to(before, N, BF16);
    ok(!memcmp(narrow, before, N * sizeof(float)), "convert %s to bf16: to nearest", ops->name);
    Mat all[] = {X, Y, Wide, Narrow, WithNan};
    release_all(all, COUNT(all));
    ops->release(total);
    ops->release(scale);
    ops->release(largest);
    free(x); free(y); free(want); free(sum); free(wide); free(narrow); free(before);
}
// A gradient that adds up: a hundred times a hundredth of a bf16 step. To nearest it would never move; stochastically it arrives, on average,
// and every BF16 backend takes the same bits, whether rows are octets or not.
static void stochastic_sum(int rows, int cols) {
    size_t n = (size_t)rows * cols;
    float *ones = (float*)host_alloc(n * sizeof(float)), *parts = (float*)host_alloc(n * sizeof(float)), part = 1.0f / 128 / 100;
    for (size_t i = 0; i < n; i++) ones[i] = 1.25f, parts[i] = part;
    Mat Y = put(ones, rows, cols, BF16), X = put(parts, rows, cols, F32);
    for (int step = 0; step < 100; step++) {
        Noise noise = {7, (uint64_t)step, 24, NULL};
        ops->add(Y, X, &noise);
    }
    float* got = fetched(Y);
    double mean = 0;
    for (size_t i = 0; i < n; i++) mean += got[i] / (double)n;
    ok(fabs(mean - (1.25 + 100 * part)) < 0.01 * sqrt(3.0 / (double)n), "add %s %dx%d stochastically: mean %.5f, expected %.5f", ops->name, rows, cols, mean,
       1.25 + 100 * (double)part);
    static uint64_t bits_of_bf16[2];
    uint64_t bits = fingerprint_add(kFingerprintStart, got, n * sizeof(float)), *wanted = &bits_of_bf16[cols % 8 != 0];
    if (ops == &cpu_bf16_ops) *wanted = bits;
    else if (ops->act == BF16) ok(bits == *wanted, "add %s %dx%d stochastically: the bits of cpu_bf16", ops->name, rows, cols);
    ops->release(Y.data);
    ops->release(X.data);
    free(ones); free(parts); free(got);
}
static void sums_case(void) {
    stochastic_sum(40, 264);
    stochastic_sum(33, 53);
    sums_shape(37, 53);
    sums_shape(5, 264);
    sums_shape(1, 600001);
}

// ---- codes on the wire: exact
static void wire_shape(int rows, int cols, int ld, int ld_t, Fmt fmt) {
    Mat x = mat(NULL, rows, cols, fmt), y = mat(NULL, cols, rows, fmt);
    x.ld = ld;
    y.ld = ld_t;
    size_t count = mat_bytes(x), packed_bytes = count / 4 * 3;
    uint8_t *codes = (uint8_t*)host_alloc(count), *got = (uint8_t*)host_alloc(mat_bytes(y)), *back = (uint8_t*)host_alloc(count);
    for (size_t i = 0; i < count; i++) codes[i] = code_from_f32(4 * test_normal(), fmt);
    x.data = put_bytes(codes, count);
    y.data = ops->alloc(mat_bytes(y));
    ops->transpose_codes(y, x);
    ops->download(got, y.data, mat_bytes(y));
    int wrong = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) wrong += got[(size_t)j * ld_t + i] != codes[(size_t)i * ld + j];
    for (int j = 0; j < cols; j++)
        for (int i = rows; i < ld_t; i++) wrong += got[(size_t)j * ld_t + i] != 0;   // behind a row nothing is written
    ok(wrong == 0, "transpose_codes %s %dx%d: %d differ", ops->name, rows, cols, wrong);
    if (fmt == FP6_E3M2 || fmt == FP6_E2M3) {
        uint8_t *packed = (uint8_t*)ops->alloc(packed_bytes), *got_packed = (uint8_t*)host_alloc(packed_bytes);
        ops->pack_fp6(packed, x);
        ops->download(got_packed, packed, packed_bytes);
        ops->zero(x.data, count);
        ops->unpack_fp6(x, packed);
        ops->download(back, x.data, count);
        wrong = 0;
        for (size_t i = 0; i < count; i++) {
            const uint8_t* group = got_packed + i / 4 * 3;
            uint32_t bits = group[0] | (uint32_t)group[1] << 8 | (uint32_t)group[2] << 16;
            wrong += (bits >> 6 * (i % 4) & 63) != fp6_pack_code(codes[i], fmt) || back[i] != codes[i];
        }
        ok(wrong == 0, "pack_fp6 and back %s %s %zu codes: %d differ", ops->name, fmt_name(fmt), count, wrong);
        ops->release(packed);
        free(got_packed);
    }
    ops->release(x.data);
    ops->release(y.data);
    free(codes); free(got); free(back);
}
static void wire_case(void) {
    wire_shape(130, 145, 160, 144, FP6_E3M2);
    wire_shape(33, 9, 12, 35, FP6_E2M3);
    wire_shape(256, 64, 64, 256, INT8);
}

// ---- optimizer
static void adamw_formats(bool master, Fmt grad_fmt, Fmt state_fmt) {
    enum { N = 1000, STEPS = 5 };
    float *w = test_normals(N, 1), *zeros = (float*)host_alloc(N * sizeof(float));
    Mat W = put(w, 1, N, ops->act), Master = put(w, 1, N, F32), M = put(zeros, 1, N, state_fmt),
        V = put(zeros, 1, N, state_fmt);
    double *wd = doubles(w, N), m[N] = {0}, v[N] = {0};
    float* grad_scale = put_float(0.5f);
    AdamW a = {W.data, master ? (float*)Master.data : NULL, NULL, M.data, V.data, N, grad_fmt, state_fmt, grad_scale,
               0.01f, 0.9f, 0.999f, 1e-8f, 0.1f, 0, {42, 0, 7, NULL}, NULL};
    for (int t = 1; t <= STEPS; t++) {
        float* g = test_normals(N, 1);
        Mat G = put(g, 1, N, grad_fmt);
        a.grad = G.data;
        a.step = t;
        a.noise.stream = (uint64_t)t;
        ops->adamw(&a, 1);
        for (int i = 0; i < N; i++) {
            double scaled = 0.5 * g[i], beta1 = a.beta1, beta2 = a.beta2;
            m[i] = beta1 * m[i] + (1 - beta1) * scaled;
            v[i] = beta2 * v[i] + (1 - beta2) * scaled * scaled;
            wd[i] -= a.lr * (m[i] / (1 - pow(beta1, t)) / (sqrt(v[i] / (1 - pow(beta2, t))) + a.eps) + a.weight_decay * wd[i]);
        }
        ops->release(G.data);
        free(g);
    }
    char name[64];
    snprintf(name, sizeof name, "adamw%s grad %s state %s", master ? " master" : "", fmt_name(grad_fmt), fmt_name(state_fmt));
    float *got = fetched(master ? Master : W), *read = fetched(W), *want = floats(wd, N);
    bool stochastic = state_fmt == BF16 || (ops->act == BF16 && !master);
    close_case(name, got, want, N, stochastic ? 1e-2 : kF32Tol, stochastic ? 1e-2 : kF32Tol);
    if (master) {
        round_to(got, N, ops->act);
        ok(!memcmp(got, read, N * sizeof(float)), "%s %s: the layers read the rounded master", name, ops->name);
    }
    Mat all[] = {W, Master, M, V};
    release_all(all, 4);
    ops->release(grad_scale);
    free(w); free(zeros); free(wd); free(got); free(read); free(want);
}

// A thousand equal weights, each to be lowered by a hundredth of a bf16 step, 50 times: to nearest none would ever move.
// And the noise belongs to the value: updating in two halves gives the same bits.
static void adamw_stochastic(void) {
    enum { N = 4096, STEPS = 50, SPLIT = 1234 };
    float *ones = (float*)host_alloc(N * sizeof(float)), *zeros = (float*)host_alloc(N * sizeof(float));
    for (int i = 0; i < N; i++) ones[i] = 1.25f;
    Mat whole[3], halves[3], G = put(ones, 1, N, F32);
    for (int k = 0; k < 3; k++) {
        whole[k] = put(k ? zeros : ones, 1, N, ops->act);
        halves[k] = put(k ? zeros : ones, 1, N, ops->act);
    }
    float *grad_scale = put_float(1), lr = 1.0f / 128 / 100;
    size_t size = fmt_bytes(ops->act);
    for (int t = 1; t <= STEPS; t++) {
        AdamW a = {whole[0].data, NULL, G.data, whole[1].data, whole[2].data, N, F32, ops->act, grad_scale,
                   lr, 0.9f, 0.999f, 1e-8f, 0, t, {42, (uint64_t)t, 1000, NULL}, NULL};
        ops->adamw(&a, 1);
        for (int half = 0; half < 2; half++) {
            size_t first = half ? SPLIT : 0;
            AdamW part = {(char*)halves[0].data + first * size, NULL, (float*)G.data + first, (char*)halves[1].data + first * size,
                          (char*)halves[2].data + first * size, half ? N - SPLIT : SPLIT, F32, ops->act, grad_scale,
                          lr, 0.9f, 0.999f, 1e-8f, 0, t, {42, (uint64_t)t, 1000 + first, NULL}, NULL};
            ops->adamw(&part, 1);
        }
    }
    float *w = fetched(whole[0]), *m = fetched(whole[1]);
    double mean = 0, mean_m = 0;
    for (int i = 0; i < N; i++) {
        mean += w[i] / N;
        mean_m += m[i] / N;
    }
    ok(fabs(mean - (1.25 - STEPS * lr)) < 3e-4, "adamw %s: mean %.5f after tiny steps, expected %.5f", ops->name, mean, 1.25 - (double)STEPS * lr);
    ok(fabs(mean_m - 1.25 * (1 - pow(0.9, STEPS))) < 3e-3, "adamw %s: mean of m %.5f", ops->name, mean_m);
    static uint64_t bf16_bits;
    uint64_t bits = kFingerprintStart;
    bool same = true;
    for (int k = 0; k < 3; k++) {
        float *a = fetched(whole[k]), *b = fetched(halves[k]);
        same = same && !memcmp(a, b, N * sizeof(float));
        bits = fingerprint_add(bits, a, N * sizeof(float));
        free(a);
        free(b);
    }
    ok(same, "adamw %s: the same bits in two parts", ops->name);
    if (ops == &cpu_bf16_ops) bf16_bits = bits;
    else if (ops->act == BF16) ok(bits == bf16_bits, "adamw %s: the bits of cpu_bf16", ops->name);
    release_all(whole, 3);
    release_all(halves, 3);
    ops->release(G.data);
    ops->release(grad_scale);
    free(ones); free(zeros); free(w); free(m);
}
// A value of any size, down to what is not normal; one in eight is 0.
static float any_float(void) {
    float x = test_uniform() < 0.125 ? 0 : (float)ldexp(1 + test_uniform(), (int)(test_uniform() * 270) - 145);
    return test_uniform() < 0.5 ? -x : x;
}
// Two steps from values of all sizes: the bits of the CPU, in each of `kSizes` ways. Some octets are moderate, some never had a gradient.
enum { kSizes = 8 };
static void adamw_any_size(int way, bool master, Fmt fmt, float eps, float weight_decay) {
    enum { N = 8 * 512 + 5, ARRAYS = 4 };
    if (ops->act != BF16) return;
    float* start[ARRAYS];   // w, m, v, g
    for (int k = 0; k < ARRAYS; k++) {
        start[k] = test_normals(N, k == 3 ? 1e-3f : k == 2 ? 1e-6f : 1e-2f);
        for (int i = 0; i < N; i++) {
            if (i / 8 % 3 == 0) start[k][i] = any_float();
            else if (i / 8 % 3 == 1 && k > 0) start[k][i] = 0;
            if (k == 2) start[k][i] = fabsf(start[k][i]);
        }
    }
    Mat W = put(start[0], 1, N, BF16), Master = put(start[0], 1, N, F32), M = put(start[1], 1, N, fmt), V = put(start[2], 1, N, fmt),
        G = put(start[3], 1, N, fmt), all[] = {W, Master, M, V, G};
    float* grad_scale = put_float(1);
    for (int t = 3; t < 5; t++) {
        AdamW a = {W.data, master ? (float*)Master.data : NULL, G.data, M.data, V.data, N, fmt, fmt, grad_scale,
                   0.01f, 0.9f, 0.999f, eps, weight_decay, t, {42, (uint64_t)t, 8, NULL}, NULL};
        ops->adamw(&a, 1);
    }
    static uint64_t cpu_bits[kSizes];
    uint64_t bits = kFingerprintStart;
    for (int k = 0; k < ARRAYS; k++) {
        float* got = fetched(all[k]);
        for (int i = 0; i < N; i++)
            if (isnan(got[i])) got[i] = NAN;   // which one does not matter
        bits = fingerprint_add(bits, got, N * sizeof(float));
        free(got);
        free(start[k]);
    }
    if (ops == &cpu_bf16_ops) cpu_bits[way] = bits;
    else ok(bits == cpu_bits[way], "adamw%s %s of any size, eps %g, weight decay %g, %s: the bits of cpu_bf16", master ? " master" : "",
            fmt_name(fmt), eps, weight_decay, ops->name);
    release_all(all, 5);
    ops->release(grad_scale);
}
// The norm found on the way: of the gradient, over several blocks, and nothing else changes.
static void adamw_sum_squares(Fmt fmt) {
    enum { N = 1 << 20 | 5 };
    float *start[2] = {test_normals(N, 1), test_normals(N, 1e-3f)}, *zeros = (float*)host_alloc(N * sizeof(float));
    Mat G = put(start[1], 1, N, fmt);
    float *sums = (float*)ops->alloc(kSquareSums * sizeof(float)), *one = put_float(1), *w[2];
    for (int summed = 0; summed < 2; summed++) {
        Mat W = put(start[0], 1, N, ops->act), M = put(zeros, 1, N, fmt), V = put(zeros, 1, N, fmt), all[] = {W, M, V};
        AdamW a = {W.data, NULL, G.data, M.data, V.data, N, fmt, fmt, summed ? NULL : one, 0.01f, 0.9f, 0.999f, 1e-8f, 0, 1, {42, 1, 8, NULL},
                   summed ? sums : NULL};
        ops->adamw(&a, 1);
        w[summed] = fetched(W);
        release_all(all, 3);
    }
    static float got_sums[kSquareSums];
    ops->download(got_sums, sums, sizeof got_sums);
    float* g = fetched(G);
    double got = 0, want = 0;
    for (int i = 0; i < kSquareSums; i++) got += got_sums[i];
    for (int i = 0; i < N; i++) want += (double)g[i] * g[i];
    ok(fabs(got / want - 1) < 1e-6, "adamw %s %s: sum of squares %.8g, expected %.8g", fmt_name(fmt), ops->name, got, want);
    ok(!memcmp(w[0], w[1], N * sizeof(float)), "adamw %s %s: the same weights with and without the sum", fmt_name(fmt), ops->name);
    ops->release(G.data);
    ops->release(sums);
    ops->release(one);
    free(start[0]); free(start[1]); free(zeros); free(w[0]); free(w[1]); free(g);
}
// Updates that come together give the bits of one after the other; a wrong weight decay of the last one is noticed.
static void adamw_together(bool master, Fmt fmt) {
    enum { PIECES = 5, N = 33333, WAYS = 3, ARRAYS = 4 };   // alone, together, together with a planted error
    static const int first[PIECES + 1] = {0, 5000, 5008, 5013, 20000, N};
    float *start = test_normals(N, 1), *zeros = (float*)host_alloc(N * sizeof(float));
    Mat G = put(start, 1, N, fmt);
    uint64_t bits[WAYS];
    double squares[WAYS] = {0};
    for (int way = 0; way < WAYS; way++) {
        float* sums = (float*)ops->alloc(kSquareSums * sizeof(float));
        Mat all[ARRAYS] = {put(start, 1, N, ops->act), put(start, 1, N, F32), put(zeros, 1, N, fmt), put(zeros, 1, N, fmt)};
        AdamW a[PIECES];
        for (int i = 0; i < PIECES; i++) {
            Mat w = mat_cols(all[0], first[i], 0), exact = mat_cols(all[1], first[i], 0), m = mat_cols(all[2], first[i], 0),
                v = mat_cols(all[3], first[i], 0), g = mat_cols(G, first[i], 0);
            AdamW piece = {w.data, master ? (float*)exact.data : NULL, g.data, m.data, v.data, (size_t)(first[i + 1] - first[i]), fmt, fmt, NULL,
                           0.01f, 0.9f, 0.999f, 1e-8f, i % 2 || (way == 2 && i == PIECES - 1) ? 0.1f : 0, 1,
                           {42, 1, (uint64_t)(first[i] + 16 * i), NULL}, sums};
            a[i] = piece;
        }
        for (int i = 0; way == 0 && i < PIECES; i++) ops->adamw(&a[i], 1);
        if (way) ops->adamw(a, PIECES);
        static float got_sums[kSquareSums];
        ops->download(got_sums, sums, sizeof got_sums);
        for (int i = 0; i < kSquareSums; i++) squares[way] += got_sums[i];
        bits[way] = kFingerprintStart;
        for (int k = 0; k < ARRAYS; k++) {
            float* got = fetched(all[k]);
            bits[way] = fingerprint_add(bits[way], got, N * sizeof(float));
            free(got);
        }
        release_all(all, ARRAYS);
        ops->release(sums);
    }
    ok(bits[0] == bits[1] && bits[0] != bits[2] && fabs(squares[1] / squares[0] - 1) < 1e-6,
       "adamw%s %s %s: together the bits of one after the other, sums of squares %.8g and %.8g", master ? " master" : "", fmt_name(fmt), ops->name,
       squares[1], squares[0]);
    ops->release(G.data);
    free(start); free(zeros);
}
static void adamw_case(void) {
    adamw_together(true, F32);
    adamw_together(false, BF16);
    adamw_sum_squares(F32);
    adamw_sum_squares(BF16);
    for (int way = 0; way < kSizes; way += 2) {
        float eps = way == 4 ? 0 : way == 6 ? 1e-20f : 1e-8f, weight_decay = way == 2 ? 0.1f : 0;
        adamw_any_size(way, true, way == 6 ? BF16 : F32, eps, weight_decay);
        adamw_any_size(way + 1, false, way == 6 ? F32 : BF16, eps, weight_decay);
    }
    adamw_formats(false, F32, F32);
    adamw_formats(true, F32, F32);
    adamw_formats(true, BF16, BF16);
    adamw_formats(false, BF16, BF16);
    adamw_stochastic();
}

// ---- random numbers: the known answers that the paper's authors publish with Random123
static void philox_case(void) {
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu},
        {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u, 0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u},
    };
    for (int k = 0; k < 3; k++) {
        Philox counter;
        memcpy(counter.word, known[k], sizeof counter.word);
        Philox out = philox4x32(counter, known[k][4], known[k][5]);
        ok(!memcmp(out.word, known[k] + 6, sizeof out.word), "philox4x32-10 known answer %d", k);
    }
    double mean = 0;
    for (int i = 0; i < 10000; i++) mean += uniform_from_word(random_words(1, (uint64_t)i, 0).word[i % 4]) / 1e4;
    ok(fabs(mean - 0.5) < 0.01, "uniform numbers have the mean %.4f", mean);
}

// ---- errors
static void wrong_norm_shape(void* arg) {
    (void)arg;
    float x[64] = {0};
    Mat m = mat(x, 4, 8, F32), other = mat(x, 4, 7, F32);
    cpu_f32_ops.rmsnorm_forward(m, x, m, other, mat(NULL, 4, 8, F32), mat(x, 1, 8, F32), kEps, kPrepNone);
}
static void unsupported_order(void* arg) {
    (void)arg;
    float x[64] = {0};
    cpu_f32_ops.rotate(mat(x, 7, 3, F32), mat(x, 7, 3, F32), ROTATE_ROWS, false, 0, NULL);
}
static void quantize_without_maximum(void* arg) {
    (void)arg;
    float x[64] = {0}, scale;
    QMat q = {mat(x, 2, 2, INT8), mat(NULL, 2, 2, INT8), &scale, PER_TENSOR};
    cpu_f32_ops.quantize(q, mat(x, 2, 2, F32), kRotateNone, NULL, INT8, 1);
}
static void adamw_step_zero(void* arg) {
    (void)arg;
    AdamW a;
    memset(&a, 0, sizeof a);
    cpu_f32_ops.adamw(&a, 1);
}
#ifdef HALO_SIMT
static void too_much_memory(void* arg) { cuda_ops.alloc(*(size_t*)arg); }
#endif
static void errors_case(void) {
#ifdef HALO_SIMT
    size_t bytes = (size_t)3 << 40;   // of 1 << 40
    expect_exit(too_much_memory, &bytes, kExitUser, "out of GPU memory: 3072.00 GiB were wanted, 1024.00 are free", "out of memory");
#endif
    expect_exit(wrong_norm_shape, NULL, kExitBug, "rmsnorm_forward: a matrix is (4, 7)", "rmsnorm shape");
    expect_exit(unsupported_order, NULL, kExitBug, "no Hadamard transform of order 7", "rotate order");
    expect_exit(quantize_without_maximum, NULL, kExitBug, "no maximum is given", "quantize absmax");
    expect_exit(adamw_step_zero, NULL, kExitBug, "step 0", "adamw step");
}

// ---- one row per layer: run on every backend, with the same random numbers
#define ON_EVERY_BACKEND(layer)                                    \
    static void layer##_everywhere(void) {                         \
        uint64_t seed = test_seed;                                 \
        const Ops* backends[kMaxBackends];                         \
        int count = test_backends(backends);                       \
        for (int b = 0; b < count; b++) {                          \
            ops = backends[b];                                     \
            test_seed = seed;                                      \
            check_number = 0;                                      \
            layer##_case();                                        \
        }                                                          \
    }
ON_EVERY_BACKEND(embed)
ON_EVERY_BACKEND(rmsnorm)
ON_EVERY_BACKEND(rmsnorm_narrow)
ON_EVERY_BACKEND(rope)
ON_EVERY_BACKEND(attention)
ON_EVERY_BACKEND(attention_isolation)
ON_EVERY_BACKEND(attention_cached)
ON_EVERY_BACKEND(swiglu)
ON_EVERY_BACKEND(prep)
ON_EVERY_BACKEND(backward_maxima)
ON_EVERY_BACKEND(cross_entropy)
ON_EVERY_BACKEND(rotate)
ON_EVERY_BACKEND(quantize)
ON_EVERY_BACKEND(gemm)
ON_EVERY_BACKEND(argmax)
ON_EVERY_BACKEND(sums)
ON_EVERY_BACKEND(wire)
ON_EVERY_BACKEND(adamw)

// ---- threads: a forward and a backward pass through the layers that sum over rows
static int print_fingerprint(void) {
    enum { B = 3, T = 70, NH = 4, NKV = 2, HD = 16, C = NH * HD, COLS = (NH + 2 * NKV) * HD, BT = B * T };
    uint64_t hash = kFingerprintStart;
    for (int n = 0; n < 2; n++) {
        ops = n ? &cpu_bf16_ops : &cpu_f32_ops;
        int ranges[2 * BT];
        document_ranges(ranges, ranges + BT, B, T, 40, 0);
        Attn shape = {B, T, NH, NKV, HD, ranges, ranges + BT};
        float *qkv = test_normals(BT * COLS, 1), *x = test_normals(BT * C, 1), *w = test_normals(C, 1),
            *one = put_float(1);
        Mat QKV = put(qkv, BT, COLS, ops->act), DQKV = put_zeros(BT, COLS, ops->act), X = put(x, BT, C, ops->act);
        Mat W = put(w, 1, C, ops->act), Y = put_zeros(BT, C, ops->act), DW = put_zeros(1, C, F32), none = X;
        none.data = NULL;
        float *lse = (float*)ops->alloc(BT * NH * sizeof(float)), *rstd = (float*)ops->alloc(BT * sizeof(float)),
            *total = put_float(0);
        void *attention_scratch = ops->alloc(ops->attention_scratch(shape)),
            *norm_scratch = ops->alloc(ops->rmsnorm_scratch(BT, C));
        ops->attention_forward(Y, lse, QKV, shape, total);
        ops->attention_backward(DQKV, X, Y, QKV, lse, shape, attention_scratch);
        ops->rmsnorm_forward(Y, rstd, X, X, none, W, kEps, kPrepNone);
        ops->rmsnorm_backward(Y, DW, X, X, W, rstd, norm_scratch, NULL);
        ops->rotate(Y, Y, ROTATE_COLS, false, 0, NULL);
        ops->sum_squares(total, DQKV);
        AdamW a = {W.data, NULL, DW.data, lse, rstd, C, F32, F32, one, 0.1f, 0.9f, 0.999f, 1e-8f, 0, 1, {1, 1, 0, NULL}, NULL};
        ops->adamw(&a, 1);
        hash = fingerprint_add(hash, DQKV.data, mat_bytes(DQKV));
        hash = fingerprint_add(hash, Y.data, mat_bytes(Y));
        hash = fingerprint_add(hash, DW.data, mat_bytes(DW));
        hash = fingerprint_add(hash, W.data, mat_bytes(W));
        hash = fingerprint_add(hash, total, sizeof(float));
        Mat all[] = {QKV, DQKV, X, W, Y, DW};
        release_all(all, COUNT(all));
        void* rest[] = {lse, rstd, total, one, attention_scratch, norm_scratch};
        for (int i = 0; i < COUNT(rest); i++) ops->release(rest[i]);
        free(qkv); free(x); free(w);
    }
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}
static const char* program;
static void threads_case(void) { same_bits_on_any_threads(program, "layers"); }

static const Case cases[] = {
    {"errors", errors_case},
    {"philox", philox_case},
    {"embed", embed_everywhere},
    {"rmsnorm", rmsnorm_everywhere},
    {"rope", rope_everywhere},
    {"attention", attention_everywhere},
    {"attention.isolation", attention_isolation_everywhere},
    {"attention.cached", attention_cached_everywhere},
    {"swiglu", swiglu_everywhere},
    {"prep", prep_everywhere},
    {"backward_maxima", backward_maxima_everywhere},
    {"cross_entropy", cross_entropy_everywhere},
    {"argmax", argmax_everywhere},
    {"rotate", rotate_everywhere},
    {"quantize", quantize_everywhere},
    {"gemm", gemm_everywhere},
    {"sums", sums_everywhere},
    {"wire", wire_everywhere},
    {"adamw", adamw_everywhere},
    {"rmsnorm.narrow", rmsnorm_narrow_everywhere},
    {"threads", threads_case},
};

int main(int argc, char** argv) {
    program = argv[0];
    if (argc == 2 && !strcmp(argv[1], "--fingerprint")) return print_fingerprint();
    return test_main(cases, COUNT(cases), argc, argv);
}
