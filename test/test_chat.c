// Chat templates: exact tokens, where the answers lie, finding a template, shortening from the prompt side, and the reference pack's
// templates and ids.
#include "../data/chat.h"
#include "../data/files.h"

#include "byte_tokenizer.h"

enum { kBos, kEos, kHead, kText, kEot, kImStart, kImEnd };

// A conversation written as JSON; every assistant's message is trained but those of weight 0.
typedef struct {
    Conversation c;
    unsigned char trained[16];
} Talk;

static Talk* talk(const char* messages, const char* joint) {
    Talk* t = (Talk*)host_alloc(sizeof(Talk));
    json_error_t error;
    t->c.messages = json_loads(messages, 0, &error);
    check(t->c.messages && json_array_size(t->c.messages) <= 16, "%s: %s", messages, error.text);
    t->c.trained = t->trained;
    t->c.joint = joint;
    for (size_t i = 0; i < json_array_size(t->c.messages); i++) {
        json_t* m = json_array_get(t->c.messages, i);
        json_t* weight = json_object_get(m, "weight");
        t->trained[i] = !strcmp(json_string_value(json_object_get(m, "role")), "assistant") && !(weight && json_integer_value(weight) == 0);
    }
    return t;
}

static void talk_free(Talk* t) {
    json_decref(t->c.messages);
    json_decref(t->c.tools);
    free(t);
}

#define SYS(text) "{\"role\": \"system\", \"content\": \"" text "\"}"
#define USER(text) "{\"role\": \"user\", \"content\": \"" text "\"}"
#define BOT(text) "{\"role\": \"assistant\", \"content\": \"" text "\"}"

// What is trained of a conversation, as one flag a token; the caller frees it.
static unsigned char* trained_flags(const ChatTokens* out) {
    unsigned char* flags = (unsigned char*)host_alloc((size_t)out->tokens.count + 1);
    for (int i = 0; i < out->answer_count; i++)
        if (out->answers[i].trained) memset(flags + out->answers[i].first, 1, (size_t)(out->answers[i].last - out->answers[i].first));
    return flags;
}

// Encodes; compares all tokens, and those that are trained (NULL: not asked).
static ChatTokens expect_tokens(const ChatFormat* format, const Tokenizer* tokenizer, const char* messages, const char* joint,
                                const char* want, const char* want_trained, const char* name) {
    ChatTokens out;
    memset(&out, 0, sizeof out);
    Talk* t = talk(messages, joint);
    bool done = chat_encode(format, tokenizer, &t->c, &out);
    same_text(done ? shown(out.tokens.ids, NULL, out.tokens.count) : out.error.text, want, name);
    if (done && want_trained) {
        unsigned char* flags = trained_flags(&out);
        same_text(shown(out.tokens.ids, flags, out.tokens.count), want_trained, "  what is trained of it");
        free(flags);
    }
    talk_free(t);
    return out;
}

static void expect(const ChatFormat* format, const Tokenizer* tokenizer, const char* messages, const char* joint, const char* want,
                   const char* want_trained, const char* name) {
    ChatTokens out = expect_tokens(format, tokenizer, messages, joint, want, want_trained, name);
    chat_tokens_free(&out);
}

static void expect_prompt(const ChatFormat* format, const Tokenizer* tokenizer, const char* text, const char* want, const char* name) {
    TokenList ids = {NULL, 0, 0};
    chat_prompt(format, tokenizer, text, &ids);
    same_text(shown(ids.ids, NULL, ids.count), want, name);
    token_list_free(&ids);
}

// Writes tokenizer_config.json and chat_template.jinja (NULL: there is none) and opens a format.
static ChatFormat opened(const Tokenizer* tokenizer, const char* jinja, const char* config, const char* form) {
    unlink(temp_path("chat_template.jinja"));
    if (jinja) temp_write("chat_template.jinja", jinja);
    temp_write("tokenizer_config.json", config);
    ChatOptions options = {form, NULL, SPECIALS_AUTO};
    return chat_open(temp_dir, tokenizer, &options);
}

// ---- the built-in forms

static void llama3_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = opened(t, NULL, "{\"eos_token\": \"<|eot_id|>\"}", "llama3");
    ok(f.built_in && f.turn_end == 256 + kEot && !strcmp(f.name, "llama3"), "llama3: a form of ours with its end of turn");
    expect(&f, t, "[" SYS("S") "," USER(" \\n Hi\xc2\xa0\xe3\x80\x80\\u001f") "," BOT("Yo \\n") "," USER("more") "," BOT("") "]", "#",
           "{bos}{head}system{text}\n\nS{eot}{head}user{text}\n\nHi{eot}{head}assistant{text}\n\nYo{eot}"
           "{head}user{text}\n\nmore{eot}{head}assistant{text}\n\n{eot}", "Yo{eot}{eot}", "llama3: five turns, one BOS, trimmed");
    expect_prompt(&f, t, "Hi ", "{bos}{head}user{text}\n\nHi{eot}{head}assistant{text}\n\n", "llama3: prompt to generate from");
    ChatTokens out = expect_tokens(&f, t, "[" USER("<|eot_id|><|begin_of_text|>") "," BOT("<|eot_id|>A") "]", "",
           "{bos}{head}user{text}\n\n<|eot_id|><|begin_of_text|>{eot}{head}assistant{text}\n\n<|eot_id|>A{eot}", "<|eot_id|>A{eot}",
           "llama3: special tokens in a text are text");
    ok(out.kept == 3, "  and counted: %d", out.kept);
    chat_tokens_free(&out);
    f.specials = SPECIALS_ANSWERS;
    expect(&f, t, "[" USER("<|eot_id|>") "," BOT("<|eot_id|>A") "]", "",
           "{bos}{head}user{text}\n\n<|eot_id|>{eot}{head}assistant{text}\n\n{eot}A{eot}", "{eot}A{eot}", "--special-tokens answers");
    f.specials = SPECIALS_ALL;
    expect(&f, t, "[" USER("<|eot_id|>") "," BOT("A") "]", "", "{bos}{head}user{text}\n\n{eot}{eot}{head}assistant{text}\n\nA{eot}",
        "A{eot}",
           "--special-tokens all");
    f.specials = SPECIALS_AUTO;
    expect(&f, t, "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]},"
        BOT("c") "]",
           "", "{bos}{head}user{text}\n\nab{eot}{head}assistant{text}\n\nc{eot}", "c{eot}", "llama3: text parts");
    expect(&f, t, "[" USER("Q") "," BOT("A") "," USER("R") ", {\"role\": \"assistant\", \"content\": \"B\", \"weight\": 0}]", "",
           "{bos}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}{head}user{text}\n\nR{eot}{head}assistant{text}\n\nB{eot}",
           "A{eot}", "a turn of weight 0 is not trained");
    chat_free(&f);
    tokenizer_free(t);
}

#define DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
static void llama31_case(void) {
    static const char dated[] = "{{ '<|start_header_id|>system<|end_header_id|>' }}{{ 'Cutting Knowledge Date: December 2023' }}";
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = opened(t, dated, "{}", "llama3");
    expect(&f, t, "[" SYS(" S ") "," USER("Q") "," BOT("A") "]", "",
           "{bos}{head}system{text}\n\n" DATES "S{eot}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}", "A{eot}",
           "llama3.1: dates before the system text");
    expect(&f, t, "[" USER("Q") "," BOT("A") "]", "",
           "{bos}{head}system{text}\n\n" DATES "{eot}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}", "A{eot}",
           "llama3.1: a system turn where the conversation has none");
    chat_free(&f);
    tokenizer_free(t);
}

static void chatml_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, false);
    ChatFormat f = opened(t, NULL, "{}", "chatml");
    expect(&f, t, "[" USER(" Q ") "," BOT("A") "," USER("R") "," BOT("B ") "]", "#",
           "{im}user\n Q {end}\n{im}assistant\nA{end}\n{im}user\nR{end}\n{im}assistant\nB {end}\n", "A{end}B {end}",
           "chatml: four turns, nothing trimmed, no BOS that the tokenizer has not");
    expect_prompt(&f, t, " Q ", "{im}user\n Q {end}\n{im}assistant\n", "chatml: prompt to generate from");
    chat_free(&f);
    tokenizer_free(t);
    t = byte_tokenizer(kBos, kImEnd, true);
    f = opened(t, NULL, "{}", "chatml");
    expect(&f, t, "[" USER("Q") "," BOT("A") "]", "", "{bos}{im}user\nQ{end}\n{im}assistant\nA{end}\n", "A{end}",
        "chatml: the tokenizer's BOS");
    chat_free(&f);
    tokenizer_free(t);
}

static void none_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = opened(t, NULL, "{\"eos_token\": \"<|end_of_text|>\"}", "none");
    expect(&f, t, "[" USER("Q") "," BOT("A") "]", "", "{bos}QA{eos}", "A{eos}", "none: prompt, completion, EOS");
    expect(&f, t, "[" SYS("S") "," USER("Q") "," BOT("A") "," USER("R") "," BOT("B") "]", "\n", "{bos}S\nQ\nA{eos}R\nB{eos}",
        "A{eos}B{eos}",
           "none: several turns with a joint");
    expect_prompt(&f, t, "Q", "{bos}Q", "none: prompt to generate from");
    chat_free(&f);
    f = opened(t, NULL, "{\"add_bos_token\": false}", "none");
    expect(&f, t, "[" USER("Q") "," BOT("A") "]", "", "QA{eos}", "A{eos}", "none: add_bos_token false");
    ok(f.text_bos == -1 && f.text_eos == 256 + kEos, "none: the tokens around a plain text");
    chat_free(&f);
    tokenizer_free(t);
}

// ---- templates of the model's own

static void own_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    // R1's kind: the generation prompt opens a thought that the conversation does not show.
    static const char parted[] = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + ':' + m.content + '<|im_end|>' }}{% endfor %}"
                                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant:<think>' }}{% endif %}";
    ChatFormat f = opened(t, parted, "{\"bos_token\": \"<|begin_of_text|>\"}", NULL);
    ok(f.turn_end == 256 + kImEnd && !f.built_in, "own: the end of an answer is what the template shows");
    ChatTokens out = expect_tokens(&f, t, "[" USER("Q") "," BOT("<thin air>") "," USER("R") "," BOT("B") "]", "",
        "{bos}{im}user:Q{end}{im}assistant:<thin air>{end}{im}user:R{end}{im}assistant:B{end}", "<thin air>{end}B{end}",
        "own: a generation prompt that the conversation does not show");
    ok(out.parted == 2 && out.lost == 0, "  said of both answers");
    same_text(shown(out.prompt_tokens.ids, NULL, out.prompt_tokens.count),
              "{bos}{im}user:Q{end}{im}assistant:<thin air>{end}{im}user:R{end}{im}assistant:<think>", "  what to generate from");
    chat_tokens_free(&out);
    chat_free(&f);
    // Thoughts of earlier turns are dropped, the last one's stay.
    static const char dropped[] = "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' }}{% if m.role == 'assistant' and not loop.last %}"
                                  "{{ m.content.split('/')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
                                  "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}";
    f = opened(t, dropped, "{}", "auto");
    expect(&f, t, "[" USER("Q") "," BOT("why/A") "," USER("R") "," BOT("hm/B") "]", "",
           "{im}user:Q{end}{im}assistant:A{end}{im}user:R{end}{im}assistant:hm/B{end}", "A{end}hm/B{end}",
               "own: an earlier answer rewritten");
    chat_free(&f);
    // The whole conversation begins otherwise than its beginning does: the first answer cannot be found.
    static const char counted[] = "{{ messages | length }}{% for m in messages %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}"
                                  "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}";
    f = opened(t, counted, "{}", "auto");
    out = expect_tokens(&f, t, "[" USER("Q") "," BOT("A") "," USER("R") "," BOT("B") "]", "",
        "4{im}Q{end}{im}A{end}{im}R{end}{im}B{end}", "",
                        "own: answers that cannot be found");
    ok(out.lost == 2, "  are counted");
    chat_tokens_free(&out);
    chat_free(&f);
    tokenizer_free(t);
}

// Mistral 7B Instruct's form: turns alternate or the template refuses, a system text stands in the user's turn after it, no generation
// prompt. The template is of our own writing; the pack's mistral-nemo is a published one.
static void mistral_case(void) {
    static const char form[] =
        "{% set system = messages[0].content ~ '\n\n' if messages[0].role == 'system' else '' %}"
        "{{ bos_token }}{% for m in (messages[1:] if system else messages) %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns have to alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.last or loop.index0 == loop.length - 2 else '') + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}";
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = opened(t, form, "{\"bos_token\": \"<|begin_of_text|>\", \"eos_token\": \"<|end_of_text|>\"}", NULL);
    ok(!f.built_in && f.turn_end == 256 + kEos, "mistral: an answer ends with EOS");
    expect(&f, t, "[" USER("Q") "," BOT("A ") "," USER("R") "," BOT("B") "]", "", "{bos}[INST] Q[/INST] A{eos}[INST] R[/INST] B{eos}",
        " A{eos} B{eos}", "mistral: two exchanges, both answers trained with their space");
    expect(&f, t, "[" SYS("S") "," USER("Q") "," BOT("A") "]", "", "{bos}[INST] S\n\nQ[/INST] A{eos}", " A{eos}", "mistral: a system text");
    expect_prompt(&f, t, "Q", "{bos}[INST] Q[/INST]", "mistral: prompt to generate from");
    ChatTokens out;
    memset(&out, 0, sizeof out);
    Talk* twice = talk("[" USER("Q") "," USER("R") "," BOT("A") "]", "");
    ok(!chat_encode(&f, t, &twice->c, &out) && strstr(out.error.text, "alternate"), "mistral: turns that do not alternate: %s", out.error.text);
    chat_tokens_free(&out);
    talk_free(twice);
    chat_free(&f);
    tokenizer_free(t);
}

// Templates that mark answers themselves, and those that refuse.
static void blocks_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatTokens out;
    static const char blocks[] = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '(' + m.content + ')' }}{% endgeneration %}"
                                 "{% else %}{{ m.content }}{% endif %}{% endfor %}";
    ChatFormat f = opened(t, blocks, "{}", "auto");
    expect(&f, t, "[" USER("Q") "," BOT("A") "," USER("R") ", {\"role\": \"assistant\", \"content\": \"B\", \"weight\": 0}]", "",
        "Q(A)R(B)", "(A)",
           "own: {% generation %} decides");
    chat_free(&f);
    static const char picky[] = "{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}x";
    f = opened(t, picky, "{}", "auto");
    out = expect_tokens(&f, t, "[" USER("Q") "," BOT("A") "]", "", "x", NULL, "own: a template that takes this");
    chat_tokens_free(&out);
    Talk* bad = talk("[" BOT("A") "]", "");
    memset(&out, 0, sizeof out);
    ok(!chat_encode(&f, t, &bad->c, &out) && strstr(out.error.text, "users first"), "own: and raises at that: %s", out.error.text);
    chat_tokens_free(&out);
    talk_free(bad);
    chat_free(&f);
    static const char opening[] = "{% if messages[0]['role'] == 'system' %}S{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + ':' }}"
                                  "{{ m.content + '<|im_end|>' }}{% endfor %}"
                                  "{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}";
    f = opened(t, opening, "{}", "auto");
    expect(&f, t, "[" BOT("A") "," USER("Q") "," BOT("B") "]", "", "{im}assistant:A{end}{im}user:Q{end}{im}assistant:B{end}", "A{end}B{end}",
           "own: an answer that opens the conversation, which is refused when empty");
    chat_free(&f);
    static const char day[] = "{{ strftime_now('%Y') }}";
    f = opened(t, day, "{}", "auto");
    bad = talk("[" USER("Q") "," BOT("A") "]", "");
    ok(!chat_encode(&f, t, &bad->c, &out) && strstr(out.error.text, "--date"), "own: strftime_now asks for --date: %s", out.error.text);
    chat_tokens_free(&out);
    talk_free(bad);
    chat_free(&f);
    tokenizer_free(t);
}

// ---- finding a template, and errors

typedef struct {
    int first, last;   // the tokenizer's special tokens
    const char *jinja, *config, *form, *words, *name;
} Refusal;

static void open_refused(void* arg) {
    const Refusal* r = (const Refusal*)arg;
    opened(byte_tokenizer(r->first, r->last, true), r->jinja, r->config, r->form);
}

static void refusals_case(void) {
    static Refusal all[] = {
        {kBos, kImEnd, NULL, "{}", NULL, "no chat template", "no template"},
        {kBos, kImEnd, "{% for %}", "{}", NULL, "--chat FILE.jinja", "a template that is none"},
        {kBos, kImEnd, NULL, "{}", "alpaca", "--chat alpaca: no such chat format", "an unknown name"},
        {kBos, kEos, NULL, "{}", "llama3", "no token <|start_header_id|>", "llama3 without its tokens"},
        {kBos, kEot, NULL, "{}", "chatml", "no token <|im_start|>", "chatml without its tokens"},
        {kBos, kBos, NULL, "{\"eos_token\": \"<|gone|>\"}", "none", "no eos_token", "none without EOS"},
        {kBos, kImEnd, NULL, "[]", NULL, "expected a JSON object", "a config that is a list"},
        {kBos, kImEnd, NULL, "{\"a\" 1}", NULL, "line 1, column", "a config that is no JSON"},
    };
    for (int i = 0; i < COUNT(all); i++) expect_exit(open_refused, &all[i], kExitUser, all[i].words, all[i].name);
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = opened(t, "file", "{\"chat_template\": \"config\"}", NULL);
    ok(!strcmp(f.source, "file"), "chat_template.jinja wins over tokenizer_config.json");
    chat_free(&f);
    f = opened(t, NULL, "{\"chat_template\": \"config\"}", NULL);
    ok(!strcmp(f.source, "config"), "the template of tokenizer_config.json");
    chat_free(&f);
    f = opened(t, NULL, "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": \"default\", \"template\": \"D\"}]}", NULL);
    ok(!strcmp(f.source, "D") && f.tool_jinja, "a list of templates");
    Talk* tools = talk("[" USER("Q") "," BOT("A") "]", "");
    ChatTokens out;
    memset(&out, 0, sizeof out);
    tools->c.tools = json_pack("[{s:s}]", "name", "f");
    ok(chat_encode(&f, t, &tools->c, &out) && !strcmp(out.text.text, "T"), "  the one for tools where there are some");
    talk_free(tools);
    chat_tokens_free(&out);
    chat_free(&f);
    tokenizer_free(t);
}

// ---- shortening

static void expect_within(const ChatFormat* f, const Tokenizer* t, const char* messages, int limit, const char* want, const char* name) {
    ChatTokens chat;
    memset(&chat, 0, sizeof chat);
    bool fits, shortened;
    Talk* whole = talk(messages, "\n");
    bool done = chat_encode_within(f, t, &whole->c, limit, &chat, &fits, &shortened);
    same_text(!done ? chat.error.text : !fits ? "(does not fit)" : shown(chat.tokens.ids, NULL, chat_used_tokens(&chat)), want, name);
    chat_tokens_free(&chat);
    talk_free(whole);
}

static void shorten_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, false);
    ChatFormat f = opened(t, NULL, "{}", "chatml");
#define ALL "[" SYS("S") "," USER("one") "," BOT("ONE") "," USER("two") "," BOT("TWO") "," USER("three") "," BOT("THREE") "]"
#define SYSTEM "{im}system\nS{end}\n"
#define TWO "{im}user\ntwo{end}\n{im}assistant\nTWO{end}\n"
#define THREE "{im}user\nthree{end}\n{im}assistant\nTHREE{end}"
    // system 11 tokens, one and two 11 + 16 each, three 13 + 17 (no newline at the end): 95
    expect_within(&f, t, ALL, 95, SYSTEM "{im}user\none{end}\n{im}assistant\nONE{end}\n" TWO THREE, "shorten: what fits stays");
    expect_within(&f, t, ALL, 94, SYSTEM TWO THREE, "shorten: the oldest exchange goes as a whole");
    expect_within(&f, t, ALL, 67, SYSTEM THREE, "shorten: then the next");
    expect_within(&f, t, ALL, 39, SYSTEM "{im}user\nree{end}\n{im}assistant\nTHREE{end}", "shorten: then the front of the last prompt");
    expect_within(&f, t, ALL, 36, SYSTEM "{im}user\n{end}\n{im}assistant\nTHREE{end}", "shorten: all of its text");
    expect_within(&f, t, ALL, 35, "(does not fit)", "shorten: never a header or the answer");
    expect_within(&f, t, "[" USER("three") "," BOT("THREE") "]", 28, "{im}user\nree{end}\n{im}assistant\nTHREE{end}",
        "shorten: one exchange");
    expect_within(&f, t, "[" USER("\xc3\xa9\xc3\xa9") "," BOT("A") "]", 24, "{im}user\n\xc3\xa9{end}\n{im}assistant\nA{end}",
        "shorten: between characters");
    expect_within(&f, t, "[" SYS("S") "," BOT("A") "]", 20, "(does not fit)", "shorten: an answer without a prompt");
    chat_free(&f);
    tokenizer_free(t);
    t = byte_tokenizer(kBos, kImEnd, true);
    f = opened(t, NULL, "{}", "none");
    expect_within(&f, t, "[" USER("three") "," BOT("THREE") "]", 10, "{bos}ee\nTHREE{eos}",
        "shorten: plain text keeps BOS and the prompt's end");
    chat_free(&f);
    tokenizer_free(t);
}

// ---- the reference pack

static json_t* pack_json(const char* path) {
    json_error_t error;
    json_t* root = json_load_file(path, 0, &error);
    check(root, "%s: %s", path, error.text);
    return root;
}

// Opens a template with the pack's tokens, over a tokenizer of bytes or another.
static ChatFormat pack_format(const Tokenizer* tokenizer, const char* path, const json_t* root, const json_t* date) {
    json_t* config = json_pack("{s:O, s:O}", "bos_token", json_object_get(root, "bos_token"), "eos_token", json_object_get(root,
        "eos_token"));
    char* text = json_dumps(config, 0);
    temp_write("tokenizer_config.json", text);
    free(text);
    json_decref(config);
    ChatOptions options = {path, json_string_value(date), SPECIALS_AUTO};
    return chat_open(temp_dir, tokenizer, &options);
}

// Renders every conversation of the pack under one template; counts the answers found and lost.
static void one_template(const char* name, bool family) {
    char path[1024], json_path[1024];
    const char* dir = refpack("data/chat_templates");
    snprintf(path, sizeof path, "%s/%s.jinja", dir, name);
    snprintf(json_path, sizeof json_path, "%s/%s.json", dir, name);
    json_t *root = pack_json(json_path), *row;
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    int same = 0, rows = 0, answers = 0, lost = 0, parted = 0;
    size_t i;
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        if (json_is_true(json_object_get(row, "add_generation_prompt"))) continue;
        ChatFormat f = pack_format(t, path, root, json_object_get(row, "date"));
        char* text = json_dumps(json_object_get(row, "messages"), 0);
        Talk* whole = talk(text, "");
        whole->c.tools = json_incref(json_object_get(row, "tools"));
        ChatTokens out;
        memset(&out, 0, sizeof out);
        const char* want = json_string_value(json_object_get(row, "text"));
        bool done = chat_encode(&f, t, &whole->c, &out);
        // A prefix of a conversation may be refused where the whole is not: nothing to compare there.
        bool agrees = want ? done && !strcmp(out.text.text, want) : !done;
        if (!agrees && same + 3 > rows)
            printf("  %s: %s\n   got  %s\n   want %s\n", name, json_string_value(json_object_get(row, "case")), done ?
                out.text.text : out.error.text,
                   want ? want : "(an error)");
        same += agrees;
        rows++;
        // Many templates refuse an empty conversation, which is the prompt of an answer that comes first.
        if (!strcmp(json_string_value(json_object_get(row, "case")), "assistant_first")) out.lost = 0;
        if (done && out.lost) printf("  %s: an answer of \"%s\" is not found\n", name, json_string_value(json_object_get(row, "case")));
        if (done) answers += out.answer_count, lost += out.lost, parted += out.parted;
        chat_tokens_free(&out);
        talk_free(whole);
        free(text);
        chat_free(&f);
    }
    ok(same == rows && answers + lost > 0 && (!family || (answers > 0 && lost == 0)),
        "%s: %d of %d conversations, %d answers found (%d parted), %d lost", name, same, rows, answers, parted, lost);
    tokenizer_free(t);
    json_decref(root);
}

static void templates_case(void) {
    const char* dir = refpack("data/chat_templates");
    if (!dir) return;
    int seen = 0;
    // The model families that the README names: all their answers are found. Other templates may hide some.
    static const char* const families[] = {"llama-3-instruct", "llama-3.1-instruct", "llama-3.2-instruct", "llama-2-chat", "zephyr",
        "smollm2",
                                           "r1-distill-llama", "hermes-3-tool-use", "yi-1.5-chat", "phi-4"};
    DIR* folder = opendir(dir);
    for (struct dirent* entry; (entry = readdir(folder)) != NULL;) {
        char name[256];
        size_t n = strlen(entry->d_name);
        if (n < 6 || n > 200 || strcmp(entry->d_name + n - 5, ".json")) continue;
        snprintf(name, sizeof name, "%.*s", (int)n - 5, entry->d_name);
        bool family = false;
        for (int i = 0; i < COUNT(families); i++)
            if (!strcmp(name, families[i])) family = true, seen++;
        one_template(name, family);
    }
    ok(seen == COUNT(families), "%d of %d families of the README's table are in the pack", seen, COUNT(families));
    closedir(folder);
}

static bool same_ids(const int* ids, int count, const json_t* want) {
    if (count != (int)json_array_size(want)) return false;
    for (int i = 0; i < count; i++)
        if (ids[i] != json_integer_value(json_array_get(want, (size_t)i))) return false;
    return true;
}

// One conversation of chat_tokens: all its ids where the prompts are beginnings of the whole, and every prompt's.
static bool row_agrees(const ChatFormat* f, const Tokenizer* t, json_t* row) {
    json_t *answers = json_object_get(row, "answers"), *answer;
    bool prefixes = true, agrees = true;
    size_t i;
    json_array_foreach(answers, i, answer) prefixes = prefixes && json_is_true(json_object_get(answer, "whole_text_begins_with_it"));
    char* text = json_dumps(json_object_get(row, "messages"), 0);
    ChatTokens out;
    memset(&out, 0, sizeof out);
    for (size_t k = 0; k <= json_array_size(answers); k++) {
        Talk* whole = talk(text, "");
        answer = json_array_get(answers, k);
        size_t count = answer ? (size_t)json_integer_value(json_object_get(answer, "message")) + 1 : json_array_size(whole->c.messages);
        while (json_array_size(whole->c.messages) > count) json_array_remove(whole->c.messages, count);
        bool done = chat_encode(f, t, &whole->c, &out) && out.answer_count;
        agrees = agrees && done;
        if (done && !answer && prefixes)
            agrees = agrees && same_ids(out.tokens.ids, out.tokens.count, json_object_get(row, "text_ids")) &&
                     !strcmp(out.text.text, json_string_value(json_object_get(row, "text")));
        if (done && answer)
            agrees = agrees && same_ids(out.tokens.ids, out.answers[out.answer_count - 1].first, json_object_get(answer, "prompt_ids"));
        talk_free(whole);
    }
    free(text);
    chat_tokens_free(&out);
    return agrees;
}

static void tokens_of_file(const char* dir, const char* name) {
    char path[1024], tokenizer_path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    json_t* root = pack_json(path);
    const char* tokenizer = json_string_value(json_object_get(root, "tokenizer"));
    if (strchr(tokenizer, '/')) snprintf(tokenizer_path, sizeof tokenizer_path, "%s/../../%s", dir, tokenizer);
    else snprintf(tokenizer_path, sizeof tokenizer_path, "%s/%s", dir, tokenizer);
    size_t bytes;
    char* json = file_read(tokenizer_path, &bytes);
    temp_write("tokenizer.json", json);
    free(json);
    Tokenizer* t = tokenizer_load(temp_dir);
    json_t *templates = json_object_get(root, "templates"), *row, *source;
    const char* template_name;
    json_object_foreach(templates, template_name, source) {
        temp_write("pack.jinja", json_string_value(source));
        ChatFormat f = pack_format(t, temp_path("pack.jinja"), root, NULL);
        size_t i;
        int rows = 0, same = 0;
        json_array_foreach(json_object_get(root, "rows"), i, row) {
            if (strcmp(json_string_value(json_object_get(row, "template")), template_name)) continue;
            bool agrees = row_agrees(&f, t, row);
            if (!agrees) printf("  differs: %s\n", json_string_value(json_object_get(row, "case")));
            json_t* ids = json_object_get(json_array_get(json_object_get(row, "answers"), 0), "prompt_ids");
            json_int_t held = json_integer_value(json_array_get(ids, 1));
            json_integer_set(json_array_get(ids, 1), held + 1);   // the comparison can fail
            agrees = agrees && !row_agrees(&f, t, row);
            json_integer_set(json_array_get(ids, 1), held);
            same += agrees;
            rows++;
        }
        ok(rows > 0 && same == rows, "%s %s: the ids of Hugging Face tokenizers in %d of %d conversations", name, template_name, same,
            rows);
        chat_free(&f);
    }
    tokenizer_free(t);
    json_decref(root);
}

static void tokens_case(void) {
    const char* found = refpack("data/chat_tokens");
    if (!found) return;
    char* dir = host_strdup(found);
    DIR* folder = opendir(dir);
    for (struct dirent* entry; (entry = readdir(folder)) != NULL;) {
        const char* dot = strchr(entry->d_name, '.');
        if (dot && !strcmp(dot, ".json")) tokens_of_file(dir, entry->d_name);
    }
    closedir(folder);
    free(dir);
}

static const Case cases[] = {
    {"chat.llama3", llama3_case}, {"chat.llama3.1", llama31_case},     {"chat.chatml", chatml_case},   {"chat.none", none_case},
    {"chat.own", own_case},       {"chat.mistral", mistral_case},      {"chat.blocks", blocks_case},   {"chat.refusals", refusals_case},
    {"chat.shorten", shorten_case}, {"chat.templates", templates_case}, {"chat.tokens", tokens_case},
};

int main(int argc, char** argv) {
    temp_make();
    int failed = test_main(cases, COUNT(cases), argc, argv);
    temp_remove();
    return failed;
}
