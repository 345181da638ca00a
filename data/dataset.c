// A data file as tokenized examples, and the order in which an epoch visits them: see dataset.h.
#include "dataset.h"

#include "../halo/progress.h"
#include "../halo/rng.h"
#include "packing.h"
#include "record.h"

struct Dataset {
    DataStats stats;
    Text notes;            // RecordList.notes: what form each file was taken for
    char** paths;          // (path_count) of the files
    int path_count;
    const char* chat_name; // the chat format's name
    Example* examples;     // (stats.examples)
    int seq;
    PackMode pack;
    int batch, micro_batches;
    int rooms[kRoomSizes]; // row counts that micro-batches are laid out on, rising; the last is `batch`
    // the plan of one epoch
    int steps;
    int* step_start;       // PACK_AUTO: (steps + 1): step s has the rows [step_start[s], step_start[s + 1])
    int rows;
    int* row_start;        // (rows + 1): row r holds row_examples[row_start[r] .. row_start[r + 1])
    int* row_examples;     // (stats.examples)
    int* shuffled;         // (stats.examples) scratch: the order of the epoch
    int* positions;        // (stats.examples) scratch: the length of shuffled[i] in positions
    int* row_of;           // (stats.examples) scratch: the row of shuffled[i]
};

// ---- tokenizing

// The examples that one record became.
typedef struct {
    Example* examples;
    int count;
    bool truncated, skipped, untrained;
    int lost, parted, kept;
    char* error;          // the template's, or NULL
} Encoded;

// An example with a copy of the tokens, none of them scored yet.
static Example new_example(const int* tokens, int count) {
    Example e;
    memset(&e, 0, sizeof e);
    e.count = count;
    e.tokens = (int*)host_alloc((size_t)max_int(count, 1) * sizeof(int));
    e.scored = (unsigned char*)host_alloc((size_t)max_int(count, 1));
    memcpy(e.tokens, tokens, (size_t)count * sizeof(int));
    return e;
}

static void example_free(Example* e) {
    free(e->tokens);
    free(e->scored);
    free(e->prompt);
    free(e->reference);
    free(e->text);
}

static void score(Example* e, int from, int to) {
    for (int i = max_int(from, 1); i < min_int(to, e->count); i++) {
        e->scored_count += !e->scored[i];
        e->scored[i] = 1;
    }
}

static void keep_text(Example* e, const char* text, size_t bytes) {
    e->text = (char*)host_alloc(bytes + 1);
    memcpy(e->text, text, bytes);
    e->text_bytes = bytes;
}

// Appends BOS, the text and EOS; a BOS or EOS that the text itself has is not doubled.
static int encode_text(const Tokenizer* tokenizer, const ChatFormat* chat, const Record* record, TokenList* all) {
    bool special = chat->specials == SPECIALS_AUTO || chat->specials == SPECIALS_ALL;
    unsigned char* data = NULL;
    if (!special) {
        data = (unsigned char*)host_alloc(record->bytes + 1);
        memset(data, 1, record->bytes);
    }
    MarkedText marked = {record->text, record->bytes, data, NULL, 0};
    if (chat->text_bos >= 0) token_list_push(all, chat->text_bos);
    int kept = tokenizer_encode_marked(tokenizer, &marked, NULL, all);
    if (chat->text_bos >= 0 && all->count > 1 && all->ids[1] == chat->text_bos)
        memmove(all->ids, all->ids + 1, (size_t)(--all->count) * sizeof(int));
    if (all->count < 1 || all->ids[all->count - 1] != chat->text_eos || all->count == 1) token_list_push(all, chat->text_eos);
    free(data);
    return kept;
}

// Makes examples of a plain text: one longer than a row is cut into consecutive parts. Neighbouring parts share one token, the
// last of one and the first of the next, so that each token but the very first is predicted exactly once.
static Encoded encode_plain(const Tokenizer* tokenizer, const Record* record, const DataOptions* options, bool with_text) {
    TokenList all = {NULL, 0, 0};
    int seq = options->seq;
    Encoded out;
    memset(&out, 0, sizeof out);
    out.kept = encode_text(tokenizer, options->chat, record, &all);
    out.skipped = all.count < 2;
    out.examples = (Example*)host_alloc((size_t)ceil_div(all.count, seq) * sizeof(Example));
    for (int at = 0; at + 1 < all.count; at += seq) {
        Example e = new_example(all.ids + at, min_int(seq + 1, all.count - at));
        score(&e, 0, e.count);
        if (with_text && all.count <= seq + 1) keep_text(&e, record->text, record->bytes);
        if (with_text && all.count > seq + 1) {
            Text chunk = {NULL, 0, 0};
            tokenizer_decode(tokenizer, e.tokens, e.count, false, &chunk);
            keep_text(&e, chunk.data, chunk.bytes);
            text_free(&chunk);
        }
        out.examples[out.count++] = e;
    }
    token_list_free(&all);
    return out;
}

static char* template_error(const Record* record, const ChatFormat* chat, const JinjaError* error) {
    char text[1024];
    snprintf(text, sizeof text, "%s:%d: the chat template (%s, line %d) fails on this record: %s", record->path, record->line, chat->name,
             error->line, error->text);
    return host_strdup(text);
}

// The example of a rendered conversation, up to the end of its last answer (with `inspect`: to the end).
static Example example_of(const ChatTokens* chat, const Record* record, const DataOptions* options, bool with_text) {
    bool whole = options->inspect || options->train_on_prompt;
    Example e = new_example(chat->tokens.ids, whole ? chat->tokens.count : chat_used_tokens(chat));
    for (int i = 0; i < chat->answer_count; i++)
        if (chat->answers[i].trained) score(&e, chat->answers[i].first, chat->answers[i].last);
    if (options->train_on_prompt) score(&e, 0, chat_used_tokens(chat));
    if (chat->answer_count) e.prompt_count = chat->answers[chat->answer_count - 1].first;
    e.own_prompt_count = chat->prompt_tokens.count;
    if (e.own_prompt_count) {
        e.prompt = (int*)host_alloc((size_t)e.own_prompt_count * sizeof(int));
        memcpy(e.prompt, chat->prompt_tokens.ids, (size_t)e.own_prompt_count * sizeof(int));
    }
    e.reference = host_strdup(record_reference(record));
    if (with_text) keep_text(&e, chat->text.text, chat->text.bytes);
    return e;
}

static Encoded encode_conversation(const Tokenizer* tokenizer, const Record* record, const DataOptions* options, ChatTokens* chat,
                                   bool with_text) {
    Conversation c = {record->messages, record->tools, record->trained, record->joint};
    Encoded out;
    bool fits;
    memset(&out, 0, sizeof out);
    if (options->long_policy == LONG_SKIP) {
        if (chat_encode(options->chat, tokenizer, &c, chat)) fits = chat_used_tokens(chat) <= options->seq + 1;
        else out.error = template_error(record, options->chat, &chat->error);
    } else if (!chat_encode_within(options->chat, tokenizer, &c, options->seq + 1, chat, &fits, &out.truncated)) {
        out.error = template_error(record, options->chat, &chat->error);
    }
    out.skipped = out.error || !fits;
    if (out.skipped) return out;
    Example e = example_of(chat, record, options, with_text);
    out.lost = chat->lost;
    out.parted = chat->parted;
    out.kept = chat->kept;
    out.untrained = e.scored_count == 0;
    out.skipped = out.untrained && !options->inspect;
    out.examples = (Example*)host_alloc(sizeof(Example));
    out.examples[out.count++] = e;
    if (out.skipped) {
        example_free(&e);
        out.count = 0;
    }
    return out;
}

// The dataset's own copy of a path of the list.
static const char* path_of(const Dataset* d, const RecordList* list, const char* path) {
    for (int i = 0; i < d->path_count; i++)
        if (list->paths[i] == path) return d->paths[i];
    die("%s: no file of this list", path);
}

static void keep_paths(Dataset* d, const RecordList* list) {
    d->path_count = list->path_count;
    d->paths = (char**)host_alloc(sizeof(char*) * (size_t)list->path_count);
    for (int i = 0; i < list->path_count; i++) d->paths[i] = host_strdup(list->paths[i]);
}

static void gather(Dataset* d, Encoded* encoded, const RecordList* list) {
    DataStats* s = &d->stats;
    int records = list->selected;
    s->records = records;
    int64_t total = 0;
    for (int r = 0; r < records; r++) {
        if (encoded[r].error) user_error("%s", encoded[r].error);
        total += encoded[r].count;
    }
    if (total > 1 << 30) user_error("%lld examples: more than 2^30; split the file or raise --seq", (long long)total);
    d->examples = (Example*)host_alloc((size_t)(total + 1) * sizeof(Example));
    for (int r = 0; r < records; r++) {
        const Encoded* from = &encoded[r];
        for (int i = 0; i < from->count; i++) {
            Example* e = &from->examples[i];
            e->path = path_of(d, list, list->records[r].path);
            e->line = list->records[r].line;
            d->examples[s->examples++] = *e;
            s->tokens += (size_t)e->count;
            s->scored += (size_t)e->scored_count;
        }
        s->truncated += from->truncated;
        s->skipped += from->skipped;
        s->untrained += from->untrained;
        s->lost += from->lost;
        s->parted += from->parted;
        s->kept += from->kept;
        free(from->examples);
    }
}

// ---- which records

// Takes the part of the records that the options ask for, in place.
static void select_records(RecordList* list, const DataOptions* options) {
    int kept = 0;
    for (int r = 0; r < list->count; r++) {
        bool held_out = options->val_split > 0 && (double)record_hash(&list->records[r]) < options->val_split * 0x1p64;
        bool taken = held_out == options->held_out && (options->limit <= 0 || kept < options->limit);
        if (!taken) continue;
        Record held = list->records[kept];   // swapped, so that records left out lie behind the others and are freed with them
        list->records[kept++] = list->records[r];
        list->records[r] = held;
    }
    list->selected = kept;
    if (kept == 0)
        user_error("%s: no record is left %s; raise --val-split or give more data", list->paths[0],
                   options->held_out ? "to hold out" : "to train on");
}

static bool is_empty_answer(const Record* record) {
    const char* answer = record_reference(record);
    while (*answer && strchr(" \t\r\n", *answer)) answer++;
    const json_t* last = record->messages ? json_array_get(record->messages, json_array_size(record->messages) - 1) : NULL;
    return last && !*answer && !json_is_array(json_object_get(last, "content")) && !json_object_get(last, "tool_calls");
}

static void refuse_empty_answers(const RecordList* list) {
    for (int r = 0; r < list->selected; r++)
        if (!is_empty_answer(&list->records[r])) return;
    user_error("%s: every answer is empty, so that there is nothing to learn; check the file's columns", list->paths[0]);
}

// ---- loading

static void encode_records(Encoded* encoded, const RecordList* list, const Tokenizer* tokenizer, const DataOptions* options) {
#pragma omp parallel
    {
        ChatTokens chat;
        memset(&chat, 0, sizeof chat);
#pragma omp for schedule(dynamic, 16)
        for (int r = 0; r < list->selected; r++) {
            const Record* record = &list->records[r];
            bool with_text = r < max_int(options->texts, 1);
            progress_phase("tokenizing", -1);
            progress_work("tokenizing", r, list->selected);
            encoded[r] = record->messages ? encode_conversation(tokenizer, record, options, &chat, with_text)
                                          : encode_plain(tokenizer, record, options, with_text);
        }
        chat_tokens_free(&chat);
    }
    progress_work(NULL, 0, 0);
}

static bool calls_tools(const Record* record) {
    for (size_t i = 0; i < json_array_size(record->messages); i++)
        if (json_object_get(json_array_get(record->messages, i), "tool_calls")) return true;
    return false;
}

// Notes for the user if the data have tools, or calls of tools, which the template ignores.
static void note_ignored_tools(Dataset* d, const RecordList* list, const ChatFormat* chat) {
    const Jinja* jinja = chat->tool_jinja ? chat->tool_jinja : chat->jinja;
    int given[2] = {0, 0};
    static const char* const names[] = {"tools", "tool_calls"};
    for (int r = 0; r < list->selected; r++) {
        given[0] += list->records[r].tools != NULL;
        given[1] += calls_tools(&list->records[r]);
    }
    for (int i = 0; i < 2; i++) {
        if (given[i] == 0 || jinja_mentions(jinja, names[i])) continue;
        char text[512];
        snprintf(text, sizeof text, "warning: %d records have %s, which the chat template %s ignores\n", given[i], names[i], chat->name);
        text_append(&d->notes, text, strlen(text));
    }
}

static void refuse_untrained(const Dataset* d, const char* paths, const DataOptions* options) {
    const DataStats* s = &d->stats;
    if (s->scored || options->inspect) return;
    if (s->lost)
        user_error("%s: none of %d answers can be found in what the chat template %s makes of its conversation; give another template "
                   "with --chat", paths, s->lost, options->chat->name);
    user_error("%s: an epoch would train no token: %d of %d records are left out at --seq %d; raise --seq", paths, s->skipped, s->records,
               options->seq);
}

static void choose_rooms(Dataset* d);

Dataset* dataset_load(const char* paths, const Tokenizer* tokenizer, const DataOptions* options) {
    check(options->seq > 0, "dataset_load: rows of %d positions", options->seq);
    RecordList list = records_read(paths, options->prompt_file);
    select_records(&list, options);
    if (!options->inspect) refuse_empty_answers(&list);
    Dataset* d = (Dataset*)host_alloc(sizeof(Dataset));
    d->seq = options->seq;
    d->pack = options->pack;
    d->batch = options->batch;
    d->micro_batches = options->micro_batches;
    d->chat_name = options->chat->name;
    text_append(&d->notes, list.notes.data, list.notes.bytes);
    if (options->chat->note) text_append(&d->notes, options->chat->note, strlen(options->chat->note));
    note_ignored_tools(d, &list, options->chat);
    Encoded* encoded = (Encoded*)host_alloc((size_t)list.selected * sizeof(Encoded));
    encode_records(encoded, &list, tokenizer, options);
    keep_paths(d, &list);
    gather(d, encoded, &list);
    free(encoded);
    records_free(&list);
    refuse_untrained(d, paths, options);
    size_t n = (size_t)d->stats.examples;
    d->row_start = (int*)host_alloc((n + 1) * sizeof(int));
    d->row_examples = (int*)host_alloc((n + 1) * sizeof(int));
    d->shuffled = (int*)host_alloc((n + 1) * sizeof(int));
    d->positions = (int*)host_alloc((n + 1) * sizeof(int));
    d->row_of = (int*)host_alloc((n + 1) * sizeof(int));
    d->step_start = (int*)host_alloc((n + 1) * sizeof(int));
    if (options->inspect) return d;
    if (d->pack == PACK_AUTO) choose_rooms(d);
    dataset_plan(d, 0, 0);
    return d;
}

void dataset_free(Dataset* d) {
    if (!d) return;
    for (int i = 0; i < d->stats.examples; i++) example_free(&d->examples[i]);
    free(d->examples);
    for (int i = 0; i < d->path_count; i++) free(d->paths[i]);
    free(d->paths);
    text_free(&d->notes);
    free(d->row_start);
    free(d->row_examples);
    free(d->shuffled);
    free(d->positions);
    free(d->row_of);
    free(d->step_start);
    free(d);
}

const DataStats* dataset_stats(const Dataset* d) { return &d->stats; }

const Example* dataset_example(const Dataset* d, int index) {
    check(index >= 0 && index < d->stats.examples, "example %d of %d", index, d->stats.examples);
    return &d->examples[index];
}

// ---- what the user should know

static void report_first(const Dataset* d, FILE* out) {
    enum { kShownBytes = 800 };
    const Example* e = d->stats.examples ? &d->examples[0] : NULL;
    if (!e || !e->text) return;
    size_t shown = e->text_bytes < kShownBytes ? e->text_bytes : (size_t)kShownBytes;
    while (shown > 0 && shown < e->text_bytes && ((unsigned char)e->text[shown] & 0xc0) == 0x80) shown--;
    fprintf(out, "the first example under %s, %d tokens, %d of them trained:\n%.*s%s\n", d->chat_name, e->count, e->scored_count,
            (int)shown, e->text, shown < e->text_bytes ? " ..." : "");
}

void dataset_report(const Dataset* d, FILE* out) {
    const DataStats* s = &d->stats;
    fputs(d->notes.data ? d->notes.data : "", out);
    report_first(d, out);
    if (s->kept) fprintf(out, "%d spellings of special tokens in the data are kept as plain text (--special-tokens)\n", s->kept);
    if (s->parted)
        fprintf(out, "%d answers do not follow the generation prompt as the template writes it (it opens a thought, say): they are trained "
                "from where the two part\n", s->parted);
    if (s->lost) fprintf(out, "warning: %d answers are not trained: the template rewrites them in the whole conversation\n", s->lost);
    if (s->untrained) fprintf(out, "%d records have nothing to train\n", s->untrained);
    if (10 * (s->skipped + 0.0) > s->records)
        fprintf(out, "WARNING: %d of %d records are left out, more than a tenth: raise --seq above %d\n", s->skipped, s->records, d->seq);
    if (2 * (s->truncated + 0.0) > s->records)
        fprintf(out, "WARNING: the prompts of %d of %d records are cut: raise --seq above %d\n", s->truncated, s->records, d->seq);
}

// ---- planning an epoch

// Fisher-Yates. Its random stream is none of the optimizer's, which are numbered by steps.
static void shuffle(int* order, int n, uint64_t seed, int epoch) {
    const uint64_t stream = (uint64_t)1 << 63 | (uint64_t)epoch;
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        Philox p = random_words(seed, (uint64_t)i, stream);
        uint64_t word = (uint64_t)p.word[1] << 32 | p.word[0];
        int j = (int)(word % (uint64_t)(i + 1));   // 64 bits for at most 2^30 values: the bias is below 2^-33
        int held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

// Where row `row` of a step of `rows` rows goes: micro-batches take rows in turn, and each micro-batch's rows lie one after the other.
static int dealt_row(const Dataset* d, int row, int rows) {
    int index = row % d->micro_batches, each = rows / d->micro_batches, more = rows % d->micro_batches;
    return index * each + min_int(index, more) + row / d->micro_batches;
}

// PACK_AUTO: packs the examples of each step separately.
static int pack_steps(Dataset* d) {
    int n = d->stats.examples, most = d->batch * d->micro_batches, rows = 0;
    for (int step = 0; step < d->steps; step++) {
        int first = step * most, count = min_int(most, n - first);
        int* row_of = d->row_of + first;
        int taken = pack_decreasing(d->positions + first, count, d->seq, row_of);
        for (int i = 0; i < count; i++) row_of[i] = rows + dealt_row(d, row_of[i], taken);
        d->step_start[step] = rows;
        rows += taken;
    }
    d->step_start[d->steps] = rows;
    return rows;
}

static int steps_of(const Dataset* d, int rows) {
    int64_t most = (int64_t)d->batch * d->micro_batches;
    return most ? (int)((rows + most - 1) / most) : 0;
}

int dataset_plan(Dataset* d, uint64_t seed, int epoch) {
    int n = d->stats.examples;
    shuffle(d->shuffled, n, seed, epoch);
    for (int i = 0; i < n; i++) d->positions[i] = d->examples[d->shuffled[i]].count - 1;
    d->rows = n;
    for (int i = 0; d->pack == PACK_OFF && i < n; i++) d->row_of[i] = i;
    if (d->pack == PACK_ON) d->rows = pack_first_fit(d->positions, n, d->seq, kOpenRows, d->row_of);
    d->steps = steps_of(d, d->rows);
    if (d->pack == PACK_AUTO) d->rows = pack_steps(d);
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

// ---- optimizer steps

int dataset_steps(const Dataset* d) {
    check(d->batch > 0 && d->micro_batches > 0, "dataset_steps: DataOptions named no global batch");
    return d->steps;
}

static void step_rows(const Dataset* d, int step, int* first, int* rows) {
    check(step >= 0 && step < dataset_steps(d), "step %d of %d", step, d->steps);
    *first = d->pack == PACK_AUTO ? d->step_start[step] : step * d->batch * d->micro_batches;
    *rows = d->pack == PACK_AUTO ? d->step_start[step + 1] - *first : d->batch * d->micro_batches;
}

size_t dataset_step_scored(const Dataset* d, int step) {
    int first, rows;
    step_rows(d, step, &first, &rows);
    return dataset_scored(d, first, rows);
}

int dataset_step_examples(const Dataset* d, int step) {
    int first, rows, examples = 0;
    step_rows(d, step, &first, &rows);
    for (int row = first; row < first + rows; row++) {
        const int* of_row;
        examples += dataset_row(d, row, &of_row);
    }
    return examples;
}

MicroBatch dataset_micro_batch(const Dataset* d, int step, int index) {
    check(index >= 0 && index < d->micro_batches, "micro-batch %d of %d", index, d->micro_batches);
    MicroBatch m;
    int rows;
    step_rows(d, step, &m.first, &rows);
    m.first += dealt_row(d, index, rows);
    m.rows = rows / d->micro_batches + (index < rows % d->micro_batches);
    m.room = d->batch;
    for (int i = kRoomSizes - 1; d->pack == PACK_AUTO && i >= 0; i--)
        if (d->rooms[i] >= m.rows) m.room = d->rooms[i];
    return m;
}

// Chooses the row counts that micro-batches are laid out on, by the micro-batches of some epochs of seed 0: other seeds and epochs draw from
// the same examples, and a resumed run must choose the same counts.
static void choose_rooms(Dataset* d) {
    enum { kEnoughMicroBatches = 1000, kMostEpochs = 64 };
    check(d->batch > 0 && d->micro_batches > 0, "PACK_AUTO: DataOptions names no global batch");
    int64_t *counts = (int64_t*)host_alloc(((size_t)d->batch + 1) * sizeof(int64_t)), seen = 0;
    for (int epoch = 0; epoch < kMostEpochs && seen < kEnoughMicroBatches; epoch++) {
        dataset_plan(d, 0, epoch);
        for (int step = 0; step < d->steps; step++)
            for (int i = 0; i < d->micro_batches; i++, seen++) counts[dataset_micro_batch(d, step, i).rows]++;
    }
    RowCounts chosen = choose_row_counts(counts, d->batch);
    d->rooms[0] = chosen.first;
    d->rooms[1] = chosen.second;
    d->rooms[2] = d->batch;
    free(counts);
}
