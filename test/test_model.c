// The whole model: against Hugging Face's float64 logits, gradients and optimizer steps; against finite differences; and the
// invariances (recompute, pieces of logits, packing) bit for bit.
#include <dirent.h>

#include "../data/json.h"
#include "../data/safetensors.h"
#include "../halo/generate.h"
#include "../halo/memory_plan.h"
#include "backends.h"
#include "model_fixture.h"

// ---- Hugging Face fixtures

typedef struct {
    char dir[1024];
    const char* name;
    HfModel* source;
    Config config;
    SafeTensors* expected;
    json_t* numbers;
    TestBatch batch;
} Fixture;

static int* pack_ints(const SafeTensors* file, const char* name, size_t shape[2]) {
    const Tensor* t = safetensors_find(file, name);
    check(t && t->rank == 2, "the fixture has no %s", name);
    int* x = (int*)host_alloc(sizeof(int) * t->elements);
    tensor_read_ints(t, 0, t->elements, x);
    shape[0] = t->shape[0];
    shape[1] = t->shape[1];
    return x;
}

static Fixture fixture_open(const char* root, const char* name) {
    Fixture f;
    memset(&f, 0, sizeof f);
    f.name = name;
    snprintf(f.dir, sizeof f.dir, "%s/%s", root, name);
    char path[1200];
    f.source = hf_model_open(f.dir, &f.config);
    snprintf(path, sizeof path, "%s/expected.safetensors", f.dir);
    f.expected = safetensors_open(path);
    snprintf(path, sizeof path, "%s/expected.json", f.dir);
    f.numbers = json_parse_file(path);
    size_t shape[2];
    int* ids = pack_ints(f.expected, "input_ids", shape);
    int* labels = pack_ints(f.expected, "labels", shape);
    f.batch = test_batch(ids, labels, (int)shape[0], (int)shape[1]);
    free(ids);
    free(labels);
    return f;
}

static void fixture_close(Fixture* f) {
    hf_model_close(f->source);
    safetensors_close(f->expected);
    json_decref(f->numbers);
    free(f->batch.storage);
}

static TestModel fixture_model(const Fixture* f, const Ops* ops, const char* recipe, Recompute recompute) {
    return test_model(&f->config, ops, recipe_find(recipe), recompute, f->batch.B, f->batch.T, read_hf_rows, f->source);
}

static float* expected_floats(const Fixture* f, const char* name) {
    const Tensor* t = safetensors_find(f->expected, name);
    check(t, "%s: no %s", f->name, name);
    float* x = (float*)host_alloc(sizeof(float) * t->elements);
    tensor_read(t, 0, t->elements, F32, x);
    return x;
}

// BF16 products of these models err by a few units of 2^-9 for each of some ten roundings in a row.
static const double kBf16Logits = 0.015, kBf16Gradients = 0.03;

static void check_logits(const Fixture* f) {
    const Ops* backends[kMaxBackends];
    int count = test_backends(backends);
    CloseRule rule = {{0}, 0};
    for (int b = 0; b < count; b++) {
        TestModel t = fixture_model(f, backends[b], "bf16", RECOMPUTE_NONE);
        size_t n = (size_t)t.BT * f->config.V;
        float *got = (float*)host_alloc(sizeof(float) * n), *want = expected_floats(f, "logits");
        char name[64];
        snprintf(name, sizeof name, "%s logits", f->name);
        model_logits(t.model, &f->batch.arrays, got);
        rule.check = 0;
        close_by_rule(&rule, backends[b], got, want, n, 1e-5, kBf16Logits, name);
        free(got);
        free(want);
        test_model_free(&t);
    }
}

static double number_at(const json_t* array, int i) { return json_number_value(json_array_get(array, (size_t)i)); }

static void check_gradients_on(const Fixture* f, const Ops* ops, CloseRule* rule) {
    TestModel t = fixture_model(f, ops, "bf16", RECOMPUTE_NONE);
    double loss = test_gradients(&t, &f->batch), want_loss = json_number_value(json_object_get(f->numbers, "loss"));
    double loss_tol = ops->act == F32 ? 1e-5 : 3e-3;
    ok(fabs(loss - want_loss) < loss_tol * want_loss, "%s loss %s %.7f, wanted %.7f", f->name, ops->name, loss, want_loss);
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(&f->config, specs);
    for (int i = 0; i < count; i++) {
        for (int l = 0; l < (specs[i].per_layer ? f->config.L : 1); l++) {
            char param[128], name[160];
            param_name(&specs[i], l, param, sizeof param);
            snprintf(name, sizeof name, "grad.%s", param);
            float *want = expected_floats(f, name), *got = test_gradient(&t, i, l);
            char label[224];
            snprintf(label, sizeof label, "%s %s", f->name, name);
            close_by_rule(rule, ops, got, want, (size_t)specs[i].rows * specs[i].cols, 1e-4, kBf16Gradients, label);
            free(want);
            free(got);
        }
    }
    test_model_free(&t);
}

static void check_gradients(const Fixture* f) {
    const Ops* backends[kMaxBackends];
    int count = test_backends(backends);
    CloseRule rule = {{0}, 0};
    for (int b = 0; b < count; b++) {
        rule.check = 0;
        check_gradients_on(f, backends[b], &rule);
    }
}

static void check_adamw(const Fixture* f) {
    const json_t* adamw = json_object_get(f->numbers, "adamw");
    const json_t *losses = json_object_get(adamw, "losses"), *norms = json_object_get(adamw, "grad_norms");
    int steps = (int)json_integer_value(json_object_get(adamw, "steps"));
    check(steps > 0 && (int)json_array_size(losses) == steps, "%s: no AdamW losses", f->name);
    OptimConfig config = {(float)json_number_value(json_object_get(adamw, "lr")), 0, steps, SCHEDULE_CONSTANT, 0.9f, 0.999f,
                          1e-8f, 0, 0, 1};
    TestModel t = fixture_model(f, &cpu_f32_ops, "bf16", RECOMPUTE_NONE);
    Optim optim = optim_new(t.ops, config);
    double worst_loss = 0, worst_norm = 0;
    for (int step = 1; step <= steps; step++) {
        double loss = test_gradients(&t, &f->batch);
        optim_step(&optim, t.shard, step);
        worst_loss = fmax(worst_loss, fabs(loss / number_at(losses, step - 1) - 1));
        worst_norm = fmax(worst_norm, fabs(optim_grad_norm(&optim, t.shard) / number_at(norms, step - 1) - 1));
    }
    ok(worst_loss <= 1e-4, "%s AdamW, %d losses: err %.2e (%.0f%% of tol)", f->name, steps, worst_loss, 100 * worst_loss / 1e-4);
    ok(worst_norm <= 1e-3, "%s AdamW, %d gradient norms: err %.2e (%.0f%% of tol)", f->name, steps, worst_norm,
       100 * worst_norm / 1e-3);
    optim_free(&optim);
    test_model_free(&t);
}

static void each_fixture(void (*run)(const Fixture* f)) {
    const char* root = refpack("fixtures");
    if (!root) return;
    DIR* dir = opendir(root);
    check(dir, "%s cannot be read", root);
    int found = 0;
    for (struct dirent* e = readdir(dir); e; e = readdir(dir)) {
        char path[1400];
        snprintf(path, sizeof path, "%s/%s/config.json", root, e->d_name);
        if (access(path, R_OK)) continue;
        Fixture f = fixture_open(root, e->d_name);
        run(&f);
        fixture_close(&f);
        found++;
    }
    closedir(dir);
    if (!found) skip("fixtures: no model in the reference pack");
}

static void logits_case(void) { each_fixture(check_logits); }
static void gradients_case(void) { each_fixture(check_gradients); }
static void adamw_case(void) { each_fixture(check_adamw); }

// ---- a small model of random weights, for everything that needs no reference

static Config small_config(bool tied) {
    Config c = small_sizes();
    c.tied = tied;
    return c;
}

// Weights large enough that every layer matters: normal(0, 0.2).
static TestModel random_model(const Config* c, const Ops* ops, const char* recipe, Recompute recompute, int B, int T) {
    RandomWeights random = {c, 7, 0.2f};
    return test_model(c, ops, recipe_find(recipe), recompute, B, T, random_weights_read, &random);
}

// Directional finite differences of the loss over all parameters at once, in random directions. A gradient with one tensor's
// sign flipped has to fail the same comparison.
static double directional(TestModel* t, int spec, int layers, float* direction[], int planted, double* along) {
    ParamSpec specs[kMaxParamSpecs];
    param_specs(&t->config, specs);
    for (int l = 0; l < layers; l++) {
        float* g = test_gradient(t, spec, l);
        size_t n = (size_t)specs[spec].rows * specs[spec].cols;
        double sum = 0;
        for (size_t i = 0; i < n; i++) sum += (double)g[i] * direction[l][i];
        *along += spec == planted ? -sum : sum;
        free(g);
    }
    return *along;
}

typedef struct {
    const Config* config;
    RandomWeights base;
    float*** direction;   // [spec][layer], as the parameter
    double step;
} Moved;

static void moved_rows(void* self, int spec, int layer, int row0, int rows, float* dst) {
    Moved* m = (Moved*)self;
    ParamSpec specs[kMaxParamSpecs];
    param_specs(m->config, specs);
    int cols = specs[spec].cols;
    random_weights_read(&m->base, spec, layer, row0, rows, dst);
    int l = specs[spec].per_layer ? layer : 0;
    for (int i = 0; i < rows * cols; i++) dst[i] += (float)(m->step * m->direction[spec][l][(size_t)row0 * cols + i]);
}

static double moved_loss(const Config* c, Moved* m, double step, const TestBatch* b) {
    m->step = step;
    TestModel t = test_model(c, &cpu_f32_ops, recipe_find("bf16"), RECOMPUTE_NONE, b->B, b->T, moved_rows, m);
    double loss = test_loss(&t, b);
    test_model_free(&t);
    return loss;
}

static void finite_differences_case(void) {
    for (int tied = 0; tied < 2; tied++) {
        Config c = small_config(tied);
        TestBatch b = random_batch(2, 19, c.V);
        TestModel t = random_model(&c, &cpu_f32_ops, "bf16", RECOMPUTE_NONE, b.B, b.T);
        test_gradients(&t, &b);
        ParamSpec specs[kMaxParamSpecs];
        int count = param_specs(&c, specs);
        // One direction per parameter, so that a single wrong gradient cannot hide behind the others.
        for (int s = 0; s < count; s++) {
            int layers = specs[s].per_layer ? c.L : 1;
            float** zero_or[kMaxParamSpecs];
            for (int i = 0; i < count; i++) {
                int n_layers = specs[i].per_layer ? c.L : 1;
                zero_or[i] = (float**)host_alloc(sizeof(float*) * (size_t)n_layers);
                for (int l = 0; l < n_layers; l++)
                    zero_or[i][l] = test_normals((size_t)specs[i].rows * specs[i].cols, i == s ? 1.0f : 0.0f);
            }
            Moved moved = {&c, {&c, 7, 0.2f}, zero_or, 0};
            double along = 0, wrong = 0, h = 2e-3;
            directional(&t, s, layers, zero_or[s], -1, &along);
            directional(&t, s, layers, zero_or[s], s, &wrong);
            // Two step sizes cancel the cubic term (Richardson).
            double near = (moved_loss(&c, &moved, h, &b) - moved_loss(&c, &moved, -h, &b)) / (2 * h);
            double far = (moved_loss(&c, &moved, 2 * h, &b) - moved_loss(&c, &moved, -2 * h, &b)) / (4 * h);
            double measured = (4 * near - far) / 3, scale = fmax(fabs(measured), 0.05);
            double err = fabs(along - measured) / scale, planted = fabs(wrong - measured) / scale;
            ok(err < 5e-3 && planted > 0.02, "finite differences %s%s: %.5f, measured %.5f, err %.1e (sign flipped %.1e)",
               specs[s].name, tied ? " tied" : "", along, measured, err, planted);
            for (int i = 0; i < count; i++) {
                for (int l = 0; l < (specs[i].per_layer ? c.L : 1); l++) free(zero_or[i][l]);
                free(zero_or[i]);
            }
        }
        test_model_free(&t);
        free(b.storage);
    }
}

// `but`: a parameter that is not compared; NULL: none.
static bool same_gradients_but(TestModel* a, TestModel* b, const char* but) {
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(&a->config, specs);
    bool same = true;
    for (int i = 0; i < count; i++)
        for (int l = 0; l < (specs[i].per_layer ? a->config.L : 1); l++) {
            if (but && !strcmp(specs[i].name, but)) continue;
            float *x = test_gradient(a, i, l), *y = test_gradient(b, i, l);
            same = same && !memcmp(x, y, sizeof(float) * (size_t)specs[i].rows * specs[i].cols);
            free(x);
            free(y);
        }
    return same;
}

static bool same_gradients(TestModel* a, TestModel* b) { return same_gradients_but(a, b, NULL); }

static LinearStats* observed(TestModel* t) {
    const QuantStats* q = model_quant_stats(t->model);
    size_t bytes = sizeof(LinearStats) * (size_t)(q->layers * kLinearCount);
    LinearStats* stats = (LinearStats*)host_alloc(bytes);
    t->ops->download(stats, q->linears, bytes);
    return stats;
}

// Observing changes no bit of a step; what is seen doesn't depend on how activations are kept; BF16 agrees with its own shadow,
// which it only does if the input made again is the one that the product read.
static void quant_stats_case(void) {
    Config c = small_config(false);
    TestBatch b = random_batch(2, 24, c.V);
    const char* const recipes[] = {"bf16", "halo0-fp8", "halo1-fp6", "halo2-int8", "switchback-int8", "jetfire-int8"};
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends), parts[kLinearCount] = {3, 1, 2, 1};
    for (int k = 0; k < backend_count; k++)
        for (int r = 0; r < COUNT(recipes); r++) {
            TestModel off = random_model(&c, backends[k], recipes[r], RECOMPUTE_NONE, b.B, b.T);
            double loss = test_gradients(&off, &b);
            LinearStats* seen[3];
            for (int how = RECOMPUTE_NONE; how <= RECOMPUTE_BLOCK; how++) {
                TestModel on = random_model(&c, backends[k], recipes[r], (Recompute)how, b.B, b.T);
                model_observe(on.model);
                double on_loss = test_gradients(&on, &b);
                seen[how] = observed(&on);
                bool same_sight = !memcmp(seen[how], seen[0], sizeof(LinearStats) * (size_t)(c.L * kLinearCount));
                ok(loss == on_loss && same_gradients(&off, &on) && same_sight, "observed, recompute %d, %s %s: the same bits, and the same seen",
                   how, backends[k]->name, recipes[r]);
                test_model_free(&on);
            }
            double least = 1, most = 0;
            for (int n = 0; n < c.L * kLinearCount; n++)
                for (int p = 0; p < parts[n % kLinearCount]; p++) {
                    double cosine = quant_stats_cosine(seen[0][n].squares[p]);
                    least = fmin(least, cosine);
                    most = fmax(most, cosine);
                }
            bool plain = !strcmp(recipes[r], "bf16") || !strcmp(recipes[r], "switchback-int8");
            ok(plain ? least > 0.999999 && most < 1.000001 : least > 0.98 && least < 0.99999, "%s %s: dW cosines %.6f to %.6f", backends[k]->name,
               recipes[r], least, most);
            for (int how = 0; how < 3; how++) free(seen[how]);
            test_model_free(&off);
        }
    free(b.storage);
}

static void recompute_case(void) {
    Config c = small_config(true);
    TestBatch b = random_batch(2, 24, c.V);
    const char* const recipes[] = {"bf16", "halo0-fp8", "halo1-fp6", "halo2-int8", "switchback-int8", "jetfire-int8"};
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 0; k < backend_count; k++)
        for (int r = 0; r < COUNT(recipes); r++) {
            TestModel none = random_model(&c, backends[k], recipes[r], RECOMPUTE_NONE, b.B, b.T);
            double loss = test_gradients(&none, &b);
            const struct {
                const char* name;
                Recompute how;
            } ways[] = {{"norm-act", RECOMPUTE_NORM_ACT}, {"block", RECOMPUTE_BLOCK}};
            for (int w = 0; w < COUNT(ways); w++) {
                TestModel again = random_model(&c, backends[k], recipes[r], ways[w].how, b.B, b.T);
                double again_loss = test_gradients(&again, &b);
                ok(loss == again_loss && same_gradients(&none, &again), "recompute %s = none, %s %s, bit for bit", ways[w].name,
                   backends[k]->name, recipes[r]);
                test_model_free(&again);
            }
            TestModel twin = random_model(&c, backends[k], recipes[r], RECOMPUTE_NONE, b.B, b.T);
            double twin_loss = test_gradients(&twin, &b);
            ok(loss == twin_loss && same_gradients(&none, &twin), "twice the same bits, %s %s", backends[k]->name, recipes[r]);
            test_model_free(&twin);
            test_model_free(&none);
        }
    free(b.storage);
}

// Two steps of two micro-steps each, and then the loss alone; the gradients of the second step stay in the shard.
static void two_steps(TestModel* t, const TestBatch* b, double losses[3]) {
    OptimConfig config = {1e-2f, 0, 2, SCHEDULE_CONSTANT, 0.9f, 0.999f, 1e-8f, 0, 0, 1};
    Optim optim = optim_new(t->ops, config);
    for (int step = 1; step <= 2; step++) {
        shard_begin_step(t->shard, step);
        for (int micro = 0; micro < 2; micro++) {
            model_train_step(t->model, &b->arrays, 0.5f / (float)b->scored, t->losses);
            shard_end_micro_step(t->shard);
        }
        losses[step - 1] = mean_loss(t, b->scored);
        shard_reduce_gradients(t->shard);
        if (step == 1) optim_step(&optim, t->shard, step);
        else shard_finish_gradients(t->shard);
    }
    losses[2] = test_loss(t, b);
    optim_free(&optim);
}

// The same model with so many layers' prepared weights made again for each pass.
static TestModel remade_model(const Config* c, const Ops* ops, const Recipe* recipe, Recompute recompute, const TestBatch* b, int remade) {
    TestModel t = random_model(c, ops, recipe->name, recompute, b->B, b->T);
    model_free(t.model);
    ModelOptions options = {b->B, b->T, true, recompute, (size_t)1 << 12, 0, recipe_find("bf16"), false, 0, 0, remade};
    t.model = model_new(c, ops, recipe, t.shard, options);
    return t;
}

static void codes_case(void) {
    Config c = small_config(true);
    c.L = 3;
    TestBatch b = random_batch(2, 24, c.V);
    const struct {
        Recompute recompute;
        int remade;
    } ways[] = {{RECOMPUTE_NONE, 2}, {RECOMPUTE_NORM_ACT, 3}, {RECOMPUTE_BLOCK, 3}};
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends), recipe_count;
    const Recipe* recipes = recipe_table(&recipe_count);
    for (int k = 0; k < backend_count; k++)
        for (int r = 0; r < recipe_count; r++) {
            if (!linear_prepares_weight(&recipes[r]) || !strncmp(recipes[r].name, "haloi", 5)) continue;
            TestModel kept = remade_model(&c, backends[k], &recipes[r], RECOMPUTE_NONE, &b, 0);
            double losses[3], again[3];
            two_steps(&kept, &b, losses);
            ok(losses[1] != losses[0] && losses[2] == losses[1], "%s %s: another loss after an update, %.6f and %.6f", backends[k]->name,
               recipes[r].name, losses[0], losses[1]);
            for (int w = 0; w < COUNT(ways); w++) {
                TestModel remade = remade_model(&c, backends[k], &recipes[r], ways[w].recompute, &b, ways[w].remade);
                two_steps(&remade, &b, again);
                ok(!memcmp(losses, again, sizeof losses) && same_gradients(&kept, &remade), "codes of %d of %d layers remade, recompute %d, %s %s: "
                   "the bits of kept ones", ways[w].remade, c.L, ways[w].recompute, backends[k]->name, recipes[r].name);
                test_model_free(&remade);
            }
            test_model_free(&kept);
        }
    free(b.storage);
}

// What an 8B full fine-tune with BF16 states takes on a GPU of 80 GB, beside what the backend holds for itself.
static void codes_plan_case(void) {
    static const char* const kRecipes[] = {"halo0-fp8", "halo2-int8"};
    const double most_gib = 74.5;   // of 76, with a workspace of 1.5
    Config c;
    check(config_preset(&c, "llama3-8b"), "no preset llama3-8b");
    for (int r = 0; r < COUNT(kRecipes); r++) {
        const Recipe* recipe = recipe_find(kRecipes[r]);
        ShardOptions shard = {3, 0, false, BF16, BF16, true, 1, 1, 1, recipe, false};
        ModelOptions keep = {4, 1024, true, RECOMPUTE_BLOCK, (size_t)512 << 20, 0, recipe_find("bf16"), false, 0, 0, 0}, remake = keep;
        remake.remade = c.L;
        MemoryPlan kept = memory_plan(&c, &cpu_bf16_ops, comm_solo(), recipe, shard, keep),
                   remade = memory_plan(&c, &cpu_bf16_ops, comm_solo(), recipe, shard, remake);
        double gib = (double)remade.together / (1 << 30), saved = (double)(kept.together - remade.together) / (1 << 30);
        ok(gib < most_gib, "8B, 4 x 1024 tokens, blocks recomputed, %s, codes remade: %.2f GiB", kRecipes[r], gib);
        ok(fabs(saved - 12.6) < 0.1 && kept.model.codes - remade.model.codes == kept.together - remade.together,
           "of %d layers' codes one layer's are left: %.2f GiB less", c.L, saved);
    }
}

// Two documents in one row see nothing of each other: the loss of each position is what it is when each has a row.
static void packing_case(void) {
    Config c = small_config(false);
    int T = 24, cut = 10;
    TestBatch packed = random_batch(1, T, c.V), split = random_batch(2, T, c.V);
    int *tokens = packed.storage, *pos = tokens + 2 * T, *start = tokens + 3 * T, *end = tokens + 4 * T;
    int *two = split.storage, *two_targets = two + 2 * T;
    for (int i = 0; i < T; i++) {
        bool second = i >= cut;
        pos[i] = second ? i - cut : i;
        start[i] = second ? cut : 0;
        end[i] = second ? T : cut;
        int at = second ? T + i - cut : i;
        two[at] = tokens[i];
        two_targets[at] = packed.arrays.targets[i];
    }
    TestModel one_row = random_model(&c, &cpu_f32_ops, "bf16", RECOMPUTE_NONE, 1, T);
    TestModel two_rows = random_model(&c, &cpu_f32_ops, "bf16", RECOMPUTE_NONE, 2, T);
    model_loss(one_row.model, &packed.arrays, one_row.losses);
    model_loss(two_rows.model, &split.arrays, two_rows.losses);
    float a[24], b[48];
    memcpy(a, one_row.losses, sizeof a);
    memcpy(b, two_rows.losses, sizeof b);
    float worst = 0;
    for (int i = 0; i < T; i++) worst = fmaxf(worst, fabsf(a[i] - b[i >= cut ? T + i - cut : i]));
    ok(worst < 1e-5f, "packing: two documents in a row lose what they lose alone, to %.1e", (double)worst);
    test_model_free(&one_row);
    test_model_free(&two_rows);
    free(packed.storage);
    free(split.storage);
}

// lm_head in FP8 against the same model with a BF16 head: logits, loss and gradients within what two E4M3 operands err, tied and
// untied, in pieces that are no multiple of anything; prepared weights in the memory plan; the same bits with and without recompute.
static void fp8_head_on(const Ops* ops, const Config* c, const char* recipe, const TestBatch* b) {
    enum { kOperandErr = 27 };   // of an E4M3 operand, in thousandths (test_linear, budget)
    const double budget = 1.4e-3 * kOperandErr * sqrt(2.0);
    RandomWeights random = {c, 7, 0.2f};
    const char* const heads[] = {"bf16", "halo0-fp8"};
    TestModel t[2];
    float* logits[2];
    double loss[2];
    size_t n = (size_t)b->B * b->T * (size_t)c->V;
    for (int i = 0; i < 2; i++) {
        t[i] = test_model_with_head(c, ops, recipe_find(recipe), heads[i], RECOMPUTE_NONE, b->B, b->T, random_weights_read, &random);
        logits[i] = (float*)host_alloc(sizeof(float) * n);
        model_logits(t[i].model, &b->arrays, logits[i]);
        loss[i] = test_gradients(&t[i], b);
    }
    char name[96];
    snprintf(name, sizeof name, "fp8 head %s %s%s", ops->name, recipe, c->tied ? " tied" : "");
    close_to(logits[1], logits[0], n, budget, "%s: logits", name);
    ok(memcmp(logits[0], logits[1], sizeof(float) * n) && fabs(loss[1] / loss[0] - 1) < 0.01, "%s: loss %.5f, with a BF16 head %.5f", name,
       loss[1], loss[0]);
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(c, specs);
    for (int i = 0; i < count; i++) {
        // Layers see the error of dh alone; the layers' own quantization adds noise of its own where it meets other inputs.
        bool of_head = specs[i].stack == (c->tied ? S_EMBED : S_HEAD);
        if (!of_head && specs[i].stack != S_FINAL_NORM && strcmp(recipe, "bf16")) continue;
        float *got = test_gradient(&t[1], i, 0), *want = test_gradient(&t[0], i, 0);
        close_to(got, want, (size_t)specs[i].rows * specs[i].cols, 1.5 * budget, "%s: %s", name, specs[i].name);
        free(got);
        free(want);
    }
    TestModel again = test_model_with_head(c, ops, recipe_find(recipe), heads[1], RECOMPUTE_BLOCK, b->B, b->T, random_weights_read, &random);
    double again_loss = test_gradients(&again, b);
    ok(again_loss == loss[1] && same_gradients(&again, &t[1]), "%s: recompute block = none, bit for bit", name);
    test_model_free(&again);
    for (int i = 0; i < 2; i++) {
        test_model_free(&t[i]);
        free(logits[i]);
    }
}
static void fp8_head_case(void) {
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int tied = 0; tied < 2; tied++) {
        Config c = small_config(tied);
        TestBatch b = random_batch(2, 19, c.V);
        for (int k = 0; k < backend_count; k++) {
            fp8_head_on(backends[k], &c, "bf16", &b);
            fp8_head_on(backends[k], &c, "halo2-int8", &b);
        }
        ModelOptions options = {b.B, b.T, true, RECOMPUTE_NONE, (size_t)1 << 20, 0, recipe_find("bf16"), false, 0, 0, 0}, coded = options;
        coded.head = recipe_find("halo0-fp8");
        const Recipe* layers = recipe_find("bf16");
        size_t plain = model_bytes_together(model_bytes(&c, &cpu_bf16_ops, layers, false, options)),
               with = model_bytes_together(model_bytes(&c, &cpu_bf16_ops, layers, false, coded));
        ok(with >= plain + 2 * (size_t)c.V * c.C, "fp8 head%s: the memory plan holds its codes, %zu bytes more", tied ? " tied" : "",
           with - plain);
        free(b.storage);
    }
}

// The same gradients whether a batch comes in one micro-step or in two.
static void accumulation_case(void) {
    Config c = small_config(true);
    int T = 16;
    TestBatch whole = random_batch(2, T, c.V);
    TestModel a = random_model(&c, &cpu_f32_ops, "bf16", RECOMPUTE_NONE, 2, T);
    TestModel b = random_model(&c, &cpu_f32_ops, "bf16", RECOMPUTE_NONE, 1, T);
    test_gradients(&a, &whole);
    shard_begin_step(b.shard, 1);
    for (int half = 0; half < 2; half++) {
        const int* tokens = whole.arrays.tokens + half * T;
        int labels[16];
        for (int i = 0; i < T; i++) labels[i] = i ? whole.arrays.targets[half * T + i - 1] : -100;
        TestBatch row = test_batch(tokens, labels, 1, T);
        model_train_step(b.model, &row.arrays, 1.0f / (float)whole.scored, b.losses);
        shard_end_micro_step(b.shard);
        free(row.storage);
    }
    shard_reduce_gradients(b.shard);
    shard_finish_gradients(b.shard);
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(&c, specs);
    for (int i = 0; i < count; i++) {
        float *x = test_gradient(&a, i, 0), *y = test_gradient(&b, i, 0);
        close_to(y, x, (size_t)specs[i].rows * specs[i].cols, 1e-5, "accumulation %s", specs[i].name);
        free(x);
        free(y);
    }
    test_model_free(&a);
    test_model_free(&b);
    free(whole.storage);
}

// A model laid out for three sequences takes one: the bits of a model for one, and of three afterwards; and what was observed in the
// larger micro-step is still there after the smaller one.
static void fewer_rows_case(void) {
    static const char* const kRecipes[] = {"bf16", "halo2-int8", "halo1-fp6"};
    Config c = small_config(false);
    int T = 16;
    TestBatch three = random_batch(3, T, c.V), one = random_batch(1, T, c.V);
    for (int r = 0; r < COUNT(kRecipes); r++) {
        TestModel a = random_model(&c, &cpu_bf16_ops, kRecipes[r], RECOMPUTE_NONE, 3, T), b = random_model(&c, &cpu_bf16_ops, kRecipes[r], RECOMPUTE_NONE, 1, T);
        TestModel whole = random_model(&c, &cpu_bf16_ops, kRecipes[r], RECOMPUTE_NONE, 3, T);
        a.BT = b.BT;
        double loss = test_gradients(&a, &one), want = test_gradients(&b, &one);
        ok(loss == want && same_gradients_but(&a, &b, "lm_head.weight"), "%s: one sequence in a model for three: the bits of a model for one but for "
           "the head, whose pieces have other lengths", kRecipes[r]);
        a.BT = whole.BT;
        model_observe(whole.model);
        loss = test_gradients(&a, &three), want = test_gradients(&whole, &three);
        ok(loss == want && same_gradients(&a, &whole), "%s: three sequences after one: the bits of three", kRecipes[r]);
        ok(!same_gradients(&b, &whole), "%s: a planted error is found: other sequences, other gradients", kRecipes[r]);
        size_t bytes = sizeof(LinearStats) * (size_t)c.L * kLinearCount;
        LinearStats *before = observed(&whole), *after;
        model_train_step(whole.model, &one.arrays, 1.0f, whole.losses);
        after = observed(&whole);
        ok(!memcmp(before, after, bytes), "%s: what was observed stays", kRecipes[r]);
        free(before);
        free(after);
        test_model_free(&a);
        test_model_free(&b);
        test_model_free(&whole);
    }
    free(three.storage);
    free(one.storage);
}

// All gradients of a step as floats.
typedef struct {
    float* values;
    size_t count;
} Gradients;
static void collect_gradient(Gradients* all, const void* raw, size_t n, Fmt fmt) {
    all->values = (float*)host_grow(all->values, sizeof(float) * (all->count + n));
    for (size_t i = 0; i < n; i++) all->values[all->count + i] = fmt == F32 ? ((const float*)raw)[i] : f32_from_bf16(((const uint16_t*)raw)[i]);
    all->count += n;
}

// The sum of many small micro-steps of one batch.
enum { kSmallSteps = 64 };
static Gradients small_steps(const Config* c, const Ops* ops, Fmt grad_fmt, const TestBatch* b) {
    RandomWeights random = {c, 7, 0.2f};
    ShardOptions shard = {0, 0, true, grad_fmt, F32, true, 0, kSmallSteps, 5, NULL, false};
    TestModel t = test_model_stored(shard, c, ops, recipe_find("bf16"), "bf16", RECOMPUTE_NONE, b->B, b->T, random_weights_read, &random);
    shard_begin_step(t.shard, 1);
    for (int step = 0; step < kSmallSteps; step++) {
        model_train_step(t.model, &b->arrays, 1.0f / (float)b->scored / kSmallSteps, t.losses);
        shard_end_micro_step(t.shard);
    }
    Gradients g = {NULL, 0};
    shard_reduce_gradients(t.shard);
    shard_finish_gradients(t.shard);
    shard_begin_step(t.shard, 2);   // now the sums are where the next micro-step's gradients are written
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(c, specs);
    for (int i = 0; i < count; i++)
        for (int l = 0; l < (specs[i].per_layer ? c->L : 1); l++) {
            float* raw = test_gradient(&t, i, l);
            collect_gradient(&g, raw, (size_t)specs[i].rows * specs[i].cols, grad_fmt);
            free(raw);
        }
    test_model_free(&t);
    return g;
}

// BF16 gradients that add up over 64 equal micro-steps: to nearest, the later ones would be rounded away where the sum is a power of two
// above them. Rounded stochastically the sum is F32's, within what 64 roundings cost and without bias, and the same bits twice.
static void small_steps_case(void) {
    Config c = small_config(true);
    TestBatch b = random_batch(1, 24, c.V);
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 1; k < backend_count; k++) {
        const char* name = backends[k]->name;
        Gradients want = small_steps(&c, backends[k], F32, &b), got = small_steps(&c, backends[k], BF16, &b),
                  again = small_steps(&c, backends[k], BF16, &b);
        double along = 0, squares = 0, err = rel_err(got.values, want.values, want.count);
        for (size_t i = 0; i < want.count; i++) along += (double)got.values[i] * want.values[i], squares += (double)want.values[i] * want.values[i];
        ok(got.count == want.count && err > 0 && err < 0.02, "64 small micro-steps %s: BF16 gradients err by %.1e of F32's", name, err);
        ok(fabs(along / squares - 1) < 1e-3, "64 small micro-steps %s: BF16 gradients are %.5f times F32's", name, along / squares);
        ok(!memcmp(got.values, again.values, sizeof(float) * got.count), "64 small micro-steps %s: the same bits twice", name);
        free(want.values);
        free(got.values);
        free(again.values);
    }
    free(b.storage);
}

// ---- micro-steps that a backend records and repeats

// What a short run leaves: losses of its micro-steps, then the training state.
typedef struct {
    char* bytes;
    size_t count;
} RunResult;
static void keep_result(RunResult* r, const Ops* ops, const void* data, size_t bytes) {
    r->bytes = (char*)host_grow(r->bytes, r->count + bytes);
    ops->download(r->bytes + r->count, data, bytes);
    r->count += bytes;
}

enum { kRecordedSteps = 4, kRecordedMicroSteps = 3 };
typedef struct {
    const char *what, *recipe, *head;
    Recompute recompute;
    Fmt grad_fmt;
    AdapterKind adapter;
} RecordedRun;

// Steps whose last micro-step has fewer rows than the others; every batch and loss scale is another. Before the last step the model is
// asked for a loss, so that its weights are prepared when the step begins.
static RunResult recorded_run(const RecordedRun* run, const Config* base, const Ops* ops, const TestBatch batch[], bool record) {
    Config c = *base;
    Adapter adapter = {run->adapter, 4, 8, false, run->adapter == ADAPTER_LORA ? 0.25f : 0, 3, 127};
    if (run->adapter != ADAPTER_NONE) c.adapter = adapter;
    RandomWeights random = {&c, 7, 0.2f};
    ShardOptions shard = {0, 0, true, run->grad_fmt, F32, true, 0, kRecordedMicroSteps, 5, NULL, false};
    TestModel t = test_model_stored(shard, &c, ops, recipe_find(run->recipe), run->head, run->recompute, batch[0].B, batch[0].T, random_weights_read,
                                    &random);
    if (run->adapter != ADAPTER_NONE) shard_load_adapter(t.shard, lora_start_read, &random);
    model_record(t.model, record);
    OptimConfig config = {0.01f, 1, kRecordedSteps, SCHEDULE_LINEAR, 0.9f, 0.999f, 1e-8f, 0, 0, 5};
    Optim optim = optim_new(ops, config);
    RunResult r = {NULL, 0};
    for (int step = 1; step <= kRecordedSteps; step++) {
        if (step == kRecordedSteps) model_loss(t.model, &batch[0].arrays, t.losses);
        shard_begin_step(t.shard, step);
        for (int a = 0; a < kRecordedMicroSteps; a++) {
            const TestBatch* b = &batch[(step - 1) * kRecordedMicroSteps + a];
            model_train_step(t.model, &b->arrays, 1.0f / (float)(10 + step), t.losses);
            keep_result(&r, ops, t.losses, sizeof(float) * (size_t)(b->B * b->T));
            shard_end_micro_step(t.shard);
        }
        shard_reduce_gradients(t.shard);
        optim_step(&optim, t.shard, step);
    }
    StateArray state[kMaxStateArrays];
    int arrays = shard_state(t.shard, state);
    for (int i = 0; i < arrays; i++) keep_result(&r, ops, state[i].data, state[i].bytes);
    optim_free(&optim);
    test_model_free(&t);
    return r;
}

// Recorded micro-steps give the bits of plain ones: losses, weights and moments.
static void recorded_case(void) {
    static const RecordedRun kRuns[] = {{"bf16", "bf16", "bf16", RECOMPUTE_NONE, F32, ADAPTER_NONE},
                                        {"halo2-int8, BF16 gradients", "halo2-int8", "bf16", RECOMPUTE_NONE, BF16, ADAPTER_NONE},
                                        {"halo0-fp8, FP8 head, recomputed blocks", "halo0-fp8", "halo0-fp8", RECOMPUTE_BLOCK, F32, ADAPTER_NONE},
                                        {"halo1-fp6, LoRA with dropout", "halo1-fp6", "bf16", RECOMPUTE_NORM_ACT, F32, ADAPTER_LORA},
                                        {"bf16, HUT", "bf16", "bf16", RECOMPUTE_NONE, F32, ADAPTER_HUT}};
    Config c = small_config(true);
    TestBatch batch[kRecordedSteps * kRecordedMicroSteps];
    for (int i = 0; i < COUNT(batch); i++) batch[i] = random_batch(i % kRecordedMicroSteps == 2 ? 1 : 2, 16, c.V);
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 1; k < backend_count; k++)
        for (int i = 0; i < COUNT(kRuns); i++) {
            const RecordedRun* run = &kRuns[i];
            RunResult plain = recorded_run(run, &c, backends[k], batch, false), recorded = recorded_run(run, &c, backends[k], batch, true);
            TestBatch last = batch[COUNT(batch) - 1];
            batch[COUNT(batch) - 1] = batch[2];
            RunResult other = recorded_run(run, &c, backends[k], batch, true);
            batch[COUNT(batch) - 1] = last;
            ok(plain.count == recorded.count && !memcmp(plain.bytes, recorded.bytes, plain.count), "recorded micro-steps %s, %s: the bits of plain ones",
               backends[k]->name, run->what);
            ok(memcmp(plain.bytes, other.bytes, plain.count), "recorded micro-steps %s, %s: another last batch is found", backends[k]->name, run->what);
            free(plain.bytes);
            free(recorded.bytes);
            free(other.bytes);
        }
    for (int i = 0; i < COUNT(batch); i++) free(batch[i].storage);
}

// ---- generation: the cache

enum { kSequences = 3, kLongest = 20, kPromptLeast = 5 };

// The logits after each sequence's last token: prompts of different lengths go in together or one by one, then tokens side by side.
static float* extended_logits(const Config* c, const Ops* ops, const int* tokens, bool together) {
    RandomWeights random = {c, 7, 0.2f};
    ShardOptions options = {0, 0, false, F32, F32, false, 0, 1, 1, recipe_find("bf16"), false};
    Shard* shard = shard_new(c, ops, comm_solo(), options);
    shard_load(shard, random_weights_read, &random);
    Model* m = model_new(c, ops, options.recipe, shard, generation_options(kSequences, kLongest));
    float* logits = (float*)host_alloc(sizeof(float) * kSequences * (size_t)c->V);
    for (int first = 0; first < kSequences; first += together ? kSequences : 1) {
        int end = together ? kSequences : first + 1, ids[kSequences * kLongest], slot[kSequences * kLongest], pos[kSequences * kLongest];
        for (int step = 0; step <= kLongest - kPromptLeast - kSequences; step++) {
            int rows = 0, last[kSequences];
            for (int s = first; s < end; s++) {
                int from = step ? kPromptLeast + s + step - 1 : 0, to = kPromptLeast + s + step;
                for (int i = from; i < to; i++, rows++) {
                    ids[rows] = tokens[s * kLongest + i];
                    slot[rows] = s;
                    pos[rows] = i;
                }
                last[s - first] = rows - 1;
            }
            NewTokens batch = {rows, ids, slot, pos};
            model_extend(m, &batch, last, end - first, logits + (size_t)first * c->V);
        }
    }
    model_free(m);
    shard_free(shard);
    return logits;
}

// A sequence gets the logits that it gets alone, and those of a forward pass over all of it without a cache.
static void extend_case(void) {
    Config c = small_config(true);
    TestBatch whole = random_batch(kSequences, kLongest, c.V);
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 0; k < backend_count; k++) {
        const Ops* ops = backends[k];
        float *alone = extended_logits(&c, ops, whole.arrays.tokens, false), *batched = extended_logits(&c, ops, whole.arrays.tokens, true);
        size_t count = kSequences * (size_t)c.V;
        if (!strcmp(ops->name, "cuda")) close_to(batched, alone, count, 0.02, "extend %s: batched as alone", ops->name);
        else ok(!memcmp(batched, alone, sizeof(float) * count), "extend %s: batched as alone, bit for bit", ops->name);
        TestModel t = random_model(&c, ops, "bf16", RECOMPUTE_NONE, kSequences, kLongest);
        float* logits = (float*)host_alloc(sizeof(float) * kSequences * kLongest * (size_t)c.V);
        model_logits(t.model, &whole.arrays, logits);
        for (int s = 0; s < kSequences; s++) {
            int last = kPromptLeast + s + kLongest - kPromptLeast - kSequences - 1;
            close_to(batched + (size_t)s * c.V, logits + ((size_t)s * kLongest + last) * c.V, (size_t)c.V, ops->act == F32 ? 1e-5 : 0.03,
                     "extend %s: sequence %d as without a cache", ops->name, s);
        }
        test_model_free(&t);
        free(alone);
        free(batched);
        free(logits);
    }
    free(whole.storage);
}

static const Case cases[] = {{"model.logits", logits_case},
                             {"model.gradients", gradients_case},
                             {"model.adamw", adamw_case},
                             {"model.finite_differences", finite_differences_case},
                             {"model.recompute", recompute_case},
                             {"model.quant_stats", quant_stats_case},
                             {"model.codes", codes_case},
                             {"model.codes_plan", codes_plan_case},
                             {"model.packing", packing_case},
                             {"model.fp8_head", fp8_head_case},
                             {"model.accumulation", accumulation_case}, {"model.fewer_rows", fewer_rows_case},
                             {"model.small_steps", small_steps_case},
                             {"model.recorded", recorded_case},
                             {"model.extend", extend_case}};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
