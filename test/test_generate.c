// Answers to prompts side by side: the same as each alone, whatever the slots and the order; stop tokens, full slots, sampling.
#include "backends.h"
#include "model_fixture.h"

#include "../halo/generate.h"

enum { kPrompts = 9, kPositions = 40, kAnswer = 12, kVocabulary = 41 };

typedef struct {
    int tokens[kPrompts][kPositions], count[kPrompts], ended[kPrompts];
} Answers;

static void take_token(void* context, int prompt, int token) {
    Answers* a = (Answers*)context;
    check(a->count[prompt] < kPositions && !a->ended[prompt], "a token behind the end of answer %d", prompt);
    a->tokens[prompt][a->count[prompt]++] = token;
}
static void take_end(void* context, int prompt) {
    Answers* a = (Answers*)context;
    a->ended[prompt]++;
}

typedef struct {
    Config config;
    const Ops* ops;
    Shard* shard;
    const Recipe* recipe;
    int prompt_tokens[kPrompts][kPositions];
    Prompt prompts[kPrompts];
} World;

static void world_open(World* w, const Ops* ops, const char* recipe) {
    memset(w, 0, sizeof *w);
    Config c = {kVocabulary, 32, 2, 4, 2, 8, 48, 64, 1e-5f, 10000, ROPE_DEFAULT, 0, 0, 0, 0, true, -1, -1, 0.02f, {ADAPTER_NONE, 0, 0, false, 0, 0, 0}};
    w->config = c;
    w->ops = ops;
    w->recipe = recipe_find(recipe);
    RandomWeights random = {&c, 11, 0.3f};
    ShardOptions options = {0, 0, false, F32, F32, false, 0, 1, 1, w->recipe, false};
    w->shard = shard_new(&c, ops, comm_solo(), options);
    shard_load(w->shard, random_weights_read, &random);
    for (int p = 0; p < kPrompts; p++) {
        int count = 1 + p * 7 % 23;
        for (int i = 0; i < count; i++) w->prompt_tokens[p][i] = (p * 31 + i * 17 + i * i * p) % kVocabulary;
        w->prompts[p].count = count;
    }
}

static Decoding decoding_of(Answers* a, int slots, const int* stop, int stop_count, float temperature) {
    Decoding d = {slots, kPositions, kAnswer, stop, stop_count, {temperature, 0.9f, 5}, take_token, take_end, a, NULL, 0, 0, NULL, NULL, NULL, NULL};
    memset(a, 0, sizeof *a);
    return d;
}

static void answer_all(World* w, const Decoding* d) {
    for (int p = 0; p < kPrompts; p++) w->prompts[p].tokens = w->prompt_tokens[p];
    Model* m = model_new(&w->config, w->ops, w->recipe, w->shard, generation_options(d->slots, d->positions));
    generate_answers(m, &w->config, d, w->prompts, kPrompts);
    model_free(m);
}

static int differing(const Answers* a, const Answers* b) {
    int n = 0;
    for (int p = 0; p < kPrompts; p++)
        n += a->count[p] != b->count[p] || memcmp(a->tokens[p], b->tokens[p], sizeof(int) * (size_t)a->count[p]) || a->ended[p] != 1 ||
             b->ended[p] != 1;
    return n;
}

// By the definition: for every token, a forward pass without a cache over the whole text so far.
static int next_by_hand(World* w, const int* text, int n) {
    ModelOptions options = {1, n, false, RECOMPUTE_NONE, 1 << 20, 0, recipe_find("bf16"), false, 0, 0, 0};
    Model* m = model_new(&w->config, w->ops, w->recipe, w->shard, options);
    TestBatch b = test_batch(text, text, 1, n);
    float* logits = (float*)host_alloc(sizeof(float) * (size_t)n * kVocabulary);
    model_logits(m, &b.arrays, logits);
    const float* last = logits + (size_t)(n - 1) * kVocabulary;
    int best = 0;
    for (int v = 1; v < kVocabulary; v++)
        if (last[v] > last[best]) best = v;
    free(logits);
    free(b.storage);
    model_free(m);
    return best;
}

static void greedy_by_hand(World* w, int stop, Answers* a) {
    memset(a, 0, sizeof *a);
    for (int p = 0; p < kPrompts; p++) {
        int text[kPositions + 1], n = w->prompts[p].count;
        memcpy(text, w->prompt_tokens[p], sizeof w->prompt_tokens[p]);
        while (a->count[p] < kAnswer && n <= kPositions) {
            int next = next_by_hand(w, text, n);
            if (next == stop) break;
            a->tokens[p][a->count[p]++] = text[n++] = next;
        }
        a->ended[p] = 1;
    }
}

static void greedy_case(void) {
    World w;
    world_open(&w, &cpu_f32_ops, "bf16");
    Answers hand, got;
    greedy_by_hand(&w, -1, &hand);
    Decoding d = decoding_of(&got, 3, NULL, 0, 0);
    answer_all(&w, &d);
    ok(differing(&hand, &got) == 0, "3 slots: the answers of forward passes without a cache");
    int stop = hand.tokens[4][5], shorter = 0;
    greedy_by_hand(&w, stop, &hand);
    d = decoding_of(&got, 4, &stop, 1, 0);
    answer_all(&w, &d);
    for (int p = 0; p < kPrompts; p++) shorter += got.count[p] < kAnswer;
    ok(differing(&hand, &got) == 0 && shorter > 0, "4 slots: %d answers end at the stop token, which is left out", shorter);
    got.tokens[1][0]++;
    ok(differing(&hand, &got) == 1, "another token is another answer");
    shard_free(w.shard);
}

// Greedy and sampled, in BF16 and FP32: any number of slots gives the answers of one slot.
static void neighbours_case(void) {
    const Ops* backends[kMaxBackends];
    int backend_count = test_backends(backends);
    for (int k = 0; k < backend_count; k++) {
        World w;
        world_open(&w, backends[k], "bf16");
        for (int sampled = 0; sampled < 2; sampled++) {
            float temperature = sampled ? 1.5f : 0;
            Answers alone, beside, again;
            int stop[2] = {3, 17};
            Decoding d = decoding_of(&alone, 1, stop, 2, temperature);
            answer_all(&w, &d);
            const int slots[] = {2, 5, kPrompts, 2 * kPrompts};
            for (int i = 0; i < COUNT(slots); i++) {
                d = decoding_of(&beside, slots[i], stop, 2, temperature);
                answer_all(&w, &d);
                int other = differing(&alone, &beside);
                bool exact = strcmp(w.ops->name, "cuda") != 0;   // there a tie may fall another way
                ok(exact ? other == 0 : other <= 1, "%s %s, %d slots: %d answers other than alone", w.ops->name, sampled ? "sampled" : "greedy",
                   slots[i], other);
            }
            d = decoding_of(&again, 3, stop, 2, temperature);
            d.sampler.seed++;
            answer_all(&w, &d);
            ok(!sampled == (differing(&alone, &again) == 0), "%s %s: another seed %s", w.ops->name, sampled ? "sampled" : "greedy",
               sampled ? "draws other tokens" : "changes nothing");
        }
        shard_free(w.shard);
    }
}

static void limits_case(void) {
    World w;
    world_open(&w, &cpu_f32_ops, "bf16");
    Answers full, none;
    Decoding d = decoding_of(&full, 2, NULL, 0, 0);
    d.positions = 24;   // the longest prompt has 23 tokens
    d.max_tokens = kPositions;
    answer_all(&w, &d);
    int wrong = 0;
    for (int p = 0; p < kPrompts; p++) wrong += full.count[p] != 24 - w.prompts[p].count + 1 || full.ended[p] != 1;
    ok(wrong == 0, "answers end where their slot is full: the last token needs no place");
    d = decoding_of(&none, 2, NULL, 0, 0);
    d.max_tokens = 0;
    answer_all(&w, &d);
    wrong = 0;
    for (int p = 0; p < kPrompts; p++) wrong += none.count[p] != 0 || none.ended[p] != 1;
    ok(wrong == 0, "no tokens are wanted: every answer is empty, and ends");
    shard_free(w.shard);
}

// Prompts longer than what the model reads at once, beside short ones.
static void long_prompts_case(void) {
    enum { kLong = kPromptRows + 300, kShort = 5, kCount = 4 };
    World w;
    world_open(&w, &cpu_f32_ops, "bf16");
    int* tokens = (int*)host_alloc(sizeof(int) * kLong);
    for (int i = 0; i < kLong; i++) tokens[i] = (i * 7 + i / 5) % kVocabulary;
    Prompt prompts[kCount] = {{tokens, kShort}, {tokens + 1, kLong - 1}, {tokens, kLong}, {tokens + 2, kShort}};
    Answers of[2];
    for (int i = 0; i < 2; i++) {
        Decoding d = decoding_of(&of[i], i ? 3 : 1, NULL, 0, 0);
        d.positions = kLong + kAnswer;
        Model* m = model_new(&w.config, w.ops, w.recipe, w.shard, generation_options(d.slots, d.positions));
        generate_answers(m, &w.config, &d, prompts, kCount);
        model_free(m);
    }
    int wrong = 0;
    for (int p = 0; p < kCount; p++)
        wrong += of[0].count[p] != kAnswer || of[1].count[p] != kAnswer || memcmp(of[0].tokens[p], of[1].tokens[p], sizeof(int) * kAnswer);
    ok(wrong == 0, "prompts of %d and %d tokens side by side: as alone", (int)kLong, (int)kShort);
    free(tokens);
    shard_free(w.shard);
}

static void quantized_case(void) {
    World w;
    world_open(&w, &cpu_bf16_ops, "halo2-int8");
    Answers one, again;
    Decoding d = decoding_of(&one, 4, NULL, 0, 0);
    answer_all(&w, &d);
    d = decoding_of(&again, 4, NULL, 0, 0);
    answer_all(&w, &d);
    int short_ones = 0;
    for (int p = 0; p < kPrompts; p++) short_ones += one.count[p] != kAnswer;
    ok(short_ones == 0 && differing(&one, &again) == 0, "halo2-int8: whole answers, the same twice");
    shard_free(w.shard);
}

static void share_first(void* context, int* tokens, int count) {
    (void)context;
    for (int i = 0; i < count; i++) tokens[i] = 7;
}
static void share_case(void) {
    World w;
    world_open(&w, &cpu_f32_ops, "bf16");
    Answers a;
    Decoding d = decoding_of(&a, 2, NULL, 0, 0);
    d.share = share_first;
    answer_all(&w, &d);
    int wrong = 0;
    for (int p = 0; p < kPrompts; p++)
        for (int i = 0; i < kAnswer; i++) wrong += a.tokens[p][i] != 7;
    ok(wrong == 0, "what ranks agree on is what counts");
    shard_free(w.shard);
}

static const Case cases[] = {
    {"greedy", greedy_case}, {"neighbours", neighbours_case}, {"limits", limits_case},
    {"long_prompts", long_prompts_case}, {"quantized", quantized_case}, {"share", share_case},
};
int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
