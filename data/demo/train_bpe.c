// Trains the demo's tokenizer: byte-level byte-pair encoding (Sennrich et al. 2016) over Llama 3's split of the text, written
// as a Hugging Face folder of Llama-3 structure.
//
//   train_bpe DIR FILE.jsonl...     reads "text" and "messages"; writes DIR/tokenizer.json, tokenizer_config.json and
//                                   generation_config.json
//
// Ids: 0..255 the bytes in GPT-2's order, then one id per merge in the order of learning, then the special tokens. The same
// text gives the same bytes: of equally frequent pairs the one with the smaller ids is merged.
#include "../json.h"
#include "../tokenizer/pretokenizer.h"

#include <xxhash.h>

enum { kVocabulary = 1024, kBytes = 256, kSpecials = 5, kMerges = kVocabulary - kBytes - kSpecials };

// The special tokens, in the order of their ids.
enum { kBeginOfText, kEndOfText, kStartHeader, kEndHeader, kEndOfTurn };
static const char* const kSpecialTokens[kSpecials] = {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                                      "<|end_header_id|>", "<|eot_id|>"};
static int special_id(int special) { return kBytes + kMerges + special; }

static const char kSplit[] =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
    "\\s+(?!\\S)|\\s+";

static const char kChatTemplate[] =
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}";

// ---- the byte alphabet of GPT-2: printable bytes stand for themselves, the others for the code points from 256 on

typedef struct {
    char text[3];   // UTF-8, one or two bytes
} Letter;

// letters[id], and the id of each byte: printable bytes first, in order.
static void make_alphabet(Letter letters[kBytes], int ids[kBytes]) {
    int id = 0;
    for (int printable = 1; printable >= 0; printable--) {
        int other = 256;
        for (int byte = 0; byte < kBytes; byte++) {
            bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
            if (is_printable != (bool)printable) continue;
            int code = is_printable ? byte : other++;
            char* text = letters[id].text;
            if (code < 0x80) {
                text[0] = (char)code;
            } else {
                text[0] = (char)(0xc0 | code >> 6);
                text[1] = (char)(0x80 | (code & 0x3f));
            }
            ids[byte] = id++;
        }
    }
}

// ---- the distinct pieces of the text, with their numbers of occurrences

enum { kWordBytes = 64, kWordsMax = 1 << 16 };

typedef struct {
    short ids[kWordBytes];   // the piece as tokens; merging shortens it
    int length;
    char text[kWordBytes];
    int bytes;
    long count;
} Word;

typedef struct {
    Word* words;             // in the order of first sight
    int count;
    int slots[2 * kWordsMax];   // hash table: 1 + index of a word, 0: empty
} Words;

// A PieceFn; the receiver is the Words.
static void count_piece(void* receiver, const char* text, size_t bytes) {
    Words* words = (Words*)receiver;
    check(bytes <= kWordBytes, "a piece of %zu bytes; the demo's text has no words that long", bytes);
    size_t slot = XXH3_64bits(text, bytes) % (2 * kWordsMax);
    for (; words->slots[slot]; slot = (slot + 1) % (2 * kWordsMax)) {
        Word* word = &words->words[words->slots[slot] - 1];
        if ((size_t)word->bytes == bytes && !memcmp(word->text, text, bytes)) {
            word->count++;
            return;
        }
    }
    check(words->count < kWordsMax, "more than %d distinct words", kWordsMax);
    Word* word = &words->words[words->count++];
    words->slots[slot] = words->count;
    memcpy(word->text, text, bytes);
    word->bytes = (int)bytes;
    word->count = 1;
}

// What counting the pieces of a text needs.
typedef struct {
    PreTokenizer split;
    SplitScratch scratch;
    Words* words;
} Counter;

static void count_text(Counter* counter, const json_t* text) {
    if (json_is_string(text))
        pretokenize(&counter->split, &counter->scratch, json_string_value(text), json_string_length(text), count_piece,
                    counter->words);
}

// Counts the pieces of a file whose lines hold {"text": ...} or {"messages": [{"role": ..., "content": ...}...]}. The chat template
// writes the role and a blank line before each message, so these count as text.
static void count_file(Counter* counter, const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) user_error("%s: cannot be read", path);
    char* line = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    for (int number = 1; (bytes = getline(&line, &capacity, file)) > 0; number++) {
        char where[1024];
        snprintf(where, sizeof where, "%s:%d", path, number);
        json_t* row = json_parse(line, (size_t)bytes, where);
        count_text(counter, json_object_get(row, "text"));
        json_t* messages = json_object_get(row, "messages");
        for (size_t i = 0; i < json_array_size(messages); i++) {
            const json_t* message = json_array_get(messages, i);
            count_text(counter, json_object_get(message, "role"));
            count_piece(counter->words, "\n\n", 2);
            count_text(counter, json_object_get(message, "content"));
        }
        json_decref(row);
    }
    free(line);
    fclose(file);
}

// ---- merging: always the most frequent pair of neighbours

typedef struct {
    int left, right;
} LearntMerge;

static LearntMerge most_frequent_pair(const Words* words, int vocabulary, long* counts) {
    memset(counts, 0, (size_t)vocabulary * (size_t)vocabulary * sizeof(long));
    for (int w = 0; w < words->count; w++) {
        const Word* word = &words->words[w];
        for (int i = 0; i + 1 < word->length; i++) counts[word->ids[i] * vocabulary + word->ids[i + 1]] += word->count;
    }
    int best = 0;
    for (int pair = 1; pair < vocabulary * vocabulary; pair++)
        if (counts[pair] > counts[best]) best = pair;
    if (!counts[best]) user_error("the text has too few different words for %d tokens; give more text", kVocabulary);
    LearntMerge merge = {best / vocabulary, best % vocabulary};
    return merge;
}

static void apply_merge(Words* words, LearntMerge merge, int id) {
    for (int w = 0; w < words->count; w++) {
        Word* word = &words->words[w];
        int kept = 0;
        for (int i = 0; i < word->length; kept++) {
            bool pair = i + 1 < word->length && word->ids[i] == merge.left && word->ids[i + 1] == merge.right;
            word->ids[kept] = pair ? (short)id : word->ids[i];
            i += pair ? 2 : 1;
        }
        word->length = kept;
    }
}

static void train(Words* words, const int byte_ids[kBytes], LearntMerge merges[kMerges]) {
    for (int w = 0; w < words->count; w++) {
        Word* word = &words->words[w];
        word->length = word->bytes;
        for (int i = 0; i < word->bytes; i++) word->ids[i] = (short)byte_ids[(unsigned char)word->text[i]];
    }
    long* counts = (long*)host_alloc((size_t)kVocabulary * kVocabulary * sizeof(long));
    for (int m = 0; m < kMerges; m++) {
        merges[m] = most_frequent_pair(words, kBytes + m, counts);
        apply_merge(words, merges[m], kBytes + m);
    }
    free(counts);
}

// ---- the files

static void write_json(const char* dir, const char* name, json_t* content) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (!content) die("%s cannot be composed", name);
    if (json_dump_file(content, path, JSON_INDENT(1))) user_error("%s: cannot be written; does its folder exist?", path);
    json_decref(content);
}

static json_t* added_tokens(void) {
    json_t* list = json_array();
    for (int i = 0; i < kSpecials; i++)
        json_array_append_new(list, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", special_id(i), "content",
                                              kSpecialTokens[i], "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
                                              "special", 1));
    return list;
}

// A post-processor's template that puts <|begin_of_text|> before every text.
static json_t* text_with_begin(const char* sequence, int type) {
    return json_pack("[{s:{s:s, s:i}}, {s:{s:s, s:i}}]", "SpecialToken", "id", kSpecialTokens[kBeginOfText], "type_id", type,
                     "Sequence", "id", sequence, "type_id", type);
}

static json_t* pair_with_begin(void) {
    json_t* both = text_with_begin("A", 0);
    json_t* second = text_with_begin("B", 1);
    json_array_extend(both, second);
    json_decref(second);
    return both;
}

static json_t* byte_level(bool add_prefix_space) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", add_prefix_space, "trim_offsets", 1,
                     "use_regex", 0);
}

static json_t* model(const Letter letters[kBytes], const LearntMerge merges[kMerges]) {
    json_t* vocabulary = json_object();
    json_t* rules = json_array();
    char** tokens = (char**)host_alloc((kBytes + kMerges) * sizeof(char*));
    for (int id = 0; id < kBytes + kMerges; id++) {
        if (id < kBytes) {
            tokens[id] = host_strdup(letters[id].text);
        } else {
            const char* left = tokens[merges[id - kBytes].left];
            const char* right = tokens[merges[id - kBytes].right];
            size_t bytes = strlen(left) + strlen(right) + 2;
            tokens[id] = (char*)host_alloc(bytes);
            snprintf(tokens[id], bytes, "%s %s", left, right);
            json_array_append_new(rules, json_string(tokens[id]));
            snprintf(tokens[id], bytes, "%s%s", left, right);
        }
        json_object_set_new(vocabulary, tokens[id], json_integer(id));
    }
    for (int id = 0; id < kBytes + kMerges; id++) free(tokens[id]);
    free(tokens);
    return json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                     "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 1,
                     "vocab", vocabulary, "merges", rules);
}

static void write_tokenizer(const char* dir, const Letter letters[kBytes], const LearntMerge merges[kMerges]) {
    const char* begin = kSpecialTokens[kBeginOfText];
    json_t* split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", kSplit, "behavior", "Isolated",
                              "invert", 0);
    json_t* pre_tokenizer = json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", split, byte_level(false));
    json_t* post_processor =
        json_pack("{s:s, s:o, s:o, s:{s:{s:s, s:[i], s:[s]}}}", "type", "TemplateProcessing", "single", text_with_begin("A", 0),
                  "pair", pair_with_begin(), "special_tokens", begin, "id", begin, "ids", special_id(kBeginOfText), "tokens",
                  begin);
    write_json(dir, "tokenizer.json",
               json_pack("{s:s, s:n, s:n, s:o, s:n, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding",
                         "added_tokens", added_tokens(), "normalizer", "pre_tokenizer", pre_tokenizer, "post_processor",
                         post_processor, "decoder", byte_level(true), "model", model(letters, merges)));
    write_json(dir, "tokenizer_config.json",
               json_pack("{s:s, s:s, s:s, s:s, s:b, s:i}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token", begin,
                         "eos_token", kSpecialTokens[kEndOfTurn], "chat_template", kChatTemplate,
                         "clean_up_tokenization_spaces", 0, "model_max_length", 512));
    write_json(dir, "generation_config.json",
               json_pack("{s:i, s:[i, i], s:b}", "bos_token_id", special_id(kBeginOfText), "eos_token_id",
                         special_id(kEndOfText), special_id(kEndOfTurn), "do_sample", 0));
}

int main(int argc, char** argv) {
    if (argc < 3) user_error("usage: train_bpe DIR FILE.jsonl...");
    Letter letters[kBytes] = {{{0}}};
    int byte_ids[kBytes];
    make_alphabet(letters, byte_ids);

    Words* words = (Words*)host_alloc(sizeof(Words));
    words->words = (Word*)host_alloc(kWordsMax * sizeof(Word));
    Counter* counter = (Counter*)host_alloc(sizeof(Counter));
    counter->words = words;
    const char* error = pretokenizer_add(&counter->split, kSplit, strlen(kSplit), false, KEEP_ALL);
    check(!error, "the split pattern: %s", error);
    split_scratch_init(&counter->scratch);
    for (int i = 2; i < argc; i++) count_file(counter, argv[i]);
    split_scratch_free(&counter->scratch);
    pretokenizer_free(&counter->split);
    free(counter);

    LearntMerge merges[kMerges];
    train(words, byte_ids, merges);
    write_tokenizer(argv[1], letters, merges);

    long pieces = 0, tokens = 0;
    for (int w = 0; w < words->count; w++) {
        pieces += words->words[w].count;
        tokens += words->words[w].count * words->words[w].length;
    }
    printf("%d tokens from %d different words; the text is %ld words, %ld tokens\n", kVocabulary, words->count, pieces, tokens);
    free(words->words);
    free(words);
    return 0;
}
