// The texts of a Hugging Face directory, made from a GGUF file's metadata: see gguf_model.h.
#include "gguf_model.h"

#include "hf_config.h"
#include "json.h"
#include "tokenizer/string_table.h"
#include "utf8.h"

// tokenizer.ggml.token_type
enum { kTokenNormal = 1, kTokenUnknown, kTokenControl, kTokenUserDefined, kTokenUnused, kTokenByte };

#define WORD_MARK "\xe2\x96\x81"   // U+2581, SentencePiece's space

// ---- pre-tokenizers

static const GgufPretokenizer kPretokenizers[] = {
    {"gpt-2", "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}", false, false},
    {"smollm",
     "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, "
     "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}]}", false, false},
    {"llama-bpe",
     "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "
     "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"
     "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, \"behavior\": \"Isolated\", \"invert\": false}, "
     "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]}", true, true},
};

const GgufPretokenizer* gguf_pretokenizers(int* count) {
    *count = (int)(sizeof kPretokenizers / sizeof kPretokenizers[0]);
    return kPretokenizers;
}

static const GgufPretokenizer* find_pretokenizer(const Gguf* file) {
    const char* name = gguf_string_or(file, "tokenizer.ggml.pre", "gpt-2");
    if (!strcmp(name, "llama3") || !strcmp(name, "llama-v3")) name = "llama-bpe";   // older names
    for (size_t i = 0; i < sizeof kPretokenizers / sizeof kPretokenizers[0]; i++)
        if (!strcmp(kPretokenizers[i].name, name)) return &kPretokenizers[i];
    user_error("%s: the pre-tokenizer \"%s\" is not supported; llama-bpe, smollm and gpt-2 are", gguf_path(file), printable(name));
}

// ---- the vocabulary

typedef struct {
    const Gguf* file;
    int count;
    char** tokens;          // UTF-8 without NUL, all different; owned by the file
    int* types;             // kTokenNormal and the others
    StringTable by_text;
    bool pieces;            // SentencePiece; else byte-level
    int bos, eos, unknown, padding;   // -1: none
    bool add_bos, add_eos;
} Vocabulary;

static void read_tokens(Vocabulary* v) {
    const char* path = gguf_path(v->file);
    const GgufValue* tokens = gguf_array(v->file, "tokenizer.ggml.tokens", GGUF_STRING);
    if (!tokens) user_error("%s: has no tokenizer, the key \"tokenizer.ggml.tokens\" is missing", path);
    const GgufValue* types = gguf_array(v->file, "tokenizer.ggml.token_type", GGUF_I32);
    if (types && types->count != tokens->count)
        user_error("%s: %zu tokens and %zu token types", path, tokens->count, types->count);
    v->count = (int)tokens->count;
    v->tokens = (char**)host_alloc(tokens->count * sizeof(char*));
    v->types = (int*)host_alloc(tokens->count * sizeof(int));
    memset(&v->by_text, 0, sizeof v->by_text);
    strings_init(&v->by_text, v->count);
    for (int id = 0; id < v->count; id++) {
        const GgufString* s = &tokens->strings[id];
        if (strlen(s->text) != s->bytes || utf8_valid_bytes(s->text, s->bytes) != s->bytes)
            user_error("%s: token %d is no UTF-8 text", path, id);
        strings_set(&v->by_text, id, s->text, s->bytes);
        int first = strings_index(&v->by_text, id);
        if (first != id) user_error("%s: the tokens %d and %d are both \"%s\"", path, first, id, printable(s->text));
        v->tokens[id] = s->text;
        int32_t type = kTokenNormal;
        if (types) memcpy(&type, (const char*)types->numbers + (size_t)id * sizeof type, sizeof type);
        if (type < kTokenNormal || type > kTokenByte) user_error("%s: token %d has the unknown type %d", path, id, type);
        v->types[id] = type;
    }
}

static Vocabulary read_vocabulary(const GgufModel* m) {
    Vocabulary v;
    memset(&v, 0, sizeof v);
    v.file = gguf_model_file(m);
    const char* model = gguf_string_or(v.file, "tokenizer.ggml.model", "");
    v.pieces = !strcmp(model, "llama");
    if (!v.pieces && strcmp(model, "gpt2"))
        user_error("%s: the tokenizer \"%s\" is not supported; gpt2 (byte-level) and llama (SentencePiece) are",
                   gguf_path(v.file), printable(model));
    read_tokens(&v);
    v.bos = gguf_model_config(m)->bos;
    v.eos = gguf_model_config(m)->eos;
    v.unknown = gguf_int_or(v.file, "tokenizer.ggml.unknown_token_id", 0, v.count - 1, v.pieces ? 0 : -1);
    v.padding = gguf_int_or(v.file, "tokenizer.ggml.padding_token_id", 0, v.count - 1, -1);
    bool default_bos = v.pieces || find_pretokenizer(v.file)->adds_bos;
    v.add_bos = gguf_bool_or(v.file, "tokenizer.ggml.add_bos_token", default_bos) && v.bos >= 0;
    v.add_eos = gguf_bool_or(v.file, "tokenizer.ggml.add_eos_token", false) && v.eos >= 0;
    return v;
}

static void vocabulary_free(Vocabulary* v) {
    free(v->tokens);
    free(v->types);
    strings_free(&v->by_text);
}

// ---- merges

typedef struct {
    GgufMerge pair;
    float score;
    int left_length, right_length, order;
} ScoredMerge;

// The order of Hugging Face's converter: by score, then by the lengths of the two halves in characters, all falling.
static int by_score(const void* a, const void* b) {
    const ScoredMerge *x = (const ScoredMerge*)a, *y = (const ScoredMerge*)b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->left_length != y->left_length) return y->left_length - x->left_length;
    if (x->right_length != y->right_length) return y->right_length - x->right_length;
    return x->order - y->order;
}

static int by_halves(const void* a, const void* b) {
    const ScoredMerge *x = (const ScoredMerge*)a, *y = (const ScoredMerge*)b;
    if (x->pair.left != y->pair.left) return x->pair.left < y->pair.left ? -1 : 1;
    return (x->pair.right > y->pair.right) - (x->pair.right < y->pair.right);
}

typedef struct {
    ScoredMerge* list;
    int count, capacity;
} ScoredMerges;

// Every cut of one piece, in the order of the halves' ids.
static void cut_piece(const StringTable* table, const char* piece, float score, ScoredMerges* out) {
    size_t bytes = strlen(piece);
    int first = out->count, length = 0, cut = 0;
    for (size_t at = 0; at < bytes; length++) at += (size_t)utf8_char_bytes(piece + at, bytes - at);
    for (size_t at = 0; at < bytes; cut++) {
        int left = cut ? strings_find(table, piece, at) : -1, right = left >= 0 ? strings_find(table, piece + at, bytes - at) : -1;
        if (right >= 0) {
            if (out->count == out->capacity) {
                out->capacity = out->capacity ? 2 * out->capacity : 1 << 12;
                out->list = (ScoredMerge*)host_grow(out->list, (size_t)out->capacity * sizeof(ScoredMerge));
            }
            ScoredMerge merge = {{left, right}, score, cut, length - cut, 0};
            out->list[out->count++] = merge;
        }
        at += (size_t)utf8_char_bytes(piece + at, bytes - at);
    }
    if (out->count > first) qsort(out->list + first, (size_t)(out->count - first), sizeof(ScoredMerge), by_halves);
}

int gguf_merges_of_scores(char** pieces, const float* scores, const bool* mergeable, int count, GgufMerge** merges) {
    StringTable table;
    memset(&table, 0, sizeof table);
    strings_init(&table, count);
    for (int id = 0; id < count; id++) {
        if (!mergeable[id]) continue;
        strings_set(&table, id, pieces[id], strlen(pieces[id]));
        strings_index(&table, id);
    }
    ScoredMerges all = {NULL, 0, 0};
    for (int id = 0; id < count; id++)
        if (mergeable[id]) cut_piece(&table, pieces[id], scores[id], &all);
    for (int i = 0; i < all.count; i++) all.list[i].order = i;
    if (all.count) qsort(all.list, (size_t)all.count, sizeof(ScoredMerge), by_score);
    *merges = (GgufMerge*)host_alloc((size_t)all.count * sizeof(GgufMerge));
    for (int i = 0; i < all.count; i++) (*merges)[i] = all.list[i].pair;
    free(all.list);
    strings_free(&table);
    return all.count;
}

// Merges as pairs ["left", "right"], not as "left right", since a half may itself hold a space.
static json_t* merges_from_scores(const Vocabulary* v) {
    const GgufValue* scores = gguf_array(v->file, "tokenizer.ggml.scores", GGUF_F32);
    if (!scores || scores->count != (size_t)v->count)
        user_error("%s: a SentencePiece tokenizer needs a score for each of its %d tokens", gguf_path(v->file), v->count);
    bool* mergeable = (bool*)host_alloc((size_t)v->count * sizeof(bool));
    for (int id = 0; id < v->count; id++) {
        mergeable[id] = v->types[id] == kTokenNormal;
        float score;
        memcpy(&score, (const char*)scores->numbers + (size_t)id * sizeof score, sizeof score);
        if (score != score) user_error("%s: the score of token %d is not a number", gguf_path(v->file), id);
    }
    GgufMerge* merges;
    int count = gguf_merges_of_scores(v->tokens, (const float*)scores->numbers, mergeable, v->count, &merges);
    json_t* list = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(list, json_pack("[s, s]", v->tokens[merges[i].left], v->tokens[merges[i].right]));
    free(merges);
    free(mergeable);
    return list;
}

static json_t* merges_from_list(const Vocabulary* v) {
    const GgufValue* merges = gguf_array(v->file, "tokenizer.ggml.merges", GGUF_STRING);
    if (!merges) user_error("%s: a byte-level tokenizer needs the key \"tokenizer.ggml.merges\"", gguf_path(v->file));
    json_t* list = json_array();
    for (size_t i = 0; i < merges->count; i++) {
        const GgufString* s = &merges->strings[i];
        const char* space = (const char*)memchr(s->text, ' ', s->bytes);
        bool pair = space && space > s->text && space[1] && !strchr(space + 1, ' ') && strlen(s->text) == s->bytes;
        json_t* text = pair ? json_string(s->text) : NULL;   // NULL if it is no UTF-8
        if (!text) user_error("%s: merge %zu is no pair of tokens with a space between: \"%s\"", gguf_path(v->file), i,
                              utf8_valid_bytes(s->text, s->bytes) == s->bytes ? printable(s->text) : "?");
        json_array_append_new(list, text);
    }
    return list;
}

// ---- tokenizer.json

static json_t* added_tokens(const Vocabulary* v) {
    json_t* list = json_array();
    for (int id = 0; id < v->count; id++) {
        int type = v->types[id];
        bool special = type == kTokenControl || type == kTokenUnknown;
        if (!special && type != kTokenUserDefined) continue;
        json_array_append_new(list, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content", v->tokens[id],
                                              "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", special));
    }
    return list;
}

static json_t* special_part(const char* token, int type_id) {
    return json_pack("{s:{s:s, s:i}}", "SpecialToken", "id", token, "type_id", type_id);
}

static void append_sequence(const Vocabulary* v, json_t* list, const char* name, int type_id) {
    if (v->add_bos) json_array_append_new(list, special_part(v->tokens[v->bos], type_id));
    json_array_append_new(list, json_pack("{s:{s:s, s:i}}", "Sequence", "id", name, "type_id", type_id));
    if (v->add_eos) json_array_append_new(list, special_part(v->tokens[v->eos], type_id));
}

static json_t* post_processor(const Vocabulary* v) {
    if (!v->add_bos && !v->add_eos)
        return v->pieces ? json_null()
                         : json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1,
                                     "use_regex", 1);
    json_t *single = json_array(), *pair = json_array(), *tokens = json_object();
    append_sequence(v, single, "A", 0);
    append_sequence(v, pair, "A", 0);
    append_sequence(v, pair, "B", 1);
    for (int i = 0; i < 2; i++) {
        int id = i ? v->eos : v->bos;
        if (!(i ? v->add_eos : v->add_bos)) continue;
        json_object_set_new(tokens, v->tokens[id],
                            json_pack("{s:s, s:[i], s:[s]}", "id", v->tokens[id], "ids", id, "tokens", v->tokens[id]));
    }
    return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair", pair, "special_tokens",
                     tokens);
}

static json_t* replace_step(const char* from, const char* to) {
    return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", from, "content", to);
}

static json_t* pieces_normalizer(bool prefix) {
    json_t* steps = json_array();
    if (prefix) json_array_append_new(steps, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", WORD_MARK));
    json_array_append_new(steps, replace_step(" ", WORD_MARK));
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
}

static json_t* pieces_decoder(bool prefix) {
    json_t* steps = json_pack("[o, {s:s}, {s:s}]", replace_step(WORD_MARK, " "), "type", "ByteFallback", "type", "Fuse");
    if (prefix)
        json_array_append_new(steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
}

// The pre-tokenizer's form, with the prefix that some byte-level tokenizers put before each text.
static json_t* byte_pretokenizer(const Vocabulary* v) {
    const char* form = find_pretokenizer(v->file)->form;
    json_t* pre = json_parse(form, strlen(form), "pre-tokenizer");
    if (!gguf_bool_or(v->file, "tokenizer.ggml.add_space_prefix", false)) return pre;
    json_t* steps = json_object_get(pre, "pretokenizers");
    json_t* last = steps ? json_array_get(steps, json_array_size(steps) - 1) : pre;
    json_object_set_new(last, "add_prefix_space", json_true());
    return pre;
}

static json_t* bpe_model(const Vocabulary* v) {
    json_t* vocab = json_object();
    for (int id = 0; id < v->count; id++) json_object_set_new(vocab, v->tokens[id], json_integer(id));
    bool ignore = !v->pieces && find_pretokenizer(v->file)->ignore_merges;
    json_t* unknown = v->pieces && v->unknown >= 0 ? json_string(v->tokens[v->unknown]) : json_null();
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token", unknown,
                     "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", v->pieces, "byte_fallback", v->pieces,
                     "ignore_merges", ignore, "vocab", vocab, "merges", v->pieces ? merges_from_scores(v) : merges_from_list(v));
}

// Frees the value; the caller frees the text.
static char* json_text(json_t* value) {
    check(value, "gguf: a JSON value could not be made");
    char* text = json_dumps(value, JSON_INDENT(2));
    check(text, "gguf: no JSON text");
    json_decref(value);
    size_t bytes = strlen(text);
    text = (char*)host_grow(text, bytes + 2);
    strcpy(text + bytes, "\n");
    return text;
}

char* gguf_tokenizer_json(const GgufModel* m) {
    Vocabulary v = read_vocabulary(m);
    bool prefix = v.pieces && gguf_bool_or(v.file, "tokenizer.ggml.add_space_prefix", true);
    json_t* byte_level = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1,
                                   "use_regex", 1);
    json_t* root = json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding",
                             "added_tokens", added_tokens(&v), "normalizer", v.pieces ? pieces_normalizer(prefix) : json_null(),
                             "pre_tokenizer", v.pieces ? json_null() : byte_pretokenizer(&v), "post_processor",
                             post_processor(&v), "decoder", v.pieces ? pieces_decoder(prefix) : json_incref(byte_level), "model",
                             bpe_model(&v));
    json_decref(byte_level);
    vocabulary_free(&v);
    return json_text(root);
}

// ---- the other texts

static void set_named_tokens(const Vocabulary* v, json_t* object) {
    const struct {
        const char* key;
        int id;
    } named[] = {{"bos_token", v->bos}, {"eos_token", v->eos}, {"pad_token", v->padding}, {"unk_token", v->unknown}};
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
        if (named[i].id >= 0) json_object_set_new(object, named[i].key, json_string(v->tokens[named[i].id]));
}

char* gguf_tokenizer_config_json(const GgufModel* m) {
    Vocabulary v = read_vocabulary(m);
    json_t* root = json_pack("{s:b, s:b}", "add_bos_token", v.add_bos, "add_eos_token", v.add_eos);
    set_named_tokens(&v, root);
    const char* chat = gguf_string_or(v.file, "tokenizer.chat_template", NULL);
    if (chat) json_object_set_new(root, "chat_template", json_string(chat));
    json_object_set_new(root, "clean_up_tokenization_spaces", json_false());
    json_object_set_new(root, "model_max_length", json_integer(gguf_model_config(m)->max_T));
    json_object_set_new(root, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
    vocabulary_free(&v);
    return json_text(root);
}

char* gguf_special_tokens_map_json(const GgufModel* m) {
    Vocabulary v = read_vocabulary(m);
    json_t* root = json_object();
    set_named_tokens(&v, root);
    vocabulary_free(&v);
    return json_text(root);
}

char* gguf_config_json(const GgufModel* m, Fmt dtype) { return hf_config_text(gguf_model_config(m), dtype); }

// Its eos_token_id lists every id that ends an answer: the ends of a text, of a turn and of a message.
char* gguf_generation_config_json(const GgufModel* m) {
    const Gguf* file = gguf_model_file(m);
    const Config* c = gguf_model_config(m);
    json_t *root = json_object(), *ends = json_array();
    const char* keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    int ids[3] = {c->eos, gguf_int_or(file, keys[0], 0, c->V - 1, -1), gguf_int_or(file, keys[1], 0, c->V - 1, -1)};
    for (int i = 0; i < 3; i++) {
        bool known = ids[i] < 0;
        for (int k = 0; k < i; k++) known = known || ids[k] == ids[i];
        if (!known) json_array_append_new(ends, json_integer(ids[i]));
    }
    if (c->bos >= 0) json_object_set_new(root, "bos_token_id", json_integer(c->bos));
    if (json_array_size(ends) == 1) json_object_set(root, "eos_token_id", json_array_get(ends, 0));
    else if (json_array_size(ends)) json_object_set(root, "eos_token_id", ends);
    int padding = gguf_int_or(file, "tokenizer.ggml.padding_token_id", 0, c->V - 1, -1);
    if (padding >= 0) json_object_set_new(root, "pad_token_id", json_integer(padding));
    json_decref(ends);
    return json_text(root);
}
