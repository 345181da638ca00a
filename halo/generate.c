// Generation; see generate.h.
#include "generate.h"

ModelOptions generation_options(int slots, int positions) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    size_t most = (size_t)slots * (size_t)positions;
    o.B = 1;
    o.T = most < kPromptRows ? (int)most : max_int(kPromptRows, slots);
    o.logits_bytes = (size_t)64 << 20;
    o.head = recipe_find("bf16");
    o.slots = slots;
    o.positions = positions;
    return o;
}

enum { kNoPrompt = -1 };

typedef struct {
    int prompt;     // whose answer is under way here, or kNoPrompt
    int used;       // tokens in the cache
    int answered;   // tokens of the answer so far
    int last;       // the newest token of the answer, not in the cache yet
} Slot;

// One call of the model: its rows, and the rows after which a token is to be chosen.
typedef struct {
    NewTokens batch;
    int *tokens, *slot, *pos;   // (rows)
    int *wanted, *owner;        // (slots) rows after which a token is wanted, and the slots that these rows belong to
    int wanted_count;
    int* best;                  // (slots) the token chosen after each wanted row
    float* logits;              // (slots, V), only for sampling
} Step;

typedef struct {
    Model* model;
    const Config* config;
    const Decoding* d;
    const Prompt* prompts;
    int count, next;            // prompts in all; the number of the next prompt to get a slot
    Slot* slots;
    int row_limit;              // of a step
    Step step;
} Scheduler;

static bool reads_prompt(const Scheduler* s, const Slot* slot) {
    return slot->prompt != kNoPrompt && slot->used < s->prompts[slot->prompt].count;
}

static void fill_slots(Scheduler* s) {
    for (int i = 0; i < s->d->slots && s->next < s->count; i++) {
        if (s->slots[i].prompt != kNoPrompt) continue;
        const Prompt* p = &s->prompts[s->next];
        check(p->count >= 1 && p->count < s->d->positions, "generate_answers: a prompt of %d tokens in a slot of %d", p->count,
              s->d->positions);
        Slot fresh = {s->next++, 0, 0, 0};
        s->slots[i] = fresh;
    }
}

static void add_rows(Scheduler* s, int slot, const int* tokens, int count) {
    Step* step = &s->step;
    for (int i = 0; i < count; i++) {
        int row = step->batch.rows++;
        step->tokens[row] = tokens[i];
        step->slot[row] = slot;
        step->pos[row] = s->slots[slot].used++;
    }
    if (reads_prompt(s, &s->slots[slot])) return;
    step->owner[step->wanted_count] = slot;
    step->wanted[step->wanted_count++] = step->batch.rows - 1;
}

// A step takes tokens of prompts alone while many of them are waiting (more than a quarter of a step's rows); else one token of every
// answer, and prompts in the rows left over. A prompt that fits in one step is never split, so that in a step of prompts alone no row
// needs the cache.
static void plan_step(Scheduler* s) {
    int waiting = 0;
    s->step.batch.rows = s->step.wanted_count = 0;
    for (int i = 0; i < s->d->slots; i++)
        if (reads_prompt(s, &s->slots[i])) waiting += s->prompts[s->slots[i].prompt].count - s->slots[i].used;
    bool prompts_alone = waiting > s->row_limit / 4;
    for (int i = 0; i < s->d->slots && !prompts_alone; i++)
        if (s->slots[i].prompt != kNoPrompt && !reads_prompt(s, &s->slots[i])) add_rows(s, i, &s->slots[i].last, 1);
    for (int i = 0; i < s->d->slots; i++) {
        if (!reads_prompt(s, &s->slots[i])) continue;
        const Prompt* p = &s->prompts[s->slots[i].prompt];
        int left = p->count - s->slots[i].used, room = s->row_limit - s->step.batch.rows;
        bool long_one = p->count > s->row_limit;
        if (room > 0 && (left <= room || long_one)) add_rows(s, i, p->tokens + s->slots[i].used, min_int(left, room));
    }
}

// Chooses the tokens that follow the wanted rows, into step.best.
static void run_step(Scheduler* s) {
    Step* step = &s->step;
    const Sampler* sampler = &s->d->sampler;
    if (!step->logits) {
        model_extend_best(s->model, &step->batch, step->wanted, step->wanted_count, step->best);
        return;
    }
    model_extend(s->model, &step->batch, step->wanted, step->wanted_count, step->logits);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < step->wanted_count; i++) {
        const Slot* slot = &s->slots[step->owner[i]];
        int number = s->d->first_number + slot->prompt * max_int(s->d->number_step, 1);
        uint64_t draw = (uint64_t)number << 32 | (uint64_t)slot->answered;
        step->best[i] = sample_token(sampler, step->logits + (size_t)i * s->config->V, s->config->V, draw);
    }
}

static bool is_stop(const Decoding* d, int token) {
    for (int i = 0; i < d->stop_count; i++)
        if (d->stop[i] == token) return true;
    return false;
}

static void end_all(Scheduler* s) {
    for (int i = 0; i < s->d->slots; i++)
        if (s->slots[i].prompt != kNoPrompt) s->d->end(s->d->context, s->slots[i].prompt);
}

static void take_tokens(Scheduler* s) {
    const Decoding* d = s->d;
    for (int i = 0; i < s->step.wanted_count; i++) {
        Slot* slot = &s->slots[s->step.owner[i]];
        slot->last = s->step.best[i];
        bool ends = d->max_tokens == 0 || is_stop(d, slot->last);
        if (!ends) {
            d->token(d->context, slot->prompt, slot->last);
            ends = ++slot->answered == d->max_tokens || slot->used == d->positions;
        }
        if (!ends) continue;
        d->end(d->context, slot->prompt);
        slot->prompt = kNoPrompt;
    }
}

// A step for nothing: this rank's part in gathering the weights for others.
static void idle_step(Scheduler* s) {
    const int zero = 0;
    NewTokens token = {1, &zero, &zero, &zero};
    model_extend(s->model, &token, NULL, 0, NULL);
}

// Whether there is another step; it is planned then.
static bool goes_on(Scheduler* s) {
    fill_slots(s);
    plan_step(s);
    bool working = s->step.batch.rows > 0;
    return s->d->meet ? s->d->meet(s->d->meet_context, working) : working;
}

static int* ints(int n) { return (int*)host_alloc(sizeof(int) * (size_t)n); }

void generate_answers(Model* model, const Config* config, const Decoding* d, const Prompt* prompts, int count) {
    Scheduler s;
    memset(&s, 0, sizeof s);
    s.model = model;
    s.config = config;
    s.d = d;
    s.prompts = prompts;
    s.count = count;
    s.row_limit = generation_options(d->slots, d->positions).T;
    s.slots = (Slot*)host_alloc(sizeof(Slot) * (size_t)d->slots);
    for (int i = 0; i < d->slots; i++) s.slots[i].prompt = kNoPrompt;
    Step step = {{0, NULL, NULL, NULL}, ints(s.row_limit), ints(s.row_limit), ints(s.row_limit), ints(d->slots), ints(d->slots), 0,
                 ints(d->slots), NULL};
    s.step = step;
    if (d->sampler.temperature > 0) s.step.logits = (float*)host_alloc(sizeof(float) * (size_t)d->slots * (size_t)config->V);
    NewTokens batch = {0, step.tokens, step.slot, step.pos};
    s.step.batch = batch;
    while (goes_on(&s)) {
        if (!s.step.batch.rows) {
            idle_step(&s);
            continue;
        }
        run_step(&s);
        if (d->share && s.step.wanted_count) d->share(d->share_context, s.step.best, s.step.wanted_count);
        take_tokens(&s);
        if (!d->interrupted || !*d->interrupted) continue;
        end_all(&s);
        break;
    }
    int* const all[] = {step.tokens, step.slot, step.pos, step.wanted, step.owner, step.best};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    free(s.step.logits);
    free(s.slots);
}
