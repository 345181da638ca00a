// The command generate; see generate.h.
#include "generate.h"

#include "../../data/hf_config.h"
#include "../../data/json.h"
#include "../../data/utf8.h"
#include "../generate.h"
#include "../sampler.h"

enum { kMaxContext = 8192 };   // tokens of prompt and answer: what the KV cache is made for

typedef struct {
    const Tokenizer* tokenizer;
    const Config* config;
    Sequence sequence;
    Sampler sampler;
    int stop[kMaxEos + 1], stop_count;   // tokens that end an answer
    int max_tokens;
} Writer;

static bool ends_answer(const Writer* w, int token) {
    for (int i = 0; i < w->stop_count; i++)
        if (w->stop[i] == token) return true;
    return false;
}

// Continues `prompt`; the text goes to `out`, and to stdout piece by piece if `live`.
static void write_answer(Writer* w, const int* prompt, int count, uint64_t number, bool live, Text* out) {
    DecodeStream stream;
    memset(&stream, 0, sizeof stream);
    w->sequence.used = 0;
    if (count == 0) user_error("the prompt has no tokens to go on from (the tokenizer adds no BOS); write something");
    if (count >= sequence_room(&w->sequence))
        user_error("the prompt has %d tokens; there is room for %d (max_position_embeddings, at most %d)", count,
                   sequence_room(&w->sequence) - 1, kMaxContext);
    sequence_feed(&w->sequence, prompt, count);
    for (int i = 0; i < w->max_tokens; i++) {
        int token = sample_token(&w->sampler, w->sequence.logits, w->config->V, number << 32 | (uint64_t)i);
        if (ends_answer(w, token)) break;
        size_t before = out->bytes;
        tokenizer_decode_next(w->tokenizer, &stream, token, true, out);
        if (live && out->bytes > before) {
            fwrite(out->data + before, 1, out->bytes - before, stdout);
            fflush(stdout);
        }
        if (sequence_room(&w->sequence) == 0 || i + 1 == w->max_tokens) break;
        sequence_feed(&w->sequence, &token, 1);
    }
    size_t before = out->bytes;
    tokenizer_decode_finish(&stream, out);
    if (live) fwrite(out->data ? out->data + before : "", 1, out->bytes - before, stdout);
}

static void answer_prompt(Session* s, Writer* w, const char* prompt) {
    Text text = {NULL, 0, 0};
    TokenList tokens = {NULL, 0, 0};
    chat_prompt(&s->chat, s->tokenizer, prompt, &tokens);
    write_answer(w, tokens.ids, tokens.count, 0, true, &text);
    putchar('\n');
    token_list_free(&tokens);
    text_free(&text);
}

static bool same_trimmed(const char* a, const char* b) {
    size_t na = strlen(a), nb = strlen(b);
    while (*a == ' ' || *a == '\n') a++, na--;
    while (*b == ' ' || *b == '\n') b++, nb--;
    while (na && (a[na - 1] == ' ' || a[na - 1] == '\n')) na--;
    while (nb && (b[nb - 1] == ' ' || b[nb - 1] == '\n')) nb--;
    return na == nb && !memcmp(a, b, na);
}

// What a model writes need not be UTF-8; bytes that are not become U+FFFD.
static json_t* json_text(const char* bytes, size_t count) {
    Text valid = {NULL, 0, 0};
    text_append(&valid, "", 0);
    for (size_t at = 0; at < count; at++) {
        size_t good = utf8_valid_bytes(bytes + at, count - at);
        text_append(&valid, bytes + at, good);
        at += good;
        if (at < count) text_append(&valid, "\xef\xbf\xbd", 3);
    }
    json_t* string = json_stringn(valid.data, valid.bytes);
    text_free(&valid);
    return string;
}

// One JSON line per example of --data, and the share of exact matches.
static void answer_data(Session* s, Writer* w) {
    s->o.seq = sequence_room(&w->sequence) - 1;
    s->o.long_policy = LONG_ROWS_TRUNCATE;
    DataOptions options = data_options(s);
    Dataset* d = dataset_load(s->o.data, s->tokenizer, &options);
    int count = dataset_stats(d)->examples, matches = 0;
    for (int i = 0; i < count; i++) {
        const Example* e = dataset_example(d, i);
        if (!e->reference) user_error("%s: plain text has no prompts to answer", s->o.data);
        Text text = {NULL, 0, 0}, prompt = {NULL, 0, 0};
        const int* ids = e->prompt ? e->prompt : e->tokens;
        int id_count = e->prompt ? e->own_prompt_count : e->prompt_count;
        write_answer(w, ids, id_count, (uint64_t)i, false, &text);
        text_append(&text, "", 0);
        tokenizer_decode(s->tokenizer, ids, id_count, true, &prompt);
        bool match = same_trimmed(text.data, e->reference);
        matches += match;
        json_t* line = json_pack("{s:o, s:o, s:o, s:b}", "prompt", json_text(prompt.data, prompt.bytes),
                                 "expected", json_text(e->reference, strlen(e->reference)),
                                 "generated", json_text(text.data, text.bytes), "match", match);
        json_dumpf(line, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(line);
        text_free(&text);
        text_free(&prompt);
    }
    fprintf(stderr, "exact match %d/%d (%.1f%%), %d records left out\n", matches, count, 100.0 * matches / count,
            dataset_stats(d)->skipped);
    dataset_free(d);
}

int command_generate(Options o) {
    Session s = session_open(o, GENERATE);
    open_tokenizer(&s);
    load_weights(&s, false);
    Writer w;
    memset(&w, 0, sizeof w);
    w.tokenizer = s.tokenizer;
    w.config = &s.config;
    w.max_tokens = o.max_tokens;
    Sampler sampler = {(float)o.temperature, (float)o.top_p, (uint64_t)o.seed};
    w.sampler = sampler;
    w.stop_count = hf_config_eos(s.source_dir, w.stop);
    if (s.chat.turn_end >= 0) w.stop[w.stop_count++] = s.chat.turn_end;
    int positions = min_int(s.config.max_T, kMaxContext);
    Model* model = model_new(&s.config, s.ops, s.recipe, s.shard, generation_options(1, positions));
    w.sequence = sequence_new(model, &s.config, 0, positions);
    if (o.prompt) answer_prompt(&s, &w, o.prompt);
    else answer_data(&s, &w);
    sequence_free(&w.sequence);
    model_free(model);
    session_close(&s);
    return 0;
}
