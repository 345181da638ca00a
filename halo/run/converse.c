// A conversation on a terminal; see converse.h.
#include "converse.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "../../data/json.h"
#include "clock.h"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static void catch_interrupts(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    interrupted = 0;
}

typedef struct {
    const Session* s;
    Model* model;
    Decoding d;
    int stop[kMaxEos + 1];
    bool plain;          // no template: the conversation is one text
    json_t* messages;    // of the conversation so far; plain: one, with the whole text
    json_t* system;      // its text, or NULL
    DecodeStream stream; // of the answer under way
    Text answer;         // of it, complete characters
    int tokens;          // of it
} Talk;

// ---- one answer

static void print_from(const Talk* t, size_t from) {
    if (t->answer.bytes > from) fwrite(t->answer.data + from, 1, t->answer.bytes - from, stdout);
    fflush(stdout);
}

static void take_token(void* context, int prompt, int token) {
    (void)prompt;
    Talk* t = (Talk*)context;
    size_t before = t->answer.bytes;
    t->tokens++;
    tokenizer_decode_next(t->s->tokenizer, &t->stream, token, true, &t->answer);
    print_from(t, before);
}

// A character that was cut short is left out: it is no text.
static void end_answer(void* context, int prompt) {
    (void)prompt;
    Talk* t = (Talk*)context;
    t->stream.pending_bytes = 0;
}

// The messages with the system's text, as the template wants them; the caller releases the list.
static json_t* all_messages(const Talk* t) {
    json_t* all = json_array();
    if (t->system) json_array_append_new(all, json_pack("{s:s, s:O}", "role", "system", "content", t->system));
    json_array_extend(all, t->messages);
    return all;
}

static bool encode_prompt(const Talk* t, TokenList* list) {
    json_t* all = all_messages(t);
    JinjaError error;
    list->count = 0;
    bool fine = chat_prompt_after(&t->s->chat, t->s->tokenizer, all, list, &error);
    if (!fine) printf("(%s: line %d of the chat template: %s)\n", t->s->chat.name, error.line, printable(error.text));
    else if (!list->count) puts("(nothing to go on from: write something)");
    json_decref(all);
    return fine && list->count;
}

// The prompt of the conversation so far, shortened by its oldest exchanges until an answer has room. False, and said, if there is none.
static bool make_prompt(Talk* t, TokenList* list) {
    int positions = t->d.positions, room = positions - min_int(t->d.max_tokens, positions / 4), dropped = 0;
    for (;;) {
        if (!encode_prompt(t, list)) return false;
        if (list->count < room) break;
        if (json_array_size(t->messages) < 3) {
            printf("(%d tokens, and the model has room for %d: /reset begins anew)\n", list->count, room);
            return false;
        }
        json_array_remove(t->messages, 0);
        json_array_remove(t->messages, 0);
        dropped++;
    }
    if (dropped) puts("(the context is full: the beginning of the conversation is left out)");
    return true;
}

static void print_speed(const Talk* t, double seconds) {
    bool cut = !interrupted && t->tokens == t->d.max_tokens;
    printf("%s(%d tokens, %.1f a second%s)\n", t->answer.bytes && t->answer.data[t->answer.bytes - 1] == '\n' ? "" : "\n", t->tokens,
           seconds > 0 ? t->tokens / seconds : 0, interrupted ? "; stopped" : cut ? "; --max-tokens ends it here" : "");
}

// Puts `text` at the end of the conversation: as a message, or at the end of the one text.
static void say(Talk* t, const char* role, const char* text) {
    json_t* last = json_array_get(t->messages, 0);
    if (!t->plain || !last) {
        json_array_append_new(t->messages, json_pack("{s:s, s:s}", "role", t->plain ? "user" : role, "content", text));
        return;
    }
    const char *so_far = json_string_value(json_object_get(last, "content")), *joint = strcmp(role, "user") ? "" : "\n";
    char* all = (char*)host_alloc(strlen(so_far) + strlen(text) + 2);
    strcat(strcat(strcpy(all, so_far), joint), text);
    json_object_set_new(last, "content", json_string(all));
    free(all);
}

static void reset(Talk* t) { json_array_clear(t->messages); }

static void answer(Talk* t, const char* text) {
    json_t* before = json_deep_copy(t->messages);
    TokenList list = {NULL, 0, 0};
    memset(&t->stream, 0, sizeof t->stream);
    t->answer.bytes = 0;
    t->tokens = 0;
    say(t, "user", text);
    bool answers = make_prompt(t, &list);
    if (answers) {
        Prompt prompt = {list.ids, list.count};
        catch_interrupts();
        double start = seconds_now();
        generate_answers(t->model, &t->s->config, &t->d, &prompt, 1);
        print_speed(t, seconds_now() - start);
        t->d.sampler.seed++;
        text_append(&t->answer, "", 0);
        // Bytes that are no UTF-8 can be printed but not be said again.
        json_t* said = json_utf8(t->answer.data);
        say(t, "assistant", json_string_value(said));
        json_decref(said);
        json_decref(before);
    } else {
        json_decref(t->messages);
        t->messages = before;
    }
    token_list_free(&list);
}

// ---- the user's lines

static void set_system(Talk* t, const char* text) {
    if (t->plain) {
        puts("(this model has no chat template, and so no system text)");
        return;
    }
    json_t* system = *text ? json_string(text) : NULL;
    if (*text && !system) {
        puts("(that is not valid UTF-8)");
        return;
    }
    json_decref(t->system);
    t->system = system;
    reset(t);
    puts(*text ? "(the system text is set; a new conversation)" : "(no system text; a new conversation)");
}

// Answers or obeys a line; false: it was /quit.
static bool take_line(Talk* t, const char* line) {
    if (!strcmp(line, "/quit") || !strcmp(line, "/exit")) return false;
    if (!strcmp(line, "/reset")) {
        reset(t);
        puts("(a new conversation)");
    } else if (!strncmp(line, "/system", 7) && (line[7] == ' ' || !line[7])) {
        set_system(t, line + 7 + strspn(line + 7, " "));
    } else if (line[0] == '/' && strcspn(line, " ") == strlen(line) && !strchr(line + 1, '/')) {
        if (strcmp(line, "/help")) printf("(%s is no command)\n", printable(line));
        puts("/reset        a new conversation\n/system TEXT  a system text for a new conversation; without TEXT: none\n"
             "/quit         the end, as is Ctrl-D; Ctrl-C stops an answer");
    } else {
        json_t* valid = json_string(line);
        if (!valid) puts("(that is not valid UTF-8)");
        else answer(t, line);
        json_decref(valid);
    }
    return true;
}

// False: Ctrl-C was pressed meanwhile. Looks for it again and again, since the signal may come before the wait has begun, or to another thread.
static bool await_line(void) {
    enum { kLookMs = 100 };
    struct pollfd terminal = {STDIN_FILENO, POLLIN, 0};
    while (!interrupted)
        if (poll(&terminal, 1, kLookMs) > 0) return true;
    return false;
}

static void read_lines(Talk* t) {
    char* line = NULL;
    size_t capacity = 0;
    setvbuf(stdin, NULL, _IONBF, 0);   // what has come is never where await_line does not see it
    for (bool going = true; going;) {
        catch_interrupts();
        fputs("> ", stdout);
        fflush(stdout);
        if (!await_line()) {
            puts("\n(/quit or Ctrl-D ends)");
            continue;
        }
        if (getline(&line, &capacity, stdin) < 0) {
            putchar('\n');
            break;
        }
        line[strcspn(line, "\r\n")] = 0;
        if (*line) going = take_line(t, line);
    }
    free(line);
}

static bool has_template(const Session* s) {
    char* text = chat_template_text(s->files, s->tokenizer_path);
    bool found = text != NULL;
    free(text);
    return found;
}

void converse(Session* s) {
    Talk t;
    memset(&t, 0, sizeof t);
    if (!strcmp(s->o.chat, "auto") && !has_template(s)) {
        printf("%s has no chat template: your text is continued plainly\n", s->source_path);
        s->o.chat = "none";
    }
    open_tokenizer(s);
    load_weights(s, false);
    t.s = s;
    t.plain = s->chat.plain;
    t.messages = json_array();
    t.model = open_talker(s, &t.d, t.stop);
    t.d.token = take_token;
    t.d.end = end_answer;
    t.d.context = &t;
    t.d.interrupted = &interrupted;
    printf("%s, %s products on %s; /help lists the commands, Ctrl-C stops an answer, /quit ends\n", s->source_path, s->recipe->name,
           s->ops->name);
    read_lines(&t);
    model_free(t.model);
    text_free(&t.answer);
    json_decref(t.messages);
    json_decref(t.system);
}
