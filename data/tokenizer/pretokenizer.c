// Splits by PCRE2 with its just-in-time compiler (where the machine allows no such compiler, pcre2_match interprets the pattern).
#include "pretokenizer.h"

#include "../utf8.h"

// A copy of the pattern with \s and \S spelled out, because PCRE2's \s holds U+180E, which is not White_Space. Other escapes are
// copied in pairs, so that in "\\s" (a backslash, then the letter s) the s is not taken for \s.
static char* spell_out_spaces(const char* pattern, size_t bytes, size_t* out_bytes) {
    static const char kSpace[] = "p{WSpace}";
    char* out = (char*)host_alloc(bytes * (sizeof kSpace / 2 + 1) + 1);
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        out[n++] = pattern[i];
        if (pattern[i] != '\\' || i + 1 == bytes) continue;
        char escaped = pattern[++i];
        if (escaped == 's' || escaped == 'S') {
            memcpy(out + n, kSpace, sizeof kSpace - 1);
            if (escaped == 'S') out[n] = 'P';
            n += sizeof kSpace - 1;
        } else {
            out[n++] = escaped;
        }
    }
    *out_bytes = n;
    return out;
}

static bool has_single_byte(const char* pattern, size_t bytes) {
    for (size_t i = 0; i + 1 < bytes; i++)
        if (pattern[i] == '\\' && pattern[++i] == 'C') return true;
    return false;
}

const char* pretokenizer_add(PreTokenizer* pre, const char* pattern, size_t bytes, bool literal, Keep keep) {
    if (pre->count == kMaxSplits) return "more than 8 splits";
    if (!literal && has_single_byte(pattern, bytes)) return "\\C, a single byte, would cut characters apart";
    size_t regex_bytes = bytes;
    char* spelled = literal ? NULL : spell_out_spaces(pattern, bytes, &regex_bytes);
    uint32_t options = PCRE2_UTF | (literal ? (uint32_t)PCRE2_LITERAL : (uint32_t)PCRE2_UCP);
    int error;
    PCRE2_SIZE error_at;
    pcre2_code* regex =
        pcre2_compile((PCRE2_SPTR)(literal ? pattern : spelled), regex_bytes, options, &error, &error_at, NULL);
    free(spelled);
    if (!regex) {
        static char message[256];
        pcre2_get_error_message(error, (PCRE2_UCHAR*)message, sizeof message);
        return message;
    }
    pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE);
    pre->splits[pre->count].regex = regex;
    pre->splits[pre->count++].keep = keep;
    return NULL;
}

void pretokenizer_free(PreTokenizer* pre) {
    for (int i = 0; i < pre->count; i++) pcre2_code_free(pre->splits[i].regex);
}

void split_scratch_init(SplitScratch* scratch) {
    scratch->match = pcre2_match_data_create(1, NULL);   // room for the bounds of a match, without groups
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(32 << 10, 16 << 20, NULL);
    check(scratch->match && scratch->context && scratch->stack, "out of host memory for regular expressions");
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
}

void split_scratch_free(SplitScratch* scratch) {
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
}

typedef struct {
    const PreTokenizer* pre;
    SplitScratch* scratch;
    PieceFn fn;
    void* receiver;
} Splitting;

// Cuts valid UTF-8 by splits[stage], then by the stages after it.
static void split_from(const Splitting* s, int stage, const char* text, size_t bytes) {
    if (stage == s->pre->count) {
        s->fn(s->receiver, text, bytes);
        return;
    }
    const pcre2_code* regex = s->pre->splits[stage].regex;
    Keep keep = s->pre->splits[stage].keep;
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(s->scratch->match);
    size_t done = 0;   // the text before this byte has been passed on or dropped
    for (size_t from = 0; from < bytes;) {
        int found = pcre2_match(regex, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK, s->scratch->match,
                                s->scratch->context);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) {
            char message[256];
            pcre2_get_error_message(found, (PCRE2_UCHAR*)message, sizeof message);
            user_error("tokenizer.json: the pre-tokenizer's regular expression fails on a text of %zu bytes: %s; "
                       "shorten the text or simplify the expression", bytes, message);
        }
        size_t begin = bounds[0], end = bounds[1];   // deeper stages reuse the match data
        if (begin < done || end < begin)   // \K can move a match's bounds
            user_error("tokenizer.json: the pre-tokenizer's regular expression matches backwards; take \\K out of it");
        if (begin > done && keep != KEEP_MATCHES) split_from(s, stage + 1, text + done, begin - done);
        if (end > begin && keep != KEEP_GAPS) split_from(s, stage + 1, text + begin, end - begin);
        done = end;
        from = end > begin ? end : end + (end < bytes ? (size_t)max_int(1, utf8_char_bytes(text + end, bytes - end)) : 1);
    }
    if (done < bytes && keep != KEEP_MATCHES) split_from(s, stage + 1, text + done, bytes - done);
}

void pretokenize(const PreTokenizer* pre, SplitScratch* scratch, const char* text, size_t bytes, PieceFn fn,
                 void* receiver) {
    Splitting splitting = {pre, scratch, fn, receiver};
    while (bytes > 0) {
        size_t valid = utf8_valid_bytes(text, bytes);
        if (valid) split_from(&splitting, 0, text, valid);
        text += valid;
        bytes -= valid;
        size_t invalid = 0;
        while (invalid < bytes && utf8_char_bytes(text + invalid, bytes - invalid) <= 0) invalid++;
        if (invalid) fn(receiver, text, invalid);
        text += invalid;
        bytes -= invalid;
    }
}
