// One linear layer under each recipe, forward and backward: the paper's Figure 4. Llama-3-8B's four linears on 8192 tokens, and lm_head
// on a piece of them under the recipes that it takes, through linear.h as the model calls it.
//
//   timed    the codes of X, Y, then dX and dW, which adds to a gradient in BF16; and what the producer of X (RMSNorm, for `down`
//            SwiGLU) takes longer for finding the maximum, of the rotated X where that is quantized. Attention, the producer of `o`, finds
//            it in passing, but not that of the rotated X, which is left to the linear. The maxima of dY come from its producer too, and
//            are there beforehand
//   apart    what comes once an optimizer step: codes of W, and dW rotated back
//
// Checked first: Y, dX and dW against the bf16 recipe's on the same normal values, by their cosine, per recipe.
// One line per linear and recipe: us (medians) | x of bf16 | us once a step | cosines. The table of all comes last.
//
//   bench_linear [tokens]     default 8192
#include "bandwidth.cuh"

typedef enum { FROM_RMSNORM, FROM_SWIGLU, FROM_ATTENTION } Producer;
static const struct {
    const char* name;
    LinearShape shape;
    Producer producer;
} kBenched[] = {{"qkv", {4096, 3, {4096, 1024, 1024}}, FROM_RMSNORM},
                {"o", {4096, 1, {4096}}, FROM_ATTENTION},
                {"gate_up", {4096, 2, {14336, 14336}}, FROM_RMSNORM},
                {"down", {14336, 1, {4096}}, FROM_SWIGLU},
                {"lm_head", {4096, 1, {128256}}, FROM_RMSNORM}};
enum { kBenchedCount = sizeof kBenched / sizeof kBenched[0], kHead = kBenchedCount - 1, kHeadTokens = 2048 };

// haloi casts without scales: its cosines only have to show that the products were made.
static const struct {
    const char* recipe;
    double least_cosine;
} kRecipes[] = {{"bf16", 0.999999},      {"halo0-fp8", 0.998},      {"halo1-fp6", 0.985},      {"halo2-int8", 0.999},  {"haloi-int8", 0.8},
                {"haloi-fp8", 0.8},      {"switchback-int8", 0.999}, {"switchback-fp8", 0.998}, {"jetfire-int8", 0.999}};
enum { kRecipeCount = sizeof kRecipes / sizeof kRecipes[0] };

static bool takes(int linear, const char* recipe) { return linear != kHead || !strcmp(recipe, "bf16") || !strcmp(recipe, "halo0-fp8"); }

// A linear with everything around it.
typedef struct {
    Linear ln;
    LinearShape shape;
    Producer producer;
    WeightOperand wq;
    InputOperand in;
    GradOperand grad;
    Prep prep;                           // what X's producer does
    Mat x, w, dy, y, dx, dw;
    Mat source, norm_weight, produced;   // X's producer: from, with, to; for its time alone
    float* rstd;
    void* memory;
} Bench;

static Bench bench_new(int index, const Recipe* recipe, int tokens) {
    Bench b;
    memset(&b, 0, sizeof b);
    b.shape = kBenched[index].shape;
    b.producer = kBenched[index].producer;
    int N = linear_N(b.shape), K = b.shape.K;
    b.x = normals(tokens, K, 1, 1);
    b.w = normals(N, K, 1, 2);
    b.dy = normals(tokens, N, 1, 3);
    b.y = zeros(tokens, N, BF16);
    b.dx = zeros(tokens, K, BF16);
    b.dw = zeros(N, K, BF16);
    b.source = normals(tokens, b.producer == FROM_SWIGLU ? 2 * K : K, 1, 4);
    b.norm_weight = normals(1, K, 1, 5);
    b.produced = zeros(tokens, K, BF16);
    b.rstd = (float*)cuda_ops.alloc(sizeof(float) * (size_t)tokens);
    for (int pass = 0; pass < 2; pass++) {
        Arena arena = {(char*)b.memory, 0};
        linear_place(&b.ln, &arena, &cuda_ops, recipe, &b.shape, 1, tokens, 0);
        linear_place_weight(&b.ln, &b.wq, &arena, &arena, b.shape);
        linear_place_input(&b.ln, &b.in, &arena, &arena, b.shape, b.x);
        linear_place_grad(&b.grad, &arena, b.dy);
        if (pass == 0) b.memory = cuda_ops.alloc(arena.used);
    }
    b.prep = linear_input_prep(&b.ln, &b.in);
    if (b.producer == FROM_ATTENTION && b.prep.rotate) b.prep = kPrepNone;
    // What the producers leave: the maximum of X, which this raises, and the maxima of dY.
    linear_prepare_input(&b.ln, &b.in, b.x, kPrepNone);
    linear_measure_grad(&b.ln, &b.grad, b.shape);
    linear_prepare_weights(&b.ln, &b.wq, &b.w, &b.shape, 1);
    return b;
}
static void bench_free(Bench* b) {
    void* const used[] = {b->x.data, b->w.data, b->dy.data, b->y.data, b->dx.data, b->dw.data, b->source.data, b->norm_weight.data,
                          b->produced.data, b->rstd, b->memory};
    for (void* p : used) cuda_ops.release(p);
}

static void forward_backward(const Bench* b, InputOperand* in, float beta) {
    linear_prepare_input(&b->ln, in, b->x, b->prep);
    linear_forward(&b->ln, b->y, 0, in, b->w, &b->wq, b->shape);
    linear_backward(&b->ln, b->dx, 0, b->dw, beta, &b->grad, in, b->w, &b->wq, b->shape);
}

static double producer_us(const Bench* b, Prep prep) {
    Mat nothing = mat(NULL, 0, 0, BF16);
    if (b->producer == FROM_SWIGLU) return median_us([&] { cuda_ops.swiglu_forward(b->produced, b->source, prep); });
    return median_us([&] { cuda_ops.rmsnorm_forward(b->produced, b->rstd, b->source, b->source, nothing, b->norm_weight, 1e-5f, prep); });
}

typedef struct {
    double us, step_us, cosine[3];
} Result;

static Result bench(int index, const Recipe* recipe, int tokens, const Bench* plain) {
    Bench b = bench_new(index, recipe, tokens);
    InputOperand in = b.in;
    Result r;
    forward_backward(&b, &in, 0);
    linear_finish_grad(&b.ln, b.dw);
    r.cosine[0] = cosine_of(b.y, plain->y);
    r.cosine[1] = cosine_of(b.dx, plain->dx);
    r.cosine[2] = cosine_of(b.dw, plain->dw);
    r.us = median_us([&] { forward_backward(&b, &in, 1); });
    if (b.producer != FROM_ATTENTION && (b.prep.rotate || b.prep.absmax)) r.us += producer_us(&b, b.prep) - producer_us(&b, kPrepNone);
    r.step_us = median_us([&] {
        linear_prepare_weights(&b.ln, &b.wq, &b.w, &b.shape, 1);
        linear_finish_grad(&b.ln, b.dw);
    });
    bench_free(&b);
    return r;
}

int main(int argc, char** argv) {
    int all_tokens = argc > 1 ? atoi(argv[1]) : 8192;
    check(all_tokens > 0, "bench_linear: \"%s\" is no number of tokens", argv[1]);
    Result results[kRecipeCount][kBenchedCount];
    bool right = true;
    for (int i = 0; i < kBenchedCount; i++) {
        int tokens = i == kHead ? min_int(all_tokens, kHeadTokens) : all_tokens;
        Bench plain = bench_new(i, recipe_find("bf16"), tokens);
        forward_backward(&plain, &plain.in, 0);
        for (int r = 0; r < kRecipeCount; r++) {
            if (!takes(i, kRecipes[r].recipe)) continue;
            Result* result = &results[r][i];
            *result = bench(i, recipe_find(kRecipes[r].recipe), tokens, &plain);
            const double* c = result->cosine;
            bool fine = c[0] >= kRecipes[r].least_cosine && c[1] >= kRecipes[r].least_cosine && c[2] >= kRecipes[r].least_cosine;
            printf("%-8s %6d x %6d x %5d | %-15s | %8.1f us | %.2fx of bf16 | %7.1f us once a step | cosine Y %.5f dX %.5f dW %.5f%s\n",
                   kBenched[i].name, tokens, linear_N(kBenched[i].shape), kBenched[i].shape.K, kRecipes[r].recipe, result->us,
                   results[0][i].us / result->us, result->step_us, c[0], c[1], c[2], fine ? "" : "  WRONG");
            fflush(stdout);
            right = right && fine;
        }
        bench_free(&plain);
    }
    printf("\n%-15s", "x of bf16");
    for (int i = 0; i < kBenchedCount; i++) printf(" %8s", kBenched[i].name);
    printf(" %8s\n", "layer");
    for (int r = 0; r < kRecipeCount; r++) {
        double plain_us = 0, us = 0;
        printf("%-15s", kRecipes[r].recipe);
        for (int i = 0; i < kBenchedCount; i++) {
            if (!takes(i, kRecipes[r].recipe)) {
                printf(" %8s", "-");
                continue;
            }
            printf(" %8.2f", results[0][i].us / results[r][i].us);
            if (i == kHead) continue;
            plain_us += results[0][i].us;
            us += results[r][i].us;
        }
        printf(" %8.2f\n", plain_us / us);
    }
    return right ? 0 : 1;
}
