// Running a tokenizer: text to ids and back (load.c reads one from disk).
//
//   text -> added tokens as they are -> normalizer -> added tokens in normalized text -> pre-tokenizer -> pieces -> ids
//
// Most pieces are words that were seen a moment ago: each thread keeps a cache of piece -> ids. A worker (cache and scratch
// memory) is taken from the tokenizer's list for one call and put back, so that it lives as long as the tokenizer does.
#include "internal.h"
#include "../utf8.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

// ---- Texts

static void text_clear(Text* text) {
    text->bytes = 0;
    text_append(text, "", 0);
}

// ---- Workers

// A slot of the cache, 64 bytes: the ids of one short piece. `bytes` 0: free. 4 MiB a thread hold the words of a few books.
enum { kCachedBytes = 26, kCachedIds = 9, kCacheSlots = 1 << 16 };
typedef struct {
    unsigned char bytes, count;
    char piece[kCachedBytes];
    int ids[kCachedIds];
} CacheSlot;

struct Worker {
    Worker* next;
    CacheSlot* cache;        // (kCacheSlots)
    SplitScratch split;
    Merger merger;
    Text normalized, normalized_marks, prefixed;
    const Tokenizer* t;
    // the current call's
    TokenList* out;
    bool plain;              // special tokens are recognised nowhere
    bool continues;          // the segment continues a text: no mark of a word's start is put before it
    int kept;
};

static Worker* take_worker(const Tokenizer* t) {
    Tokenizer* shared = (Tokenizer*)t;   // not const: encoding changes the list of workers, and nothing else
    pthread_mutex_lock(&shared->lock);
    Worker* worker = shared->idle_workers;
    if (worker) shared->idle_workers = worker->next;
    pthread_mutex_unlock(&shared->lock);
    if (worker) return worker;
    worker = (Worker*)host_alloc(sizeof *worker);
    worker->t = t;
    worker->cache = (CacheSlot*)host_alloc(kCacheSlots * sizeof(CacheSlot));
    split_scratch_init(&worker->split);
    return worker;
}

static void put_worker_back(Worker* worker) {
    Tokenizer* shared = (Tokenizer*)worker->t;
    pthread_mutex_lock(&shared->lock);
    worker->next = shared->idle_workers;
    shared->idle_workers = worker;
    pthread_mutex_unlock(&shared->lock);
}

static void worker_free(Worker* worker) {
    free(worker->cache);
    split_scratch_free(&worker->split);
    merger_free(&worker->merger);
    text_free(&worker->normalized);
    text_free(&worker->normalized_marks);
    text_free(&worker->prefixed);
    free(worker);
}

void tokenizer_free(Tokenizer* t) {
    if (!t) return;
    while (t->idle_workers) {
        Worker* worker = t->idle_workers;
        t->idle_workers = worker->next;
        worker_free(worker);
    }
    pthread_mutex_destroy(&t->lock);
    strings_free(&t->contents);
    strings_free(&t->texts);
    free(t->special);
    added_tokens_free(&t->raw_added);
    added_tokens_free(&t->normalized_added);
    rewrites_free(&t->normalizer);
    rewrites_free(&t->spaces);
    free(t->prefix);
    pretokenizer_free(&t->pre);
    merges_free(&t->merges);
    token_list_free(&t->template_before);
    token_list_free(&t->template_after);
    rewrites_free(&t->decoder.replace);
    free(t->decoder.strip_first);
    free(t);
}

// ---- From pieces to ids

// Pushes the tokens of one piece's units; a unit without a token becomes byte tokens, or the unknown token.
static void push_units(const Tokenizer* t, Merger* merger, const char* piece, size_t bytes) {
    bool after_unknown = false;
    for (size_t at = 0; at < bytes;) {
        const unsigned char* unit = (const unsigned char*)piece + at;
        int length = t->byte_level ? 1 : max_int(1, utf8_char_bytes(piece + at, bytes - at));
        at += (size_t)length;
        bool one_byte = t->byte_level || *unit < 0x80;
        int id = one_byte ? t->unit[*unit] : strings_find(&t->contents, (const char*)unit, (size_t)length);
        if (id >= 0) {
            merger_push(merger, id);
            after_unknown = false;
            continue;
        }
        bool in_bytes = true;
        for (int i = 0; i < length; i++) in_bytes = in_bytes && t->fallback[unit[i]] >= 0;
        if (in_bytes) {
            for (int i = 0; i < length; i++) merger_push(merger, t->fallback[unit[i]]);
            after_unknown = false;
        } else if (t->unknown >= 0) {
            if (!(after_unknown && t->fuse_unknown)) merger_push(merger, t->unknown);
            after_unknown = true;
        }
    }
}

static void encode_uncached(Worker* worker, const char* piece, size_t bytes) {
    const Tokenizer* t = worker->t;
    if (t->ignore_merges) {
        int id = strings_find(t->byte_level ? &t->texts : &t->contents, piece, bytes);
        if (id >= 0 && !t->special[id]) {
            token_list_push(worker->out, id);
            return;
        }
    }
    push_units(t, &worker->merger, piece, bytes);
    merger_run(&worker->merger, &t->merges, worker->out);
}

static void encode_piece(Worker* worker, const char* piece, size_t bytes) {
    if (bytes > kCachedBytes) {
        encode_uncached(worker, piece, bytes);
        return;
    }
    CacheSlot* slot = &worker->cache[XXH3_64bits(piece, bytes) % kCacheSlots];
    if (slot->bytes == bytes && !memcmp(slot->piece, piece, bytes)) {
        for (int i = 0; i < slot->count; i++) token_list_push(worker->out, slot->ids[i]);
        return;
    }
    int before = worker->out->count;
    encode_uncached(worker, piece, bytes);
    int count = worker->out->count - before;
    if (count > kCachedIds) return;
    slot->bytes = (unsigned char)bytes;
    slot->count = (unsigned char)count;
    memcpy(slot->piece, piece, bytes);
    if (count) memcpy(slot->ids, worker->out->ids + before, (size_t)count * sizeof(int));
}

// A PieceFn. With cut_at_words it cuts the piece again, before each word mark that follows another character.
static void receive_piece(void* receiver, const char* piece, size_t bytes) {
    Worker* worker = (Worker*)receiver;
    if (worker->t->cut_at_words) {
        const size_t mark_bytes = sizeof WORD_MARK - 1;
        bool after_mark = true;
        for (size_t at = 0; at < bytes;) {
            bool mark = bytes - at >= mark_bytes && !memcmp(piece + at, WORD_MARK, mark_bytes);
            if (mark && !after_mark) {
                encode_piece(worker, piece, at);
                piece += at;
                bytes -= at;
                at = 0;
            }
            at += mark ? mark_bytes : 1;
            after_mark = mark;
        }
    }
    if (bytes) encode_piece(worker, piece, bytes);
}

// ---- From text to pieces

// Text and, where wanted, the marks of its bytes.
typedef struct {
    Text *text, *marks;
} Marked;

static void append_marked(Marked out, const char* text, size_t bytes, const unsigned char* marks) {
    text_append(out.text, text, bytes);
    if (marks) text_append(out.marks, (const char*)marks, bytes);
}

static void append_replacement(Marked out, const char* to, const unsigned char* mark) {
    size_t bytes = strlen(to);
    text_append(out.text, to, bytes);
    for (size_t i = 0; mark && i < bytes; i++) text_append(out.marks, (const char*)mark, 1);
}

static void replace_all(const Rewrite* step, bool prepend, const char* text, const unsigned char* marks, size_t bytes, Marked out) {
    size_t from_bytes = strlen(step->from);
    if (from_bytes == 0) {
        if (bytes && prepend) append_replacement(out, step->to, marks);
        append_marked(out, text, bytes, marks);
        return;
    }
    size_t done = 0;
    for (size_t at = 0; at + from_bytes <= bytes;) {
        const char* hit = (const char*)memchr(text + at, step->from[0], bytes - from_bytes + 1 - at);
        if (!hit) break;
        at = (size_t)(hit - text);
        if (memcmp(hit, step->from, from_bytes)) {
            at++;
            continue;
        }
        append_marked(out, text + done, at - done, marks ? marks + done : NULL);
        append_replacement(out, step->to, marks ? marks + at : NULL);
        done = at += from_bytes;
    }
    append_marked(out, text + done, bytes - done, marks ? marks + done : NULL);
}

void rewrite(const Rewrites* rewrites, bool prepend, const char* text, const unsigned char* marks, size_t bytes, Text* out,
             Text* out_marks) {
    Marked end = {out, out_marks};
    if (rewrites->count == 0) append_marked(end, text, bytes, marks);
    Text between[4];
    memset(between, 0, sizeof between);
    for (int i = 0; i < rewrites->count; i++) {
        bool last = i + 1 == rewrites->count;
        Marked to = {&between[i % 2], &between[2 + i % 2]};
        if (last) to = end;
        if (!last) text_clear(to.text), text_clear(to.marks);
        replace_all(&rewrites->steps[i], prepend, text, marks, bytes, to);
        text = to.text->data;
        bytes = to.text->bytes;
        if (marks) marks = (const unsigned char*)to.marks->data;
    }
    for (int i = 0; i < 4; i++) text_free(&between[i]);
}

void rewrites_free(Rewrites* rewrites) {
    for (int i = 0; i < rewrites->count; i++) {
        free(rewrites->steps[i].from);
        free(rewrites->steps[i].to);
    }
}

// Encodes normalized text that holds no added tokens.
static void encode_plain(Worker* worker, const char* text, size_t bytes, bool begins_text) {
    const Tokenizer* t = worker->t;
    bool wants_prefix = !worker->continues &&
                        (t->prefix_scheme == PREFIX_ALWAYS || (t->prefix_scheme == PREFIX_FIRST && begins_text));
    if (t->spaces.count || wants_prefix) {
        Text* prefixed = &worker->prefixed;
        text_clear(prefixed);
        rewrite(&t->spaces, true, text, NULL, bytes, prefixed, NULL);
        size_t prefix_bytes = wants_prefix ? strlen(t->prefix) : 0;
        if (wants_prefix && strncmp(prefixed->data, t->prefix, prefix_bytes)) {
            size_t plain_bytes = prefixed->bytes;
            text_append(prefixed, t->prefix, prefix_bytes);   // only makes room: the next lines move the text back and put the prefix first
            memmove(prefixed->data + prefix_bytes, prefixed->data, plain_bytes);
            memcpy(prefixed->data, t->prefix, prefix_bytes);
        }
        text = prefixed->data;
        bytes = prefixed->bytes;
    }
    pretokenize(&t->pre, &worker->split, text, bytes, receive_piece, worker);
}

// The AddedSearch for a part of the text.
static AddedSearch search_of(const Worker* worker, const char* text, const unsigned char* data, size_t bytes) {
    AddedSearch search = {text, bytes, data, worker->plain, 0};
    return search;
}

// Encodes text between raw_added tokens.
static void encode_unnormalized(Worker* worker, const char* text, const unsigned char* data, size_t bytes, bool begins_text) {
    const Tokenizer* t = worker->t;
    if (t->normalizer.count) {
        text_clear(&worker->normalized);
        text_clear(&worker->normalized_marks);
        rewrite(&t->normalizer, !worker->continues, text, data, bytes, &worker->normalized, &worker->normalized_marks);
        text = worker->normalized.data;
        bytes = worker->normalized.bytes;
        if (data) data = (const unsigned char*)worker->normalized_marks.data;
    }
    size_t done = 0;
    AddedMatch match;
    AddedSearch search = search_of(worker, text, data, bytes);
    while (added_tokens_next(&t->normalized_added, &search, done, &match)) {
        if (match.begin > done) encode_plain(worker, text + done, match.begin - done, begins_text && done == 0);
        token_list_push(worker->out, match.id);
        worker->continues = false;
        done = match.end;
    }
    worker->kept += search.kept;
    if (bytes == done) return;
    encode_plain(worker, text + done, bytes - done, begins_text && done == 0);
    worker->continues = true;
}

// Encodes one part of a text, up to a cut or the text's end. worker->continues: on entry, the part continues an open segment; on return, the
// next part does.
static void encode_part(Worker* worker, const char* text, const unsigned char* data, size_t bytes, bool begins_text) {
    const Tokenizer* t = worker->t;
    size_t done = 0;
    AddedMatch match;
    AddedSearch search = search_of(worker, text, data, bytes);
    while (added_tokens_next(&t->raw_added, &search, done, &match)) {
        const unsigned char* marks = data ? data + done : NULL;
        if (match.begin > done) encode_unnormalized(worker, text + done, marks, match.begin - done, begins_text && done == 0);
        token_list_push(worker->out, match.id);
        worker->continues = false;
        done = match.end;
    }
    worker->kept += search.kept;
    if (bytes == done) return;
    encode_unnormalized(worker, text + done, data ? data + done : NULL, bytes - done, begins_text && done == 0);
}

void tokenizer_encode(const Tokenizer* t, const char* text, size_t bytes, int flags, TokenList* out) {
    if (flags & kEncodeTemplate)
        for (int i = 0; i < t->template_before.count; i++) token_list_push(out, t->template_before.ids[i]);
    Worker* worker = take_worker(t);
    worker->out = out;
    worker->plain = !(flags & kEncodeSpecial);
    worker->continues = (flags & kEncodeContinue) != 0;
    encode_part(worker, text, NULL, bytes, true);
    put_worker_back(worker);
    if (flags & kEncodeTemplate)
        for (int i = 0; i < t->template_after.count; i++) token_list_push(out, t->template_after.ids[i]);
}

int tokenizer_encode_marked(const Tokenizer* t, const MarkedText* text, int* cut_tokens, TokenList* out) {
    Worker* worker = take_worker(t);
    worker->out = out;
    worker->plain = worker->continues = false;
    worker->kept = 0;
    size_t at = 0;
    for (int i = 0; i <= text->cut_count; i++) {
        size_t end = i < text->cut_count ? text->cuts[i] : text->bytes;
        check(end >= at && end <= text->bytes, "cut %d at %zu of %zu bytes, behind one at %zu", i, end, text->bytes, at);
        if (end > at) encode_part(worker, text->text + at, text->data ? text->data + at : NULL, end - at, at == 0);
        if (i < text->cut_count && cut_tokens) cut_tokens[i] = out->count;
        at = end;
    }
    int kept = worker->kept;
    put_worker_back(worker);
    return kept;
}

int tokenizer_next_special(const Tokenizer* t, const char* text, const unsigned char* data, size_t bytes, size_t from, size_t* begin,
                           size_t* end) {
    const AddedTokens* lists[] = {&t->raw_added, &t->normalized_added};
    AddedMatch best = {bytes, bytes, -1};
    for (int i = 0; i < 2; i++) {
        AddedSearch search = {text, bytes, data, false, 0};
        AddedMatch match;
        for (size_t at = from; added_tokens_next(lists[i], &search, at, &match); at = match.end) {
            if (!t->special[match.id]) continue;
            if (best.id < 0 || match.begin < best.begin) best = match;
            break;
        }
    }
    *begin = best.begin;
    *end = best.end;
    return best.id;
}

// ---- From ids to text

int tokenizer_size(const Tokenizer* t) { return t->contents.size; }
int tokenizer_id(const Tokenizer* t, const char* content) {
    return strings_find(&t->contents, content, strlen(content));
}
int tokenizer_bos(const Tokenizer* t) {
    return t->template_before.count ? t->template_before.ids[t->template_before.count - 1] : -1;
}
char* tokenizer_content(const Tokenizer* t, int id) {
    if (!strings_has(&t->contents, id)) return NULL;
    size_t bytes;
    const char* s = strings_get(&t->contents, id, &bytes);
    char* content = (char*)host_alloc(bytes + 1);
    memcpy(content, s, bytes);
    return content;
}
bool tokenizer_is_special(const Tokenizer* t, int id) { return id >= 0 && id < t->contents.size && t->special[id]; }

// Appends the text of one token. *started becomes true with the first text, from which strip_first may take a character.
static void append_token(const Tokenizer* t, int id, bool skip_special, bool* started, Text* out) {
    if (!strings_has(&t->texts, id) || (skip_special && t->special[id])) return;
    size_t bytes;
    const char* s = strings_get(&t->texts, id, &bytes);
    if (bytes == 0) return;
    if (!*started && t->decoder.strip_first) {
        size_t strip_bytes = strlen(t->decoder.strip_first);
        if (bytes >= strip_bytes && !memcmp(s, t->decoder.strip_first, strip_bytes)) {
            s += strip_bytes;
            bytes -= strip_bytes;
        }
    }
    *started = true;
    text_append(out, s, bytes);
}

void tokenizer_decode(const Tokenizer* t, const int* ids, int count, bool skip_special, Text* out) {
    text_append(out, "", 0);
    bool started = false;
    for (int i = 0; i < count; i++) append_token(t, ids[i], skip_special, &started, out);
}

void tokenizer_decode_next(const Tokenizer* t, DecodeStream* stream, int id, bool skip_special, Text* out) {
    size_t before = out->bytes;
    text_append(out, stream->pending, (size_t)stream->pending_bytes);
    append_token(t, id, skip_special, &stream->started, out);
    stream->pending_bytes = utf8_cut_bytes(out->data + before, out->bytes - before);
    out->bytes -= (size_t)stream->pending_bytes;
    memcpy(stream->pending, out->data + out->bytes, (size_t)stream->pending_bytes);
    out->data[out->bytes] = 0;
}

void tokenizer_decode_finish(DecodeStream* stream, Text* out) {
    text_append(out, stream->pending, (size_t)stream->pending_bytes);
    memset(stream, 0, sizeof *stream);
}
