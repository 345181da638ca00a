// What a dataset looks like to the model: see inspect.h.
#include "inspect.h"

#include "utf8.h"

#include <jansson.h>

// A plain text that was cut into rows may begin or end inside a character: such bytes become U+FFFD.
static json_t* json_text(const char* bytes, size_t count) {
    json_t* whole = json_stringn(bytes, count);
    if (whole) return whole;
    Text valid = {NULL, 0, 0};
    text_append(&valid, "", 0);
    for (size_t at = 0; at < count; at++) {
        size_t good = utf8_valid_bytes(bytes + at, count - at);
        text_append(&valid, bytes + at, good);
        at += good;
        if (at < count) text_append(&valid, "\xef\xbf\xbd", 3);
    }
    whole = json_stringn(valid.data, valid.bytes);
    text_free(&valid);
    return whole;
}

static void write_json(const Example* e, FILE* out) {
    json_t *tokens = json_array(), *trained = json_array();
    for (int i = 0; i < e->count; i++) {
        json_array_append_new(tokens, json_integer(e->tokens[i]));
        json_array_append_new(trained, json_integer(e->scored[i]));
    }
    json_t* text = json_text(e->text ? e->text : "", e->text_bytes);
    json_t* line = json_pack("{s:o, s:o, s:o}", "text", text, "tokens", tokens, "trained", trained);
    json_dumpf(line, out, JSON_COMPACT);
    putc('\n', out);
    json_decref(line);
}

// Writes the tokens in runs, trained and untrained in turn; each run is decoded as one text, and trained ones are marked.
static void write_marked(const Example* e, const Tokenizer* tokenizer, bool colour, FILE* out) {
    for (int from = 0, to; from < e->count; from = to) {
        for (to = from; to < e->count && e->scored[to] == e->scored[from];) to++;
        Text text = {NULL, 0, 0};
        DecodeStream stream;
        memset(&stream, 0, sizeof stream);
        stream.started = from > 0;
        for (int i = from; i < to; i++) tokenizer_decode_next(tokenizer, &stream, e->tokens[i], false, &text);
        tokenizer_decode_finish(&stream, &text);
        bool trained = e->scored[from] != 0;
        fprintf(out, "%s", !trained ? "" : colour ? "\x1b[32m" : "[[");
        fwrite(text.data ? text.data : "", 1, text.bytes, out);
        fprintf(out, "%s", !trained ? "" : colour ? "\x1b[0m" : "]]");
        text_free(&text);
    }
    putc('\n', out);
}

void inspect_dataset(const Dataset* d, const Tokenizer* tokenizer, const InspectOptions* options, FILE* out) {
    const DataStats* s = dataset_stats(d);
    if (!options->json) dataset_report(d, out);
    for (int i = 0; i < min_int(options->count, s->examples); i++) {
        const Example* e = dataset_example(d, i);
        if (options->json) {
            write_json(e, out);
            continue;
        }
        fprintf(out, "--- example %d: %d tokens, %d of them trained%s\n", i + 1, e->count, e->scored_count,
                e->scored_count ? "" : " (NOTHING TO TRAIN)");
        write_marked(e, tokenizer, options->colour, out);
    }
    if (options->json) return;
    fprintf(out, "--- %d records, %d examples, %zu tokens, %zu trained; %d truncated, %d skipped, %d untrained, %d answers lost, ",
            s->records, s->examples, s->tokens, s->scored, s->truncated, s->skipped, s->untrained, s->lost);
    fprintf(out, "%d special tokens kept as text\n", s->kept);
}
