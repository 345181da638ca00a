// Tokenizers: the reference pack's vectors and corpora, and small tokenizers made here for the constructs that the pack lacks.
#include "test.h"

#include "../data/files.h"
#include "../data/json.h"
#include "../data/tokenizer/tokenizer.h"

#include <pthread.h>
#include <sys/stat.h>

// ---- Helpers

static TokenList encode(const Tokenizer* t, const char* text, size_t bytes, int flags) {
    TokenList list = {NULL, 0, 0};
    tokenizer_encode(t, text, bytes, flags, &list);
    return list;
}

static bool same_ids(const TokenList* list, const int* ids, int count) {
    return list->count == count && (count == 0 || !memcmp(list->ids, ids, (size_t)count * sizeof(int)));
}

static const char* ids_as_text(const TokenList* list) {
    static char text[512];
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < list->count && n < sizeof text - 16; i++) n += (size_t)sprintf(text + n, " %d", list->ids[i]);
    return text;
}

static bool decodes_to(const Tokenizer* t, const TokenList* list, bool skip_special, const char* want, size_t bytes) {
    Text text = {NULL, 0, 0};
    tokenizer_decode(t, list->ids, list->count, skip_special, &text);
    bool same = text.bytes == bytes && !memcmp(text.data, want, bytes);
    text_free(&text);
    return same;
}

// Whether streaming gives the same text, and never a cut character on the way.
static bool streams_to(const Tokenizer* t, const TokenList* list, const char* want, size_t bytes) {
    Text text = {NULL, 0, 0};
    DecodeStream stream;
    memset(&stream, 0, sizeof stream);
    bool whole = true;
    for (int i = 0; i < list->count; i++) {
        tokenizer_decode_next(t, &stream, list->ids[i], false, &text);
        if (text.bytes < bytes && ((unsigned char)want[text.bytes] & 0xc0) == 0x80) whole = false;
    }
    tokenizer_decode_finish(&stream, &text);
    whole = whole && text.bytes == bytes && (bytes == 0 || !memcmp(text.data, want, bytes));
    text_free(&text);
    return whole;
}

static bool round_trips(const Tokenizer* t, const char* text, size_t bytes) {
    TokenList list = encode(t, text, bytes, kEncodePlain);
    bool same = decodes_to(t, &list, false, text, bytes) && streams_to(t, &list, text, bytes);
    token_list_free(&list);
    return same;
}

static char* temp_dir(void) {
    static char dir[64];
    snprintf(dir, sizeof dir, "/tmp/test_tokenizer.%d", (int)getpid());
    dir_make(dir);
    return dir;
}

static void write_tokenizer(const char* text) {
    char* path = path_join(temp_dir(), "tokenizer.json");
    OutFile out = out_open(path, strlen(text));
    out_write(&out, text, strlen(text));
    out_close(&out);
    free(path);
}

static void remove_tokenizer(void) {
    char* path = path_join(temp_dir(), "tokenizer.json");
    file_remove(path);
    free(path);
    rmdir(temp_dir());
}

static Tokenizer* load_json(const json_t* root) {
    char* text = json_dumps(root, JSON_COMPACT);
    write_tokenizer(text);
    free(text);
    Tokenizer* t = tokenizer_load(temp_dir());
    remove_tokenizer();
    return t;
}

// ---- A small byte-level tokenizer. Byte b has the id b; then come the results of the merges, in order, from 256 on.

static const char* const kMerges[][2] = {
    {"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {"\u0120", "hello"}, {"1", "2"}, {"12", "3"},
};
enum { kHe = 256, kLl, kHell, kHello, kSpaceHello, kTwelve, kOneTwoThree, kFree };   // kFree: the first id not taken

static json_t* byte_vocabulary(void) {
    json_t* vocab = json_object();
    int next = 0x100;
    for (int byte = 0; byte < 256; byte++) {
        bool printable_byte = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int c = printable_byte ? byte : next++;
        char spelling[3] = {(char)c, 0, 0};
        if (c >= 0x80) {
            spelling[0] = (char)(0xc0 | c >> 6);
            spelling[1] = (char)(0x80 | (c & 0x3f));
        }
        json_object_set_new(vocab, spelling, json_integer(byte));
    }
    return vocab;
}

// The small tokenizer with `changes` (a JSON object; NULL: none) merged into it.
static json_t* small_json(const char* changes) {
    json_t* root = json_loads("{\"decoder\": {\"type\": \"ByteLevel\"}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                              "\"add_prefix_space\": false}, \"model\": {\"type\": \"BPE\"}}", 0, NULL);
    json_t* vocab = byte_vocabulary();
    json_t* merges = json_array();
    for (int i = 0; i < COUNT(kMerges); i++) {
        char pair[64], joined[64];
        snprintf(pair, sizeof pair, "%s %s", kMerges[i][0], kMerges[i][1]);
        snprintf(joined, sizeof joined, "%s%s", kMerges[i][0], kMerges[i][1]);
        json_array_append_new(merges, json_string(pair));
        json_object_set_new(vocab, joined, json_integer(256 + i));
    }
    json_t* model = json_object_get(root, "model");
    json_object_set_new(model, "vocab", vocab);
    json_object_set_new(model, "merges", merges);
    if (changes) {
        json_error_t error;
        json_t* update = json_loads(changes, 0, &error);
        check(update, "%s: %s", changes, error.text);
        json_object_update_recursive(root, update);
        json_decref(update);
    }
    return root;
}

static Tokenizer* small_tokenizer(const char* changes) {
    json_t* root = small_json(changes);
    Tokenizer* t = load_json(root);
    json_decref(root);
    return t;
}

#define ADDED(id, content, more) "{\"id\": " #id ", \"content\": \"" content "\"" more "}"
#define SPECIAL ", \"special\": true, \"normalized\": false"

typedef struct {
    const char* name;
    const char* changes;
    const char* text;
    int flags;
    int count;
    int ids[16];
} SmallCase;

static const SmallCase small_cases[] = {
    {"merges as strings", NULL, "hello hello", 0, 2, {kHello, kSpaceHello}},
    {"merges as pairs", "{\"model\": {\"merges\": [[\"l\", \"l\"], [\"h\", \"e\"]]}}", "hello", 0, 3, {kHe, kLl, 'o'}},
    {"of equal pairs the left one first", NULL, "lllll", 0, 3, {kLl, kLl, 'l'}},
    {"without ignore_merges", "{\"model\": {\"vocab\": {\"\u0120hi\": 263}}}", " hi", 0, 3, {' ', 'h', 'i'}},
    {"with ignore_merges", "{\"model\": {\"ignore_merges\": true, \"vocab\": {\"\u0120hi\": 263}}}", "hello hi", 0, 2,
     {kHello, kFree}},
    {"digits in a merge", NULL, "a1234", 0, 3, {'a', kOneTwoThree, '4'}},
    {"Digits, each", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", "
     "\"individual_digits\": true}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false}]}}", "a123 1", 0, 6,
     {'a', '1', '2', '3', ' ', '1'}},
    {"Digits, runs", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\"}, "
     "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}]}}", "a123 1", 0, 4, {'a', kOneTwoThree, ' ', '1'}},
    {"add_prefix_space", "{\"pre_tokenizer\": {\"add_prefix_space\": true}}", "hello", 0, 1, {kSpaceHello}},
    {"add_prefix_space, there already", "{\"pre_tokenizer\": {\"add_prefix_space\": true}}", " hello", 0, 1, {kSpaceHello}},
    {"Split, Isolated", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
     "{\"String\": \".\"}, \"behavior\": \"Isolated\"}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": "
     "false}]}}", "hel.lo", 0, 5, {kHe, 'l', '.', 'l', 'o'}},
    {"Split, Removed", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": "
     "{\"Regex\": \"\\\\s+\"}, \"behavior\": \"Removed\"}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": "
     "false}]}}", "hello \t hello", 0, 2, {kHello, kHello}},
    {"Split, Removed and inverted", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
     "\"pattern\": {\"Regex\": \"\\\\S+\"}, \"behavior\": \"Removed\", \"invert\": true}, {\"type\": \"ByteLevel\", "
     "\"add_prefix_space\": false, \"use_regex\": false}]}}", "hello \t hello", 0, 2, {kHello, kHello}},
    {"\\s is White_Space, without U+180E", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", "
     "\"pattern\": {\"Regex\": \"[\\\\s]\"}, \"behavior\": \"Removed\"}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
     "\"use_regex\": false}]}}", "1\u180e2\u00a01\u20032", 0, 7, {'1', 0xe1, 0xa0, 0x8e, '2', '1', '2'}},
    {"template around the text", "{\"added_tokens\": [" ADDED(300, "<b>", SPECIAL) "," ADDED(301, "<e>", SPECIAL) "], "
     "\"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\", "
     "\"single\": [{\"SpecialToken\": {\"id\": \"<b>\"}}, {\"Sequence\": {\"id\": \"A\"}}, {\"SpecialToken\": {\"id\": \"<e>\"}}], "
     "\"special_tokens\": {\"<b>\": {\"ids\": [300]}, \"<e>\": {\"ids\": [301]}}}]}}", "hello", kEncodeTemplate, 3,
     {300, kHello, 301}},
    {"special text is just text", "{\"added_tokens\": [" ADDED(300, "<b>", SPECIAL) "]}", "<b>hello", 0, 4,
     {'<', 'b', '>', kHello}},
    {"special token on request", "{\"added_tokens\": [" ADDED(300, "<b>", SPECIAL) "]}", "<b>hello", kEncodeSpecial, 2,
     {300, kHello}},
    {"special token is no word", "{\"model\": {\"ignore_merges\": true, \"vocab\": {\"ha\": 263}}, \"added_tokens\": ["
     ADDED(263, "ha", SPECIAL) "]}", "ha", 0, 2, {'h', 'a'}},
    {"ordinary added token", "{\"added_tokens\": [" ADDED(300, "<b>", "") "]}", "<b>hello", 0, 2, {300, kHello}},
    {"longest added token", "{\"added_tokens\": [" ADDED(300, "<b>", "") "," ADDED(301, "<b>he", "") "]}", "<b>hello<b>h", 0, 5,
     {301, kLl, 'o', 300, 'h'}},
    {"lstrip", "{\"added_tokens\": [" ADDED(300, "<b>", ", \"lstrip\": true") "]}", "hello \u2003<b> hello", 0, 3,
     {kHello, 300, kSpaceHello}},
    {"rstrip", "{\"added_tokens\": [" ADDED(300, "<b>", ", \"rstrip\": true") "]}", "hello<b> \n<b>hello", 0, 4,
     {kHello, 300, 300, kHello}},
    {"bytes that are no UTF-8", NULL, "hello\xff\xe2\x82hello\xc3", 0, 6, {kHello, 0xff, 0xe2, 0x82, kHello, 0xc3}},
    {"no text", NULL, "", 0, 0, {0}},
};

static void small_case(void) {
    for (int i = 0; i < COUNT(small_cases); i++) {
        const SmallCase* c = &small_cases[i];
        Tokenizer* t = small_tokenizer(c->changes);
        TokenList list = encode(t, c->text, strlen(c->text), c->flags);
        ok(same_ids(&list, c->ids, c->count), "small.%s:%s", c->name, ids_as_text(&list));
        token_list_free(&list);
        tokenizer_free(t);
    }
}

static void lookup_case(void) {
    Tokenizer* t = small_tokenizer("{\"added_tokens\": [" ADDED(300, "<b>", SPECIAL) "," ADDED(301, "<\u00e9>", "") "]}");
    ok(tokenizer_size(t) == 302 && tokenizer_id(t, "<b>") == 300 && tokenizer_id(t, "hell") == kHell &&
       tokenizer_id(t, "nothing") == -1, "lookup: size and ids by content");
    ok(tokenizer_is_special(t, 300) && !tokenizer_is_special(t, 301) && !tokenizer_is_special(t, -1) &&
       !tokenizer_is_special(t, 1000), "lookup: special or not");
    TokenList list = {NULL, 0, 0};
    const int ids[] = {300, kHello, 280, -5, 999999, 300, '!'};   // 280, -5 and 999999 are no tokens
    for (int i = 0; i < COUNT(ids); i++) token_list_push(&list, ids[i]);
    ok(decodes_to(t, &list, false, "<b>hello<b>!", 12), "lookup: special tokens decoded, ids without a token left out");
    ok(decodes_to(t, &list, true, "hello!", 6), "lookup: special tokens skipped");
    token_list_free(&list);
    tokenizer_free(t);
}

static void stream_case(void) {
    Tokenizer* t = small_tokenizer(NULL);
    DecodeStream stream;
    memset(&stream, 0, sizeof stream);
    Text text = {NULL, 0, 0};
    const unsigned char bytes[] = {0xf0, 0x9f, 0x99, 0x82, 0xff, 0xe2, 0x82, 'a', 0xc3, 0xc3, 0xa9, 0xe2, 0x82};
    const size_t complete[] = {0, 0, 0, 4, 5, 5, 5, 8, 8, 9, 11, 11, 11};   // bytes of text after each token
    bool right = true;
    for (int i = 0; i < COUNT(bytes); i++) {
        tokenizer_decode_next(t, &stream, bytes[i], false, &text);
        right = right && text.bytes == complete[i] && strlen(text.data) == text.bytes;
    }
    ok(right, "stream: a cut character waits, bytes that are no UTF-8 do not");
    tokenizer_decode_finish(&stream, &text);
    ok(text.bytes == sizeof bytes && !memcmp(text.data, bytes, sizeof bytes), "stream: finish gives the rest");
    text_free(&text);
    tokenizer_free(t);
}

// A piece without spaces, long enough that anything quadratic would take minutes.
static void long_piece_case(void) {
    Tokenizer* t = small_tokenizer(NULL);
    const size_t bytes = 1 << 20;
    char* text = (char*)host_alloc(bytes + 1);
    memset(text, 'l', bytes);
    TokenList list = encode(t, text, bytes, kEncodePlain);
    ok(list.count == (int)bytes / 2 && list.ids[0] == kLl && list.ids[list.count - 1] == kLl, "long piece: 2^20 letters, %d ids",
       list.count);
    token_list_free(&list);
    free(text);
    tokenizer_free(t);
}

// ---- The byte-fallback family: own tokenizer with Llama 2's ids of spaces, digits, signs and bytes

static const struct {
    const char* left;
    const char* right;
    int id;
} kLlama2Merges[] = {
    {"\u2581", "(", 313}, {"\u2581", "=", 353}, {"\u2581", "!", 1738}, {"!", "!", 6824}, {"!!", "!", 21004},
    {"\u2581", "\u2581", 259}, {"\u2581\u2581", "\u2581\u2581", 268}, {"\u2581\u2581", "\u2581", 1678},
};

static json_t* llama2_json(const char* changes) {
    json_t* root = json_loads(
        "{\"added_tokens\": [" ADDED(0, "<unk>", SPECIAL) "," ADDED(1, "<s>", SPECIAL) "," ADDED(2, "</s>", SPECIAL) "],"
        "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"\u2581\"}, "
        "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"\u2581\"}]},"
        "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", \"pattern\": {\"String\": \"\u2581\"}, "
        "\"content\": \" \"}, {\"type\": \"ByteFallback\"}, {\"type\": \"Fuse\"}, {\"type\": \"Strip\", \"content\": \" \", "
        "\"start\": 1, \"stop\": 0}]},"
        "\"model\": {\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": true, "
        "\"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"</s>\": 2, \"\u2581\": 29871, \"3\": 29941, \"(\": 29898, \"=\": 29922, "
        "\"!\": 29991}}}", 0, NULL);
    json_t* model = json_object_get(root, "model");
    json_t* vocab = json_object_get(model, "vocab");
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", byte);
        json_object_set_new(vocab, name, json_integer(3 + byte));
    }
    json_t* merges = json_array();
    for (int i = 0; i < COUNT(kLlama2Merges); i++) {
        char joined[32];
        snprintf(joined, sizeof joined, "%s%s", kLlama2Merges[i].left, kLlama2Merges[i].right);
        json_object_set_new(vocab, joined, json_integer(kLlama2Merges[i].id));
        json_array_append_new(merges, json_pack("[ss]", kLlama2Merges[i].left, kLlama2Merges[i].right));
    }
    json_object_set_new(model, "merges", merges);
    if (changes) {
        json_t* update = json_loads(changes, 0, NULL);
        check(update, "%s", changes);
        json_object_update_recursive(root, update);
        json_decref(update);
    }
    return root;
}

static const SmallCase llama2_cases[] = {
    {"byte fallback", NULL, "\u20ac", 0, 4, {29871, 3 + 0xe2, 3 + 0x82, 3 + 0xac}},
    {"bytes that are no UTF-8", NULL, "3\xff", 0, 3, {29871, 29941, 3 + 0xff}},
    {"unknown, fused", "{\"model\": {\"byte_fallback\": false}}", "\u20ac\u20ac3", 0, 3, {29871, 0, 29941}},
    {"unknown, each", "{\"model\": {\"byte_fallback\": false, \"fuse_unk\": false}}", "\u20ac\u20ac3", 0, 4,
     {29871, 0, 0, 29941}},
    {"unknown, no token", "{\"model\": {\"byte_fallback\": false, \"unk_token\": null}}", "\u20ac3", 0, 2, {29871, 29941}},
    {"prefix again behind a special token", NULL, "3</s>3", kEncodeSpecial, 5, {29871, 29941, 2, 29871, 29941}},
    {"Metaspace, first", "{\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"Metaspace\", \"prepend_scheme\": \"first\", "
     "\"split\": false}}", "3 3</s>3", kEncodeSpecial, 6, {29871, 29941, 29871, 29941, 2, 29941}},
    {"Metaspace, always, split", "{\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"Metaspace\"}}", " (</s>  3",
     kEncodeSpecial, 5, {313, 2, 29871, 29871, 29941}},
    {"added token in normalized text", "{\"added_tokens\": [" ADDED(0, "<unk>", SPECIAL) "," ADDED(1, "<s>", SPECIAL) ","
     ADDED(2, "</s>", SPECIAL) "," ADDED(32000, "3 3", ", \"normalized\": true") "]}", "! 3 3!", 0, 3, {1738, 32000, 29991}},
};

static void llama2_case(void) {
    for (int i = 0; i < COUNT(llama2_cases); i++) {
        const SmallCase* c = &llama2_cases[i];
        json_t* root = llama2_json(c->changes);
        Tokenizer* t = load_json(root);
        json_decref(root);
        TokenList list = encode(t, c->text, strlen(c->text), c->flags);
        ok(same_ids(&list, c->ids, c->count), "llama2.%s:%s", c->name, ids_as_text(&list));
        token_list_free(&list);
        tokenizer_free(t);
    }
}

// ---- llama.cpp's vectors

typedef struct {
    char* texts;        // the file, cut up
    char* text[64];
    TokenList ids[64];
    int count;
} Vectors;

static bool read_vectors(Vectors* v, const char* family) {
    char below[128];
    snprintf(below, sizeof below, "data/tokenizers/llama.cpp-vectors/ggml-vocab-%s.gguf.inp", family);
    const char* inp = refpack(below);
    if (!inp) return false;
    memset(v, 0, sizeof *v);
    v->texts = file_read(inp, NULL);
    static const char kSeparator[] = "\n__ggml_vocab_test__\n";
    for (char* at = v->texts; at; ) {
        char* end = strstr(at, kSeparator);
        v->text[v->count++] = at;
        if (end) *end = 0;
        at = end ? end + strlen(kSeparator) : NULL;
    }
    char* out_path = host_strdup(inp);
    memcpy(out_path + strlen(out_path) - 3, "out", 3);
    char* out = file_read(out_path, NULL);
    char* line = out;
    for (int i = 0; i < v->count; i++) {
        char* end = line + strcspn(line, "\n");
        for (char* next; line < end; line = next) {
            long id = strtol(line, &next, 10);
            if (next == line || next > end) break;
            token_list_push(&v->ids[i], (int)id);
        }
        line = *end ? end + 1 : end;
    }
    free(out);
    free(out_path);
    return true;
}

static void free_vectors(Vectors* v) {
    for (int i = 0; i < v->count; i++) token_list_free(&v->ids[i]);
    free(v->texts);
}

// Encodes the vectors that the tokenizer covers; there must be `want_covered` of them.
static void compare_vectors(const Tokenizer* t, const Vectors* v, bool (*covered)(const TokenList* ids), int want_covered,
                            const char* name) {
    int tested = 0, right = 0;
    for (int i = 0; i < v->count; i++) {
        if (!covered(&v->ids[i])) continue;
        tested++;
        TokenList list = encode(t, v->text[i], strlen(v->text[i]), kEncodePlain);
        if (same_ids(&list, v->ids[i].ids, v->ids[i].count)) right++;
        else printf("   vector %d:%s\n", i, ids_as_text(&list));
        token_list_free(&list);
    }
    ok(right == tested && tested == want_covered, "%s: %d of the %d vectors that its tokens cover (of %d)", name, right, tested,
       v->count);
}

static bool covered_by_gpt2(const TokenList* ids) { (void)ids; return true; }
// dolma2 and Llama 3 share the split and the first 100256 ids.
static bool covered_by_dolma2(const TokenList* ids) {
    for (int i = 0; i < ids->count; i++)
        if (ids->ids[i] >= 100256) return false;
    return true;
}
static bool covered_by_llama2(const TokenList* ids) {
    for (int i = 0; i < ids->count; i++) {
        int id = ids->ids[i];
        bool known = id < 259 || id == 29871 || id == 29941;
        for (int m = 0; m < COUNT(kLlama2Merges); m++) known = known || id == kLlama2Merges[m].id;
        if (!known) return false;
    }
    return true;
}

static Tokenizer* gpt2_tokenizer(void) {
    const char* encoder = refpack("data/tokenizers/gpt2/encoder.json");
    if (!encoder) return NULL;
    json_t* root = json_loads("{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": "
                              "{\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\"}}", 0, NULL);
    json_t* model = json_object_get(root, "model");
    json_object_set_new(model, "vocab", json_parse_file(encoder));
    char* bpe = file_read(refpack("data/tokenizers/gpt2/vocab.bpe"), NULL);
    json_t* merges = json_array();
    strtok(bpe, "\n");   // "#version: 0.2"
    for (char* line; (line = strtok(NULL, "\n"));) json_array_append_new(merges, json_string(line));
    json_object_set_new(model, "merges", merges);
    free(bpe);
    Tokenizer* t = load_json(root);
    json_decref(root);
    return t;
}

static Tokenizer* pack_tokenizer(const char* below) {
    const char* dir = refpack(below);
    return dir ? tokenizer_load(dir) : NULL;
}

static void llama_cpp_case(void) {
    Vectors v;
    Tokenizer* gpt2 = gpt2_tokenizer();
    if (gpt2 && read_vectors(&v, "gpt-2")) {
        compare_vectors(gpt2, &v, covered_by_gpt2, 47, "llama.cpp gpt-2");
        free_vectors(&v);
    }
    tokenizer_free(gpt2);
    Tokenizer* dolma2 = pack_tokenizer("data/tokenizers/dolma2");
    if (dolma2 && read_vectors(&v, "llama-bpe")) {
        compare_vectors(dolma2, &v, covered_by_dolma2, 42, "llama.cpp llama-bpe by dolma2");
        free_vectors(&v);
    }
    tokenizer_free(dolma2);
    json_t* root = llama2_json(NULL);
    Tokenizer* llama2 = load_json(root);
    json_decref(root);
    if (read_vectors(&v, "llama-spm")) {
        compare_vectors(llama2, &v, covered_by_llama2, 22, "llama.cpp llama-spm by the small Llama 2");
        free_vectors(&v);
    }
    tokenizer_free(llama2);
}

// ---- The pack's own vectors and corpora

static void stories_case(void) {
    Tokenizer* t = pack_tokenizer("data/models/stories260K/hf");
    const char* path = refpack("data/models/stories260K/hf/encode_vectors.json");
    if (!t || !path) return;
    json_t* vectors = json_parse_file(path);
    int right = 0, count = (int)json_array_size(vectors);
    for (int i = 0; i < count; i++) {
        const json_t* vector = json_array_get(vectors, (size_t)i);
        const json_t* want = json_object_get(vector, "ids");
        const json_t* text = json_object_get(vector, "text");
        TokenList list = encode(t, json_string_value(text), json_string_length(text), kEncodePlain);
        bool same = list.count == (int)json_array_size(want);
        for (int k = 0; same && k < list.count; k++) same = list.ids[k] == json_integer_value(json_array_get(want, (size_t)k));
        right += same && decodes_to(t, &list, false, json_string_value(text), json_string_length(text));
        token_list_free(&list);
    }
    ok(count > 0 && right == count, "stories260K: %d of %d encode vectors", right, count);
    TokenList list = encode(t, "", 0, kEncodeTemplate);
    ok(list.count == 1 && list.ids[0] == tokenizer_id(t, "<s>"), "stories260K: the template adds <s>");
    token_list_free(&list);
    json_decref(vectors);
    tokenizer_free(t);
}

static void corpora_case(void) {
    static const char* const names[] = {"dolma2", "gpt2", "stories260K"};
    static const char* const files[] = {
        "tinyshakespeare.txt", "tinystories_sample.txt", "gutenberg/austen-emma.txt", "gutenberg/austen-persuasion.txt",
        "gutenberg/austen-sense.txt", "gutenberg/carroll-alice.txt", "gutenberg/edgeworth-parents.txt",
        "gutenberg/melville-moby_dick.txt",
    };
    if (!refpack("data/corpora")) return;
    Tokenizer* tokenizers[] = {pack_tokenizer("data/tokenizers/dolma2"), gpt2_tokenizer(),
                               pack_tokenizer("data/models/stories260K/hf")};
    for (int i = 0; i < COUNT(names); i++) {
        if (!tokenizers[i]) continue;
        int right = 0;
        for (int f = 0; f < COUNT(files); f++) {
            char below[128];
            snprintf(below, sizeof below, "data/corpora/%s", files[f]);
            const char* path = refpack(below);
            size_t bytes;
            char* text = path ? file_read(path, &bytes) : NULL;
            if (text && round_trips(tokenizers[i], text, bytes)) right++;
            free(text);
        }
        ok(right == COUNT(files), "corpora: %s gives back %d of %d texts, at once and streamed", names[i], right, COUNT(files));
        tokenizer_free(tokenizers[i]);
    }
}

static void noise_case(void) {
    Tokenizer* t = pack_tokenizer("data/tokenizers/dolma2");
    if (!t) return;
    bool same = true;
    for (int run = 0; run < 2000 && same; run++) {
        char text[64];
        size_t bytes = (size_t)(test_uniform() * sizeof text);
        for (size_t i = 0; i < bytes; i++) text[i] = (char)(test_uniform() * 256);
        TokenList list = encode(t, text, bytes, kEncodePlain);
        same = decodes_to(t, &list, false, text, bytes);
        token_list_free(&list);
    }
    ok(same, "noise: 2000 strings of random bytes come back as they were");
    TokenList list = encode(t, "|||PHONE_NUMBER|||<|endoftext|>", 31, kEncodePlain);
    ok(list.count > 2 && list.ids[0] == 100261 && tokenizer_is_special(t, 100257), "dolma2: added tokens match, special ones do not");
    for (int i = 0; i < list.count; i++)
        if (tokenizer_is_special(t, list.ids[i])) ok(false, "dolma2: special token %d out of plain text", list.ids[i]);
    token_list_free(&list);
    list = encode(t, "|||PHONE_NUMBER|||<|endoftext|>", 31, kEncodeSpecial);
    const int both[] = {100261, 100257};
    ok(same_ids(&list, both, 2), "dolma2: special tokens on request");
    token_list_free(&list);
    tokenizer_free(t);
}

// ---- Several threads on one tokenizer

typedef struct {
    const Tokenizer* t;
    char text[4096];
    TokenList ids;
} ThreadWork;

static void* encode_in_thread(void* arg) {
    ThreadWork* work = (ThreadWork*)arg;
    for (int run = 0; run < 200; run++) {
        work->ids.count = 0;
        tokenizer_encode(work->t, work->text, sizeof work->text, kEncodePlain, &work->ids);
    }
    return NULL;
}

static void threads_case(void) {
    enum { kThreads = 4 };
    static ThreadWork works[kThreads];
    Tokenizer* t = small_tokenizer(NULL);
    pthread_t threads[kThreads];
    for (int i = 0; i < kThreads; i++) {
        works[i].t = t;
        for (size_t k = 0; k < sizeof works[i].text; k++) works[i].text[k] = " helo123"[(int)(test_uniform() * 8)];
    }
    for (int i = 0; i < kThreads; i++) check(!pthread_create(&threads[i], NULL, encode_in_thread, &works[i]), "no thread");
    for (int i = 0; i < kThreads; i++) pthread_join(threads[i], NULL);
    bool same = true;
    for (int i = 0; i < kThreads; i++) {
        TokenList alone = encode(t, works[i].text, sizeof works[i].text, kEncodePlain);
        same = same && same_ids(&works[i].ids, alone.ids, alone.count);
        token_list_free(&alone);
        token_list_free(&works[i].ids);
    }
    ok(same, "threads: %d at once give what one alone gives", kThreads);
    tokenizer_free(t);
}

// ---- Files that are refused

typedef struct {
    const char* name;
    const char* changes;   // to the small tokenizer
    const char* words;     // in the message
} BadCase;

static const BadCase bad_cases[] = {
    {"model type", "{\"model\": {\"type\": \"WordPiece\"}}", "model: the type \"WordPiece\""},
    {"no vocabulary", "{\"model\": {\"vocab\": 3}}", "model.vocab"},
    {"normalizer", "{\"normalizer\": {\"type\": \"NFC\"}}", "normalizer: the type \"NFC\""},
    {"Replace by expression", "{\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a\"}, \"content\": \"\"}}",
     "Replace"},
    {"pre-tokenizer", "{\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}}", "BertPreTokenizer"},
    {"Split behavior", "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"}, \"behavior\": "
     "\"MergedWithNext\"}}", "MergedWithNext"},
    {"Split expression", "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a\"}, \"behavior\": \"Isolated\"}}",
     "\"(a\" does not compile"},
    {"prefix behind a split", "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\"}, "
     "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}]}}", "add_prefix_space"},
    {"no decoder", "{\"decoder\": null}", "decoder"},
    {"other decoder", "{\"decoder\": {\"type\": \"Fuse\"}}", "ByteLevel both"},
    {"unknown decoder", "{\"decoder\": {\"type\": \"CTC\"}}", "decoder: the type \"CTC\""},
    {"post-processor", "{\"post_processor\": {\"type\": \"RobertaProcessing\"}}", "RobertaProcessing"},
    {"template without text", "{\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": []}}", "sequence A"},
    {"template with a stranger", "{\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": "
     "\"<b>\"}}, {\"Sequence\": {\"id\": \"A\"}}]}}", "\"<b>\" has no ids"},
    {"merge of a stranger", "{\"model\": {\"merges\": [\"h \u4e00\"]}}", "merge 0"},
    {"merge of three", "{\"model\": {\"merges\": [\"h e\", \"a b c\"]}}", "merge 1 is neither"},
    {"merge of nothing", "{\"model\": {\"merges\": [[\"h\", 3]]}}", "merge 0 is neither"},
    {"merges missing", "{\"model\": {\"merges\": null}}", "\"merges\" is missing"},
    {"negative id", "{\"model\": {\"vocab\": {\"xx\": -1}}}", "the id of \"xx\""},
    {"huge id", "{\"added_tokens\": [" ADDED(2000000000, "<b>", "") "]}", "the id of \"<b>\""},
    {"id of another", "{\"model\": {\"vocab\": {\"xx\": 5}}}", "the id 5 of another"},
    {"two ids", "{\"added_tokens\": [" ADDED(300, "hell", "") "]}", "has the id 300 here and 258 elsewhere"},
    {"content missing", "{\"added_tokens\": [{\"id\": 300}]}", "\"content\""},
    {"single_word", "{\"added_tokens\": [" ADDED(300, "<b>", ", \"single_word\": true") "]}", "\"single_word\" of \"<b>\""},
    {"a line break in a name", "{\"added_tokens\": [" ADDED(5, "a\\nb", "") "]}", "\"a?b\""},
    {"added tokens that are no list", "{\"added_tokens\": {\"a\": 1}}", "has to be a list"},
    {"a single byte", "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\\\\C\"}, \"behavior\": \"Isolated\"}}", "cut characters apart"},
    {"dropout", "{\"model\": {\"dropout\": 0.1}}", "dropout"},
    {"word ends", "{\"model\": {\"end_of_word_suffix\": \"</w>\"}}", "end_of_word_suffix"},
    {"unknown token missing", "{\"model\": {\"unk_token\": \"<unk>\"}}", "unk_token"},
};

static void load_dir(void* dir) { tokenizer_load((const char*)dir); }

static void errors_case(void) {
    char dir[] = "/nowhere";
    expect_exit(load_dir, dir, kExitUser, "/nowhere/tokenizer.json", "error.no file");
    char* shared_dir = host_strdup(temp_dir());   // the child has another process id, and so another directory
    write_tokenizer("{\"model\": ");
    expect_exit(load_dir, shared_dir, kExitUser, "line 1", "error.cut off");
    write_tokenizer("[]");
    expect_exit(load_dir, shared_dir, kExitUser, "\"model\"", "error.no object");
    write_tokenizer("{}");
    expect_exit(load_dir, shared_dir, kExitUser, "\"model\"", "error.no model");
    for (int i = 0; i < COUNT(bad_cases); i++) {
        char name[128];
        snprintf(name, sizeof name, "error.%s", bad_cases[i].name);
        json_t* root = small_json(bad_cases[i].changes);
        char* text = json_dumps(root, JSON_COMPACT);
        write_tokenizer(text);
        free(text);
        json_decref(root);
        expect_exit(load_dir, shared_dir, kExitUser, bad_cases[i].words, name);
    }
    remove_tokenizer();
    mkdir(shared_dir, 0700);
    char path[256];
    snprintf(path, sizeof path, "%s/tokenizer.model", shared_dir);
    FILE* f = fopen(path, "wb");
    check(f && fclose(f) == 0, "%s: not written", path);
    expect_exit(load_dir, shared_dir, kExitUser, "save_pretrained", "error.tokenizer.model alone");
    unlink(path);
    rmdir(shared_dir);
    free(shared_dir);
}

static const Case cases[] = {
    {"small", small_case},         {"lookup", lookup_case},   {"stream", stream_case},   {"long_piece", long_piece_case},
    {"llama2", llama2_case},       {"threads", threads_case}, {"stories", stories_case}, {"llama_cpp", llama_cpp_case},
    {"corpora", corpora_case},     {"noise", noise_case},     {"errors", errors_case},
};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
