// Linear layers under recipes: the reference pack's halo_linear products, code by code; every recipe row against exact
// products with the error it is allowed; shapes that fit no tile and token counts that are no Hadamard order.
#include "../data/safetensors.h"
#include "../halo/hadamard.h"
#include "../halo/quant_stats.h"
#include "backends.h"

typedef struct {
    int M, N, K;
    float *X, *W, *dY;
} Problem;

typedef struct {
    float *Y, *dX, *dW;          // (M,N), (M,K), (N,K)
    uint8_t *X_codes, *W_codes;  // as F read them, (M, ld), (N, ld); NULL for plain operands
    int ld;
} Result;

static void* to_backend(const Ops* ops, const float* x, size_t n) {
    void* p = ops->alloc(n * fmt_bytes(ops->act));
    if (ops->act == F32) {
        ops->upload(p, x, n * sizeof(float));
        return p;
    }
    uint16_t* half = (uint16_t*)host_alloc(n * 2);
    for (size_t i = 0; i < n; i++) half[i] = bf16_from_f32(x[i]);
    ops->upload(p, half, n * 2);
    free(half);
    return p;
}

static float* from_backend(const Ops* ops, const void* p, size_t n, Fmt fmt) {
    float* x = (float*)host_alloc(n * sizeof(float));
    ops->download(x, p, n * fmt_bytes(fmt));
    if (fmt == BF16)
        for (size_t i = n; i-- > 0;) {
            uint16_t half;
            memcpy(&half, (char*)x + 2 * i, 2);
            x[i] = f32_from_bf16(half);
        }
    return x;
}

static uint8_t* codes_from_backend(const Ops* ops, Mat codes) {
    if (!codes.data || fmt_bytes(codes.fmt) != 1) return NULL;
    uint8_t* c = (uint8_t*)host_alloc(mat_bytes(codes));
    ops->download(c, codes.data, mat_bytes(codes));
    return c;
}

// The whole layer, forward and backward, as the model runs it; `parts` cuts N into stacked matrices.
static Result run_linear(const Ops* ops, const Recipe* recipe, Problem p, int parts, int token_block) {
    LinearShape shape = {p.K, parts, {0, 0, 0}};
    for (int i = 0; i < parts; i++) shape.N[i] = p.N / parts + (i == 0 ? p.N % parts : 0);
    Linear ln;
    WeightOperand wq;
    InputOperand in;
    GradOperand grad;
    Mat X = mat(to_backend(ops, p.X, (size_t)p.M * p.K), p.M, p.K, ops->act);
    Mat W = mat(to_backend(ops, p.W, (size_t)p.N * p.K), p.N, p.K, ops->act);
    Mat dY = mat(to_backend(ops, p.dY, (size_t)p.M * p.N), p.M, p.N, ops->act);
    void* memory = NULL;
    for (int pass = 0; pass < 2; pass++) {
        Arena arena = {(char*)memory, 0};
        memset(&ln, 0, sizeof ln);
        linear_place(&ln, &arena, ops, recipe, &shape, 1, p.M, token_block);
        linear_place_weight(&ln, &wq, &arena, &arena, shape);
        linear_place_input(&ln, &in, &arena, &arena, shape, X);
        linear_place_grad(&grad, &arena, dY);
        if (pass == 0) memory = ops->alloc(arena.used);
    }
    Mat Y = mat(ops->alloc((size_t)p.M * p.N * fmt_bytes(ops->act)), p.M, p.N, ops->act);
    Mat dX = mat(ops->alloc((size_t)p.M * p.K * fmt_bytes(ops->act)), p.M, p.K, ops->act);
    Mat dW = mat(ops->alloc((size_t)p.N * p.K * sizeof(float)), p.N, p.K, F32);
    linear_prepare_weights(&ln, &wq, &W, &shape, 1);
    linear_prepare_input(&ln, &in, X, kPrepNone);
    linear_forward(&ln, Y, 0, &in, W, &wq, shape);
    Result r = {NULL, NULL, NULL, codes_from_backend(ops, in.f.codes), codes_from_backend(ops, wq.f[0].codes), in.f.codes.ld};
    for (int micro_step = 0; micro_step < 2; micro_step++) {   // the second one adds
        linear_measure_grad(&ln, &grad, shape);
        linear_backward(&ln, dX, 0, dW, micro_step, &grad, &in, W, &wq, shape);
    }
    linear_finish_grad(&ln, dW);
    r.Y = from_backend(ops, Y.data, (size_t)p.M * p.N, ops->act);
    r.dX = from_backend(ops, dX.data, (size_t)p.M * p.K, ops->act);
    r.dW = from_backend(ops, dW.data, (size_t)p.N * p.K, F32);
    for (size_t i = 0; i < (size_t)p.N * p.K; i++) r.dW[i] *= 0.5f;
    void* const used[] = {X.data, W.data, dY.data, Y.data, dX.data, dW.data, memory};
    for (int i = 0; i < COUNT(used); i++) ops->release(used[i]);
    return r;
}

static void free_result(Result r) {
    free(r.Y);
    free(r.dX);
    free(r.dW);
    free(r.X_codes);
    free(r.W_codes);
}

// ---- the pack

static float* pack_floats(const SafeTensors* pack, const char* name) {
    const Tensor* t = safetensors_find(pack, name);
    check(t, "the pack has no %s", name);
    float* x = (float*)host_alloc(t->elements * sizeof(float));
    tensor_read(t, 0, t->elements, F32, x);
    return x;
}

// Codes of x (rows, n) by the definition in double: rotate with the dense Sylvester matrix if asked, absmax / max, round.
static uint8_t* codes_in_double(const float* x, int rows, int n, bool rotate, Fmt fmt) {
    double* y = (double*)host_alloc(sizeof(double) * (size_t)rows * n);
    double absmax = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < n; j++) {
            double sum = 0;
            if (rotate)
                for (int i = 0; i < n; i++) sum += (__builtin_popcount(i & j) & 1 ? -1.0 : 1.0) * x[(size_t)r * n + i] / sqrt(n);
            else sum = x[(size_t)r * n + j];
            y[(size_t)r * n + j] = sum;
            absmax = fmax(absmax, fabs(sum));
        }
    double scale = absmax / fmt_max(fmt);
    uint8_t* codes = (uint8_t*)host_alloc((size_t)rows * n);
    for (size_t i = 0; i < (size_t)rows * n; i++) codes[i] = code_from_f32((float)(y[i] / scale), fmt);
    free(y);
    return codes;
}

static double share_different(const uint8_t* got, int ld, const uint8_t* want, int rows, int n) {
    int different = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < n; j++) different += got[(size_t)r * ld + j] != want[(size_t)r * n + j];
    return (double)different / ((double)rows * n);
}

static void codes_match(const char* what, const uint8_t* got, int ld, const float* x, int rows, int n, bool rotate, Fmt fmt, double most) {
    uint8_t* want = codes_in_double(x, rows, n, rotate, fmt);
    uint8_t* other = codes_in_double(x, rows, n, !rotate, fmt);
    double share = share_different(got, ld, want, rows, n), planted = share_different(got, ld, other, rows, n);
    ok(share <= most && planted > 0.1, "%s codes: %.5f differ (a missing or extra rotation: %.3f)", what, share, planted);
    free(want);
    free(other);
}

// Every backend makes the pack's codes, but for values that lie by a tie; a GPU holds values in FP16 within a rotation (test_quantize.c). BF16
// backends round the products, and dX twice or three times.
static const double kF32Pack = 1e-3, kBf16Pack = 1e-2, kFlipped = 1e-3, kRotatedOnGpu = 1.6e-2;

static void pack_on(const Ops* ops, const char* path) {
    bool f32 = ops->act == F32;
    double rotated = ops == &cpu_f32_ops || ops == &cpu_bf16_ops ? kFlipped : kRotatedOnGpu;
    SafeTensors* pack = safetensors_open(path);
    Problem p = {128, 64, 256, pack_floats(pack, "X"), pack_floats(pack, "W"), pack_floats(pack, "dY")};
    for (int level = 0; level < 3; level++) {
        const char* const dtypes[] = {"int8", "fp8", "fp6"};
        for (int d = 0; d < 3; d++) {
            char name[64], level_name[16];
            snprintf(level_name, sizeof level_name, "halo%d", level);
            Recipe recipe = *recipe_pick(level_name, dtypes[d]);
            Opnd* const operands[] = {&recipe.fx, &recipe.fw, &recipe.ee, &recipe.ew, &recipe.ge, &recipe.gx};
            for (int i = 0; i < 6; i++) operands[i]->clip = 1;   // as the pack was made
            Result r = run_linear(ops, &recipe, p, 1, 0);
            const struct {
                const char* name;
                const float* got;
                size_t n;
            } outputs[] = {{"Y", r.Y, (size_t)p.M * p.N}, {"dX", r.dX, (size_t)p.M * p.K}, {"dW", r.dW, (size_t)p.N * p.K}};
            for (int i = 0; i < 3; i++) {
                snprintf(name, sizeof name, "%s.%s_%s", outputs[i].name, level_name, dtypes[d]);
                float* want = pack_floats(pack, name);
                close_to(outputs[i].got, want, outputs[i].n, f32 ? kF32Pack : kBf16Pack, "pack %s %s", name, ops->name);
                free(want);
            }
            snprintf(name, sizeof name, "pack %s_%s X %s", level_name, dtypes[d], ops->name);
            codes_match(name, r.X_codes, r.ld, p.X, p.M, p.K, recipe.fx.rotate, recipe.fx.fmt, recipe.fx.rotate ? rotated : kFlipped);
            snprintf(name, sizeof name, "pack %s_%s W %s", level_name, dtypes[d], ops->name);
            codes_match(name, r.W_codes, r.ld, p.W, p.N, p.K, recipe.fw.rotate, recipe.fw.fmt, recipe.fw.rotate ? rotated : kFlipped);
            free_result(r);
        }
    }
    free(p.X);
    free(p.W);
    free(p.dY);
    safetensors_close(pack);
}

static void pack_case(void) {
    const char* path = refpack("fixtures/halo_linear/expected.safetensors");
    if (!path) return;
    const Ops* backends[kMaxBackends];
    int count = test_backends(backends);
    for (int b = 0; b < count; b++) pack_on(backends[b], path);
}

// ---- every recipe against the exact products

static Problem make_problem(int M, int N, int K) {
    Problem p = {M, N, K, test_normals((size_t)M * K, 1), test_normals((size_t)N * K, 0.05f), test_normals((size_t)M * N, 1e-4f)};
    return p;
}

static void free_problem(Problem p) {
    free(p.X);
    free(p.W);
    free(p.dY);
}

static float* product(const float* a, const float* b, int M, int N, int K, bool a_t, bool b_t) {
    float* c = (float*)host_alloc(sizeof(float) * (size_t)M * N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += (double)(a_t ? a[(size_t)k * M + i] : a[(size_t)i * K + k]) * (b_t ? b[(size_t)k * N + j] : b[(size_t)j * K + k]);
            c[(size_t)i * N + j] = (float)sum;
        }
    return c;
}

// The error each format is allowed on normal data: its rounding's, measured once and widened by about a third.
static double budget(Opnd a, Opnd b) {
    double worst = 0;
    const Opnd both[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        double e = both[i].fmt == BF16 ? 1e-6 : both[i].fmt == INT8 ? 0.009 : both[i].fmt == FP8_E4M3 ? 0.027 : 0.075;
        worst += e * e;
    }
    return 1.4 * sqrt(worst);
}

static void recipes_case(void) {
    const struct {
        int M, N, K, parts, block;
    } shapes[] = {{64, 48, 64, 1, 0}, {50, 36, 144, 3, 0}, {130, 33, 172, 2, 0}, {100, 24, 96, 1, 32}};
    int count;
    const Recipe* table = recipe_table(&count);
    for (int s = 0; s < COUNT(shapes); s++) {
        Problem p = make_problem(shapes[s].M, shapes[s].N, shapes[s].K);
        float* Y = product(p.X, p.W, p.M, p.N, p.K, false, false);
        float* dX = product(p.dY, p.W, p.M, p.K, p.N, false, true);
        float* dW = product(p.dY, p.X, p.N, p.K, p.M, true, true);
        for (int i = 0; i < count; i++) {
            const Recipe* r = &table[i];
            if (!strncmp(r->name, "haloi", 5)) continue;   // its numbers mean nothing
            Result got = run_linear(&cpu_f32_ops, r, p, shapes[s].parts, shapes[s].block);
            const char* name = r->name;
            close_to(got.Y, Y, (size_t)p.M * p.N, budget(r->fx, r->fw), "%s %dx%dx%d Y", name, p.M, p.N, p.K);
            close_to(got.dX, dX, (size_t)p.M * p.K, budget(r->ee, r->ew), "%s %dx%dx%d dX", name, p.M, p.N, p.K);
            close_to(got.dW, dW, (size_t)p.N * p.K, budget(r->ge, r->gx), "%s %dx%dx%d dW", name, p.M, p.N, p.K);
            free_result(got);
        }
        free(Y);
        free(dX);
        free(dW);
        free_problem(p);
    }
}

// What the recipes exist for: with outlier channels in X a plain INT8 product loses the weight gradient, a rotated one keeps it;
// with outlier tokens in dY the same holds for the input gradient.
static double cosine(const float* a, const float* b, size_t n) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++) ab += (double)a[i] * b[i], aa += (double)a[i] * a[i], bb += (double)b[i] * b[i];
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

static void outliers_case(void) {
    Problem p = make_problem(256, 64, 256);
    for (int t = 0; t < p.M; t++) p.X[(size_t)t * p.K + 7] *= 100, p.X[(size_t)t * p.K + 100] *= 70;
    for (int n = 0; n < p.N; n++) p.dY[(size_t)5 * p.N + n] *= 100, p.dY[(size_t)77 * p.N + n] *= 70;
    float* dX = product(p.dY, p.W, p.M, p.K, p.N, false, true);
    float* dW = product(p.dY, p.X, p.N, p.K, p.M, true, true);
    // The ordinary channels and tokens are what the outliers drown: the cosine is taken over them.
    const char* const names[] = {"halo0-int8", "halo2-int8"};
    double cos_dX[2], cos_dW[2];
    for (int i = 0; i < 2; i++) {
        Result got = run_linear(&cpu_f32_ops, recipe_find(names[i]), p, 1, 0);
        for (int n = 0; n < p.N; n++)
            got.dW[(size_t)n * p.K + 7] = got.dW[(size_t)n * p.K + 100] = dW[(size_t)n * p.K + 7] = dW[(size_t)n * p.K + 100] = 0;
        for (int k = 0; k < p.K; k++)
            got.dX[(size_t)5 * p.K + k] = got.dX[(size_t)77 * p.K + k] = dX[(size_t)5 * p.K + k] = dX[(size_t)77 * p.K + k] = 0;
        cos_dW[i] = cosine(got.dW, dW, (size_t)p.N * p.K);
        cos_dX[i] = cosine(got.dX, dX, (size_t)p.M * p.K);
        free_result(got);
    }
    ok(cos_dW[0] < 0.9, "outliers: halo0-int8 loses dW (cosine %.4f)", cos_dW[0]);
    ok(cos_dX[0] < 0.9, "outliers: halo0-int8 loses dX (cosine %.4f)", cos_dX[0]);
    ok(cos_dW[1] > 0.99, "outliers: halo2-int8 keeps dW (cosine %.4f)", cos_dW[1]);
    ok(cos_dX[1] > 0.99, "outliers: halo2-int8 keeps dX (cosine %.4f)", cos_dX[1]);
    free(dX);
    free(dW);
    free_problem(p);
}

// ---- what --quant-stats sees of a linear

typedef struct {
    LinearStats stats;
    bool second_dy;
} Seen;

static Seen see_linear(const Ops* ops, const char* recipe, Problem p) {
    LinearShape shape = {p.K, 1, {p.N, 0, 0}}, shapes[kLinearCount] = {shape, shape, shape, shape};
    Linear ln;
    WeightOperand wq;
    InputOperand in;
    GradOperand grad;
    QuantStats q;
    Mat X = mat(to_backend(ops, p.X, (size_t)p.M * p.K), p.M, p.K, ops->act);
    Mat W = mat(to_backend(ops, p.W, (size_t)p.N * p.K), p.N, p.K, ops->act);
    Mat dY = mat(to_backend(ops, p.dY, (size_t)p.M * p.N), p.M, p.N, ops->act);
    Mat dX = mat(ops->alloc((size_t)p.M * p.K * fmt_bytes(ops->act)), p.M, p.K, ops->act);
    Mat dW = mat(ops->alloc((size_t)p.N * p.K * sizeof(float)), p.N, p.K, F32);
    void* memory = NULL;
    for (int pass = 0; pass < 2; pass++) {
        Arena arena = {(char*)memory, 0};
        memset(&ln, 0, sizeof ln);
        memset(&q, 0, sizeof q);
        linear_place(&ln, &arena, ops, recipe_find(recipe), &shape, 1, p.M, 0);
        linear_place_weight(&ln, &wq, &arena, &arena, shape);
        linear_place_input(&ln, &in, &arena, &arena, shape, X);
        linear_place_grad(&grad, &arena, dY);
        quant_stats_place(&q, &arena, ops, shapes, 1, ln.rotated_rows);
        if (pass == 0) memory = ops->alloc(arena.used);
    }
    linear_prepare_weights(&ln, &wq, &W, &shape, 1);
    linear_prepare_input(&ln, &in, X, kPrepNone);
    linear_measure_grad(&ln, &grad, shape);
    linear_backward(&ln, dX, 0, dW, 0, &grad, &in, W, &wq, shape);
    quant_stats_begin(&q);
    linear_observe(&ln, &q, 0, 2, X, W, dY, dW);
    Seen seen;
    ops->download(&seen.stats, quant_stats_linear(&q, 0, 2), sizeof seen.stats);
    seen.second_dy = q.second_dy;
    void* const used[] = {X.data, W.data, dY.data, dX.data, dW.data, memory};
    for (int i = 0; i < COUNT(used); i++) ops->release(used[i]);
    return seen;
}

// A few values of X that are huge, at tokens whose dY is zero: they have no part in dW, but they make its scale.
static void seen_outliers_on(const Ops* ops) {
    Problem p = make_problem(256, 64, 256);
    const int tokens[] = {5, 77};
    for (int i = 0; i < COUNT(tokens); i++) {
        p.X[(size_t)tokens[i] * p.K + 100 + i] = 300;
        memset(p.dY + (size_t)tokens[i] * p.N, 0, sizeof(float) * (size_t)p.N);
    }
    Seen bf16 = see_linear(ops, "bf16", p), halo0 = see_linear(ops, "halo0-int8", p), halo2 = see_linear(ops, "halo2-int8", p);
    double plain = quant_stats_cosine(bf16.stats.squares[0]), lost = quant_stats_cosine(halo0.stats.squares[0]);
    double kept = quant_stats_cosine(halo2.stats.squares[0]);
    ok(fabs(plain - 1) < 1e-6, "seen %s: dW of bf16 has cosine %.7f with its shadow", ops->name, plain);
    ok(lost < 0.9, "seen %s: halo0-int8 loses dW to outliers (cosine %.4f)", ops->name, lost);
    ok(kept > 0.99, "seen %s: halo2-int8 keeps dW (cosine %.4f)", ops->name, kept);
    double share = (double)halo0.stats.x[0].counts.underflow / (double)halo0.stats.x[0].counts.nonzero;
    ok(halo0.stats.x[0].absmax == 300 && halo0.stats.x[0].rotated_absmax == 0 && share > 0.5, "seen %s: halo0-int8 X: absmax %g, %.0f%% underflow",
       ops->name, (double)halo0.stats.x[0].absmax, 100 * share);
    ok(halo2.stats.x[0].absmax == 300 && halo2.stats.x[0].rotated_absmax < 30, "seen %s: halo2-int8 X: absmax %g, rotated %g", ops->name,
       (double)halo2.stats.x[0].absmax, (double)halo2.stats.x[0].rotated_absmax);
    const OperandStats* dy = halo2.stats.dy[0];
    ok(halo2.second_dy && dy[0].rotated_absmax > 0 && dy[1].rotated_absmax == 0 && dy[0].absmax == dy[1].absmax && !halo0.second_dy,
       "seen %s: halo2's dY in two forms: absmax %g, rotated %g for E", ops->name, (double)dy[0].absmax, (double)dy[0].rotated_absmax);
    free_problem(p);
}

// FP6 clips at three quarters of the maximum: values planted beyond, and values planted below half of the smallest code.
static void seen_plants_on(const Ops* ops) {
    enum { kBeyond = 17, kTiny = 123, kZeros = 31 };
    Problem p = make_problem(64, 48, 80);
    struct {
        float* x;
        int n;
    } const operands[] = {{p.X, p.M * p.K}, {p.W, p.N * p.K}, {p.dY, p.M * p.N}};
    for (int o = 0; o < 3; o++)
        for (int n = 0; n < operands[o].n; n++) {
            int at = (int)((int64_t)n * 7919 % operands[o].n);
            float value = n < kBeyond ? 4.0f : n < kBeyond + kTiny ? 0.001f : n < kBeyond + kTiny + kZeros ? 0 : 1.0f;
            operands[o].x[at] = n % 2 ? value : -value;
        }
    Seen seen = see_linear(ops, "halo0-fp6", p);
    const OperandStats* const got[] = {&seen.stats.x[0], &seen.stats.w[0][0], &seen.stats.dy[0][0]};
    static const char* const names[] = {"X", "W", "dY"};
    for (int o = 0; o < 3; o++) {
        CodeCounts c = got[o]->counts;
        ok(c.clipped == kBeyond && c.underflow == kTiny && c.nonzero == (uint64_t)(operands[o].n - kZeros), "seen %s: planted in %s: %zu clipped, %zu underflow of %zu",
           ops->name, names[o], (size_t)c.clipped, (size_t)c.underflow, (size_t)c.nonzero);
    }
    free_problem(p);
}
static void seen_case(void) {
    const Ops* backends[kMaxBackends];
    int count = test_backends(backends);
    for (int b = 0; b < count; b++) {
        seen_outliers_on(backends[b]);
        seen_plants_on(backends[b]);
    }
}

// ---- several weights in one call

// Stacks of more matrices together than a backend takes at once (kCodedAtOnce).
enum { kTogetherStacks = 4, kTogetherK = 192 };
static const LinearShape kTogetherShape = {kTogetherK, 3, {24, 8, 16}};

// A linear with weights that are prepared, and the memory of all their operands.
typedef struct {
    Linear ln;
    WeightOperand wq[kTogetherStacks];
    Arena codes, maxima;
} Together;
static Together together(const Ops* ops, const Recipe* recipe) {
    Together t;
    void *memory = NULL, *codes = NULL, *maxima = NULL;
    for (int pass = 0; pass < 2; pass++) {
        memset(&t, 0, sizeof t);
        Arena arena = {(char*)memory, 0};
        t.codes.base = (char*)codes;
        t.maxima.base = (char*)maxima;
        linear_place(&t.ln, &arena, ops, recipe, &kTogetherShape, 1, 32, 0);
        for (int s = 0; s < kTogetherStacks; s++) linear_place_weight(&t.ln, &t.wq[s], &t.codes, &t.maxima, kTogetherShape);
        if (pass > 0) break;
        memory = ops->alloc(arena.used);
        codes = ops->alloc(t.codes.used);
        maxima = ops->alloc(t.maxima.used);
    }
    ops->release(memory);   // of products, of which there are none
    return t;
}
// Bytes that differ; the one in the middle of b is changed by `off`.
static size_t differing_operands(const Ops* ops, Arena a, Arena b, int off) {
    size_t differ = 0;
    unsigned char *x = (unsigned char*)host_alloc(a.used + 1), *y = (unsigned char*)host_alloc(a.used + 1);
    ops->download(x, a.base, a.used);
    ops->download(y, b.base, b.used);
    y[a.used / 2] ^= (unsigned char)off;
    for (size_t i = 0; i < a.used; i++) differ += x[i] != y[i];
    free(x);
    free(y);
    return differ;
}
static void together_on(const Ops* ops, const Recipe* recipe) {
    LinearShape shapes[kTogetherStacks];
    Mat W[kTogetherStacks];
    int rows = kTogetherShape.N[0] + kTogetherShape.N[1] + kTogetherShape.N[2];
    for (int s = 0; s < kTogetherStacks; s++) {
        Problem p = make_problem(1, rows, kTogetherK);
        shapes[s] = kTogetherShape;
        W[s] = mat(to_backend(ops, p.W, (size_t)rows * kTogetherK), rows, kTogetherK, ops->act);
        free_problem(p);
    }
    Together all = together(ops, recipe), one = together(ops, recipe);
    linear_prepare_weights(&all.ln, all.wq, W, shapes, kTogetherStacks);
    for (int s = 0; s < kTogetherStacks; s++) linear_prepare_weights(&one.ln, &one.wq[s], &W[s], &shapes[s], 1);
    size_t differ = differing_operands(ops, all.codes, one.codes, 0) + differing_operands(ops, all.maxima, one.maxima, 0);
    size_t planted = differing_operands(ops, all.codes, one.codes, 1);
    ops->zero(all.codes.base, all.codes.used);
    linear_remake_weights(&all.ln, all.wq, W, shapes, kTogetherStacks, true);
    size_t remade = differing_operands(ops, all.codes, one.codes, 0) + differing_operands(ops, all.maxima, one.maxima, 0);
    ok(differ == 0 && remade == 0 && planted == (all.codes.used > 0), "together %s %s: of %zu bytes of operands %zu differ from each alone, %zu once remade",
       ops->name, recipe->name, all.codes.used, differ, remade);
    void* const used[] = {all.codes.base, all.maxima.base, one.codes.base, one.maxima.base};
    for (int i = 0; i < COUNT(used); i++) ops->release(used[i]);
    for (int s = 0; s < kTogetherStacks; s++) ops->release(W[s].data);
}
static void together_case(void) {
    const Ops* backends[kMaxBackends];
    int count = test_backends(backends), recipes;
    const Recipe* table = recipe_table(&recipes);
    for (int b = 0; b < count; b++)
        for (int r = 0; r < recipes; r++) together_on(backends[b], &table[r]);
}

static const Case cases[] = {{"linear.pack", pack_case},
                             {"linear.recipes", recipes_case},
                             {"linear.outliers", outliers_case},
                             {"linear.seen", seen_case},
                             {"linear.together", together_case}};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
