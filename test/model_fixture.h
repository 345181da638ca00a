// A model on a backend with one fixed batch: what the whole-model tests share.
#ifndef TEST_MODEL_FIXTURE_H
#define TEST_MODEL_FIXTURE_H

#include "../data/hf_read.h"
#include "../data/hf_write.h"
#include "../halo/optim.h"
#include "test.h"

typedef struct {
    int B, T;
    int* storage;   // six arrays of B * T
    Batch arrays;
    int scored;
} TestBatch;

// The sizes of a small model, for everything that needs no reference; head_dim is not a power of two.
__attribute__((unused))
static Config small_sizes(void) {
    Config c;
    memset(&c, 0, sizeof c);
    c.V = 61;
    c.C = 48;
    c.L = 2;
    c.NH = 4;
    c.NKV = 2;
    c.HD = 12;
    c.F = 72;
    c.max_T = 64;
    c.norm_eps = 1e-5f;
    c.rope_theta = 10000;
    c.bos = c.eos = -1;
    return c;
}

// labels as Hugging Face has them: the logits of position t are scored against labels[t + 1].
__attribute__((unused))
static TestBatch test_batch(const int* tokens, const int* labels, int B, int T) {
    int n = B * T;
    TestBatch b = {B, T, (int*)host_alloc(sizeof(int) * 6 * (size_t)n), {NULL, NULL, NULL, NULL, NULL, NULL, B}, 0};
    int *t = b.storage, *targets = t + n, *pos = t + 2 * n, *start = t + 3 * n, *end = t + 4 * n, *order = t + 5 * n;
    for (int i = 0; i < n; i++) {
        t[i] = tokens[i];
        pos[i] = i % T;
        end[i] = T;
        targets[i] = i % T + 1 < T ? labels[i + 1] : -100;
        b.scored += targets[i] != -100;
        order[i] = i;
    }
    for (int i = 1; i < n; i++)   // insertion sort, stable
        for (int j = i; j > 0 && t[order[j - 1]] > t[order[j]]; j--) {
            int swap = order[j];
            order[j] = order[j - 1];
            order[j - 1] = swap;
        }
    Batch arrays = {t, targets, pos, start, end, order, B};
    b.arrays = arrays;
    return b;
}

// Random tokens, a fifth of them not scored.
__attribute__((unused))
static TestBatch random_batch(int B, int T, int V) {
    int n = B * T;
    int *tokens = (int*)host_alloc(sizeof(int) * (size_t)n), *labels = (int*)host_alloc(sizeof(int) * (size_t)n);
    for (int i = 0; i < n; i++) {
        tokens[i] = (int)(test_uniform() * V);
        labels[i] = test_uniform() < 0.2 ? -100 : tokens[i];
    }
    TestBatch b = test_batch(tokens, labels, B, T);
    free(tokens);
    free(labels);
    return b;
}

typedef struct {
    Config config;
    const Ops* ops;
    Shard* shard;
    Model* model;
    float* losses;   // on the backend
    int BT;
} TestModel;

__attribute__((unused))
static void read_hf_rows(void* self, int spec, int layer, int row0, int rows, float* dst) {
    hf_model_rows((const HfModel*)self, spec, layer, row0, rows, F32, dst);
}

// All gradients and states in FP32, one micro-step.
static const ShardOptions kTestStorage = {0, 0, true, F32, F32, true, 0, 1, 1, NULL, false};   // the recipe is the model's

static TestModel test_model_stored(ShardOptions shard, const Config* config, const Ops* ops, const Recipe* recipe, const char* head,
                                   Recompute recompute, int B, int T, ReadRows read, void* self) {
    TestModel t = {*config, ops, NULL, NULL, NULL, B * T};
    shard.recipe = recipe;
    t.shard = shard_new(config, ops, comm_solo(), shard);
    shard_load(t.shard, read, self);
    // Logits in pieces of a third of the batch, so that piecewise accumulation is always part of the test.
    size_t piece = (size_t)(B * T / 3) * (size_t)config->V * fmt_bytes(ops->act);
    ModelOptions options = {B, T, true, recompute, piece, 0, recipe_find(head), true, 0, 0, 0};
    t.model = model_new(config, ops, recipe, t.shard, options);
    t.losses = (float*)ops->alloc(sizeof(float) * (size_t)t.BT);
    return t;
}
__attribute__((unused))
static TestModel test_model_with_head(const Config* config, const Ops* ops, const Recipe* recipe, const char* head, Recompute recompute,
                                      int B, int T, ReadRows read, void* self) {
    return test_model_stored(kTestStorage, config, ops, recipe, head, recompute, B, T, read, self);
}
__attribute__((unused))
static TestModel test_model(const Config* config, const Ops* ops, const Recipe* recipe, Recompute recompute, int B, int T,
                            ReadRows read, void* self) {
    return test_model_stored(kTestStorage, config, ops, recipe, "bf16", recompute, B, T, read, self);
}

__attribute__((unused))
static void test_model_free(TestModel* t) {
    t->ops->release(t->losses);
    model_free(t->model);
    shard_free(t->shard);
}

static double mean_loss(const TestModel* t, int scored) {
    float* host = (float*)host_alloc(sizeof(float) * (size_t)t->BT);
    t->ops->download(host, t->losses, sizeof(float) * (size_t)t->BT);
    double sum = 0;
    for (int i = 0; i < t->BT; i++) sum += host[i];
    free(host);
    return sum / scored;
}

// Gradients of one batch, complete in the shard; returns the loss.
__attribute__((unused))
static double test_gradients(TestModel* t, const TestBatch* b) {
    shard_begin_step(t->shard, 1);
    model_train_step(t->model, &b->arrays, 1.0f / (float)b->scored, t->losses);
    shard_end_micro_step(t->shard);
    shard_reduce_gradients(t->shard);
    shard_finish_gradients(t->shard);
    return mean_loss(t, b->scored);
}

__attribute__((unused))
static double test_loss(TestModel* t, const TestBatch* b) {
    model_loss(t->model, &b->arrays, t->losses);
    return mean_loss(t, b->scored);
}

// One parameter's gradient as floats on the host.
__attribute__((unused))
static float* test_gradient(TestModel* t, int spec_index, int layer) {
    ParamSpec specs[kMaxParamSpecs];
    param_specs(&t->config, specs);
    const ParamSpec* spec = &specs[spec_index];
    int unit = spec->stack == S_EMBED ? 0 : spec->per_layer ? 1 + layer : t->config.L + 1, row = 0;
    for (int i = 0; i < spec_index; i++)
        if (specs[i].stack == spec->stack) row += specs[i].rows;
    Mat g = mat_rows(shard_acquire(t->shard, unit, BACKWARD)->g[spec->stack], row, spec->rows);
    float* host = (float*)host_alloc(mat_bytes(g));
    t->ops->download(host, g.data, mat_bytes(g));
    return host;
}

#endif
