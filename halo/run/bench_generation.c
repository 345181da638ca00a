// bench --generate; see bench_generation.h.
#include "bench_generation.h"

#include "../../data/batch.h"
#include "../ceilings.h"
#include "../generate.h"
#include "clock.h"

enum { kRepeats = 3 };

static void pass_token(void* context, int prompt, int token) { (void)context; (void)prompt; (void)token; }
static void pass_end(void* context, int prompt) { (void)context; (void)prompt; }

// The shortest time of a few runs, in seconds, for answers of exactly `tokens` tokens: no token stops them.
static double time_answers(Session* s, Model* model, int positions, int tokens, const Prompt* prompts) {
    Decoding d;
    memset(&d, 0, sizeof d);
    d.slots = s->o.generate;
    d.positions = positions;
    d.max_tokens = tokens;
    d.token = pass_token;
    d.end = pass_end;
    double best = 0;
    for (int i = 0; i <= kRepeats; i++) {   // the first run does not count: it chooses the products' algorithms
        double start = seconds_now();
        generate_answers(model, &s->config, &d, prompts, s->o.generate);
        double seconds = seconds_now() - start;
        if (i == 1 || (i > 1 && seconds < best)) best = seconds;
    }
    return best;
}

// Tokens per second of a forward pass of training, over about as many rows as generation reads of prompts in one step.
static double forward_rate(Session* s) {
    int B = max_int(kPromptRows / s->o.seq, 1), BT = B * s->o.seq;
    ModelOptions options = {B, s->o.seq, false, RECOMPUTE_NONE, (size_t)s->o.logits_mb << 20, 0, recipe_find("bf16"), false, 0, 0, 0};
    Model* model = model_new(&s->config, s->ops, s->recipe, s->shard, options);
    RowBatch batch = batch_new(B, s->o.seq);
    float* losses = (float*)s->ops->alloc(sizeof(float) * (size_t)BT);
    batch_random(&batch, s->config.V, 1);
    double best = 0;
    for (int i = 0; i <= kRepeats; i++) {
        double start = seconds_now();
        model_loss(model, &batch.arrays, losses);
        s->ops->sync();
        double rate = BT / (seconds_now() - start);
        if (i && rate > best) best = rate;
    }
    s->ops->release(losses);
    batch_free(&batch);
    model_free(model);
    return best;
}

// Bytes that a step of decoding has to read: every weight except an untied embedding, and the keys and values of all answers.
static double step_bytes(const Session* s, double mean_used) {
    const Config* c = &s->config;
    double weights = (double)param_count(c) - (c->tied ? 0 : (double)c->V * c->C);
    double cache = (double)s->o.generate * mean_used * c->L * 2 * c->NKV * c->HD;
    return (weights + cache) * (double)fmt_bytes(s->ops->act);
}

void bench_generation(Session* s) {
    const Options* o = &s->o;
    int n = o->generate, positions = o->seq + o->max_tokens;
    if (positions > s->config.max_T)
        user_error("--seq %d --max-tokens %d: the model's max_position_embeddings is %d", o->seq, o->max_tokens, s->config.max_T);
    if (o->max_tokens < 2) user_error("--max-tokens %d: at least 2 are needed to time a step", o->max_tokens);
    load_weights(s, false);
    double forward = forward_rate(s);
    RowBatch batch = batch_new(n, o->seq);
    batch_random(&batch, s->config.V, 2);
    Prompt* prompts = (Prompt*)host_alloc(sizeof(Prompt) * (size_t)n);
    for (int i = 0; i < n; i++) {
        Prompt prompt = {batch.arrays.tokens + (size_t)i * o->seq, o->seq};
        prompts[i] = prompt;
    }
    Model* model = model_new(&s->config, s->ops, s->recipe, s->shard, generation_options(n, positions));
    double reading = time_answers(s, model, positions, 1, prompts), all = time_answers(s, model, positions, o->max_tokens, prompts);
    model_free(model);
    double step = (all - reading) / (o->max_tokens - 1), prompt_rate = (double)n * o->seq / reading;
    double floor_seconds = step_bytes(s, o->seq + 0.5 * o->max_tokens) / (1e9 * ceiling_gbs(s->ops));
    if (leads(s)) {
        printf("prompts: %d of %d tokens  %.1f ms  %.0f tok/s  %.2f of a forward pass's %.0f\n", n, o->seq, 1e3 * reading, prompt_rate,
               prompt_rate / forward, forward);
        printf("decoding: %.3f ms a step  %.0f tok/s  %.2f x reading weights and cache once (%.3f ms)\n", 1e3 * step, n / step,
               step / floor_seconds, 1e3 * floor_seconds);
    }
    free(prompts);
    batch_free(&batch);
}
