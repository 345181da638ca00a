// A data file as tokenized examples, and the order in which an epoch visits them: see dataset.h.
#include "dataset.h"

#include "../halo/progress.h"
#include "../halo/rng.h"
#include "record.h"

struct Dataset {
    DataStats stats;
    Example* examples;     // (stats.examples)
    int seq;
    bool pack;
    // the plan of one epoch
    int rows;
    int* row_start;        // (rows + 1): row r holds row_examples[row_start[r] .. row_start[r + 1])
    int* row_examples;     // (stats.examples)
    int* shuffled;         // (stats.examples) scratch: the order of the epoch
    int* row_of;           // (stats.examples) scratch: the row of shuffled[i]
};

// ---- tokenizing

// What one record became.
typedef struct {
    Example* examples;
    int count;
    bool truncated, skipped;
} Encoded;

// Holds a copy of the tokens; none is scored yet.
static Example new_example(const int* tokens, int count) {
    Example e;
    memset(&e, 0, sizeof e);
    e.count = count;
    e.tokens = (int*)host_alloc((size_t)count * sizeof(int));
    e.scored = (unsigned char*)host_alloc((size_t)count);
    memcpy(e.tokens, tokens, (size_t)count * sizeof(int));
    return e;
}

static void score(Example* e, int from, int to) {
    for (int i = max_int(from, 1); i < to; i++) {
        e->scored_count += !e->scored[i];
        e->scored[i] = 1;
    }
}

// A text longer than a row is cut into consecutive chunks. Neighbours share one token, the last to be predicted here and the
// first to be seen there, so that each token but the very first is predicted exactly once.
static Encoded encode_plain(const Tokenizer* tokenizer, const ChatFormat* chat, const Turn* text, int seq) {
    TokenList all = {NULL, 0, 0};
    if (chat->text_bos >= 0) token_list_push(&all, chat->text_bos);
    tokenizer_encode(tokenizer, text->text, text->bytes, kEncodePlain, &all);
    token_list_push(&all, chat->text_eos);
    Encoded out = {NULL, 0, false, all.count < 2};
    out.examples = (Example*)host_alloc((size_t)ceil_div(all.count, seq) * sizeof(Example));
    for (int at = 0; at + 1 < all.count; at += seq) {
        Example e = new_example(all.ids + at, min_int(seq + 1, all.count - at));
        score(&e, 0, e.count);
        out.examples[out.count++] = e;
    }
    token_list_free(&all);
    return out;
}

static Encoded encode_conversation(const Tokenizer* tokenizer, const Record* record, const DataOptions* options) {
    ChatTokens chat;
    memset(&chat, 0, sizeof chat);
    chat_encode(options->chat, tokenizer, record->turns, record->count, record->joint, &chat);
    Encoded out = {NULL, 0, chat.tokens.count > options->seq + 1, false};
    if (out.truncated) out.skipped = options->long_policy == LONG_SKIP || !chat_truncate(&chat, options->seq + 1);
    if (chat.tokens.count < 2) out.skipped = true;
    if (out.skipped) {
        out.truncated = false;
        chat_tokens_free(&chat);
        return out;
    }
    Example e = new_example(chat.tokens.ids, chat.tokens.count);
    for (int i = 0; i < chat.turn_count; i++)
        if (chat.turns[i].role == ROLE_ASSISTANT) score(&e, chat.turns[i].content, chat.turns[i].content_end + 1);
    if (options->train_on_prompt) score(&e, 0, e.count);
    e.prompt_count = chat.turns[chat.turn_count - 1].content;
    e.reference = host_strdup(record->turns[record->count - 1].text);
    chat_tokens_free(&chat);
    out.examples = (Example*)host_alloc(sizeof(Example));
    out.examples[out.count++] = e;
    return out;
}

static void gather(Dataset* d, Encoded* encoded, int records) {
    d->stats.records = records;
    int64_t total = 0;
    for (int r = 0; r < records; r++) total += encoded[r].count;
    if (total > 1 << 30) user_error("%lld examples: more than 2^30; split the file or raise --seq", (long long)total);
    d->examples = (Example*)host_alloc((size_t)total * sizeof(Example));
    for (int r = 0; r < records; r++) {
        for (int i = 0; i < encoded[r].count; i++) {
            const Example* e = &encoded[r].examples[i];
            d->examples[d->stats.examples++] = *e;
            d->stats.tokens += (size_t)e->count;
            d->stats.scored += (size_t)e->scored_count;
        }
        d->stats.truncated += encoded[r].truncated;
        d->stats.skipped += encoded[r].skipped;
        free(encoded[r].examples);
    }
}

Dataset* dataset_load(const char* path, const Tokenizer* tokenizer, const DataOptions* options) {
    check(options->seq > 0, "dataset_load: rows of %d positions", options->seq);
    RecordList list = records_read(path);
    Encoded* encoded = (Encoded*)host_alloc((size_t)list.count * sizeof(Encoded));
#pragma omp parallel for schedule(dynamic, 16)
    for (int r = 0; r < list.count; r++) {
        const Record* record = &list.records[r];
        progress_phase("tokenizing", -1);
        encoded[r] = record->plain ? encode_plain(tokenizer, options->chat, &record->turns[0], options->seq)
                                   : encode_conversation(tokenizer, record, options);
    }
    Dataset* d = (Dataset*)host_alloc(sizeof(Dataset));
    d->seq = options->seq;
    d->pack = options->pack;
    gather(d, encoded, list.count);
    free(encoded);
    records_free(&list);
    if (d->stats.scored == 0)
        user_error("%s: an epoch would train no token: %d of %d records are left out at --seq %d; raise --seq", path,
                   d->stats.skipped, d->stats.records, options->seq);
    size_t n = (size_t)d->stats.examples;
    d->row_start = (int*)host_alloc((n + 1) * sizeof(int));
    d->row_examples = (int*)host_alloc(n * sizeof(int));
    d->shuffled = (int*)host_alloc(n * sizeof(int));
    d->row_of = (int*)host_alloc(n * sizeof(int));
    dataset_plan(d, 0, 0);
    return d;
}

void dataset_free(Dataset* d) {
    if (!d) return;
    for (int i = 0; i < d->stats.examples; i++) {
        free(d->examples[i].tokens);
        free(d->examples[i].scored);
        free(d->examples[i].reference);
    }
    free(d->examples);
    free(d->row_start);
    free(d->row_examples);
    free(d->shuffled);
    free(d->row_of);
    free(d);
}

const DataStats* dataset_stats(const Dataset* d) { return &d->stats; }

const Example* dataset_example(const Dataset* d, int index) {
    check(index >= 0 && index < d->stats.examples, "example %d of %d", index, d->stats.examples);
    return &d->examples[index];
}

// ---- planning an epoch

// Fisher-Yates. The stream is apart from those of the optimizer, which counts steps from 0.
static void shuffle(int* order, int n, uint64_t seed, int epoch) {
    const uint64_t stream = (uint64_t)1 << 63 | (uint64_t)epoch;
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        Philox p = random_words(seed, (uint64_t)i, stream);
        uint64_t word = (uint64_t)p.word[1] << 32 | p.word[0];
        int j = (int)(word % (uint64_t)(i + 1));   // of 64 bits and at most 2^30 values: the bias is below 2^-33
        int held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

// row_of[i] = the row of the i-th example of the order; returns the number of rows.
static int first_fit(const Dataset* d) {
    int room[kOpenRows];   // of row r, in slot r % kOpenRows
    int rows = 0;
    for (int i = 0; i < d->stats.examples; i++) {
        int positions = d->examples[d->shuffled[i]].count - 1;
        int row = max_int(rows - kOpenRows, 0);
        while (row < rows && room[row % kOpenRows] < positions) row++;
        if (row == rows) room[rows++ % kOpenRows] = d->seq;
        room[row % kOpenRows] -= positions;
        d->row_of[i] = row;
    }
    return rows;
}

int dataset_plan(Dataset* d, uint64_t seed, int epoch) {
    int n = d->stats.examples;
    shuffle(d->shuffled, n, seed, epoch);
    if (d->pack) {
        d->rows = first_fit(d);
    } else {
        for (int i = 0; i < n; i++) d->row_of[i] = i;
        d->rows = n;
    }
    // Counting sort by row: row_start[r] first counts, then points behind the row, and ends at its start.
    memset(d->row_start, 0, ((size_t)n + 1) * sizeof(int));
    for (int i = 0; i < n; i++) d->row_start[d->row_of[i]]++;
    for (int r = 1; r <= d->rows; r++) d->row_start[r] += d->row_start[r - 1];
    for (int i = n - 1; i >= 0; i--) d->row_examples[--d->row_start[d->row_of[i]]] = d->shuffled[i];
    return d->rows;
}

int dataset_rows(const Dataset* d) { return d->rows; }

int dataset_row(const Dataset* d, int row, const int** examples) {
    check(row >= 0, "row %d", row);
    *examples = d->row_examples;
    if (row >= d->rows) return 0;
    *examples += d->row_start[row];
    return d->row_start[row + 1] - d->row_start[row];
}

size_t dataset_scored(const Dataset* d, int first, int rows) {
    size_t total = 0;
    for (int row = first; row < first + rows; row++) {
        const int* examples;
        int count = dataset_row(d, row, &examples);
        for (int i = 0; i < count; i++) total += (size_t)d->examples[examples[i]].scored_count;
    }
    return total;
}
