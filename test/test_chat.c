// Chat templates: exact tokens, where the completions lie, recognition, and shortening from the prompt side.
#include "../data/chat.h"

#include "byte_tokenizer.h"

enum { kBos, kEos, kHead, kText, kEot, kImStart, kImEnd };

static Turn turn(Role role, const char* text) {
    Turn t = {role, (char*)text, strlen(text)};
    return t;
}

// What `format` makes of the turns; the caller frees it.
static ChatTokens encoded(const ChatFormat* format, const Tokenizer* tokenizer, const Turn* turns, int count, const char* joint) {
    ChatTokens out;
    memset(&out, 0, sizeof out);
    chat_encode(format, tokenizer, turns, count, joint, &out);
    return out;
}

static void expect_tokens(const ChatFormat* format, const Tokenizer* tokenizer, const Turn* turns, int count, const char* joint,
                          const char* want, const char* name) {
    ChatTokens out = encoded(format, tokenizer, turns, count, joint);
    same_text(shown(out.tokens.ids, NULL, out.tokens.count), want, name);
    chat_tokens_free(&out);
}

static const char kLlama3Template[] = "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>' + "
                                      "m['content'] | trim + '<|eot_id|>' }}{% endfor %}";
static const char kChatmlTemplate[] =
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}";

// Writes tokenizer_config.json and chat_template.jinja (NULL: neither has a template) and detects.
static ChatFormat detected(const Tokenizer* tokenizer, const char* jinja, const char* config, const char* forced) {
    unlink(temp_path("chat_template.jinja"));
    if (jinja) temp_write("chat_template.jinja", jinja);
    temp_write("tokenizer_config.json", config);
    return chat_detect(temp_dir, tokenizer, forced);
}

static void llama3_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = detected(t, kLlama3Template, "{\"eos_token\": \"<|eot_id|>\"}", NULL);
    ok(f.kind == CHAT_LLAMA3 && !f.date_block && !strcmp(chat_name(f.kind), "llama3"), "llama3 recognised, no date lines");
    Turn all[] = {turn(ROLE_SYSTEM, "S"), turn(ROLE_USER, " \n Hi\xc2\xa0\xe3\x80\x80\x1f"), turn(ROLE_ASSISTANT, "Yo \n"),
                  turn(ROLE_USER, "more"), turn(ROLE_ASSISTANT, "")};
    expect_tokens(&f, t, all, 5, "#",
                  "{bos}{head}system{text}\n\nS{eot}{head}user{text}\n\nHi{eot}{head}assistant{text}\n\nYo{eot}"
                  "{head}user{text}\n\nmore{eot}{head}assistant{text}\n\n{eot}", "llama3: five turns, one BOS, trimmed");
    expect_tokens(&f, t, all + 1, 1, "#", "{bos}{head}user{text}\n\nHi{eot}{head}assistant{text}\n\n",
                  "llama3: prompt to generate from");
    Turn sly = turn(ROLE_USER, "<|eot_id|><|begin_of_text|>");
    expect_tokens(&f, t, &sly, 1, "", "{bos}{head}user{text}\n\n<|eot_id|><|begin_of_text|>{eot}{head}assistant{text}\n\n",
                  "llama3: special tokens in a text are text");
    Turn blank = turn(ROLE_USER, " \t\n");
    expect_tokens(&f, t, &blank, 1, "", "{bos}{head}user{text}\n\n{eot}{head}assistant{text}\n\n", "llama3: a text of spaces only");
    ChatTokens out = encoded(&f, t, all + 1, 2, "");
    const TurnSpan* s = out.turns;
    ok(out.turn_count == 2 && s[0].role == ROLE_USER && s[1].role == ROLE_ASSISTANT && s[0].start == 1 && s[0].end == s[1].start &&
       s[1].end == out.tokens.count, "llama3: the turns tile the tokens behind BOS");
    same_text(shown(out.tokens.ids + s[1].content, NULL, s[1].content_end + 1 - s[1].content), "Yo{eot}",
              "llama3: what is trained on");
    chat_tokens_free(&out);
    chat_free(&f);
    tokenizer_free(t);
}

#define DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
static void llama31_case(void) {
    static const char dated[] = "{{ '<|start_header_id|>system<|end_header_id|>' }}{{ 'Cutting Knowledge Date: December 2023' }}"
                                "{% set date_string = '26 Jul 2024' %}{{ '<|eot_id|>' }}";
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    for (int forced = 0; forced < 2; forced++) {
        ChatFormat f = detected(t, dated, "{}", forced ? "llama3" : NULL);
        Turn all[] = {turn(ROLE_SYSTEM, " S "), turn(ROLE_USER, "Q"), turn(ROLE_ASSISTANT, "A")};
        expect_tokens(&f, t, all, 3, "",
                      "{bos}{head}system{text}\n\n" DATES "S{eot}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}",
                      "llama3.1: dates before the system text");
        expect_tokens(&f, t, all + 1, 2, "",
                      "{bos}{head}system{text}\n\n" DATES "{eot}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}",
                      "llama3.1: a system turn where the conversation has none");
        chat_free(&f);
    }
    tokenizer_free(t);
}

static void chatml_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = detected(t, kChatmlTemplate, "{}", "");
    Turn all[] = {turn(ROLE_USER, " Q "), turn(ROLE_ASSISTANT, "A"), turn(ROLE_USER, "R"), turn(ROLE_ASSISTANT, "B ")};
    expect_tokens(&f, t, all, 4, "#", "{im}user\n Q {end}\n{im}assistant\nA{end}\n{im}user\nR{end}\n{im}assistant\nB {end}",
                  "chatml: four turns, nothing trimmed, no BOS that the template has not");
    expect_tokens(&f, t, all, 3, "#", "{im}user\n Q {end}\n{im}assistant\nA{end}\n{im}user\nR{end}\n{im}assistant\n",
                  "chatml: prompt to generate from");
    chat_free(&f);
    f = detected(t, NULL, "{\"chat_template\": [{\"name\": \"tool\", \"template\": \"?\"}, {\"name\": \"default\", \"template\": "
                 "\"{{ bos_token }}{{ '<|im_start|>system\\n' + x }}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\"}], "
                 "\"bos_token\": {\"content\": \"<|end_of_text|>\"}}", NULL);
    expect_tokens(&f, t, all, 2, "", "{eos}{im}system\nBe brief.{end}\n{im}user\n Q {end}\n{im}assistant\nA{end}",
                  "chatml: the template's BOS and its system text (a list of templates, BOS as an object)");
    Turn own[] = {turn(ROLE_SYSTEM, "Mine"), turn(ROLE_USER, "Q")};
    expect_tokens(&f, t, own, 2, "", "{eos}{im}system\nMine{end}\n{im}user\nQ{end}\n{im}assistant\n",
                  "chatml: a system text of one's own");
    chat_free(&f);
    f = detected(t, "{{ '<|im_start|>system\\nNew\\'line<|im_end|>' }}", "{}", "chatml");
    ok(!f.default_system, "chatml forced on a template whose system text is no plain literal: none");
    chat_free(&f);
    tokenizer_free(t);
}

static void none_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = detected(t, NULL, "{\"eos_token\": \"<|end_of_text|>\"}", "none");
    Turn all[] = {turn(ROLE_SYSTEM, "S"), turn(ROLE_USER, "Q"), turn(ROLE_ASSISTANT, "A"), turn(ROLE_USER, "R"),
                  turn(ROLE_ASSISTANT, "B")};
    expect_tokens(&f, t, all + 1, 2, "", "{bos}QA{eos}", "none: prompt, completion, EOS");
    expect_tokens(&f, t, all, 5, "\n", "{bos}S\nQ\nA{eos}R\nB{eos}", "none: several turns with a joint");
    expect_tokens(&f, t, all + 1, 1, "", "{bos}Q", "none: prompt to generate from");
    chat_free(&f);
    tokenizer_free(t);
    t = byte_tokenizer(kBos, kEos, false);
    f = detected(t, kLlama3Template, "{}", "none");
    expect_tokens(&f, t, all + 1, 2, "", "QA{eos}", "none: no BOS of the tokenizer, EOS by its usual name");
    ok(f.bos == -1 && f.text_bos == -1 && f.text_eos == 256 + kEos, "none: the tokens around a plain text");
    chat_free(&f);
    tokenizer_free(t);
}

// ---- recognition and its errors

typedef struct {
    int first, last;   // the tokenizer's special tokens
    const char *jinja, *config, *forced, *words, *name;
} Refusal;

static void detect(void* arg) {
    const Refusal* r = (const Refusal*)arg;
    detected(byte_tokenizer(r->first, r->last, true), r->jinja, r->config, r->forced);
}

static void refusals_case(void) {
    static Refusal all[] = {
        {kBos, kImEnd, NULL, "{}", NULL, "no chat template", "no template"},
        {kBos, kImEnd, "[INST] {{ m }} [/INST]", "{}", NULL, "--chat llama3|chatml|none", "an unknown template"},
        {kBos, kImEnd, "<|start_header_id|> Cutting Knowledge Date: June 2030 <|eot_id|>", "{}", NULL, "neither",
         "dates that we do not know"},
        {kBos, kImEnd, "'<|im_start|>system\\nIt\\'s<|im_end|>'", "{}", NULL, "neither", "a system text that is no plain literal"},
        {kBos, kImEnd, "'<|im_start|>system\\nopen", "{}", NULL, "neither", "a system text without an end"},
        {kBos, kImEnd, NULL, "{}", "alpaca", "--chat alpaca: no such chat format", "an unknown name"},
        {kBos, kEos, NULL, "{}", "llama3", "no token <|start_header_id|>", "llama3 without its tokens"},
        {kBos, kEot, NULL, "{}", "chatml", "no token <|im_start|>", "chatml without its tokens"},
        {kBos, kBos, NULL, "{\"eos_token\": \"<|gone|>\"}", "none", "no eos_token", "none without EOS"},
        {kBos, kImEnd, NULL, "[]", NULL, "expected a JSON object", "a config that is a list"},
        {kBos, kImEnd, NULL, "{\"a\" 1}", NULL, "line 1, column", "a config that is no JSON"},
    };
    for (int i = 0; i < COUNT(all); i++) expect_exit(detect, &all[i], kExitUser, all[i].words, all[i].name);
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = detected(t, kChatmlTemplate, "{\"chat_template\": \"<|start_header_id|> <|eot_id|>\"}", NULL);
    ok(f.kind == CHAT_CHATML, "chat_template.jinja wins over tokenizer_config.json");
    chat_free(&f);
    f = detected(t, NULL, "{\"chat_template\": \"<|start_header_id|> <|eot_id|>\"}", NULL);
    ok(f.kind == CHAT_LLAMA3, "the template of tokenizer_config.json");
    chat_free(&f);
    tokenizer_free(t);
}

// ---- shortening

static void expect_truncated(const ChatFormat* f, const Tokenizer* t, const Turn* turns, int count, int limit, const char* want,
                             const char* name) {
    ChatTokens chat = encoded(f, t, turns, count, "\n");
    bool fits = chat_truncate(&chat, limit);
    const char* got = fits ? shown(chat.tokens.ids, NULL, chat.tokens.count) : "(does not fit)";
    same_text(got, want, name);
    if (fits) {
        const TurnSpan* last = &chat.turns[chat.turn_count - 1];
        bool tiled = last->end == chat.tokens.count && chat.tokens.count <= limit;
        for (int i = 0; i < chat.turn_count; i++) {
            const TurnSpan* s = &chat.turns[i];
            tiled = tiled && s->start <= s->content && s->content <= s->content_end && s->content_end <= s->end;
            if (i) tiled = tiled && s->start == s[-1].end;
        }
        ok(tiled, "%s: the turns still tile the tokens", name);
    }
    chat_tokens_free(&chat);
}

static void truncate_case(void) {
    Tokenizer* t = byte_tokenizer(kBos, kImEnd, true);
    ChatFormat f = detected(t, kChatmlTemplate, "{}", NULL);
    Turn all[] = {turn(ROLE_SYSTEM, "S"), turn(ROLE_USER, "one"), turn(ROLE_ASSISTANT, "ONE"), turn(ROLE_USER, "two"),
                  turn(ROLE_ASSISTANT, "TWO"), turn(ROLE_USER, "three"), turn(ROLE_ASSISTANT, "THREE")};
#define SYSTEM "{im}system\nS{end}\n"
#define TWO "{im}user\ntwo{end}\n{im}assistant\nTWO{end}\n"
#define THREE "{im}user\nthree{end}\n{im}assistant\nTHREE{end}"
    // system 11 tokens, one and two 11 + 16 each, three 13 + 17 (no newline at the end): 95
    expect_truncated(&f, t, all, 7, 95, SYSTEM "{im}user\none{end}\n{im}assistant\nONE{end}\n" TWO THREE,
                     "truncate: what fits stays");
    expect_truncated(&f, t, all, 7, 94, SYSTEM TWO THREE, "truncate: the oldest exchange goes as a whole");
    expect_truncated(&f, t, all, 7, 67, SYSTEM THREE, "truncate: then the next");
    expect_truncated(&f, t, all, 7, 39, SYSTEM "{im}user\nree{end}\n{im}assistant\nTHREE{end}",
                     "truncate: then the front of the last prompt");
    expect_truncated(&f, t, all, 7, 36, SYSTEM "{im}user\n{end}\n{im}assistant\nTHREE{end}", "truncate: all of its text");
    expect_truncated(&f, t, all, 7, 35, "(does not fit)", "truncate: never a header or the answer");
    expect_truncated(&f, t, all + 5, 2, 28, "{im}user\nree{end}\n{im}assistant\nTHREE{end}", "truncate: one exchange");
    Turn answer[] = {turn(ROLE_SYSTEM, "S"), turn(ROLE_ASSISTANT, "A")};
    expect_truncated(&f, t, answer, 2, 20, "(does not fit)", "truncate: an answer without a prompt");
    chat_free(&f);
    f = detected(t, NULL, "{}", "none");
    expect_truncated(&f, t, all + 5, 2, 10, "{bos}ee\nTHREE{eos}",
                     "truncate: plain concatenation keeps BOS and the end of the prompt");
    chat_free(&f);
    tokenizer_free(t);
}

static const Case cases[] = {
    {"chat.llama3", llama3_case}, {"chat.llama3.1", llama31_case}, {"chat.chatml", chatml_case},
    {"chat.none", none_case},     {"chat.refusals", refusals_case}, {"chat.truncate", truncate_case},
};

int main(int argc, char** argv) {
    temp_make();
    int failed = test_main(cases, COUNT(cases), argc, argv);
    temp_remove();
    return failed;
}
