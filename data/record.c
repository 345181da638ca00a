// Data files -> records: see record.h.
#include "record.h"

#include "../halo/progress.h"
#include "csv.h"
#include "files.h"
#include "json.h"

// ---- the forms

typedef struct {
    const char* prompt;      // the key that tells the form; also that of the one value of `messages` and `text`
    const char* completion;  // NULL: `messages` and `text`
    const char* extra;       // a key that may be absent: more of the prompt
    const char* joint;
} Form;

// Only prompt and completion are written to stand directly behind each other.
static const Form kForms[] = {
    {"messages", NULL, NULL, "\n"},
    {"prompt", "completion", NULL, ""},
    {"instruction", "output", "input", "\n"},
    {"question", "answer", NULL, "\n"},
    {"text", NULL, NULL, ""},
};
enum { kFormCount = sizeof kForms / sizeof *kForms };
static const char kFormNames[] =
    "messages | prompt, completion | instruction, output (and input) | question, answer | text";

// The prompt that the paper trains ViGGO on: IST-DASLab/HALO, preprocessing.py, VIGGO_PROMPT. It is part of the experiment,
// so the wording is theirs to the letter; the sentence follows.
static const char kViggoPrompt[] =
    "Given a target sentence construct the underlying meaning representation of the input sentence as a single function "
    "with attributes and attribute values. This function should describe the target string accurately and the function "
    "must be one of the following ['inform', 'request', 'give_opinion', 'confirm', 'verify_attribute', 'suggest', "
    "'request_explanation', 'recommend', 'request_attribute']. The attributes must be one of the following: "
    "['name', 'exp_release_date', 'release_year', 'developer', 'esrb', 'rating', 'genres', 'player_perspective', "
    "'has_multiplayer', 'platforms', 'available_on_steam', 'has_linux_release', 'has_mac_release', 'specifier']"
    "\n\n### Target sentence:\n";

static const char* const kViggoColumns[][2] = {{"mr", "ref"}, {"meaning_representation", "target"}};

// ---- building records

// A turn whose text is a, then b.
static Turn turn_of(Role role, const char* a, size_t a_bytes, const char* b, size_t b_bytes) {
    Turn turn = {role, (char*)host_alloc(a_bytes + b_bytes + 1), a_bytes + b_bytes};
    memcpy(turn.text, a, a_bytes);
    memcpy(turn.text + a_bytes, b, b_bytes);
    return turn;
}

static Turn json_turn(Role role, const json_t* text) {
    return turn_of(role, json_string_value(text), json_string_length(text), "", 0);
}

static Record* new_record(RecordList* list, int turns, const char* joint) {
    if ((list->count & (list->count - 1)) == 0) {   // full at every power of two
        check(list->count < 1 << 30, "more than 2^30 records in one file");
        list->records = (Record*)host_grow(list->records, (size_t)(list->count ? 2 * list->count : 1) * sizeof(Record));
    }
    progress_phase("reading data", -1);
    Record* record = &list->records[list->count++];
    memset(record, 0, sizeof *record);
    record->turns = (Turn*)host_alloc((size_t)turns * sizeof(Turn));
    record->count = turns;
    record->joint = joint;
    return record;
}

void records_free(RecordList* list) {
    for (int r = 0; r < list->count; r++) {
        for (int i = 0; i < list->records[r].count; i++) free(list->records[r].turns[i].text);
        free(list->records[r].turns);
    }
    free(list->records);
    memset(list, 0, sizeof *list);
}

// ---- JSON Lines

typedef struct {
    const char* path;
    int number;          // from 1
    const char* text;
    size_t bytes;
} Line;

// The column (bytes from 1) of the first "key" in the line; 1 if it is written with escapes.
static int column_of(const Line* line, const char* key) {
    size_t n = strlen(key);
    for (size_t at = 0; at + n + 2 <= line->bytes; at++)
        if (line->text[at] == '"' && !memcmp(line->text + at + 1, key, n) && line->text[at + n + 1] == '"')
            return (int)at + 1;
    return 1;
}

static json_t* parse_line(const Line* line) {
    json_error_t error;
    json_t* object = json_loadb(line->text, line->bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!object)
        user_error("%s:%d:%d: not valid JSON: %s", line->path, line->number, max_int(error.column, 1),
                   printable(error.text));
    if (!json_is_object(object))
        user_error("%s:%d:1: expected a JSON object with the keys %s (JSON Lines: one object a line)", line->path,
                   line->number, kFormNames);
    return object;
}

static bool key_belongs(const Form* form, const char* key) {
    return !strcmp(key, form->prompt) || (form->completion && !strcmp(key, form->completion)) ||
           (form->extra && !strcmp(key, form->extra));
}

static const Form* form_of(const Line* line, json_t* object) {
    for (int i = 0; i < kFormCount; i++)
        if (json_object_get(object, kForms[i].prompt)) return &kForms[i];
    user_error("%s:%d:1: no known form of record; the keys are %s", line->path, line->number, kFormNames);
}

static void check_keys(const Line* line, const Form* form, json_t* object) {
    const char* key;
    json_t* value;
    json_object_foreach(object, key, value) {
        if (!key_belongs(form, key))
            user_error("%s:%d:%d: key \"%s\" does not belong into this file, whose first record has \"%s\"; the forms are "
                       "%s", line->path, line->number, column_of(line, key), printable(key), form->prompt, kFormNames);
    }
    const char* required[] = {form->prompt, form->completion};
    for (int i = 0; i < 2; i++)
        if (required[i] && !json_object_get(object, required[i]))
            user_error("%s:%d:1: the key \"%s\" is missing; the forms are %s", line->path, line->number, required[i],
                       kFormNames);
}

static json_t* string_of(const Line* line, json_t* object, const char* key) {
    json_t* value = json_object_get(object, key);
    if (!json_is_string(value))
        user_error("%s:%d:%d: \"%s\" has to be a string", line->path, line->number, column_of(line, key), key);
    return value;
}

static Role role_of(const Line* line, json_t* message, size_t index, size_t count) {
    const char* name = json_string_value(string_of(line, message, "role"));
    Role role = ROLE_SYSTEM;
    if (!strcmp(name, "user")) role = ROLE_USER;
    else if (!strcmp(name, "assistant")) role = ROLE_ASSISTANT;
    else if (strcmp(name, "system"))
        user_error("%s:%d:%d: role \"%s\" in message %zu; it is system, user or assistant", line->path, line->number,
                   column_of(line, name), printable(name), index + 1);
    if (role == ROLE_SYSTEM && index > 0)
        user_error("%s:%d:%d: message %zu has the role system, which only the first may have", line->path, line->number,
                   column_of(line, "messages"), index + 1);
    if (role != ROLE_ASSISTANT && index + 1 == count)
        user_error("%s:%d:%d: the last message has to be the assistant's: it is what is trained on", line->path,
                   line->number, column_of(line, "messages"));
    return role;
}

static void read_messages(const Line* line, const Form* form, json_t* object, RecordList* list) {
    json_t* messages = json_object_get(object, "messages");
    size_t i, count = json_array_size(messages);
    if (count == 0)
        user_error("%s:%d:%d: \"messages\" has to be a list with at least one message", line->path, line->number,
                   column_of(line, "messages"));
    Record* record = new_record(list, (int)count, form->joint);
    json_t* message;
    json_array_foreach(messages, i, message) {
        if (!json_is_object(message) || json_object_size(message) != 2 || !json_object_get(message, "role") ||
            !json_object_get(message, "content"))
            user_error("%s:%d:%d: message %zu has to be an object with the keys role and content and no other", line->path,
                       line->number, column_of(line, "messages"), i + 1);
        Role role = role_of(line, message, i, count);
        record->turns[i] = json_turn(role, string_of(line, message, "content"));
    }
}

static void read_object(const Line* line, const Form* form, json_t* object, RecordList* list) {
    if (!strcmp(form->prompt, "messages")) {
        read_messages(line, form, object, list);
        return;
    }
    json_t* prompt = string_of(line, object, form->prompt);
    if (!form->completion) {
        Record* record = new_record(list, 1, form->joint);
        record->plain = true;
        record->turns[0] = json_turn(ROLE_ASSISTANT, prompt);
        return;
    }
    json_t* completion = string_of(line, object, form->completion);
    Record* record = new_record(list, 2, form->joint);
    record->turns[0] = json_turn(ROLE_USER, prompt);
    record->turns[1] = json_turn(ROLE_ASSISTANT, completion);
    if (!form->extra || !json_object_get(object, form->extra)) return;
    json_t* extra = string_of(line, object, form->extra);
    if (json_string_length(extra) == 0) return;   // Alpaca's way to say that there is none
    Turn instruction = record->turns[0];
    Turn input = turn_of(ROLE_USER, "\n\n", 2, json_string_value(extra), json_string_length(extra));
    record->turns[0] = turn_of(ROLE_USER, instruction.text, instruction.bytes, input.text, input.bytes);
    free(instruction.text);
    free(input.text);
}

static bool is_blank(const Line* line) {
    for (size_t i = 0; i < line->bytes; i++)
        if (!strchr(" \t\r", line->text[i]) || !line->text[i]) return false;
    return true;
}

static void read_json_lines(const char* path, const char* text, size_t bytes, RecordList* list) {
    const Form* form = NULL;
    Line line = {path, 0, text, 0};
    for (const char* end = text + bytes; line.text < end; line.text += line.bytes + 1) {
        const char* newline = (const char*)memchr(line.text, '\n', (size_t)(end - line.text));
        line.bytes = (size_t)((newline ? newline : end) - line.text);
        line.number++;
        if (is_blank(&line)) continue;
        json_t* object = parse_line(&line);
        if (!form) form = form_of(&line, object);
        check_keys(&line, form, object);
        read_object(&line, form, object, list);
        json_decref(object);
    }
}

// ---- ViGGO

// Which of the two columns holds the meaning (0) and which the sentence (1).
static void viggo_header(const Csv* csv, int* meaning, int* sentence) {
    for (int names = 0; names < 2; names++)
        for (int first = 0; csv->count == 2 && first < 2; first++)
            if (!strcmp(csv->field[first], kViggoColumns[names][0]) &&
                !strcmp(csv->field[1 - first], kViggoColumns[names][1])) {
                *meaning = first;
                *sentence = 1 - first;
                return;
            }
    user_error("%s:1:1: the first line has to name the columns mr,ref or meaning_representation,target (ViGGO); other data "
               "go into a .jsonl file", csv->path);
}

static void read_viggo(const char* path, const char* text, size_t bytes, RecordList* list) {
    Csv csv = csv_open(path, text, bytes);
    int meaning = 0, sentence = 1;
    if (csv_next(&csv)) viggo_header(&csv, &meaning, &sentence);
    while (csv_next(&csv)) {
        if (csv.count != 2) user_error("%s:%d:1: %d fields where the first line has 2", path, csv.first_line, csv.count);
        Record* record = new_record(list, 2, "\n");
        record->turns[0] =
            turn_of(ROLE_USER, kViggoPrompt, sizeof kViggoPrompt - 1, csv.field[sentence], csv.field_bytes[sentence]);
        record->turns[1] = turn_of(ROLE_ASSISTANT, csv.field[meaning], csv.field_bytes[meaning], "", 0);
    }
    csv_close(&csv);
}

RecordList records_read(const char* path) {
    RecordList list = {NULL, 0};
    size_t bytes, mark = 0, length = strlen(path);
    char* text = file_read(path, &bytes);
    if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) mark = 3;   // a byte order mark, as spreadsheets write it
    bool csv = length >= 4 && !strcmp(path + length - 4, ".csv");
    (csv ? read_viggo : read_json_lines)(path, text + mark, bytes - mark, &list);
    free(text);
    if (list.count == 0) user_error("%s: no records in it", path);
    return list;
}
