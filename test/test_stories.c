// A real pre-trained model, stories260K of the reference pack: its cross-entropies, its greedy story, and a short fine-tune
// under every level.
#include "../data/json.h"
#include "../halo/generate.h"
#include "backends.h"
#include "model_fixture.h"

typedef struct {
    Config config;
    HfModel* source;
    json_t* reference;
} Stories;

static bool stories_open(Stories* s) {
    const char *dir = refpack("data/models/stories260K/hf"), *reference = refpack("data/reference/stories260K_forward.json");
    if (!dir || !reference) return false;
    s->source = hf_model_open(dir, &s->config);
    s->reference = json_parse_file(reference);
    return true;
}

static void stories_close(Stories* s) {
    hf_model_close(s->source);
    json_decref(s->reference);
}

static int* sequence_tokens(const json_t* sequence, int* count) {
    const json_t* tokens = json_object_get(sequence, "tokens");
    *count = (int)json_array_size(tokens);
    int* ids = (int*)host_alloc(sizeof(int) * (size_t)*count);
    for (int i = 0; i < *count; i++) ids[i] = (int)json_integer_value(json_array_get(tokens, (size_t)i));
    return ids;
}

static void cross_entropies_case(void) {
    Stories s;
    if (!stories_open(&s)) return;
    const char* name;
    json_t* sequence;
    json_object_foreach(json_object_get(s.reference, "sequences"), name, sequence) {
        int count;
        int* ids = sequence_tokens(sequence, &count);
        TestBatch b = test_batch(ids, ids, 1, count);
        const Ops* backends[kMaxBackends];
        int backend_count = test_backends(backends);
        for (int k = 0; k < backend_count; k++) {
            const Ops* ops = backends[k];
            TestModel t = test_model(&s.config, ops, recipe_find("bf16"), RECOMPUTE_NONE, 1, count, read_hf_rows, s.source);
            double got = test_loss(&t, &b), want = json_number_value(json_object_get(sequence, "mean_ce"));
            ok(fabs(got - want) < (ops->act == F32 ? 1e-6 : 0.01), "stories260K %s %s: cross entropy %.8f, wanted %.8f", name, ops->name,
               got, want);
            test_model_free(&t);
        }
        free(b.storage);
        free(ids);
    }
    stories_close(&s);
}

// The reference's greedy story, token by token. BF16 may prefer another token where two are nearly as likely: it is then told the
// reference's.
static void greedy_on(const Stories* s, const Ops* ops, const int* ids, int count) {
    int given = 4, same = 0;   // BOS and "Once upon a"
    ShardOptions options = {0, 0, false, F32, F32, false, 0, 1, 1, recipe_find("bf16"), false};
    Shard* shard = shard_new(&s->config, ops, comm_solo(), options);
    shard_load(shard, read_hf_rows, s->source);
    Model* model = model_new(&s->config, ops, options.recipe, shard, generation_options(1, count));
    float* logits = (float*)host_alloc(sizeof(float) * (size_t)s->config.V);
    int *slot = (int*)host_alloc(sizeof(int) * (size_t)count), *pos = (int*)host_alloc(sizeof(int) * (size_t)count);
    for (int i = 0; i < count; i++) pos[i] = i;
    NewTokens prompt = {given, ids, slot, pos};
    int last = given - 1, first = 0;
    model_extend(model, &prompt, &last, 1, logits);
    for (int i = given; i < count; i++) {
        int best = 0;
        for (int v = 1; v < s->config.V; v++)
            if (logits[v] > logits[best]) best = v;
        same += best == ids[i];
        NewTokens next = {1, ops->act == F32 ? &best : &ids[i], slot, pos + i};
        if (i + 1 < count) model_extend(model, &next, &first, 1, logits);
    }
    free(logits);
    free(slot);
    free(pos);
    int wanted = count - given;
    ok(same == wanted || (ops->act == BF16 && same >= wanted - wanted / 20), "stories260K greedy story %s: %d of %d tokens", ops->name, same,
       wanted);
    model_free(model);
    shard_free(shard);
}

static void greedy_case(void) {
    Stories s;
    if (!stories_open(&s)) return;
    int count;
    int* ids = sequence_tokens(json_object_get(json_object_get(s.reference, "sequences"), "greedy_story"), &count);
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 0; k < backend_count; k++) greedy_on(&s, backends[k], ids, count);
    free(ids);
    stories_close(&s);
}

// ---- a short fine-tune: every recipe has to follow BF16

static double fine_tune(const Stories* s, const Ops* ops, const char* recipe, const char* head, const int* ids, int count, int steps) {
    TestBatch b = test_batch(ids, ids, 1, count);
    TestModel t = test_model_with_head(&s->config, ops, recipe_find(recipe), head, RECOMPUTE_NONE, 1, count, read_hf_rows, s->source);
    OptimConfig config = {1e-3f, 0, steps, SCHEDULE_CONSTANT, 0.9f, 0.999f, 1e-8f, 0, 0, 1};
    Optim optim = optim_new(ops, config);
    for (int step = 1; step <= steps; step++) {
        test_gradients(&t, &b);
        optim_step(&optim, t.shard, step);
    }
    double loss = test_loss(&t, &b);
    optim_free(&optim);
    test_model_free(&t);
    free(b.storage);
    return loss;
}

static void fine_tune_case(void) {
    Stories s;
    if (!stories_open(&s)) return;
    int count, steps = 20;
    int* ids = sequence_tokens(json_object_get(json_object_get(s.reference, "sequences"), "gsm8k_train0"), &count);
    double f32 = fine_tune(&s, &cpu_f32_ops, "bf16", "bf16", ids, count, steps);
    double bf16 = fine_tune(&s, &cpu_bf16_ops, "bf16", "bf16", ids, count, steps);
    ok(f32 < 3.5 && fabs(bf16 - f32) < 0.02, "stories260K, %d steps on one example: cpu_f32 %.4f, cpu_bf16 %.4f", steps, f32, bf16);
    const struct {
        const char *recipe, *head;
        double tolerance;
    } rows[] = {{"bf16", "bf16", 0.02},      {"halo0-fp8", "bf16", 0.06},       {"halo1-fp6", "bf16", 0.12},    {"halo2-int8", "bf16", 0.04},
                {"bf16", "halo0-fp8", 0.04}, {"halo2-int8", "halo0-fp8", 0.06}, {"switchback-int8", "bf16", 0.04}, {"jetfire-int8", "bf16", 0.04}};
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 1; k < backend_count; k++) {
        for (int i = 0; i < COUNT(rows); i++) {
            double loss = fine_tune(&s, backends[k], rows[i].recipe, rows[i].head, ids, count, steps);
            ok(fabs(loss - bf16) < rows[i].tolerance, "stories260K %s, head %s, %s: %.4f, %.4f from BF16", rows[i].recipe, rows[i].head,
               backends[k]->name, loss, loss - bf16);
        }
    }
    free(ids);
    stories_close(&s);
}

static const Case cases[] = {{"stories.cross_entropies", cross_entropies_case},
                             {"stories.greedy", greedy_case},
                             {"stories.fine_tune", fine_tune_case}};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
