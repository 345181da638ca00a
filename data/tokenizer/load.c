// Reading tokenizer.json. Everything that could change an id is either supported or refused by its name; settings that do not
// change ids (truncation and padding, which training sets for itself, and offsets) are ignored.
#include "../files.h"
#include "../json.h"
#include "internal.h"
#include "../utf8.h"

enum { kMaxTokens = 1 << 22 };   // far above any real vocabulary, so that a wrong id cannot ask for all memory

// GPT-2's pre-tokenizer, which ByteLevel stands for with "use_regex".
static const char kGpt2Regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// ---- Members that may be missing. `where` is the file and the part of it, "DIR/tokenizer.json: pre_tokenizer".

static const char* optional_string(const char* where, const json_t* object, const char* key, const char* fallback) {
    return has_member(object, key) ? member_string(object, key, where) : fallback;
}

static bool optional_bool(const char* where, const json_t* object, const char* key, bool fallback) {
    return has_member(object, key) ? member_bool(object, key, where) : fallback;
}

static const json_t* array_member(const char* where, const json_t* object, const char* key) {
    const json_t* value = json_object_get(object, key);
    if (!json_is_array(value)) user_error("%s: \"%s\" is missing or no array", where, key);
    return value;
}

static int id_value(const char* where, const json_t* value, const char* content) {
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= kMaxTokens)
        user_error("%s: the id of \"%s\" is not a number from 0 to %d", where, printable(content), kMaxTokens - 1);
    return (int)json_integer_value(value);
}

// The user_error for a construct that would change ids or text and is not supported.
PRINTF_LIKE(2) static void refuse(const char* where, const char* format, ...) {
    char what[512];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    user_error("%s: %s is not supported; use a Llama-style BPE tokenizer", where, printable(what));
}

// ---- The byte alphabet of byte-level tokenizers: printable Latin-1 stands for itself, the other bytes for U+0100 and on.

typedef struct {
    uint16_t code_point[256];
    short byte[0x144];         // -1 where the code point stands for no byte
} ByteAlphabet;

static ByteAlphabet byte_alphabet(void) {
    ByteAlphabet alphabet;
    for (int i = 0; i < 0x144; i++) alphabet.byte[i] = -1;
    int next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int code_point = printable ? byte : next++;
        alphabet.code_point[byte] = (uint16_t)code_point;
        alphabet.byte[code_point] = (short)byte;
    }
    return alphabet;
}

// Writes the bytes that a spelling stands for (at most `bytes`) and returns their number; -1 if a character is not in the alphabet.
static int spelled_bytes(const ByteAlphabet* alphabet, const char* s, size_t bytes, char* out) {
    int count = 0;
    for (size_t at = 0; at < bytes;) {
        int length = utf8_char_bytes(s + at, bytes - at);
        uint32_t c = length > 0 ? utf8_code_point(s + at, length) : 0;
        if (length <= 0 || c >= 0x144 || alphabet->byte[c] < 0) return -1;
        out[count++] = (char)alphabet->byte[c];
        at += (size_t)length;
    }
    return count;
}

// The byte of "<0x0A>", or -1.
static int byte_token_value(const char* s, size_t bytes) {
    static const char kDigits[] = "0123456789ABCDEF";
    if (bytes != 6 || memcmp(s, "<0x", 3) || s[5] != '>') return -1;
    const char* high = (const char*)memchr(kDigits, s[3], 16);
    const char* low = (const char*)memchr(kDigits, s[4], 16);
    return high && low ? (int)(high - kDigits) * 16 + (int)(low - kDigits) : -1;
}

// ---- Vocabulary

static void set_content(const char* where, Tokenizer* t, int id, const char* content) {
    if (strings_has(&t->contents, id))
        user_error("%s: \"%s\" has the id %d of another token", where, printable(content), id);
    strings_set(&t->contents, id, content, strlen(content));
    strings_index(&t->contents, id);
}

static int largest_added_id(const json_t* root) {
    const json_t* added = json_object_get(root, "added_tokens");
    int largest = -1;
    for (size_t i = 0; i < json_array_size(added); i++) {
        json_int_t id = json_integer_value(json_object_get(json_array_get(added, i), "id"));
        if (id > largest && id < kMaxTokens) largest = (int)id;   // larger ids are an error, reported where the tokens are read
    }
    return largest;
}

static void load_vocabulary(const char* where, Tokenizer* t, const json_t* root) {
    json_t* vocab = (json_t*)member_object(json_object_get(root, "model"), "vocab", where);   // for jansson's iteration
    int size = largest_added_id(root) + 1;
    const char* content;
    json_t* value;
    json_object_foreach(vocab, content, value) size = max_int(size, id_value(where, value, content) + 1);
    if (size == 0) user_error("%s: no token at all", where);
    strings_init(&t->contents, size);
    strings_init(&t->texts, size);
    t->special = (unsigned char*)host_alloc((size_t)size);
    json_object_foreach(vocab, content, value) set_content(where, t, (int)json_integer_value(value), content);
}

static void load_added_tokens(const char* where, Tokenizer* t, const json_t* added) {
    if (added && !json_is_null(added) && !json_is_array(added)) user_error("%s: has to be a list of tokens", where);
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t* entry = json_array_get(added, i);
        const char* name = member_string(entry, "content", where);
        AddedToken token;
        memset(&token, 0, sizeof token);
        token.id = id_value(where, json_object_get(entry, "id"), name);
        token.special = optional_bool(where, entry, "special", false);
        token.lstrip = optional_bool(where, entry, "lstrip", false);
        token.rstrip = optional_bool(where, entry, "rstrip", false);
        if (optional_bool(where, entry, "single_word", false)) refuse(where, "\"single_word\" of \"%s\"", name);
        int known = strings_find(&t->contents, name, strlen(name));
        if (known < 0)
            set_content(where, t, token.id, name);
        else if (known != token.id)
            user_error("%s: \"%s\" has the id %d here and %d elsewhere", where, printable(name), token.id, known);
        t->special[token.id] = token.special;
        if (!*name) continue;   // an empty token can be found nowhere
        if (optional_bool(where, entry, "normalized", !token.special)) {
            Text normalized = {NULL, 0, 0};
            rewrite(&t->normalizer, true, name, NULL, strlen(name), &normalized, NULL);
            added_tokens_add(&t->normalized_added, normalized.data, normalized.bytes, token);
            text_free(&normalized);
        } else {
            added_tokens_add(&t->raw_added, name, strlen(name), token);
        }
    }
    added_tokens_sort(&t->raw_added);
    added_tokens_sort(&t->normalized_added);
}

// ---- Normalizer and pre-tokenizer

static void add_rewrite(const char* where, Rewrites* rewrites, const char* from, const char* to) {
    if (rewrites->count == kMaxRewrites) refuse(where, "a chain of more than %d steps", kMaxRewrites);
    Rewrite* step = &rewrites->steps[rewrites->count++];
    step->from = host_strdup(from);
    step->to = host_strdup(to);
}

// The characters of {"pattern": {"String": "..."}}.
static const char* literal_pattern(const char* where, const json_t* object) {
    const char* s = optional_string(where, json_object_get(object, "pattern"), "String", NULL);
    if (!s || !*s) refuse(where, "a Replace whose pattern is not a String");
    return s;
}

static void load_normalizer(const char* where, Tokenizer* t, const json_t* object) {
    if (!object || json_is_null(object)) return;
    const char* type = member_string(object, "type", where);
    if (!strcmp(type, "Sequence")) {
        const json_t* steps = array_member(where, object, "normalizers");
        for (size_t i = 0; i < json_array_size(steps); i++) load_normalizer(where, t, json_array_get(steps, i));
    } else if (!strcmp(type, "Prepend")) {
        add_rewrite(where, &t->normalizer, "", optional_string(where, object, "prepend", ""));
    } else if (!strcmp(type, "Replace")) {
        add_rewrite(where, &t->normalizer, literal_pattern(where, object), optional_string(where, object, "content", ""));
    } else {
        refuse(where, "the type \"%s\"", type);
    }
}

static void add_split(const char* where, Tokenizer* t, const char* pattern, bool literal, Keep keep) {
    const char* error = pretokenizer_add(&t->pre, pattern, strlen(pattern), literal, keep);
    if (error) user_error("%s: the expression \"%s\" does not compile: %s", where, printable(pattern), error);
}

// Sets the prefix; refused behind a step that has cut the text, since only whole texts can get a prefix.
static void set_prefix(const char* where, Tokenizer* t, PrefixScheme scheme, const char* prefix) {
    if (scheme == PREFIX_NONE) return;
    if (t->pre.count || t->prefix) refuse(where, "a prefix (add_prefix_space, prepend_scheme) behind another step");
    t->prefix_scheme = scheme;
    t->prefix = host_strdup(prefix);
}

static void load_split(const char* where, Tokenizer* t, const json_t* object) {
    const json_t* pattern = json_object_get(object, "pattern");
    const char* literal = optional_string(where, pattern, "String", NULL);
    const char* regex = optional_string(where, pattern, "Regex", NULL);
    if (!literal && !regex) user_error("%s: a Split without \"Regex\" or \"String\"", where);
    const char* behavior = optional_string(where, object, "behavior", "");
    bool invert = optional_bool(where, object, "invert", false);
    Keep keep = KEEP_ALL;
    if (!strcmp(behavior, "Removed")) keep = invert ? KEEP_MATCHES : KEEP_GAPS;
    else if (strcmp(behavior, "Isolated")) refuse(where, "the Split behavior \"%s\"", behavior);
    add_split(where, t, literal ? literal : regex, literal != NULL, keep);
}

static void load_metaspace(const char* where, Tokenizer* t, const json_t* object) {
    if (t->pre.count || t->spaces.count) refuse(where, "a Metaspace behind another step");
    const char* mark = optional_string(where, object, "replacement", WORD_MARK);
    bool add_prefix = optional_bool(where, object, "add_prefix_space", true);   // the older form of prepend_scheme
    const char* scheme = optional_string(where, object, "prepend_scheme", add_prefix ? "always" : "never");
    add_rewrite(where, &t->spaces, " ", mark);
    if (!strcmp(scheme, "always")) set_prefix(where, t, PREFIX_ALWAYS, mark);
    else if (!strcmp(scheme, "first")) set_prefix(where, t, PREFIX_FIRST, mark);
    else if (strcmp(scheme, "never")) refuse(where, "the prepend_scheme \"%s\"", scheme);
    if (optional_bool(where, object, "split", true)) {
        if (strcmp(mark, WORD_MARK)) refuse(where, "a Metaspace that splits at \"%s\"", mark);
        add_split(where, t, WORD_MARK "?[^" WORD_MARK "]+|" WORD_MARK, false, KEEP_ALL);
    }
}

static void load_pretokenizer(const char* where, Tokenizer* t, const json_t* object) {
    if (!object || json_is_null(object)) return;
    const char* type = member_string(object, "type", where);
    if (t->byte_level) refuse(where, "the type \"%s\" behind ByteLevel", type);
    if (!strcmp(type, "Sequence")) {
        const json_t* steps = array_member(where, object, "pretokenizers");
        for (size_t i = 0; i < json_array_size(steps); i++) load_pretokenizer(where, t, json_array_get(steps, i));
    } else if (!strcmp(type, "Split")) {
        load_split(where, t, object);
    } else if (!strcmp(type, "Digits")) {
        bool each = optional_bool(where, object, "individual_digits", false);
        add_split(where, t, each ? "\\p{N}" : "\\p{N}+", false, KEEP_ALL);
    } else if (!strcmp(type, "ByteLevel")) {
        if (optional_bool(where, object, "add_prefix_space", true)) set_prefix(where, t, PREFIX_ALWAYS, " ");
        if (optional_bool(where, object, "use_regex", true)) add_split(where, t, kGpt2Regex, false, KEEP_ALL);
        t->byte_level = true;
    } else if (!strcmp(type, "Metaspace")) {
        load_metaspace(where, t, object);
    } else {
        refuse(where, "the type \"%s\"", type);
    }
}

// ---- Decoder

static void load_decoder(const char* where, Tokenizer* t, const json_t* object) {
    Decoder* decoder = &t->decoder;
    if (!object || json_is_null(object)) user_error("%s: is missing; without it ids cannot become text", where);
    const char* type = member_string(object, "type", where);
    if (decoder->byte_level || decoder->strip_first) refuse(where, "the type \"%s\" at this place", type);
    if (!strcmp(type, "Sequence")) {
        const json_t* steps = array_member(where, object, "decoders");
        for (size_t i = 0; i < json_array_size(steps); i++) load_decoder(where, t, json_array_get(steps, i));
    } else if (!strcmp(type, "ByteLevel")) {
        decoder->byte_level = true;
    } else if (!strcmp(type, "Replace") && !decoder->byte_fallback && !decoder->fuse) {
        add_rewrite(where, &decoder->replace, literal_pattern(where, object), optional_string(where, object, "content", ""));
    } else if (!strcmp(type, "ByteFallback") && !decoder->fuse) {
        decoder->byte_fallback = true;
    } else if (!strcmp(type, "Fuse")) {
        decoder->fuse = true;
    } else if (!strcmp(type, "Strip") && decoder->fuse) {
        const char* content = optional_string(where, object, "content", "");
        if (!*content || json_integer_value(json_object_get(object, "start")) != 1 ||
            json_integer_value(json_object_get(object, "stop")) != 0)
            refuse(where, "a Strip of anything but one character at the beginning");
        decoder->strip_first = host_strdup(content);
    } else {
        refuse(where, "the type \"%s\" at this place", type);
    }
}

// Added tokens decode to the text that they are found as.
static void set_added_texts(Tokenizer* t, const AddedTokens* added) {
    Text text = {NULL, 0, 0};
    for (int i = 0; i < added->count; i++) {
        const AddedToken* token = &added->tokens[i];
        if (strings_has(&t->texts, token->id)) continue;   // the file lists the token twice
        text.bytes = 0;
        rewrite(&t->decoder.replace, true, token->content, NULL, (size_t)token->bytes, &text, NULL);
        strings_set(&t->texts, token->id, text.data, text.bytes);
    }
    text_free(&text);
}

// Fills t->texts. The texts of byte-level tokens are made findable, those of added tokens are not.
static void set_texts(Tokenizer* t) {
    set_added_texts(t, &t->raw_added);
    set_added_texts(t, &t->normalized_added);
    ByteAlphabet alphabet = byte_alphabet();
    Text text = {NULL, 0, 0};
    for (int id = 0; id < t->contents.size; id++) {
        if (!strings_has(&t->contents, id) || strings_has(&t->texts, id)) continue;
        size_t bytes;
        const char* content = strings_get(&t->contents, id, &bytes);
        text.bytes = 0;
        text_append(&text, content, bytes);   // room for the bytes, which are never more than their spelling
        int spelled = t->byte_level ? spelled_bytes(&alphabet, content, bytes, text.data) : -1;
        int byte = t->decoder.byte_fallback ? byte_token_value(content, bytes) : -1;
        if (spelled >= 0) {
            strings_set(&t->texts, id, text.data, (size_t)spelled);
            strings_index(&t->texts, id);
        } else if (byte >= 0) {
            char one = (char)byte;
            strings_set(&t->texts, id, &one, 1);
        } else {
            text.bytes = 0;
            rewrite(&t->decoder.replace, true, content, NULL, bytes, &text, NULL);
            strings_set(&t->texts, id, text.data, text.bytes);
        }
    }
    text_free(&text);
}

// ---- The model

static void load_units(Tokenizer* t, bool byte_fallback) {
    ByteAlphabet alphabet = byte_alphabet();
    for (int byte = 0; byte < 256; byte++) {
        int c = t->byte_level ? alphabet.code_point[byte] : byte;
        char self[2] = {(char)c, 0};
        if (c >= 0x80) {   // two bytes of UTF-8; without byte_level, characters above ASCII are looked up when a text is encoded
            self[0] = (char)(0xc0 | c >> 6);
            self[1] = (char)(0x80 | (c & 0x3f));
        }
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        t->unit[byte] = strings_find(&t->contents, self, c >= 0x80 ? 2 : 1);
        t->fallback[byte] = byte_fallback ? strings_find(&t->contents, name, 6) : -1;
    }
}

// The two halves of merge number `rank`, "a b" or ["a", "b"].
static void merge_halves(const char* where, const json_t* merge, size_t rank, const char* half[2], size_t bytes[2]) {
    if (json_is_string(merge)) {
        const char* s = json_string_value(merge);
        const char* space = strchr(s, ' ');
        if (space && !strchr(space + 1, ' ')) {
            half[0] = s;
            bytes[0] = (size_t)(space - s);
            half[1] = space + 1;
            bytes[1] = strlen(space + 1);
            return;
        }
    } else if (json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
               json_is_string(json_array_get(merge, 1))) {
        for (int i = 0; i < 2; i++) {
            half[i] = json_string_value(json_array_get(merge, (size_t)i));
            bytes[i] = json_string_length(json_array_get(merge, (size_t)i));
        }
        return;
    }
    user_error("%s: merge %zu is neither \"a b\" nor [\"a\", \"b\"]", where, rank);
}

// Does the string hold a word mark behind a character that is no word mark?
static bool has_inner_word_mark(const char* s, size_t bytes) {
    const size_t mark_bytes = sizeof WORD_MARK - 1;
    bool after_mark = true;
    for (size_t at = 0; at < bytes;) {
        bool mark = bytes - at >= mark_bytes && !memcmp(s + at, WORD_MARK, mark_bytes);
        if (mark && !after_mark) return true;
        after_mark = mark;
        at += mark ? mark_bytes : 1;
    }
    return false;
}

static void load_merges(const char* where, Tokenizer* t, const json_t* merges) {
    merges_init(&t->merges, json_array_size(merges));
    t->cut_at_words = !t->byte_level && !t->ignore_merges && strings_find(&t->contents, WORD_MARK, sizeof WORD_MARK - 1) >= 0;
    Text joined = {NULL, 0, 0};
    for (size_t rank = 0; rank < json_array_size(merges); rank++) {
        const char* half[2] = {NULL, NULL};
        size_t bytes[2] = {0, 0};
        merge_halves(where, json_array_get(merges, rank), rank, half, bytes);
        joined.bytes = 0;
        text_append(&joined, half[0], bytes[0]);
        text_append(&joined, half[1], bytes[1]);
        int left = strings_find(&t->contents, half[0], bytes[0]);
        int right = strings_find(&t->contents, half[1], bytes[1]);
        int both = strings_find(&t->contents, joined.data, joined.bytes);
        if (left < 0 || right < 0 || both < 0)
            user_error("%s: merge %zu joins or gives a token that is not in the vocabulary: \"%s\"", where, rank,
                       printable(joined.data));
        merges_add(&t->merges, left, right, (int)rank, both);
        if (t->cut_at_words && has_inner_word_mark(joined.data, joined.bytes)) t->cut_at_words = false;
    }
    text_free(&joined);
}

static void load_model(const char* where, Tokenizer* t, const json_t* model) {
    const char* type = optional_string(where, model, "type", "BPE");   // files before 2020 leave it out
    if (strcmp(type, "BPE")) refuse(where, "the type \"%s\"", type);
    if (json_number_value(json_object_get(model, "dropout")) != 0) refuse(where, "\"dropout\"");
    static const char* const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++)
        if (*optional_string(where, model, affixes[i], "")) refuse(where, "\"%s\"", affixes[i]);
    const char* unknown = optional_string(where, model, "unk_token", NULL);
    t->unknown = unknown ? strings_find(&t->contents, unknown, strlen(unknown)) : -1;
    if (unknown && t->unknown < 0) user_error("%s: the unk_token \"%s\" is not in the vocabulary", where, printable(unknown));
    t->fuse_unknown = optional_bool(where, model, "fuse_unk", false);
    t->ignore_merges = optional_bool(where, model, "ignore_merges", false);
    load_units(t, optional_bool(where, model, "byte_fallback", false));
    load_merges(where, t, array_member(where, model, "merges"));
}

// ---- Post-processor: only a template changes ids

static void load_template(const char* where, Tokenizer* t, const json_t* object) {
    if (t->template_before.count || t->template_after.count) refuse(where, "a second TemplateProcessing");
    const json_t* single = array_member(where, object, "single");
    TokenList* side = &t->template_before;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t* part = json_array_get(single, i);
        const json_t* special = json_object_get(part, "SpecialToken");
        const char* sequence = optional_string(where, json_object_get(part, "Sequence"), "id", "");
        if (special) {
            const char* name = optional_string(where, special, "id", "");
            const json_t* ids = json_object_get(json_object_get(json_object_get(object, "special_tokens"), name), "ids");
            if (!json_array_size(ids)) user_error("%s: \"%s\" has no ids", where, printable(name));
            for (size_t k = 0; k < json_array_size(ids); k++) {
                int id = id_value(where, json_array_get(ids, k), name);
                if (!strings_has(&t->contents, id))
                    user_error("%s: \"%s\" has the id %d, which is no token", where, printable(name), id);
                token_list_push(side, id);
            }
        } else if (!strcmp(sequence, "A") && side == &t->template_before) {
            side = &t->template_after;
        } else {
            refuse(where, "a template with anything but special tokens around one sequence A");
        }
    }
    if (side != &t->template_after) refuse(where, "a template without the sequence A");
}

static void load_postprocessor(const char* where, Tokenizer* t, const json_t* object) {
    if (!object || json_is_null(object)) return;
    const char* type = member_string(object, "type", where);
    if (!strcmp(type, "Sequence")) {
        const json_t* steps = array_member(where, object, "processors");
        for (size_t i = 0; i < json_array_size(steps); i++) load_postprocessor(where, t, json_array_get(steps, i));
    } else if (!strcmp(type, "TemplateProcessing")) {
        load_template(where, t, object);
    } else if (strcmp(type, "ByteLevel")) {   // ByteLevel only moves offsets
        refuse(where, "the type \"%s\"", type);
    }
}

// ---- The file

typedef void (*LoadPart)(const char* where, Tokenizer* t, const json_t* part);

static void load_part(const char* path, const char* name, LoadPart load, Tokenizer* t, const json_t* part) {
    size_t bytes = strlen(path) + strlen(name) + sizeof ": ";
    char* where = (char*)host_alloc(bytes);
    snprintf(where, bytes, "%s: %s", path, name);
    load(where, t, part);
    free(where);
}

// Older models come with SentencePiece's own file alone.
static void require_file(const char* dir, const char* path) {
    char* model = path_join(dir, "tokenizer.model");
    if (!path_exists(path) && path_exists(model))
        user_error("%s: not there, and tokenizer.model is not read; make it once with: python3 -c \"from transformers import AutoTokenizer "
                   "as T; T.from_pretrained('%s').save_pretrained('%s')\"", path, dir, dir);
    if (!path_exists(path) && dir_exists(dir))
        user_error("%s: not there; copy it from the original model's folder, or name that folder with --tokenizer", path);
    free(model);
}

Tokenizer* tokenizer_load(const char* dir) {
    char* path = path_join(dir, "tokenizer.json");
    require_file(dir, path);
    size_t bytes;
    char* text = file_read(path, &bytes);
    Tokenizer* t = tokenizer_parse(text, bytes, path);
    free(text);
    free(path);
    return t;
}

Tokenizer* tokenizer_parse(const char* text, size_t bytes, const char* path) {
    json_t* root = json_parse(text, bytes, path);
    const json_t* model = member_object(root, "model", path);
    Tokenizer* t = (Tokenizer*)host_alloc(sizeof *t);
    pthread_mutex_init(&t->lock, NULL);
    load_part(path, "normalizer", load_normalizer, t, json_object_get(root, "normalizer"));
    load_part(path, "pre_tokenizer", load_pretokenizer, t, json_object_get(root, "pre_tokenizer"));
    load_part(path, "decoder", load_decoder, t, json_object_get(root, "decoder"));
    if (t->decoder.byte_level != t->byte_level)
        user_error("%s: pre_tokenizer and decoder have to be ByteLevel both, or neither", path);
    load_part(path, "model.vocab", load_vocabulary, t, root);
    load_part(path, "added_tokens", load_added_tokens, t, json_object_get(root, "added_tokens"));
    set_texts(t);
    load_part(path, "model", load_model, t, model);
    load_part(path, "post_processor", load_postprocessor, t, json_object_get(root, "post_processor"));
    json_decref(root);
    return t;
}
