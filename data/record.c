// Data files -> records: see record.h.
#include "record.h"

#include "../halo/progress.h"
#include "csv.h"
#include "files.h"
#include "json.h"
#include "record_source.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

// ---- the forms

typedef enum { FORM_MESSAGES, FORM_SHAREGPT, FORM_PAIR, FORM_TEXT } FormKind;
typedef struct {
    FormKind kind;
    const char* prompt;      // the key by which the form is recognised
    const char* completion;  // the key of the answer; NULL: the forms `messages`, `conversations` and `text`, which have only one key
    const char* extra;       // an optional key with more of the prompt, or NULL
    const char* joint;
    const char* name;
    const char* intro;       // text put before the prompt, or NULL
} Form;

// The prompt with which the paper trains on ViGGO: IST-DASLab/HALO, preprocessing.py, VIGGO_PROMPT, to the letter, since the wording
// is part of the experiment.
static const char kViggoPrompt[] =
    "Given a target sentence construct the underlying meaning representation of the input sentence as a single function "
    "with attributes and attribute values. This function should describe the target string accurately and the function "
    "must be one of the following ['inform', 'request', 'give_opinion', 'confirm', 'verify_attribute', 'suggest', "
    "'request_explanation', 'recommend', 'request_attribute']. The attributes must be one of the following: "
    "['name', 'exp_release_date', 'release_year', 'developer', 'esrb', 'rating', 'genres', 'player_perspective', "
    "'has_multiplayer', 'platforms', 'available_on_steam', 'has_linux_release', 'has_mac_release', 'specifier']"
    "\n\n### Target sentence:\n";

// `joint`: in {"prompt", "completion"} the texts are meant to follow each other directly; the other forms need text between them.
static const Form kForms[] = {
    {FORM_MESSAGES, "messages", NULL, NULL, "\n", "conversations (messages)", NULL},
    {FORM_SHAREGPT, "conversations", NULL, NULL, "\n", "conversations (ShareGPT)", NULL},
    {FORM_PAIR, "prompt", "completion", NULL, "", "prompt and completion", NULL},
    {FORM_PAIR, "prompt", "chosen", NULL, "", "prompt and chosen answer", NULL},
    {FORM_PAIR, "instruction", "output", "input", "\n", "instruction and output (Alpaca)", NULL},
    {FORM_PAIR, "instruction", "response", "context", "\n", "instruction and response (Dolly)", NULL},
    {FORM_PAIR, "question", "answer", NULL, "\n", "question and answer (GSM8K)", NULL},
    {FORM_PAIR, "ref", "mr", NULL, "\n", "sentence and meaning representation (ViGGO)", kViggoPrompt},
    {FORM_PAIR, "target", "meaning_representation", NULL, "\n", "sentence and meaning representation (ViGGO)", kViggoPrompt},
    {FORM_TEXT, "text", NULL, NULL, "", "plain text", NULL},
};
enum { kFormCount = sizeof kForms / sizeof *kForms };
static const char kFormNames[] =
    "messages | conversations | prompt, completion (or chosen) | instruction, output (and input) | instruction, response (and context) | "
    "question, answer | ref, mr | target, meaning_representation | text";

// The state of reading one file.
enum { kMaxIgnored = 32, kMaxFaultsShown = 20 };
typedef struct {
    RecordList* list;
    const char* prompt_text;     // of --prompt-file, or NULL
    const char* prompt_file;
    const Form* form;
    char* ignored[kMaxIgnored];
    int ignored_count;
    int trailing;                // conversations that do not end with the assistant's turn
    FILE* faults;                // where lines go that say what is wrong with a line; NULL: the first one ends the program
    int fault_count;
} Reading;

// ---- building records

static Record* new_record(Reading* r, const Place* place, json_t* messages) {
    RecordList* list = r->list;
    if ((list->count & (list->count - 1)) == 0) {   // full at every power of two
        check(list->count < 1 << 30, "more than 2^30 records");
        list->records = (Record*)host_grow(list->records, (size_t)(list->count ? 2 * list->count : 1) * sizeof(Record));
    }
    progress_phase("reading data", -1);
    Record* record = &list->records[list->count++];
    memset(record, 0, sizeof *record);
    record->messages = messages;
    record->trained = (unsigned char*)host_alloc(json_array_size(messages) + 1);
    record->joint = r->form->joint;
    record->path = place->path;
    record->line = place->line;
    return record;
}

static void record_free(Record* record) {
    json_decref(record->messages);
    json_decref(record->tools);
    free(record->trained);
    free(record->text);
}

void records_free(RecordList* list) {
    for (int r = 0; r < list->count; r++) record_free(&list->records[r]);
    for (int i = 0; i < list->path_count; i++) free(list->paths[i]);
    free(list->paths);
    free(list->records);
    text_free(&list->notes);
    memset(list, 0, sizeof *list);
}

static json_t* message_of(const char* role, json_t* content) { return json_pack("{s:s, s:o}", "role", role, "content", content); }

// A value as text: a string as it is, a number or truth value as JSON writes it; else a user_error.
static json_t* text_value(const Place* place, json_t* value, const char* key) {
    if (json_is_string(value)) return json_incref(value);
    if (!json_is_number(value) && !json_is_boolean(value))
        user_error("%s: \"%s\" has to be a string (or a number)", place_at(place, key), key);
    char number[64];
    if (json_is_integer(value)) {
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(number, sizeof number, "%.*g", digits, json_real_value(value));
            if (strtod(number, NULL) == json_real_value(value)) break;
        }
    } else {
        snprintf(number, sizeof number, "%s", json_is_true(value) ? "true" : "false");
    }
    return json_string(number);
}

// ---- messages

static bool is_role(json_t* message, const char* role) {
    const char* its_role = json_string_value(json_object_get(message, "role"));
    return its_role && !strcmp(its_role, role);
}

static void check_content(const Place* place, json_t* message, size_t index) {
    json_t* content = json_object_get(message, "content");
    if (json_is_null(content) && json_object_get(message, "tool_calls")) return;
    if (json_is_array(content)) {
        size_t i;
        json_t* part;
        json_array_foreach(content, i, part) {
            const char* type = json_string_value(json_object_get(part, "type"));
            if (!type || strcmp(type, "text") || !json_is_string(json_object_get(part, "text")))
                user_error("%s: part %zu of message %zu is no {\"type\": \"text\", \"text\": ...}, and only texts can be trained",
                           place_at(place, "content"), i + 1, index + 1);
        }
    } else if (!json_is_string(content)) {
        json_object_set_new(message, "content", text_value(place, content, "content"));
    }
}

static void check_message(const Place* place, json_t* message, size_t index, const char* key) {
    static const char* const roles[] = {"system", "developer", "user", "assistant", "tool", "function", "ipython"};
    if (!json_is_object(message) || !json_object_get(message, "role") ||
        (!json_object_get(message, "content") && !json_object_get(message, "tool_calls")))
        user_error("%s: message %zu has to be an object with the keys role and content", place_at(place, key), index + 1);
    if (!json_object_get(message, "content")) json_object_set_new(message, "content", json_null());
    if (!json_is_string(json_object_get(message, "role")))
        user_error("%s: \"role\" has to be a string in message %zu", place_at(place, "role"), index + 1);
    const char* role = json_string_value(json_object_get(message, "role"));
    size_t known = 0;
    while (known < sizeof roles / sizeof *roles && strcmp(role, roles[known])) known++;
    if (known == sizeof roles / sizeof *roles)
        user_error("%s: role \"%s\" in message %zu; it is system, user, assistant or tool", place_at(place, role), printable(role),
                   index + 1);
    check_content(place, message, index);
}

// Adds a record of these messages, which it now owns. Messages behind the last answer are an error, or are cut off in forms that
// commonly have them.
static void add_conversation(Reading* r, const Place* place, const char* key, json_t* messages, json_t* tools) {
    size_t i, count = json_array_size(messages);
    json_t* message;
    json_array_foreach(messages, i, message) check_message(place, message, i, key);
    while (count && !is_role(json_array_get(messages, count - 1), "assistant")) count--;
    if (count < json_array_size(messages)) {
        if (r->form->kind != FORM_SHAREGPT || count == 0)
            user_error("%s: the last message has to be the assistant's: it is what is trained on", place_at(place, key));
        while (json_array_size(messages) > count) json_array_remove(messages, count);
        r->trailing++;
    }
    Record* record = new_record(r, place, messages);
    json_array_foreach(messages, i, message) {
        json_t* weight = json_object_get(message, "weight");
        if (weight && (!json_is_number(weight) || (json_number_value(weight) != 0 && json_number_value(weight) != 1)))
            user_error("%s: \"weight\" of message %zu has to be 0 or 1", place_at(place, "weight"), i + 1);
        record->trained[i] = is_role(message, "assistant") && !(weight && json_number_value(weight) == 0);
        json_object_del(message, "weight");
    }
    if (json_is_array(tools) && json_array_size(tools)) record->tools = json_incref(tools);
}

// "tools": a list, or a string that holds one as JSON; NULL or null: none. The caller releases it.
static json_t* tools_of(const Place* place, json_t* object) {
    json_t* tools = json_object_get(object, "tools");
    if (json_is_string(tools)) {
        if (json_string_length(tools) == 0) return NULL;
        json_error_t error;
        tools = json_loadb(json_string_value(tools), json_string_length(tools), JSON_REJECT_DUPLICATES, &error);
        if (!json_is_array(tools)) user_error("%s: the text of \"tools\" has to be a JSON list", place_at(place, "tools"));
        return tools;
    }
    if (tools && !json_is_null(tools) && !json_is_array(tools)) user_error("%s: \"tools\" has to be a list", place_at(place, "tools"));
    return json_is_array(tools) ? json_incref(tools) : NULL;
}

static void demand_list(const Place* place, json_t* list, const char* key) {
    if (!json_is_array(list) || json_array_size(list) == 0)
        user_error("%s: \"%s\" has to be a list with at least one message", place_at(place, key), key);
}

static void read_messages(Reading* r, const Place* place, json_t* object) {
    json_t *messages = json_object_get(object, "messages"), *tools = tools_of(place, object);
    demand_list(place, messages, "messages");
    add_conversation(r, place, "messages", json_incref(messages), tools);
    json_decref(tools);
}

static const char* sharegpt_role(const Place* place, const char* from) {
    static const char* const names[][2] = {
        {"human", "user"},      {"user", "user"},   {"gpt", "assistant"},   {"assistant", "assistant"}, {"chatgpt", "assistant"},
        {"model", "assistant"}, {"tool", "tool"},   {"system", "system"},   {"observation", "tool"},    {"function_response", "tool"},
        {"function_call", "assistant"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(from, names[i][0])) return names[i][1];
    user_error("%s: \"from\": \"%s\"; it is human, gpt, system or tool", place_at(place, from), printable(from));
}

static void read_sharegpt(Reading* r, const Place* place, json_t* object) {
    json_t *turns = json_object_get(object, "conversations"), *system_text = json_object_get(object, "system");
    json_t *messages = json_array(), *tools = tools_of(place, object), *turn;
    demand_list(place, turns, "conversations");
    if (json_is_string(system_text) && json_string_length(system_text))
        json_array_append_new(messages, message_of("system", json_incref(system_text)));
    size_t i;
    json_array_foreach(turns, i, turn) {
        const char* from = json_string_value(json_object_get(turn, "from"));
        json_t* value = json_object_get(turn, "value");
        if (json_object_get(turn, "role")) {   // turns of the form `messages` under the key "conversations"
            json_array_append(messages, turn);
            continue;
        }
        if (!from || !value)
            user_error("%s: turn %zu has to be an object with the keys from and value", place_at(place, "conversations"), i + 1);
        json_t* message = message_of(sharegpt_role(place, from), text_value(place, value, "value"));
        json_t* weight = json_object_get(turn, "weight");
        if (weight) json_object_set(message, "weight", weight);
        json_array_append_new(messages, message);
    }
    add_conversation(r, place, "conversations", messages, tools);
    json_decref(tools);
}

// ---- prompt and answer

// The prompt file's text with {name} replaced by the record's values; braces around anything but a name stay.
static json_t* filled_prompt(const Reading* r, const Place* place, json_t* object) {
    Text out = {NULL, 0, 0};
    text_append(&out, "", 0);
    for (const char* at = r->prompt_text; *at;) {
        size_t name = *at == '{' ? strspn(at + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") : 0;
        if (name == 0 || at[1 + name] != '}') {
            text_append(&out, at++, 1);
            continue;
        }
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)name, at + 1);
        json_t* value = json_object_get(object, key);
        if (!value)
            user_error("%s: the record has no \"%s\", which {%s} in --prompt-file %s stands for", place_at(place, key), printable(key),
                       printable(key), r->prompt_file);
        json_t* text = text_value(place, value, key);
        text_append(&out, json_string_value(text), json_string_length(text));
        json_decref(text);
        at += name + 2;
    }
    json_t* prompt = json_stringn(out.data, out.bytes);
    text_free(&out);
    if (!prompt) user_error("--prompt-file %s: not valid UTF-8", r->prompt_file);
    return prompt;
}

static json_t* join_texts(const char* a, size_t a_bytes, const char* between, const char* b, size_t b_bytes) {
    Text text = {NULL, 0, 0};
    text_append(&text, a, a_bytes);
    text_append(&text, between, strlen(between));
    text_append(&text, b, b_bytes);
    json_t* joined = json_stringn(text.data, text.bytes);
    text_free(&text);
    return joined;
}

static json_t* prompt_text(const Reading* r, const Place* place, json_t* object) {
    const Form* form = r->form;
    if (r->prompt_text) return filled_prompt(r, place, object);
    json_t* prompt = text_value(place, json_object_get(object, form->prompt), form->prompt);
    json_t* extra = form->extra ? json_object_get(object, form->extra) : NULL;
    json_t* whole = NULL;
    if (form->intro) {
        whole = join_texts(form->intro, strlen(form->intro), "", json_string_value(prompt), json_string_length(prompt));
    } else if (extra && !json_is_null(extra)) {
        json_t* text = text_value(place, extra, form->extra);
        if (json_string_length(text))   // Alpaca has an empty text where there is no input
            whole = join_texts(json_string_value(prompt), json_string_length(prompt), "\n\n", json_string_value(text),
                               json_string_length(text));
        json_decref(text);
    }
    if (!whole) return prompt;
    json_decref(prompt);
    return whole;
}

static void read_pair(Reading* r, const Place* place, json_t* object) {
    const Form* form = r->form;
    json_t *prompt = json_object_get(object, form->prompt), *answer = json_object_get(object, form->completion), *messages = json_array();
    json_t* tools = tools_of(place, object);
    // A chosen answer may be the whole conversation.
    bool whole = json_is_array(answer) && !is_role(json_array_get(answer, 0), "assistant");
    if (json_is_array(prompt) && !r->prompt_text) {
        if (!whole) json_array_extend(messages, prompt);
    } else if (!whole) {
        json_array_append_new(messages, message_of("user", prompt_text(r, place, object)));
    }
    if (json_is_array(answer)) {
        demand_list(place, answer, form->completion);
        json_array_extend(messages, answer);
    } else {
        json_array_append_new(messages, message_of("assistant", text_value(place, answer, form->completion)));
    }
    size_t i;
    json_t* message;   // only messages behind the prompt are answers: assistant turns inside the prompt are context
    size_t context = json_is_array(prompt) && !whole ? json_array_size(prompt) : 0;
    json_array_foreach(messages, i, message) {
        if (i < context && is_role(message, "assistant")) json_object_set_new(message, "weight", json_integer(0));
    }
    add_conversation(r, place, form->completion, messages, tools);
    json_decref(tools);
}

static void read_text(Reading* r, const Place* place, json_t* object) {
    json_t* text = json_object_get(object, "text");
    if (!json_is_string(text)) user_error("%s: \"text\" has to be a string", place_at(place, "text"));
    Record* record = new_record(r, place, NULL);
    record->bytes = json_string_length(text);
    record->text = (char*)host_alloc(record->bytes + 1);
    memcpy(record->text, json_string_value(text), record->bytes);
}

// ---- one record

static const Form* form_of(const Place* place, json_t* object) {
    const Form* near = NULL;
    for (int i = 0; i < kFormCount; i++) {
        const Form* form = &kForms[i];
        if (!json_object_get(object, form->prompt)) continue;
        if (!form->completion || json_object_get(object, form->completion)) return form;
        if (!near) near = form;
    }
    if (near)
        user_error("%s: the key \"%s\" is missing beside \"%s\"; the forms are %s", place_at(place, NULL), near->completion, near->prompt,
                   kFormNames);
    user_error("%s: no known form of record; the keys are %s", place_at(place, NULL), kFormNames);
}

static void note_ignored(Reading* r, json_t* object) {
    const Form* form = r->form;
    const char* key;
    json_t* value;
    json_object_foreach(object, key, value) {
        bool used = !strcmp(key, form->prompt) || (form->completion && !strcmp(key, form->completion)) ||
                    (form->extra && !strcmp(key, form->extra)) || (form->kind != FORM_TEXT && !strcmp(key, "tools")) ||
                    (form->kind == FORM_SHAREGPT && !strcmp(key, "system"));
        int i = 0;
        while (i < r->ignored_count && strcmp(r->ignored[i], key)) i++;
        if (!used && i == r->ignored_count && i < kMaxIgnored) r->ignored[r->ignored_count++] = host_strdup(key);
    }
}

// A RecordFn.
static void read_object(void* reading, const Place* place, json_t* object) {
    Reading* r = (Reading*)reading;
    if (!json_is_object(object))
        user_error("%s: expected a JSON object with the keys %s", place_at(place, NULL), kFormNames);
    if (!r->form) r->form = form_of(place, object);
    const char* required[] = {r->form->prompt, r->form->completion};
    for (int i = 0; i < 2; i++)
        if (required[i] && !json_object_get(object, required[i]))
            user_error("%s: the key \"%s\" is missing; this file's first record has the form of %s", place_at(place, NULL), required[i],
                       r->form->name);
    if (r->prompt_text && r->form->kind != FORM_PAIR)
        user_error("%s: --prompt-file needs records of a prompt and an answer, and these are %s", place->path, r->form->name);
    note_ignored(r, object);
    switch (r->form->kind) {
        case FORM_MESSAGES: read_messages(r, place, object); return;
        case FORM_SHAREGPT: read_sharegpt(r, place, object); return;
        case FORM_PAIR: read_pair(r, place, object); return;
        case FORM_TEXT: read_text(r, place, object); return;
    }
    die("a form of record of kind %d", (int)r->form->kind);
}

// ---- files

uint64_t record_hash(const Record* record) {
    if (!record->messages) return XXH3_64bits(record->text, record->bytes);
    json_t* all = json_pack("[O, O?]", record->messages, record->tools);
    char* text = json_dumps(all, JSON_COMPACT | JSON_SORT_KEYS);
    uint64_t hash = XXH3_64bits(text, strlen(text));
    free(text);
    json_decref(all);
    return hash;
}

const char* record_reference(const Record* record) {
    for (size_t i = json_array_size(record->messages); i-- > 0;) {
        json_t* message = json_array_get(record->messages, i);
        if (!is_role(message, "assistant")) continue;
        const char* content = json_string_value(json_object_get(message, "content"));
        return content ? content : "";
    }
    return "";
}

typedef struct {
    uint64_t hash;
    int index;
} Ranked;

static int compare_ranked(const void* pa, const void* pb) {
    const Ranked *a = (const Ranked*)pa, *b = (const Ranked*)pb;
    return a->hash != b->hash ? (a->hash < b->hash ? -1 : 1) : a->index - b->index;
}

// Keeps, of the records from `first` on, the given share with the smallest hashes, in their order.
static void take_share(RecordList* list, int first, double share) {
    const uint64_t kSalt = 0x9e3779b97f4a7c15ull;   // makes this choice independent of the choice of a validation split
    int count = list->count - first, kept = max_int(1, (int)(share * count + 0.5)), at = first;
    Ranked* ranked = (Ranked*)host_alloc((size_t)count * sizeof(Ranked));
    unsigned char* keep = (unsigned char*)host_alloc((size_t)count);
    for (int i = 0; i < count; i++) {
        ranked[i].hash = (record_hash(&list->records[first + i]) ^ kSalt) * kSalt;
        ranked[i].index = i;
    }
    qsort(ranked, (size_t)count, sizeof(Ranked), compare_ranked);
    for (int i = 0; i < kept; i++) keep[ranked[i].index] = 1;
    for (int i = 0; i < count; i++) {
        if (keep[i]) list->records[at++] = list->records[first + i];
        else record_free(&list->records[first + i]);
    }
    list->count = at;
    free(keep);
    free(ranked);
}

static void add_note(RecordList* list, const char* text) { text_append(&list->notes, text, strlen(text)); }

static void note_file(Reading* r, const char* path, int records, double share) {
    char text[1024];
    snprintf(text, sizeof text, "%s: %d records of %s", path, records, r->form->name);
    add_note(r->list, text);
    if (share < 1) snprintf(text, sizeof text, ", of which a share of %g is taken", share);
    if (share < 1) add_note(r->list, text);
    for (int i = 0; i < r->ignored_count; i++) {
        snprintf(text, sizeof text, "%s%s", i ? ", " : "; ignored: ", printable(r->ignored[i]));
        add_note(r->list, text);
        free(r->ignored[i]);
    }
    if (r->trailing) {
        snprintf(text, sizeof text, "; %d end with another's turn than the assistant's, which is left off", r->trailing);
        add_note(r->list, text);
    }
    add_note(r->list, "\n");
}

// A FaultFn.
static void count_fault(void* reading, const char* message) {
    Reading* r = (Reading*)reading;
    if (r->fault_count++ < kMaxFaultsShown) fprintf(r->faults, "%s\n", message);
}

// Reads one of the files, named as "FILE" or "FILE:SHARE".
static int read_file(RecordList* list, const char* name, const char* prompt_file, const char* prompt, FILE* faults) {
    char* path = host_strdup(name);
    char* colon = strrchr(path, ':');
    double share = 1;
    if (colon && !path_exists(path)) {
        char* end;
        share = strtod(colon + 1, &end);
        if (end == colon + 1 || *end || !(share > 0 && share <= 1))
            user_error("--data %s: the share behind the colon has to be above 0 and at most 1", name);
        *colon = 0;
    }
    list->paths = (char**)host_grow(list->paths, (size_t)(list->path_count + 1) * sizeof(char*));
    list->paths[list->path_count++] = path;
    Reading r;
    memset(&r, 0, sizeof r);
    r.list = list;
    r.prompt_text = prompt;
    r.prompt_file = prompt_file;
    r.faults = faults;
    int first = list->count;
    source_read_on(path, read_object, faults ? count_fault : NULL, &r);
    if (r.fault_count > kMaxFaultsShown) fprintf(faults, "%s: and %d more such lines\n", path, r.fault_count - kMaxFaultsShown);
    if (r.fault_count) return r.fault_count;
    if (list->count == first) user_error("%s: no records in it", path);
    int count = list->count - first;
    if (share < 1) take_share(list, first, share);
    note_file(&r, path, count, share);
    return 0;
}

// Returns how many lines of the files are no records; faults: see Reading.
static int read_files(RecordList* list, const char* paths, const char* prompt_file, FILE* faults) {
    int count = 0;
    memset(list, 0, sizeof *list);
    char* prompt = prompt_file && *prompt_file ? file_read(prompt_file, NULL) : NULL;
    char* names = host_strdup(paths);
    bool one = path_exists(names);   // then a comma in `paths` is part of the file's name
    for (char *name = names, *next; name; name = next) {
        next = one ? NULL : strchr(name, ',');
        if (next) *next++ = 0;
        count += read_file(list, name, prompt_file, prompt, faults);
    }
    free(names);
    free(prompt);
    list->selected = list->count;
    return count;
}

RecordList records_read(const char* paths, const char* prompt_file) {
    RecordList list;
    read_files(&list, paths, prompt_file, NULL);
    return list;
}

int records_faults(const char* paths, const char* prompt_file, FILE* to) {
    RecordList list;
    int count = read_files(&list, paths, prompt_file, to);
    records_free(&list);
    return count;
}
