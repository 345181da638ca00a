// Verdicts on generated answers: see metric.h.
#include "metric.h"

#include "../halo/rng.h"
#include "files.h"
#include "json.h"
#include "utf8.h"

#include <math.h>

enum { kResamplings = 1000, kBootstrapSeed = 1234 };

// A part of a text.
typedef struct {
    const char* at;
    size_t bytes;
} Span;

static Span span_of(const char* text) {
    Span span = {text, strlen(text)};
    return span;
}

// White space as Python's strip() takes it: Unicode's, and the separators U+001C to U+001F.
static bool is_blank(uint32_t c) { return utf8_is_space(c) || (c >= 0x1c && c <= 0x1f); }

static Span stripped(Span s) {
    while (s.bytes) {
        int length = utf8_char_bytes(s.at, s.bytes);
        if (length <= 0 || !is_blank(utf8_code_point(s.at, length))) break;
        s.at += length;
        s.bytes -= (size_t)length;
    }
    while (s.bytes) {
        int length = 1;
        while (length < 4 && (size_t)length < s.bytes && (s.at[s.bytes - (size_t)length] & 0xc0) == 0x80) length++;
        const char* last = s.at + s.bytes - length;
        if (utf8_char_bytes(last, (size_t)length) != length || !is_blank(utf8_code_point(last, length))) break;
        s.bytes -= (size_t)length;
    }
    return s;
}

static bool same(Span a, Span b) { return a.bytes == b.bytes && !memcmp(a.at, b.at, a.bytes); }

static bool judge_stripped(const char* expected, const char* generated) {
    return same(stripped(span_of(expected)), stripped(span_of(generated)));
}

// ---- gsm8k

static Span after_last_mark(const char* text) {
    const char* from = text;
    for (const char* mark = text; (mark = strstr(mark, "####")) != NULL; mark += 4) from = mark + 4;
    return stripped(span_of(from));
}

static bool judge_gsm8k(const char* expected, const char* generated) {
    return same(after_last_mark(expected), after_last_mark(generated));
}

// What the group of the first match of "#### (\-?[0-9\.\,]+)" holds; {NULL, 0} if nothing matches.
static Span strict_number(const char* text) {
    Span none = {NULL, 0};
    for (const char* mark = text; (mark = strstr(mark, "#### ")) != NULL; mark++) {
        const char *at = mark + 5, *end = at + (*at == '-');
        size_t run = strspn(end, "0123456789.,");
        Span found = {at, (size_t)(end - at) + run};
        if (run) return found;
    }
    return none;
}

// The last match of "(-?[$0-9.,]{2,})|(-?[0-9]+)", found from left to right without overlaps.
static Span flexible_number(const char* text) {
    Span last = {NULL, 0};
    for (const char* at = text; *at;) {
        const char* from = at + (*at == '-');
        size_t wide = strspn(from, "$0123456789.,"), digits = strspn(from, "0123456789");
        size_t run = wide >= 2 ? wide : digits;
        if (!run) {
            at++;
            continue;
        }
        last.at = at;
        last.bytes = (size_t)(from - at) + run;
        at = from + run;
    }
    return last;
}

// Writes `s` without commas, dollar signs and one final full stop to `out`. Lower case is not needed, since numbers have no letters.
static size_t bare_number(Span s, char* out) {
    size_t n = 0;
    for (size_t i = 0; i < s.bytes; i++)
        if (s.at[i] != ',' && s.at[i] != '$') out[n++] = s.at[i];
    if (n && out[n - 1] == '.') n--;
    return n;
}

static bool same_number(Span a, Span b) {
    if (!a.at || !b.at) return false;
    char *x = (char*)host_alloc(a.bytes + 1), *y = (char*)host_alloc(b.bytes + 1);
    Span left = {x, bare_number(a, x)}, right = {y, bare_number(b, y)};
    bool equal = same(left, right);
    free(x);
    free(y);
    return equal;
}

// The number of the expected answer. lm-evaluation-harness applies the filter to both sides; if the filter finds nothing, as in a
// reference that is a bare number, the whole text is the number.
static Span reference_number(const char* expected, Span filtered) { return filtered.at ? filtered : stripped(span_of(expected)); }

static bool judge_strict(const char* expected, const char* generated) {
    return same_number(reference_number(expected, strict_number(expected)), strict_number(generated));
}

static bool judge_flexible(const char* expected, const char* generated) {
    return same_number(reference_number(expected, flexible_number(expected)), flexible_number(generated));
}

// ---- viggo

static int by_text(const void* a, const void* b) {
    const Span *x = (const Span*)a, *y = (const Span*)b;
    size_t n = x->bytes < y->bytes ? x->bytes : y->bytes;
    int order = memcmp(x->at, y->at, n);
    return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

// "name(a[x, y], b)": the name, and the parts: the text without all occurrences of the name and without parentheses at its ends, split
// at every comma, each part stripped, sorted.
typedef struct {
    char* rest;
    Span name;
    Span* parts;
    int count;
} Meaning;

static Meaning read_meaning(const char* text) {
    Span whole = stripped(span_of(text));
    Meaning m = {(char*)host_alloc(whole.bytes + 1), whole, NULL, 0};
    const char* open = (const char*)memchr(whole.at, '(', whole.bytes);
    if (open) m.name.bytes = (size_t)(open - whole.at);
    size_t n = 0;
    for (size_t i = 0; i < whole.bytes;) {
        bool named = m.name.bytes && whole.bytes - i >= m.name.bytes && !memcmp(whole.at + i, m.name.at, m.name.bytes);
        if (named) i += m.name.bytes;
        else m.rest[n++] = whole.at[i++];
    }
    Span rest = {m.rest, n};
    while (rest.bytes && strchr("()", rest.at[0])) rest.at++, rest.bytes--;
    while (rest.bytes && strchr("()", rest.at[rest.bytes - 1])) rest.bytes--;
    m.parts = (Span*)host_alloc((rest.bytes + 1) * sizeof(Span));
    for (size_t from = 0, i = 0; i <= rest.bytes; i++) {
        if (i < rest.bytes && rest.at[i] != ',') continue;
        Span part = {rest.at + from, i - from};
        m.parts[m.count++] = stripped(part);
        from = i + 1;
    }
    qsort(m.parts, (size_t)m.count, sizeof(Span), by_text);
    return m;
}

static bool judge_viggo(const char* expected, const char* generated) {
    Meaning a = read_meaning(expected), b = read_meaning(generated);
    bool equal = same(a.name, b.name) && a.count == b.count;
    for (int i = 0; equal && i < a.count; i++) equal = same(a.parts[i], b.parts[i]);
    free(a.rest);
    free(a.parts);
    free(b.rest);
    free(b.parts);
    return equal;
}

// ---- the table

static const Metric kMetrics[] = {
    {"exact", judge_stripped},       {"gsm8k", judge_gsm8k}, {"gsm8k-strict", judge_strict},
    {"gsm8k-flexible", judge_flexible}, {"viggo", judge_viggo}, {"sql", judge_stripped},
};
enum { kMetricCount = sizeof kMetrics / sizeof kMetrics[0] };

const Metric* metrics(int* count) {
    *count = kMetricCount;
    return kMetrics;
}

const Metric* metric_find(const char* name) {
    for (int i = 0; i < kMetricCount; i++)
        if (!strcmp(kMetrics[i].name, name)) return &kMetrics[i];
    return NULL;
}

const char* metric_names(void) { return "exact|gsm8k|gsm8k-strict|gsm8k-flexible|viggo|sql"; }

// ---- figures

double metric_standard_error(const bool* verdicts, int count) {
    if (count < 2) return 0;
    double sum = 0, squares = 0;
    for (int r = 0; r < kResamplings; r++) {
        int hits = 0;
        for (int i = 0; i < count; i++) {
            uint32_t word = random_words(kBootstrapSeed, (uint64_t)i, (uint64_t)r).word[0];
            hits += verdicts[(uint64_t)word * (uint64_t)count >> 32];
        }
        double share = 100.0 * hits / count;
        sum += share;
        squares += share * share;
    }
    double mean = sum / kResamplings, variance = squares / kResamplings - mean * mean;
    return variance > 0 ? sqrt(variance) : 0;
}

char* metric_summary(const char* name, const bool* verdicts, int count) {
    int hits = 0;
    for (int i = 0; i < count; i++) hits += verdicts[i];
    const size_t bytes = strlen(name) + 128;
    char* line = (char*)host_alloc(bytes);
    snprintf(line, bytes, "%s: %d/%d %.1f%% (standard error %.1f)", name, hits, count, count ? 100.0 * hits / count : 0.0,
             metric_standard_error(verdicts, count));
    return line;
}

// ---- answers files

static Answer read_answer(const char* text, size_t bytes, const char* where) {
    json_t* object = json_parse(text, bytes, where);
    if (!json_is_object(object)) user_error("%s: has to be an object with \"expected\" and \"generated\"", where);
    Answer answer = {NULL, host_strdup(member_string(object, "expected", where)),
                     host_strdup(member_string(object, "generated", where))};
    if (has_member(object, "prompt")) answer.prompt = host_strdup(member_string(object, "prompt", where));
    json_decref(object);
    return answer;
}

AnswerList answers_read(const char* path) {
    size_t bytes;
    char* text = file_read(path, &bytes);
    AnswerList list = {NULL, 0};
    char* where = (char*)host_alloc(strlen(path) + 32);
    int number = 1, capacity = 0;
    for (size_t from = 0; from < bytes; number++) {
        const char* newline = (const char*)memchr(text + from, '\n', bytes - from);
        size_t end = newline ? (size_t)(newline - text) : bytes;
        Span line = {text + from, end - from};
        from = end + 1;
        if (!stripped(line).bytes) continue;
        sprintf(where, "%s: line %d", path, number);
        if (list.count == capacity) {
            capacity = capacity ? 2 * capacity : 256;
            list.answers = (Answer*)host_grow(list.answers, (size_t)capacity * sizeof(Answer));
        }
        list.answers[list.count++] = read_answer(line.at, line.bytes, where);
    }
    if (!list.count) user_error("%s: no answers in it; JSON lines with \"expected\" and \"generated\" are expected", path);
    free(where);
    free(text);
    return list;
}

void answers_free(AnswerList* list) {
    for (int i = 0; i < list->count; i++) {
        free(list->answers[i].prompt);
        free(list->answers[i].expected);
        free(list->answers[i].generated);
    }
    free(list->answers);
    list->answers = NULL;
    list->count = 0;
}

char* answer_line(const Answer* answer) {
    json_t* object = json_object();
    if (answer->prompt) json_object_set_new(object, "prompt", json_utf8(answer->prompt));
    json_object_set_new(object, "expected", json_utf8(answer->expected));
    json_object_set_new(object, "generated", json_utf8(answer->generated));
    for (int i = 0; i < kMetricCount; i++)
        json_object_set_new(object, kMetrics[i].name, json_boolean(kMetrics[i].judge(answer->expected, answer->generated)));
    char* text = json_dumps(object, JSON_COMPACT);
    check(text, "metric: no JSON text");
    json_decref(object);
    size_t bytes = strlen(text);
    text = (char*)host_grow(text, bytes + 2);
    strcpy(text + bytes, "\n");
    return text;
}

char* answers_score(const char* path, const Metric* metric) {
    AnswerList list = answers_read(path);
    bool* verdicts = (bool*)host_alloc((size_t)list.count * sizeof(bool));
    for (int i = 0; i < list.count; i++) verdicts[i] = metric->judge(list.answers[i].expected, list.answers[i].generated);
    char* line = metric_summary(metric->name, verdicts, list.count);
    free(verdicts);
    answers_free(&list);
    return line;
}
