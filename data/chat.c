// Chat templates: recognising them, encoding conversations, and shortening those that are too long.
#include "chat.h"

#include "files.h"
#include "json.h"

// What the templates of Llama 3.1 and later put at the head of the system turn. Some of them ask the clock where Jinja can;
// we always take their default date, so that training data do not depend on the day.
static const char kDateLines[] = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
static const char kDateMarker[] = "Cutting Knowledge Date: December 2023";
static const char kDateDefault[] = "26 Jul 2024";

static const char* const kChatNames[] = {"llama3", "chatml", "none"};
static const char* const kRoleNames[] = {"system", "user", "assistant"};

const char* chat_name(ChatKind kind) { return kChatNames[kind]; }

// ---- recognising a template

// The chat_template of tokenizer_config.json is a string, or a list of {"name", "template"} of which "default" counts.
static const char* template_of(json_t* config) {
    json_t* entry = json_object_get(config, "chat_template");
    if (!json_is_array(entry)) return json_string_value(entry);
    size_t i;
    json_t* named;
    json_array_foreach(entry, i, named) {
        const char* name = json_string_value(json_object_get(named, "name"));
        if (name && !strcmp(name, "default")) return json_string_value(json_object_get(named, "template"));
    }
    return NULL;
}

// The template's text, or NULL; the caller frees it. The file is the newer home and wins.
static char* template_read(const ModelFiles* files, json_t* config) {
    const ModelFile* own = model_files_get(files, "chat_template.jinja");
    const char* text = own ? own->text : template_of(config);
    return text ? host_strdup(text) : NULL;
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

// The id of config's `key` ("<|eot_id|>" or {"content": "<|eot_id|>"}), or -1.
static int config_token(json_t* config, const char* key, const Tokenizer* tokenizer) {
    json_t* value = json_object_get(config, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    return json_is_string(value) ? tokenizer_id(tokenizer, json_string_value(value)) : -1;
}

// A ChatML template may carry a system text for conversations without one, as a literal: <|im_start|>system\nTEXT<|im_end|>
// with the newline itself or as Jinja's "\n". Sets *text (NULL if there is none); false if it is no plain literal.
static bool default_system_of(const char* chat_template, char** text) {
    static const char head[] = "<|im_start|>system";
    *text = NULL;
    for (const char* at = strstr(chat_template, head); at; at = strstr(at, head)) {
        at += sizeof head - 1;
        if (*at == '\n') at += 1;
        else if (!strncmp(at, "\\n", 2)) at += 2;
        else continue;
        if (*at == '\'' || *at == '"') continue;   // the literal ends here: a conversation's own text follows
        const char* end = strstr(at, "<|im_end|>");
        size_t bytes = end ? (size_t)(end - at) : 0;
        if (!end || strcspn(at, "'\"\\{}") < bytes) return false;
        *text = (char*)host_alloc(bytes + 1);
        memcpy(*text, at, bytes);
        return true;
    }
    return true;
}

static bool is_llama3(const char* chat_template) {
    bool dated = strstr(chat_template, "Cutting Knowledge Date") != NULL;
    return strstr(chat_template, "<|start_header_id|>") && strstr(chat_template, "<|eot_id|>") &&
           (!dated || (strstr(chat_template, kDateMarker) && strstr(chat_template, kDateDefault)));
}

static ChatKind kind_of(const char* dir, const char* chat_template, const char* forced_name) {
    if (forced_name && *forced_name) {
        for (int kind = CHAT_LLAMA3; kind <= CHAT_NONE; kind++)
            if (!strcmp(forced_name, kChatNames[kind])) return (ChatKind)kind;
        user_error("--chat %s: no such chat format; it is llama3, chatml or none", forced_name);
    }
    if (!chat_template)
        user_error("%s: no chat template in chat_template.jinja or tokenizer_config.json; choose one with --chat "
                   "llama3|chatml|none (none for a base model)", dir);
    char* system_text = NULL;
    if (is_llama3(chat_template)) return CHAT_LLAMA3;
    bool chatml = strstr(chat_template, "<|im_start|>") && strstr(chat_template, "<|im_end|>") &&
                  default_system_of(chat_template, &system_text);
    free(system_text);
    if (!chatml)
        user_error("%s: this chat template is neither Llama-3's nor ChatML; choose the form to train with --chat "
                   "llama3|chatml|none", dir);
    return CHAT_CHATML;
}

// ---- the format's tokens

static int required_token(const Tokenizer* tokenizer, const char* content, const char* dir, ChatKind kind) {
    int id = tokenizer_id(tokenizer, content);
    if (id < 0)
        user_error("%s/tokenizer.json: no token %s, which the chat format %s needs; choose another with --chat", dir, content,
                   kChatNames[kind]);
    return id;
}

// The token that the tokenizer's post-processor puts before a text, or -1.
static int post_processor_bos(const Tokenizer* tokenizer) {
    TokenList around = {NULL, 0, 0};
    tokenizer_encode(tokenizer, "x", 1, kEncodeTemplate, &around);
    int bos = around.count && tokenizer_is_special(tokenizer, around.ids[0]) ? around.ids[0] : -1;
    token_list_free(&around);
    return bos;
}

// EOS as tokenizer_config.json names it, else by the names that are in use, else -1.
static int eos_of(json_t* config, const Tokenizer* tokenizer) {
    static const char* const names[] = {"<|end_of_text|>", "</s>", "<|endoftext|>"};
    int eos = config_token(config, "eos_token", tokenizer);
    for (size_t i = 0; eos < 0 && i < sizeof names / sizeof *names; i++) eos = tokenizer_id(tokenizer, names[i]);
    return eos;
}

ChatFormat chat_detect(const char* dir, const Tokenizer* tokenizer, const char* forced_name) {
    ModelFiles* files = model_files_from_dirs(NULL, dir);
    ChatFormat format = chat_detect_in(files, dir, tokenizer, forced_name);
    model_files_free(files);
    return format;
}

ChatFormat chat_detect_in(const ModelFiles* files, const char* dir, const Tokenizer* tokenizer, const char* forced_name) {
    json_t* config = config_read(files, dir);
    char* chat_template = template_read(files, config);
    ChatFormat f;
    memset(&f, 0, sizeof f);
    f.kind = kind_of(dir, chat_template, forced_name);
    f.bos = f.text_bos = post_processor_bos(tokenizer);
    f.text_eos = eos_of(config, tokenizer);
    f.turn_start = f.header_end = -1;
    switch (f.kind) {
        case CHAT_LLAMA3:
            f.date_block = chat_template && strstr(chat_template, kDateMarker);
            f.bos = required_token(tokenizer, "<|begin_of_text|>", dir, f.kind);
            f.turn_start = required_token(tokenizer, "<|start_header_id|>", dir, f.kind);
            f.header_end = required_token(tokenizer, "<|end_header_id|>", dir, f.kind);
            f.turn_end = required_token(tokenizer, "<|eot_id|>", dir, f.kind);
            break;
        case CHAT_CHATML:
            if (chat_template) {
                f.bos = strstr(chat_template, "bos_token") ? config_token(config, "bos_token", tokenizer) : -1;
                default_system_of(chat_template, &f.default_system);
            }
            f.turn_start = required_token(tokenizer, "<|im_start|>", dir, f.kind);
            f.turn_end = required_token(tokenizer, "<|im_end|>", dir, f.kind);
            break;
        case CHAT_NONE:
            if (f.text_eos < 0)
                user_error("%s/tokenizer_config.json: no eos_token that tokenizer.json knows; name one there", dir);
            f.turn_end = f.text_eos;
            break;
    }
    if (f.text_eos < 0) f.text_eos = f.turn_end;
    free(chat_template);
    json_decref(config);
    return f;
}

char* chat_template_text(const ModelFiles* files, const char* where) {
    json_t* config = config_read(files, where);
    char* text = template_read(files, config);
    json_decref(config);
    return text;
}

void chat_free(ChatFormat* format) {
    free(format->default_system);
    format->default_system = NULL;
}

// ---- encoding

// Bytes of the white-space character that the `bytes` bytes at p start with; 0 if it is another. The set is that of Python's
// str.strip, which the templates' trim uses.
static size_t space_bytes(const char* p, size_t bytes) {
    static const char* const wide[] = {
        "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82", "\xe2\x80\x83",
        "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a",
        "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80",
    };
    if (*p == ' ' || (*p >= '\t' && *p <= '\r') || (*p >= 0x1c && *p <= 0x1f)) return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
        size_t n = strlen(wide[i]);
        if (n <= bytes && !memcmp(p, wide[i], n)) return n;
    }
    return 0;
}

static size_t last_space_bytes(const char* p, size_t bytes) {
    for (size_t n = 1; n <= 3 && n <= bytes; n++)
        if (space_bytes(p + bytes - n, n) == n) return n;
    return 0;
}

static void trim(const char** text, size_t* bytes) {
    size_t n;
    while (*bytes && (n = space_bytes(*text, *bytes))) *text += n, *bytes -= n;
    while (*bytes && (n = last_space_bytes(*text, *bytes))) *bytes -= n;
}

static void encode_text(const Tokenizer* tokenizer, const char* text, ChatTokens* out) {
    tokenizer_encode(tokenizer, text, strlen(text), kEncodePlain, &out->tokens);
}

static TurnSpan* open_turn(const ChatFormat* f, const Tokenizer* tokenizer, Role role, ChatTokens* out) {
    TurnSpan* span = &out->turns[out->turn_count++];
    span->role = role;
    span->start = out->tokens.count;
    if (f->kind != CHAT_NONE) {
        token_list_push(&out->tokens, f->turn_start);
        encode_text(tokenizer, kRoleNames[role], out);
        if (f->kind == CHAT_LLAMA3) token_list_push(&out->tokens, f->header_end);
        encode_text(tokenizer, f->kind == CHAT_LLAMA3 ? "\n\n" : "\n", out);
    }
    span->content = span->content_end = span->end = out->tokens.count;
    return span;
}

static void encode_turn(const ChatFormat* f, const Tokenizer* tokenizer, Role role, const char* text, size_t bytes,
                        const char* joint, ChatTokens* out) {
    TurnSpan* span = open_turn(f, tokenizer, role, out);
    if (f->kind == CHAT_LLAMA3) trim(&text, &bytes);
    if (f->date_block && role == ROLE_SYSTEM) encode_text(tokenizer, kDateLines, out);
    // `none` is one text, whatever its pieces: only the first of them begins it.
    bool continues = f->kind == CHAT_NONE && out->turn_count > 1;
    int flags = continues ? kEncodeContinue : kEncodePlain;
    if (f->kind == CHAT_NONE && role != ROLE_ASSISTANT && *joint) {
        // In one piece, since the joint may be one token with the end of the text ("?\n" is, for Llama 3).
        size_t joint_bytes = strlen(joint);
        char* joined = (char*)host_alloc(bytes + joint_bytes);
        memcpy(joined, text, bytes);
        memcpy(joined + bytes, joint, joint_bytes);
        tokenizer_encode(tokenizer, joined, bytes + joint_bytes, flags, &out->tokens);
        free(joined);
    } else {
        tokenizer_encode(tokenizer, text, bytes, flags, &out->tokens);
    }
    span->content_end = out->tokens.count;
    if (f->kind != CHAT_NONE || role == ROLE_ASSISTANT) token_list_push(&out->tokens, f->turn_end);
    span->end = out->tokens.count;
}

// ChatML's newline between turns belongs to the turn before it; behind the last one there is nothing to learn from it.
static void end_line(const ChatFormat* f, const Tokenizer* tokenizer, ChatTokens* out) {
    if (f->kind != CHAT_CHATML || out->turn_count == 0) return;
    encode_text(tokenizer, "\n", out);
    out->turns[out->turn_count - 1].end = out->tokens.count;
}

void chat_encode(const ChatFormat* f, const Tokenizer* tokenizer, const Turn* turns, int count, const char* joint,
                 ChatTokens* out) {
    check(out->tokens.count == 0 && out->turn_count == 0, "chat_encode: the output already holds a conversation");
    out->turns = (TurnSpan*)host_grow(out->turns, ((size_t)count + 2) * sizeof(TurnSpan));
    if (f->bos >= 0) token_list_push(&out->tokens, f->bos);
    if (count == 0 || turns[0].role != ROLE_SYSTEM) {
        const char* text = f->default_system ? f->default_system : "";
        if (f->date_block || f->default_system) encode_turn(f, tokenizer, ROLE_SYSTEM, text, strlen(text), joint, out);
    }
    for (int i = 0; i < count; i++) {
        check(i == 0 || turns[i].role != ROLE_SYSTEM, "chat_encode: turn %d of %d is a system turn", i, count);
        end_line(f, tokenizer, out);
        encode_turn(f, tokenizer, turns[i].role, turns[i].text, turns[i].bytes, joint, out);
    }
    if (count == 0 || turns[count - 1].role != ROLE_ASSISTANT) {
        end_line(f, tokenizer, out);
        open_turn(f, tokenizer, ROLE_ASSISTANT, out);
    }
}

// ---- shortening

static void remove_tokens(ChatTokens* chat, int from, int to) {
    memmove(chat->tokens.ids + from, chat->tokens.ids + to, (size_t)(chat->tokens.count - to) * sizeof(int));
    chat->tokens.count -= to - from;
    for (int i = 0; i < chat->turn_count; i++) {
        TurnSpan* s = &chat->turns[i];
        int* edges[] = {&s->start, &s->content, &s->content_end, &s->end};
        for (int e = 0; e < 4; e++)
            if (*edges[e] > from) *edges[e] = *edges[e] >= to ? *edges[e] - (to - from) : from;
    }
}

bool chat_truncate(ChatTokens* chat, int limit) {
    int first = chat->turns[0].role == ROLE_SYSTEM, prompt = chat->turn_count - 2, keep = first;
    int removed = 0, excess = chat->tokens.count - limit;
    if (excess <= 0) return true;
    if (prompt < first) return false;
    // Whole turns before the last prompt; an answer never stays without its question.
    while (keep < prompt && (removed < excess || chat->turns[keep].role == ROLE_ASSISTANT)) {
        removed += chat->turns[keep].end - chat->turns[keep].start;
        keep++;
    }
    int cut = max_int(excess - removed, 0);
    if (cut > chat->turns[prompt].content_end - chat->turns[prompt].content) return false;
    remove_tokens(chat, chat->turns[prompt].content, chat->turns[prompt].content + cut);
    remove_tokens(chat, chat->turns[first].start, chat->turns[keep].start);
    memmove(chat->turns + first, chat->turns + keep, (size_t)(chat->turn_count - keep) * sizeof(TurnSpan));
    chat->turn_count -= keep - first;
    return true;
}

void chat_tokens_free(ChatTokens* chat) {
    token_list_free(&chat->tokens);
    free(chat->turns);
    memset(chat, 0, sizeof *chat);
}
