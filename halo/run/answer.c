// Answers to prompts; see answer.h.
#include "answer.h"

#include "../../data/files.h"
#include "../progress.h"

enum { kMaxContext = 8192 };   // tokens of prompt and answer together, at most
enum { kDefaultSlots = 64 };   // answers side by side, at most, unless --batch says otherwise

static int most_positions(const Session* s) { return min_int(s->config.max_T, kMaxContext); }

Dataset* open_prompts(const Session* s, const char* path, bool held_out) {
    DataOptions options = data_options(s);
    options.seq = most_positions(s) - 1;
    options.pack = PACK_OFF;
    options.train_on_prompt = false;
    options.long_policy = LONG_TRUNCATE;
    options.held_out = held_out;
    if (!held_out) options.val_split = 0;
    else options.limit = 0;
    Dataset* d = dataset_load(path, s->tokenizer, &options);
    for (int i = 0; i < dataset_stats(d)->examples; i++)
        if (!dataset_example(d, i)->reference) user_error("%s: plain text has no prompts to answer", path);
    return d;
}

// ---- the model that generates

static double generator_bytes(const Session* s, int slots, int positions) {
    return (double)model_bytes_together(model_bytes(&s->config, s->ops, s->recipe, shard_gives_codes(s->shard),
                                                    generation_options(slots, positions)));
}

// How many answers run side by side: as many as asked for, but no more than there are prompts, or than fit in every rank's free memory.
static int pick_slots(const Session* s, int positions, int prompts) {
    int most = min_int(prompts, s->o.slots == kAuto ? kDefaultSlots : s->o.slots), ranks = s->comm->ranks;
    double room = 0.9 * (double)s->ops->free_bytes() - (double)s->ops->workspace_bytes();
    double* fit = (double*)host_alloc(sizeof(double) * (size_t)ranks);
    fit[s->comm->rank] = most;
    while (fit[s->comm->rank] > 0 && generator_bytes(s, (int)fit[s->comm->rank], positions) > room) fit[s->comm->rank]--;
    s->comm->host_sum(fit, ranks);
    for (int i = 0; i < ranks; i++) most = min_int(most, (int)fit[i]);
    free(fit);
    if (most == 0)
        user_error("no memory for one answer of %d positions: %.1f GiB are needed, %.1f are free", positions,
                   generator_bytes(s, 1, positions) / (1 << 30), room / (1 << 30));
    return most;
}

// The tokens that end an answer: those that config.json and generation_config.json name, and the end of the assistant's turn.
static int stop_tokens(const Session* s, int stop[kMaxEos + 1]) {
    int count = hf_config_eos(s->files, s->source_path ? s->source_path : "--preset", stop);
    if (s->chat.turn_end >= 0) stop[count++] = s->chat.turn_end;
    return count;
}

static void share_tokens(void* context, int* tokens, int count) {
    const Session* s = (const Session*)context;
    s->comm->host_broadcast(tokens, sizeof(int) * (size_t)count);
}

typedef struct {
    void (*token)(void* context, int prompt, int token);
    void (*end)(void* context, int prompt);
    void* context;
} Listener;

// The positions of a slot: for the longest prompt and its answer. Prompts that cannot be answered are user_errors.
static int slot_positions(const Session* s, const Prompt* prompts, int count) {
    int limit = most_positions(s), positions = 2;
    for (int i = 0; i < count; i++) {
        if (prompts[i].count == 0) user_error("the prompt has no tokens to go on from (the tokenizer adds no BOS); write something");
        if (prompts[i].count >= limit)
            user_error("the prompt has %d tokens; there is room for %d (max_position_embeddings, at most %d)", prompts[i].count, limit - 1,
                       kMaxContext);
        positions = max_int(positions, prompts[i].count + min_int(s->o.max_tokens, limit));
    }
    return min_int(positions, limit);
}

// ---- several ranks: each answers every ranks-th prompt, and before each step they tell each other what the last one brought

typedef struct {
    const Session* s;
    Listener listener;
    int slots;
    double* news;   // (ranks, kNewsHead + kNewsParts slots)
    int count;      // of this rank's
} Exchange;
// Of a rank: whether it has work. Of each slot with news: its prompt's number + 1, the token + 1 (0: none), whether the answer ends here.
enum { kNewsHead = 1, kNewsParts = 3 };

static size_t news_size(const Exchange* x) { return kNewsHead + kNewsParts * (size_t)x->slots; }
static double* news_of(const Exchange* x, int rank) { return x->news + (size_t)rank * news_size(x); }
static double* own_news(const Exchange* x, int index) { return news_of(x, x->s->comm->rank) + kNewsHead + kNewsParts * index; }

static void tell_token(void* context, int prompt, int token) {
    Exchange* x = (Exchange*)context;
    double* n = own_news(x, x->count++);
    n[0] = x->s->comm->rank + (double)prompt * x->s->comm->ranks + 1;
    n[1] = token + 1;
}

// Right after the answer's last token, if this step brought one.
static void tell_end(void* context, int prompt) {
    Exchange* x = (Exchange*)context;
    double number = x->s->comm->rank + (double)prompt * x->s->comm->ranks + 1;
    if (!x->count || own_news(x, x->count - 1)[0] != number) own_news(x, x->count++)[0] = number;
    own_news(x, x->count - 1)[2] = 1;
}

static bool exchange_news(void* context, bool working) {
    Exchange* x = (Exchange*)context;
    const Comm* comm = x->s->comm;
    bool any = false;
    news_of(x, comm->rank)[0] = working;
    comm->host_sum(x->news, (int)((size_t)comm->ranks * news_size(x)));
    for (int rank = 0; rank < comm->ranks; rank++) {
        const double* n = news_of(x, rank);
        any = any || n[0] > 0;
        for (int i = 0; i < x->slots; i++) {
            const double* of_slot = n + kNewsHead + kNewsParts * i;
            if (of_slot[0] == 0) break;
            if (of_slot[1] > 0) x->listener.token(x->listener.context, (int)of_slot[0] - 1, (int)of_slot[1] - 1);
            if (of_slot[2] > 0) x->listener.end(x->listener.context, (int)of_slot[0] - 1);
        }
    }
    memset(x->news, 0, sizeof(double) * (size_t)comm->ranks * news_size(x));
    x->count = 0;
    return any;
}

// Can ranks share out the prompts: is an answer the same whatever runs beside it? Not where a scale spans the rows of a batch.
static bool shares_prompts(const Session* s) {
    Gran gran = s->recipe->fx.gran;
    return s->comm->ranks > 1 && (gran == NO_SCALE || gran == PER_ROW);
}
static int prompts_of_a_rank(const Session* s, int count) { return shares_prompts(s) ? (count + s->comm->ranks - 1) / s->comm->ranks : count; }

// All ranks' prompts, shared out. `d` is complete but for who listens.
static void answer_shared(const Session* s, Model* model, Decoding* d, const Prompt* prompts, int count, Listener listener) {
    int ranks = s->comm->ranks, own = 0;
    Prompt* mine = (Prompt*)host_alloc(sizeof(Prompt) * (size_t)prompts_of_a_rank(s, count));
    for (int i = s->comm->rank; i < count; i += ranks) mine[own++] = prompts[i];
    Exchange x = {s, listener, d->slots, NULL, 0};
    x.news = (double*)host_alloc(sizeof(double) * (size_t)ranks * news_size(&x));
    d->first_number = s->comm->rank;
    d->number_step = ranks;
    d->token = tell_token;
    d->end = tell_end;
    d->context = d->meet_context = &x;
    d->meet = exchange_news;
    generate_answers(model, &s->config, d, mine, own);
    free(x.news);
    free(mine);
}

static void set_decoding(const Session* s, Decoding* d, int stop[kMaxEos + 1], int slots, int positions) {
    const Options* o = &s->o;
    memset(d, 0, sizeof *d);
    d->slots = slots;
    d->positions = positions;
    d->max_tokens = o->max_tokens;
    d->stop = stop;
    d->stop_count = stop_tokens(s, stop);
    d->sampler.temperature = (float)o->temperature;
    d->sampler.top_p = (float)o->top_p;
    d->sampler.seed = (uint64_t)o->seed;
}

static Model* new_generator(const Session* s, const Decoding* d) {
    return model_new(&s->config, s->ops, s->recipe, s->shard, generation_options(d->slots, d->positions));
}

static void answer_tokens(const Session* s, const Prompt* prompts, int count, Listener listener) {
    int positions = slot_positions(s, prompts, count), stop[kMaxEos + 1];
    Decoding d;
    set_decoding(s, &d, stop, pick_slots(s, positions, prompts_of_a_rank(s, count)), positions);
    d.token = listener.token;
    d.end = listener.end;
    d.context = listener.context;
    Model* model = new_generator(s, &d);
    if (shares_prompts(s) && count > 1) {
        answer_shared(s, model, &d, prompts, count, listener);
    } else {
        if (s->comm->ranks > 1) d.share = share_tokens, d.share_context = (void*)s;
        generate_answers(model, &s->config, &d, prompts, count);
    }
    model_free(model);
}

Model* open_talker(const Session* s, Decoding* d, int stop[kMaxEos + 1]) {
    enum { kFewest = 256 };   // positions that are worth a conversation
    int positions = most_positions(s);
    double room = 0.9 * (double)s->ops->free_bytes() - (double)s->ops->workspace_bytes();
    while (positions > kFewest && generator_bytes(s, 1, positions) > room) positions /= 2;
    set_decoding(s, d, stop, pick_slots(s, positions, 1), positions);
    return new_generator(s, d);
}

// ---- one prompt

typedef struct {
    const Tokenizer* tokenizer;
    DecodeStream stream;
    Text text;   // bytes of the answer that are not printed yet
} LiveAnswer;

static void print_ready(LiveAnswer* a) {
    if (a->text.bytes) fwrite(a->text.data, 1, a->text.bytes, stdout);
    fflush(stdout);
    a->text.bytes = 0;
}

static void live_token(void* context, int prompt, int token) {
    (void)prompt;
    LiveAnswer* a = (LiveAnswer*)context;
    tokenizer_decode_next(a->tokenizer, &a->stream, token, true, &a->text);
    print_ready(a);
}

static void live_end(void* context, int prompt) {
    (void)prompt;
    LiveAnswer* a = (LiveAnswer*)context;
    tokenizer_decode_finish(&a->stream, &a->text);
    print_ready(a);
    putchar('\n');
}

void answer_prompt(const Session* s, const char* prompt) {
    TokenList list = {NULL, 0, 0};
    chat_prompt(&s->chat, s->tokenizer, prompt, &list);
    LiveAnswer a;
    memset(&a, 0, sizeof a);
    a.tokenizer = s->tokenizer;
    Prompt tokens = {list.ids, list.count};
    Listener listener = {live_token, live_end, &a};
    answer_tokens(s, &tokens, 1, listener);
    text_free(&a.text);
    token_list_free(&list);
}

// ---- the prompts of a data file

typedef struct {
    const Session* s;
    const Dataset* d;
    TokenList* answers;   // (examples)
    bool* done;
    int next;             // the first example whose answer has not been handed over
    TakeAnswer take;
    void* context;
} FileAnswers;

static Prompt prompt_of(const Example* e) {
    Prompt p = {e->prompt ? e->prompt : e->tokens, e->prompt ? e->own_prompt_count : e->prompt_count};
    return p;
}

static void keep_token(void* context, int prompt, int token) { token_list_push(&((FileAnswers*)context)->answers[prompt], token); }

static char* text_of(const Tokenizer* tokenizer, const int* tokens, int count) {
    Text text = {NULL, 0, 0};
    text_append(&text, "", 0);
    tokenizer_decode(tokenizer, tokens, count, true, &text);
    return text.data;
}

static void hand_over(void* context, int prompt) {
    FileAnswers* f = (FileAnswers*)context;
    f->done[prompt] = true;
    for (int count = dataset_stats(f->d)->examples; f->next < count && f->done[f->next]; f->next++) {
        const Example* e = dataset_example(f->d, f->next);
        TokenList* tokens = &f->answers[f->next];
        const Tokenizer* tokenizer = f->s->tokenizer;
        Prompt prompt = prompt_of(e);
        Answer answer = {text_of(tokenizer, prompt.tokens, prompt.count), e->reference, text_of(tokenizer, tokens->ids, tokens->count)};
        progress_work("answering", f->next, count);
        f->take(f->context, &answer);
        token_list_free(tokens);
        free(answer.prompt);
        free(answer.generated);
    }
}

static Prompt* prompts_of(const Dataset* d) {
    int count = dataset_stats(d)->examples;
    Prompt* prompts = (Prompt*)host_alloc(sizeof(Prompt) * (size_t)count);
    for (int i = 0; i < count; i++) {
        prompts[i] = prompt_of(dataset_example(d, i));
    }
    return prompts;
}

void check_answers_fit(const Session* s, const Dataset* d) {
    int count = dataset_stats(d)->examples;
    Prompt* prompts = prompts_of(d);
    pick_slots(s, slot_positions(s, prompts, count), prompts_of_a_rank(s, count));
    free(prompts);
}

void answer_examples(const Session* s, const Dataset* d, TakeAnswer take, void* context) {
    size_t count = (size_t)dataset_stats(d)->examples;
    Prompt* prompts = prompts_of(d);
    FileAnswers f = {s, d, (TokenList*)host_alloc(sizeof(TokenList) * count), (bool*)host_alloc(count), 0, take, context};
    Listener listener = {keep_token, hand_over, &f};
    answer_tokens(s, prompts, (int)count, listener);
    progress_work(NULL, 0, 0);
    free(f.answers);
    free(f.done);
    free(prompts);
}

// ---- verdicts

typedef struct {
    const Metric* metric;
    bool* verdicts;
    int count;
    OutFile* out;   // NULL: none
} Judging;

static void judge_answer(void* context, const Answer* answer) {
    Judging* j = (Judging*)context;
    j->verdicts[j->count++] = j->metric->judge(answer->expected, answer->generated);
    if (!j->out) return;
    char* line = answer_line(answer);
    j->out->total_bytes += strlen(line);
    out_write(j->out, line, strlen(line));
    free(line);
}

Verdict judge_answers(const Session* s, const Dataset* d, const Metric* metric, const char* answers) {
    Judging j = {metric, (bool*)host_alloc((size_t)dataset_stats(d)->examples), 0, NULL};
    OutFile out;
    if (answers && leads(s)) {
        out = out_open(answers, 0);
        j.out = &out;
    }
    answer_examples(s, d, judge_answer, &j);
    if (j.out) out_close(j.out);
    Verdict v = {metric_summary(metric->name, j.verdicts, j.count), 0, j.count};
    for (int i = 0; i < j.count; i++) v.percent += 100.0 * j.verdicts[i] / j.count;
    free(j.verdicts);
    return v;
}
