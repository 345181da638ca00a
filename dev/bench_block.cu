// Three decoder blocks of Llama-3-8B's width under each recipe, forward and backward: the paper's Table 8. Through model_train_step, with
// a vocabulary so small that embedding and head are next to nothing; random weights and tokens. A step here is one micro-step
// that adds to the gradients of earlier ones: weights are prepared beforehand, and there is no optimizer.
//
// Checked first: the loss, and the gradient of the first block's gate and up, against the bf16 recipe's.
// One line per recipe: ms (median) | x of bf16 | GiB of activations and scratch, and of everything with BF16 weights, gradients and
// AdamW states | loss, cosine. The same as a table comes last.
//
//   bench_block [sequences [tokens]]     default 8 1024
#include "../data/batch.h"
#include "../halo/shard.h"
#include "bandwidth.cuh"

#include <math.h>

static const struct {
    const char* recipe;
    double least_cosine;   // of a gradient that has come through all three blocks; haloi's numbers mean nothing
} kRecipes[] = {{"bf16", 0.999999},       {"halo0-fp8", 0.95},       {"halo1-fp6", 0.85},      {"halo2-int8", 0.95}, {"haloi-int8", -1},
                {"haloi-fp8", -1},        {"switchback-int8", 0.97}, {"switchback-fp8", 0.95}, {"jetfire-int8", 0.98}};
enum { kRecipeCount = sizeof kRecipes / sizeof kRecipes[0], kLayers = 3, kVocabulary = 1024 };

// Rows cut out of a table of normal values: drawing each value would take longer than the bench.
static void read_rows(void* self, int spec, int layer, int row0, int rows, float* dst) {
    const Config* c = (const Config*)self;
    static std::vector<float> table;
    if (table.empty()) {
        table.resize((size_t)c->V * c->C);
        RandomWeights random = {c, 1, 0.02f};
        random_weights_read(&random, 0, 0, 0, c->V, table.data());   // the embedding
    }
    ParamSpec specs[kMaxParamSpecs];
    param_specs(c, specs);
    size_t cols = (size_t)specs[spec].cols;
    for (int i = 0; i < rows; i++) {
        float* row = dst + (size_t)i * cols;
        size_t from = (size_t)((layer * kMaxParamSpecs + spec) * 65536 + row0 + i) * 7919 * 16 % (table.size() - cols);
        if (specs[spec].rows == 1) std::fill(row, row + cols, 1.0f);
        else memcpy(row, table.data() + from, cols * sizeof(float));
    }
}

static double mean(const float* on_gpu, int n) {
    std::vector<float> x((size_t)n);
    cuda_ops.download(x.data(), on_gpu, sizeof(float) * x.size());
    double sum = 0;
    for (float value : x) sum += value;
    return sum / n;
}
typedef struct {
    double ms, loss, cosine, model_gib, all_gib;
} Result;

static const ShardOptions kStorage = {0, 0, false, BF16, BF16, true, 0, 1, 1, NULL, false};   // all BF16, one rank

// `plain`: the bf16 recipe's gradient, kept by the first call.
static Result bench(const Config* c, const Recipe* recipe, Shard* shard, RowBatch* batch, Mat* plain) {
    Result r;
    int BT = batch->B * batch->T;
    ModelOptions options = {batch->B, batch->T, true, RECOMPUTE_NONE, (size_t)256 << 20, 0, recipe_find("bf16"), false, 0, 0, 0};
    ShardBytes bytes = shard_bytes(c, &cuda_ops, comm_solo(), kStorage);
    size_t of_model = model_bytes_together(model_bytes(c, &cuda_ops, recipe, false, options));
    r.model_gib = (double)of_model / (1 << 30);
    r.all_gib = (double)(of_model + bytes.weights + bytes.gradients + bytes.optimizer) / (1 << 30);
    Model* model = model_new(c, &cuda_ops, recipe, shard, options);
    float* losses = (float*)cuda_ops.alloc(sizeof(float) * (size_t)BT);

    shard_begin_step(shard, 1);
    auto step = [&] { model_train_step(model, &batch->arrays, 1.0f / (float)batch->scored, losses); };
    step();
    shard_end_micro_step(shard);
    r.loss = mean(losses, BT);
    Mat g = shard_acquire(shard, 1, BACKWARD)->g[S_GATE_UP], got = zeros(g.rows, g.cols, BF16);
    cuda_ops.copy(got.data, g.data, mat_bytes(g));
    Linear linear = linear_of(&cuda_ops, recipe);
    linear_finish_grad(&linear, got);
    if (!plain->data) *plain = got;
    r.cosine = cosine_of(got, *plain);
    r.ms = 1e-3 * median_us(step);

    if (got.data != plain->data) cuda_ops.release(got.data);
    cuda_ops.release(losses);
    model_free(model);
    return r;
}

int main(int argc, char** argv) {
    int B = argc > 1 ? atoi(argv[1]) : 8, T = argc > 2 ? atoi(argv[2]) : 1024;
    check(B > 0 && T > 0, "bench_block: %d sequences of %d tokens", B, T);
    Config c;
    check(config_preset(&c, "llama3-8b"), "bench_block: no preset");
    c.L = kLayers;
    c.V = kVocabulary;
    RowBatch batch = batch_new(B, T);
    batch_random(&batch, c.V, 1);
    Shard* shard = shard_new(&c, &cuda_ops, comm_solo(), kStorage);
    shard_load(shard, read_rows, &c);
    Result results[kRecipeCount];
    Mat plain = mat(NULL, 0, 0, BF16);
    bool right = true;
    for (int i = 0; i < kRecipeCount; i++) {
        Result* r = &results[i];
        *r = bench(&c, recipe_find(kRecipes[i].recipe), shard, &batch, &plain);
        bool meant = kRecipes[i].least_cosine > 0;
        bool fine = isfinite(r->loss) && (!meant || (fabs(r->loss / results[0].loss - 1) < 0.01 && r->cosine >= kRecipes[i].least_cosine));
        char cosine[32] = "means nothing";
        if (meant) snprintf(cosine, sizeof cosine, "cosine %.5f", r->cosine);
        printf("%d blocks, %d x %d tokens | %-15s | %8.2f ms | %.2fx of bf16 | %6.2f GiB, all %6.2f | loss %.4f, %s%s\n", kLayers, B, T,
               kRecipes[i].recipe, r->ms, results[0].ms / r->ms, r->model_gib, r->all_gib, r->loss, cosine, fine ? "" : "  WRONG");
        fflush(stdout);
        right = right && fine;
    }
    printf("\n%-15s %9s %9s %9s\n", "recipe", "ms", "x of bf16", "GiB");
    for (int i = 0; i < kRecipeCount; i++)
        printf("%-15s %9.2f %9.2f %9.2f\n", kRecipes[i].recipe, results[i].ms, results[0].ms / results[i].ms, results[i].all_gib);
    cuda_ops.release(plain.data);
    shard_free(shard);
    batch_free(&batch);
    return right ? 0 : 1;
}
