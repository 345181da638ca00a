// What a dataset looks like to the model: see inspect.h.
#include "inspect.h"

#include "utf8.h"

#include <jansson.h>
#include <xxhash.h>

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
}

// ---- the summary

// Where an example stands: "line 12", or with several files "data.jsonl:12".
static const char* place_of(const Dataset* d, const Example* e, char text[256]) {
    bool one_file = dataset_example(d, 0)->path == dataset_example(d, dataset_stats(d)->examples - 1)->path;
    if (one_file) snprintf(text, 256, "line %d", e->line);
    else snprintf(text, 256, "%.200s:%d", e->path, e->line);
    return text;
}

static void write_counts(const Dataset* d, FILE* out) {
    const DataStats* s = dataset_stats(d);
    const struct {
        const char* name;
        size_t count;
        bool always;
    } rows[] = {{"records", (size_t)s->records, true},     {"examples", (size_t)s->examples, true},
                {"tokens", s->tokens, true},               {"trained tokens", s->scored, true},
                {"truncated", (size_t)s->truncated, true}, {"skipped", (size_t)s->skipped, true},
                {"nothing to train", (size_t)s->untrained, false}, {"answers lost by the template", (size_t)s->lost, false},
                {"special tokens kept as text", (size_t)s->kept, false}};
    fprintf(out, "--- summary\n");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].always || rows[i].count) fprintf(out, "%-32s %10zu\n", rows[i].name, rows[i].count);
}

static int compare_lengths(const void* a, const void* b) {
    const Example *x = *(const Example* const*)a, *y = *(const Example* const*)b;
    return x->count != y->count ? (x->count > y->count) - (x->count < y->count) : (x->line < y->line) - (x->line > y->line);
}

// The width of a bin: at most kBins of them, of a round number of tokens.
enum { kBins = 12, kBarColumns = 50, kLongestShown = 5 };
static int bin_width(int longest) {
    for (int unit = 1;; unit *= 10) {
        static const int round[] = {1, 2, 5};
        for (int i = 0; i < 3; i++)
            if ((longest - 1) / (unit * round[i]) < kBins) return unit * round[i];
    }
}

static void write_lengths(const Dataset* d, FILE* out) {
    int n = dataset_stats(d)->examples, bins[kBins] = {0}, most = 0;
    const Example** sorted = (const Example**)host_alloc(sizeof *sorted * (size_t)n);
    for (int i = 0; i < n; i++) sorted[i] = dataset_example(d, i);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_lengths);
    int longest = sorted[n - 1]->count, width = bin_width(longest);
    for (int i = 0; i < n; i++) {
        int* bin = &bins[(sorted[i]->count - 1) / width];
        most = max_int(most, ++*bin);
    }
    fprintf(out, "\nlengths in tokens: half up to %d, 95%% up to %d, the longest %d\n", sorted[(n - 1) / 2]->count,
            sorted[(int)((n - 1) * 0.95)]->count, longest);
    for (int b = 0; b * width < longest; b++) {
        int bar = (int)((int64_t)bins[b] * kBarColumns / most);
        fprintf(out, "%7d - %-7d %9d ", b * width + 1, (b + 1) * width, bins[b]);
        for (int i = 0; i < max_int(bar, bins[b] > 0); i++) putc('#', out);
        putc('\n', out);
    }
    fprintf(out, "the longest:");
    for (int i = n - 1; i >= max_int(n - kLongestShown, 0); i--) {
        char place[256];
        fprintf(out, "%s%d tokens, %s", i == n - 1 ? " " : "\n             ", sorted[i]->count, place_of(d, sorted[i], place));
    }
    putc('\n', out);
    free(sorted);
}

// ---- what is likely a mistake

// What an example is judged by.
typedef struct {
    const Tokenizer* tokenizer;
    const ChatFormat* chat;
    int seq, bos;
} Judge;

static bool begins_twice(const Example* e, const Judge* j) {
    return j->bos >= 0 && e->count > 1 && e->tokens[0] == j->bos && e->tokens[1] == j->bos;
}

// Does an end token close each run of trained tokens? A plain text that goes on in the next row need not end here.
static bool lacks_end(const Example* e, const Judge* j) {
    for (int i = 1; i < e->count; i++) {
        bool last = e->scored[i] && (i + 1 == e->count || !e->scored[i + 1]);
        int token = e->tokens[i];
        bool ends = token == j->chat->turn_end || token == j->chat->text_eos || tokenizer_is_special(j->tokenizer, token);
        if (last && !ends) return e->reference || e->count <= j->seq;
    }
    return false;
}

// Does a run of trained tokens hold white space and control tokens alone?
static bool answers_nothing(const Example* e, const Judge* j) {
    for (int from = 0, to; from < e->count; from = to) {
        for (to = from; to < e->count && !e->scored[to] == !e->scored[from];) to++;
        if (!e->scored[from]) continue;
        Text text = {NULL, 0, 0};
        DecodeStream stream;
        memset(&stream, 0, sizeof stream);
        stream.started = from > 0;
        for (int i = from; i < to; i++)
            if (!tokenizer_is_special(j->tokenizer, e->tokens[i])) tokenizer_decode_next(j->tokenizer, &stream, e->tokens[i], false, &text);
        tokenizer_decode_finish(&stream, &text);
        text_append(&text, "", 1);
        bool nothing = !text.data[strspn(text.data, " \t\r\n")];
        text_free(&text);
        if (nothing) return true;
    }
    return false;
}

typedef struct {
    uint64_t hash;
    int index;
} HashedExample;
static int compare_hashes(const void* a, const void* b) {
    const HashedExample *x = (const HashedExample*)a, *y = (const HashedExample*)b;
    return x->hash != y->hash ? (x->hash > y->hash) - (x->hash < y->hash) : (x->index > y->index) - (x->index < y->index);
}
static bool same_example(const Example* a, const Example* b) {
    return a->count == b->count && !memcmp(a->tokens, b->tokens, sizeof(int) * (size_t)a->count) &&
           !memcmp(a->scored, b->scored, (size_t)a->count);
}

enum { kPlacesShown = 3 };
static void write_place(const Dataset* d, const Example* e, const Example* repeats, FILE* out) {
    char place[256], other[256];
    fprintf(out, "    %s", place_of(d, e, place));
    if (repeats) fprintf(out, " repeats %s", place_of(d, repeats, other));
    putc('\n', out);
}

// repeats[i]: the first example that example i is equal to, or -1. Returns how many have one.
static int find_repeats(const Dataset* d, int* repeats) {
    int n = dataset_stats(d)->examples, found = 0;
    HashedExample* hashed = (HashedExample*)host_alloc(sizeof *hashed * (size_t)n);
    for (int i = 0; i < n; i++) {
        const Example* e = dataset_example(d, i);
        HashedExample h = {XXH3_64bits_withSeed(e->scored, (size_t)e->count, XXH3_64bits(e->tokens, sizeof(int) * (size_t)e->count)), i};
        hashed[i] = h;
        repeats[i] = -1;
    }
    qsort(hashed, (size_t)n, sizeof *hashed, compare_hashes);
    for (int i = 1; i < n; i++) {
        int before = hashed[i - 1].index, at = hashed[i].index;
        if (hashed[i].hash != hashed[i - 1].hash || !same_example(dataset_example(d, before), dataset_example(d, at))) continue;
        repeats[at] = repeats[before] >= 0 ? repeats[before] : before;
        found++;
    }
    free(hashed);
    return found;
}

static void write_repeats(const Dataset* d, FILE* out) {
    int n = dataset_stats(d)->examples, shown = 0;
    int* repeats = (int*)host_alloc(sizeof(int) * (size_t)n);
    fprintf(out, "%-32s %10d\n", "duplicates", find_repeats(d, repeats));
    for (int i = 0; i < n && shown < kPlacesShown; i++) {
        if (repeats[i] < 0) continue;
        write_place(d, dataset_example(d, i), dataset_example(d, repeats[i]), out);
        shown++;
    }
    free(repeats);
}

static void write_mistakes(const Dataset* d, const Tokenizer* tokenizer, const ChatFormat* chat, int seq, FILE* out) {
    static const struct {
        const char *name, *remedy;
        bool (*made)(const Example* e, const Judge* j);
    } mistakes[] = {{"begin with two BOS tokens", "one is enough: look at --chat", begins_twice},
                    {"answers without an end token", "the model will not learn to stop", lacks_end},
                    {"empty answers", "the model will learn to say nothing", answers_nothing}};
    int n = dataset_stats(d)->examples, bos = tokenizer_bos(tokenizer);
    Judge judge = {tokenizer, chat, seq, bos >= 0 ? bos : chat->text_bos};
    putc('\n', out);
    for (size_t m = 0; m < sizeof mistakes / sizeof mistakes[0]; m++) {
        int count = 0, first[kPlacesShown];
        for (int i = 0; i < n; i++) {
            if (!mistakes[m].made(dataset_example(d, i), &judge)) continue;
            if (count < kPlacesShown) first[count] = i;
            count++;
        }
        fprintf(out, "%-32s %10d%s%s\n", mistakes[m].name, count, count ? "   " : "", count ? mistakes[m].remedy : "");
        for (int i = 0; i < min_int(count, kPlacesShown); i++) write_place(d, dataset_example(d, first[i]), NULL, out);
    }
    write_repeats(d, out);
}

void inspect_summary(const Dataset* d, const Tokenizer* tokenizer, const ChatFormat* chat, int seq, FILE* out) {
    write_counts(d, out);
    if (!dataset_stats(d)->examples) return;
    write_lengths(d, out);
    write_mistakes(d, tokenizer, chat, seq, out);
}
