// Chat templates: finding them, running them, finding the answers in what they write, and shortening conversations: see chat.h.
#include "chat.h"

#include "files.h"
#include "json.h"
#include "utf8.h"

// ---- the built-in templates. A content may be a list of text parts.

#define CONTENT(filter)                                                                                                          \
    "{%- if message['content'] is string %}{{- message['content']" filter " }}{%- elif message['content'] %}"                     \
    "{%- for part in message['content'] %}{{- part['text'] }}{%- endfor %}{%- endif %}"

// Llama 3: every turn has a header, its text is trimmed.
static const char kLlama3Start[] = "{{- bos_token }}";
static const char kLlama3Body[] =
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if dates and loop.first and message['role'] == 'system' %}{{- dates }}{%- endif %}" CONTENT(" | trim") "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";
static const char kNoDates[] = "{%- set dates = '' %}";
// Llama 3.1 and later open every conversation with a system turn that begins with two dates; the second is the template's default, so
// that training data do not depend on the day.
static const char kDateMarker[] = "Cutting Knowledge Date: December 2023";
static const char kDates[] =
    "{%- set dates = 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' %}"
    "{%- if messages | length == 0 or messages[0]['role'] != 'system' %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + dates + '<|eot_id|>' }}{%- endif %}";
// ChatML: nothing is trimmed.
static const char kChatmlBody[] =
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}" CONTENT("") "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
static const char kNoneBody[] =
    "{%- for message in messages %}" CONTENT("")
    "{%- if message['role'] == 'assistant' %}{{- eos_token }}{%- else %}{{- joint }}{%- endif %}"
    "{%- endfor %}";

// ---- finding the model's template

// The template called `name` in the chat_template of tokenizer_config.json: a string, or a list of {"name", "template"}.
static const char* configured_template(const json_t* config, const char* name) {
    const json_t* entry = json_object_get(config, "chat_template");
    if (!json_is_array(entry)) return strcmp(name, "default") ? NULL : json_string_value(entry);
    for (size_t i = 0; i < json_array_size(entry); i++) {
        const json_t* named = json_array_get(entry, i);
        const char* its_name = json_string_value(json_object_get(named, "name"));
        if (its_name && !strcmp(its_name, name)) return json_string_value(json_object_get(named, "template"));
    }
    return NULL;
}

// The text of `file`, or else of config's template `name`, or NULL. The file wins, since models that have both are newer and mean the file.
// *where becomes the name of the text's source; the caller frees both.
static char* model_template(const ModelFiles* files, const char* dir, const char* file, const json_t* config, const char* name, char** where) {
    const char* configured = configured_template(config, name);
    const ModelFile* own = model_files_get(files, file);
    *where = path_join(dir, own ? file : "tokenizer_config.json");
    return own ? host_strdup(own->text) : configured ? host_strdup(configured) : NULL;
}

// tokenizer_config.json, or an empty object where the model has none.
static json_t* config_read(const ModelFiles* files, const char* dir) {
    char* path = path_join(dir, "tokenizer_config.json");
    const ModelFile* file = model_files_get(files, "tokenizer_config.json");
    json_t* config = file ? json_parse(file->text, file->bytes, path) : json_object();
    if (!json_is_object(config)) user_error("%s: expected a JSON object", path);
    free(path);
    return config;
}

static Jinja* compiled(const char* source, const char* where) {
    JinjaError error;
    Jinja* jinja = jinja_compile(source, strlen(source), &error);
    if (!jinja)
        user_error("%s: line %d of the chat template: %s; give another with --chat FILE.jinja, or llama3, chatml or none", where,
                   error.line, printable(error.text));
    return jinja;
}

// ---- the tokens that templates name

// "<|eot_id|>" or {"content": "<|eot_id|>"}.
static const char* token_text(const json_t* value) {
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

static json_t* named_tokens(const json_t* config) {
    static const char* const names[] = {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"};
    json_t* tokens = json_object();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char* text = token_text(json_object_get(config, names[i]));
        if (text) json_object_set_new(tokens, names[i], json_string(text));
    }
    return tokens;
}

static int required_token(const Tokenizer* tokenizer, const char* content, const char* dir, const char* form) {
    int id = tokenizer_id(tokenizer, content);
    if (id < 0)
        user_error("%s/tokenizer.json: no token %s, which the chat format %s needs; choose another with --chat", dir, content, form);
    return id;
}

// EOS as tokenizer_config.json names it, else the first of the usual names that is a token, else -1.
static int eos_of(const json_t* tokens, const Tokenizer* tokenizer) {
    static const char* const names[] = {"<|end_of_text|>", "</s>", "<|endoftext|>"};
    const char* named = json_string_value(json_object_get(tokens, "eos_token"));
    int eos = named ? tokenizer_id(tokenizer, named) : -1;
    for (size_t i = 0; eos < 0 && i < sizeof names / sizeof *names; i++) eos = tokenizer_id(tokenizer, names[i]);
    return eos;
}

// The BOS that transformers' tokenizer puts before a plain text, or -1: as the post-processor says, unless add_bos_token contradicts the
// post-processor (versions of transformers differ in which of the two they follow, and *note tells the user). The Llama classes add BOS if
// neither says anything.
static int text_bos_of(const json_t* config, const json_t* tokens, const Tokenizer* tokenizer, const char** note) {
    const json_t* add = json_object_get(config, "add_bos_token");
    const char *named = json_string_value(json_object_get(tokens, "bos_token"));
    const char* class_name = json_string_value(json_object_get(config, "tokenizer_class"));
    bool llama = class_name && !strncmp(class_name, "LlamaTokenizer", 14);
    int processed = tokenizer_bos(tokenizer), bos = named ? tokenizer_id(tokenizer, named) : -1;
    if (json_is_false(add) && processed >= 0) {
        *note = "add_bos_token is false where tokenizer.json adds BOS: none is added, as newer versions of transformers do\n";
        return -1;
    }
    if (processed >= 0 || bos < 0 || !(json_is_true(add) || (llama && !json_is_false(add)))) return processed;
    *note = "tokenizer.json adds no BOS, the tokenizer's class and add_bos_token do: it is added\n";
    return bos;
}

static void set_token(json_t* tokens, const char* key, const Tokenizer* tokenizer, int id) {
    char* text = tokenizer_content(tokenizer, id);
    json_object_set_new(tokens, key, json_string(text ? text : ""));
    free(text);
}

// ---- opening a format

static char* joined(const char* a, const char* b, const char* c) {
    size_t bytes = strlen(a) + strlen(b) + strlen(c) + 1;
    char* text = (char*)host_alloc(bytes);
    snprintf(text, bytes, "%s%s%s", a, b, c);
    return text;
}

static void open_llama3(ChatFormat* f, const char* dir, const Tokenizer* tokenizer, const char* own) {
    static const char* const needed[] = {"<|start_header_id|>", "<|end_header_id|>"};
    for (int i = 0; i < 2; i++) required_token(tokenizer, needed[i], dir, "llama3");
    required_token(tokenizer, "<|begin_of_text|>", dir, "llama3");
    json_object_set_new(f->tokens, "bos_token", json_string("<|begin_of_text|>"));
    f->turn_end = required_token(tokenizer, "<|eot_id|>", dir, "llama3");
    f->source = joined(kLlama3Start, own && strstr(own, kDateMarker) ? kDates : kNoDates, kLlama3Body);
}

static void open_chatml(ChatFormat* f, const char* dir, const Tokenizer* tokenizer, const char* own) {
    required_token(tokenizer, "<|im_start|>", dir, "chatml");
    f->turn_end = required_token(tokenizer, "<|im_end|>", dir, "chatml");
    bool with_bos = own ? strstr(own, "bos_token") != NULL : f->text_bos >= 0;
    if (with_bos && !json_object_get(f->tokens, "bos_token")) set_token(f->tokens, "bos_token", tokenizer, f->text_bos);
    f->source = joined(with_bos ? kLlama3Start : "", kChatmlBody, "");
}

static void open_none(ChatFormat* f, const char* dir, const Tokenizer* tokenizer) {
    if (f->text_eos < 0) user_error("%s/tokenizer_config.json: no eos_token that tokenizer.json knows; name one there", dir);
    f->turn_end = f->text_eos;
    f->plain = true;
    set_token(f->tokens, "eos_token", tokenizer, f->text_eos);
    f->source = host_strdup(kNoneBody);
}

// The token that ends an answer, found by rendering a conversation of two turns; -1 if the template writes none.
static int shown_turn_end(const ChatFormat* f, const Tokenizer* tokenizer) {
    json_t* messages = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "user", "content", "a", "role", "assistant", "content", "b");
    unsigned char trained[2] = {0, 1};
    Conversation c = {messages, NULL, trained, ""};
    ChatTokens out;
    memset(&out, 0, sizeof out);
    int end = -1;
    if (chat_encode(f, tokenizer, &c, &out) && out.answer_count) {
        const ChatAnswer* a = &out.answers[out.answer_count - 1];
        int last = a->last > a->first ? out.tokens.ids[a->last - 1] : -1;
        if (tokenizer_is_special(tokenizer, last)) end = last;
    }
    chat_tokens_free(&out);
    json_decref(messages);
    return end;
}

static bool is_built_in(const char* form) { return !strcmp(form, "llama3") || !strcmp(form, "chatml") || !strcmp(form, "none"); }

// Opens the template in the file `form`, or the model's own.
static void open_template(ChatFormat* f, const ModelFiles* files, const char* dir, const json_t* config, const char* form, char** own, char** where) {
    if (strcmp(form, "auto")) {
        if (!path_exists(form) || !has_ending(form, ".jinja"))
            user_error("--chat %s: no such chat format; it is auto, llama3, chatml, none or the path of a .jinja file", form);
        f->source = file_read(form, NULL);
        f->name = host_strdup(form);
        return;
    }
    if (!*own)
        user_error("%s: no chat template in chat_template.jinja or tokenizer_config.json; choose one with --chat "
                   "llama3|chatml|none (none for a base model)", dir);
    f->source = host_strdup(*own);
    f->name = host_strdup(*where);
    char *tool_where, *tool = model_template(files, dir, "additional_chat_templates/tool_use.jinja", config, "tool_use", &tool_where);
    if (tool) f->tool_jinja = compiled(tool, tool_where);
    free(tool);
    free(tool_where);
}

ChatFormat chat_open(const char* dir, const Tokenizer* tokenizer, const ChatOptions* options) {
    ModelFiles* files = model_files_from_dirs(NULL, dir);
    ChatFormat format = chat_open_in(files, dir, tokenizer, options);
    model_files_free(files);
    return format;
}

char* chat_template_text(const ModelFiles* files, const char* dir) {
    json_t* config = config_read(files, dir);
    char *where, *text = model_template(files, dir, "chat_template.jinja", config, "default", &where);
    free(where);
    json_decref(config);
    return text;
}

ChatFormat chat_open_in(const ModelFiles* files, const char* dir, const Tokenizer* tokenizer, const ChatOptions* options) {
    const char* form = options->form && *options->form ? options->form : "auto";
    json_t* config = config_read(files, dir);
    char *where, *own = model_template(files, dir, "chat_template.jinja", config, "default", &where);
    ChatFormat f;
    memset(&f, 0, sizeof f);
    f.tokens = named_tokens(config);
    f.text_bos = text_bos_of(config, f.tokens, tokenizer, &f.note);
    f.text_eos = eos_of(f.tokens, tokenizer);
    f.date = options->date && *options->date ? host_strdup(options->date) : NULL;
    f.specials = options->specials;
    f.built_in = is_built_in(form);
    if (!f.built_in) open_template(&f, files, dir, config, form, &own, &where);
    else if (!strcmp(form, "llama3")) open_llama3(&f, dir, tokenizer, own);
    else if (!strcmp(form, "chatml")) open_chatml(&f, dir, tokenizer, own);
    else open_none(&f, dir, tokenizer);
    if (!f.name) f.name = host_strdup(form);
    f.jinja = compiled(f.source, f.name);
    if (!f.built_in) f.turn_end = shown_turn_end(&f, tokenizer);
    if (f.text_eos < 0) f.text_eos = f.turn_end;
    free(own);
    free(where);
    json_decref(config);
    return f;
}

void chat_free(ChatFormat* f) {
    jinja_free(f->jinja);
    if (f->tool_jinja) jinja_free(f->tool_jinja);
    json_decref(f->tokens);
    free(f->name);
    free(f->source);
    free(f->date);
    memset(f, 0, sizeof *f);
}

// ---- rendering

static bool render(const ChatFormat* f, const Conversation* c, size_t count, bool generation_prompt, JinjaOutput* out,
                   JinjaError* error) {
    static const char* const data_names[] = {"messages", "tools", NULL};
    const Jinja* jinja = c->tools && f->tool_jinja ? f->tool_jinja : f->jinja;
    json_t* context = json_copy(f->tokens);
    json_t* messages = c->messages;
    if (count < json_array_size(messages)) {
        messages = json_array();
        for (size_t i = 0; i < count; i++) json_array_append(messages, json_array_get(c->messages, i));
        json_object_set_new(context, "messages", messages);
    } else {
        json_object_set(context, "messages", messages);
    }
    if (c->tools) json_object_set(context, "tools", c->tools);
    json_object_set_new(context, "add_generation_prompt", json_boolean(generation_prompt));
    if (f->plain) json_object_set_new(context, "joint", json_string(c->joint));
    bool done = jinja_render(jinja, context, data_names, f->date, out, error);
    json_decref(context);
    if (!done && !f->date && strstr(error->text, "strftime_now") && strlen(error->text) + 64 < sizeof error->text)
        strcat(error->text, "; the template asks for the day: give it with --date YYYY-MM-DD");
    return done;
}

// The number of bytes that are the same at the beginning of both, in value and in origin (data or template).
static size_t common_bytes(const JinjaOutput* a, const JinjaOutput* b) {
    size_t n = a->bytes < b->bytes ? a->bytes : b->bytes, i = 0;
    if (!memcmp(a->text, b->text, n) && !memcmp(a->from_data, b->from_data, n)) return n;
    while (i < n && a->text[i] == b->text[i] && a->from_data[i] == b->from_data[i]) i++;
    return i;
}

// ---- finding the answers

// The last of the control tokens that the template wrote in bytes [from, to): its id and its end; `times`: how many tokens there have this
// id; `all`: how many there are of any id.
typedef struct {
    int id, times;
    size_t end;
    int all;
} LastToken;

static LastToken last_token(const Tokenizer* tokenizer, const JinjaOutput* text, size_t from, size_t to) {
    LastToken last = {-1, 0, to, 0};
    size_t begin, end;
    int id;
    for (size_t at = from; (id = tokenizer_next_special(tokenizer, text->text, text->from_data, to, at, &begin, &end)) >= 0; at = end) {
        last.id = id;
        last.end = end;
        last.all++;
    }
    for (size_t at = from; (id = tokenizer_next_special(tokenizer, text->text, text->from_data, to, at, &begin, &end)) >= 0; at = end)
        last.times += id == last.id;
    return last;
}

// The end of the token that corresponds to `last` in another rendering, searched from byte `from` on: the last->times-th token of its id,
// or the last->all-th control token, whichever comes first (a template may leave out the thought before an earlier answer, or end that
// answer by another token). 0: neither is there.
static size_t same_end(const Tokenizer* tokenizer, const JinjaOutput* text, size_t from, const LastToken* last) {
    size_t begin, end;
    int times = 0, all = 0;
    for (int id; (id = tokenizer_next_special(tokenizer, text->text, text->from_data, text->bytes, from, &begin, &end)) >= 0; from = end) {
        times += id == last->id;
        all++;
        if ((id == last->id && times == last->times) || all == last->all) return end;
    }
    return 0;
}

static bool is_assistant(const json_t* messages, size_t i) {
    const char* role = json_string_value(json_object_get(json_array_get(messages, i), "role"));
    return role && !strcmp(role, "assistant");
}

static ChatAnswer* add_answer(ChatTokens* out, int message, bool trained, size_t begin, size_t end) {
    ChatAnswer answer = {message, trained, begin, end, 0, 0};
    out->answers[out->answer_count] = answer;
    return &out->answers[out->answer_count++];
}

// Is the rest of `bare` (the prompt without generation prompt) from byte `from` on, where it begins to differ from the whole rendering,
// no more than a template may put around the last message: none of the user's bytes, and at most one control token?
static bool differs_in_template(const Tokenizer* tokenizer, const JinjaOutput* bare, size_t from) {
    if (from >= bare->bytes) return true;
    return !memchr(bare->from_data + from, 1, bare->bytes - from) && last_token(tokenizer, bare, from, bare->bytes).all <= 1;
}

// The end of the generation prompt (the bytes that `prompt` has behind `bare`) in the whole text, at or behind `from` and before any of
// the user's bytes; 0 if the generation prompt is not there.
static size_t after_generation_prompt(const JinjaOutput* prompt, const JinjaOutput* bare, const JinjaOutput* text, size_t from) {
    if (common_bytes(prompt, bare) < bare->bytes || prompt->bytes == bare->bytes) return 0;
    size_t bytes = prompt->bytes - bare->bytes;
    for (size_t at = from; at + bytes <= text->bytes && !text->from_data[at]; at++)
        if (!memcmp(text->text + at, prompt->text + bare->bytes, bytes)) return at + bytes;
    return 0;
}

// Finds answer i in the whole rendering: *found, and its bytes [*begin, *end). False and out->error if the template fails.
static bool find_answer(const ChatFormat* f, const Tokenizer* tokenizer, const Conversation* c, size_t i, ChatTokens* out, bool* found,
                        size_t* begin, size_t* end) {
    const JinjaOutput *text = &out->text, *upto = &out->part;
    *found = false;
    bool refused = !render(f, c, i, true, &out->prompt, &out->error), parted = false;
    if (refused) {   // many templates refuse an empty prompt: an answer that is the first message still follows the generation prompt
        if (i > 0 || !render(f, c, 1, true, &out->prompt, &out->error) || !render(f, c, 1, false, &out->part, &out->error)) return false;
        *begin = after_generation_prompt(&out->prompt, &out->part, text, 0);
        if (*begin == 0) return true;
    } else {
        *begin = common_bytes(&out->prompt, text);
        parted = out->last_parted = *begin < out->prompt.bytes;
    }
    if (parted) {
        if (!render(f, c, i, false, &out->part, &out->error)) return false;
        if (!differs_in_template(tokenizer, &out->part, *begin)) return true;
        size_t behind_prompt = after_generation_prompt(&out->prompt, &out->part, text, *begin);
        parted = behind_prompt == 0;
        if (behind_prompt) *begin = behind_prompt;
    }
    if (i + 1 == json_array_size(c->messages)) {
        *end = last_token(tokenizer, text, *begin, text->bytes).end;
    } else {
        if (!render(f, c, i + 1, false, &out->part, &out->error)) return false;
        size_t own_begin = refused ? *begin : common_bytes(&out->prompt, upto);
        LastToken last = last_token(tokenizer, upto, own_begin, upto->bytes);
        if (common_bytes(upto, text) == upto->bytes) *end = last.end;
        else if (last.id < 0) return true;
        else *end = same_end(tokenizer, text, *begin, &last);
    }
    size_t behind = out->answer_count ? out->answers[out->answer_count - 1].end : 0;
    *found = *begin >= behind && *end > *begin;
    out->parted += *found && parted;
    return true;
}

// Finds the answers by rendering the prompts before them.
static bool find_answers(const ChatFormat* f, const Tokenizer* tokenizer, const Conversation* c, ChatTokens* out) {
    size_t count = json_array_size(c->messages), last = count;
    while (last > 0 && !is_assistant(c->messages, last - 1)) last--;
    for (size_t i = 0; i < last; i++) {
        bool found;
        size_t begin, end;
        if (!is_assistant(c->messages, i) || (!c->trained[i] && i + 1 < last)) continue;
        if (!find_answer(f, tokenizer, c, i, out, &found, &begin, &end)) return false;
        if (found) add_answer(out, (int)i, c->trained[i], begin, end);
        else out->lost += c->trained[i];
    }
    return true;
}

// Takes the template's {% generation %} blocks as answers. If there is one for each assistant's message, a block is trained as its message is.
static void take_blocks(const Conversation* c, ChatTokens* out) {
    int count = (int)json_array_size(c->messages), assistants = 0, message = -1;
    for (int i = 0; i < count; i++) assistants += is_assistant(c->messages, (size_t)i);
    for (int b = 0; b < out->text.generations; b++) {
        const JinjaSpan* span = &out->text.generation[b];
        bool one_each = assistants == out->text.generations;
        if (one_each)
            while (!is_assistant(c->messages, (size_t)++message)) {}
        if (span->end > span->begin) add_answer(out, message, one_each ? c->trained[message] != 0 : true, span->begin, span->end);
    }
}

// ---- encoding

static void encode(const ChatFormat* f, const Tokenizer* tokenizer, ChatTokens* out) {
    JinjaOutput* text = &out->text;
    int cuts = 2 * out->answer_count;
    size_t* cut = (size_t*)host_alloc((size_t)(cuts + 1) * sizeof(size_t));
    int* at = (int*)host_alloc((size_t)(cuts + 1) * sizeof(int));
    for (int i = 0; i < out->answer_count; i++) {
        const ChatAnswer* a = &out->answers[i];
        cut[2 * i] = a->begin;
        cut[2 * i + 1] = a->end;
        if (f->specials == SPECIALS_ANSWERS) memset(text->from_data + a->begin, 0, a->end - a->begin);
    }
    if (f->plain && f->text_bos >= 0) token_list_push(&out->tokens, f->text_bos);
    MarkedText marked = {text->text, text->bytes, f->specials == SPECIALS_ALL ? NULL : text->from_data, cut, cuts};
    out->kept = tokenizer_encode_marked(tokenizer, &marked, at, &out->tokens);
    for (int i = 0; i < out->answer_count; i++) {
        out->answers[i].first = at[2 * i];
        out->answers[i].last = at[2 * i + 1];
    }
    if (out->last_parted && out->answer_count) {
        MarkedText prompt = {out->prompt.text, out->prompt.bytes, f->specials == SPECIALS_ALL ? NULL : out->prompt.from_data, NULL, 0};
        tokenizer_encode_marked(tokenizer, &prompt, NULL, &out->prompt_tokens);
    }
    free(cut);
    free(at);
}

bool chat_encode(const ChatFormat* f, const Tokenizer* tokenizer, const Conversation* c, ChatTokens* out) {
    size_t count = json_array_size(c->messages);
    out->tokens.count = out->prompt_tokens.count = out->answer_count = out->lost = out->parted = out->kept = 0;
    out->last_parted = false;
    if (!render(f, c, count, false, &out->text, &out->error)) return false;
    size_t room = count > (size_t)out->text.generations ? count : (size_t)out->text.generations;
    out->answers = (ChatAnswer*)host_grow(out->answers, (room + 1) * sizeof(ChatAnswer));
    if (out->text.generations) take_blocks(c, out);
    else if (!find_answers(f, tokenizer, c, out)) return false;
    encode(f, tokenizer, out);
    return true;
}

int chat_used_tokens(const ChatTokens* chat) {
    return chat->answer_count ? chat->answers[chat->answer_count - 1].last : chat->tokens.count;
}

bool chat_prompt_after(const ChatFormat* f, const Tokenizer* tokenizer, json_t* messages, TokenList* out, JinjaError* error) {
    Conversation c = {messages, NULL, NULL, ""};
    JinjaOutput rendered;
    memset(&rendered, 0, sizeof rendered);
    bool fine = render(f, &c, (int)json_array_size(messages), true, &rendered, error);
    if (fine && f->plain && f->text_bos >= 0) token_list_push(out, f->text_bos);
    MarkedText marked = {rendered.text, rendered.bytes, f->specials == SPECIALS_ALL ? NULL : rendered.from_data, NULL, 0};
    if (fine) tokenizer_encode_marked(tokenizer, &marked, NULL, out);
    jinja_output_free(&rendered);
    return fine;
}

void chat_prompt(const ChatFormat* f, const Tokenizer* tokenizer, const char* text, TokenList* out) {
    json_t* messages = json_pack("[{s:s, s:s}]", "role", "user", "content", text);
    JinjaError error;
    if (!messages) user_error("the prompt is not valid UTF-8");
    if (!chat_prompt_after(f, tokenizer, messages, out, &error))
        user_error("%s: line %d of the chat template: %s", f->name, error.line, printable(error.text));
    json_decref(messages);
}

// ---- shortening

typedef struct {
    const ChatFormat* format;
    const Tokenizer* tokenizer;
    int limit;
    ChatTokens* out;
} Fitting;

static bool fits_within(const Fitting* f, const Conversation* c) {
    return chat_encode(f->format, f->tokenizer, c, f->out) && chat_used_tokens(f->out) <= f->limit;
}

// The conversation without messages [first, keep); the caller releases its list.
static Conversation without(const Conversation* c, size_t first, size_t keep, unsigned char* trained) {
    Conversation rest = *c;
    rest.messages = json_array();
    rest.trained = trained;
    for (size_t i = 0; i < json_array_size(c->messages); i++) {
        if (i >= first && i < keep) continue;
        trained[json_array_size(rest.messages)] = c->trained[i];
        json_array_append(rest.messages, json_array_get(c->messages, i));
    }
    return rest;
}

// Cuts as few characters as necessary from the front of message `at`, and leaves the shortened conversation encoded. False if even cutting
// all of them is not enough.
static bool cut_front(const Fitting* f, Conversation* c, size_t at) {
    const json_t* content = json_object_get(json_array_get(c->messages, at), "content");
    if (!json_is_string(content)) return false;
    size_t bytes = json_string_length(content), low = 0, high = bytes;   // bisection: if any cut is enough, a cut of `high` bytes is
    char* text = (char*)host_alloc(bytes + 1);
    memcpy(text, json_string_value(content), bytes);
    json_t* message = json_copy(json_array_get(c->messages, at));
    json_array_set_new(c->messages, at, message);
    json_object_set_new(message, "content", json_string(""));
    bool fits = fits_within(f, c);
    while (fits && low < high) {
        size_t middle = low + (high - low) / 2;
        while (middle > low && ((unsigned char)text[middle] & 0xc0) == 0x80) middle--;
        json_object_set_new(message, "content", json_stringn(text + middle, bytes - middle));
        if (fits_within(f, c)) high = middle;
        else low = middle + max_int(1, utf8_char_bytes(text + middle, bytes - middle));
        if (low > high) low = high;
    }
    if (fits) {
        json_object_set_new(message, "content", json_stringn(text + high, bytes - high));
        fits = fits_within(f, c);
    }
    free(text);
    return fits;
}

static bool shorten(const Fitting* f, const Conversation* c) {
    const json_t* messages = c->messages;
    size_t count = json_array_size(messages), last = count;
    while (last > 0 && !is_assistant(messages, last - 1)) last--;
    const char* role = json_string_value(json_object_get(json_array_get(messages, 0), "role"));
    size_t first = role && !strcmp(role, "system") ? 1 : 0;
    if (last < first + 2) return false;   // nothing stands before the last answer
    size_t prompt = last - 2, keep = first;
    unsigned char* trained = (unsigned char*)host_alloc(count);
    Conversation rest = without(c, first, first, trained);
    bool fits = false;
    while (!fits && keep < prompt) {
        do keep++;   // whole exchanges: an answer never stays without its question
        while (keep < prompt && !(is_assistant(messages, keep - 1) && !is_assistant(messages, keep)));
        json_decref(rest.messages);
        rest = without(c, first, keep, trained);
        fits = fits_within(f, &rest);
    }
    if (!fits) fits = cut_front(f, &rest, first + prompt - keep);
    json_decref(rest.messages);
    free(trained);
    return fits;
}

bool chat_encode_within(const ChatFormat* f, const Tokenizer* tokenizer, const Conversation* c, int limit, ChatTokens* out, bool* fits,
                        bool* shortened) {
    *shortened = false;
    *fits = true;
    if (!chat_encode(f, tokenizer, c, out)) return false;
    if (chat_used_tokens(out) <= limit) return true;
    Fitting fitting = {f, tokenizer, limit, out};
    *fits = shorten(&fitting, c);
    *shortened = *fits;
    return true;
}

void chat_tokens_free(ChatTokens* chat) {
    jinja_output_free(&chat->text);
    jinja_output_free(&chat->prompt);
    jinja_output_free(&chat->part);
    token_list_free(&chat->tokens);
    token_list_free(&chat->prompt_tokens);
    free(chat->answers);
    memset(chat, 0, sizeof *chat);
}
