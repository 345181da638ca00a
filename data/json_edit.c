// Edits of JSON text: see json_edit.h.
#include "json_edit.h"

#include "json.h"

// The position of a member in the text: its key from the opening quote, its value from the first byte to behind the last.
typedef struct {
    const char *key, *value, *end;
    const char* before;    // the comma in front of the member; NULL for the first one
    bool found;
} MemberText;

static const char* skip_space(const char* at) { return at + strspn(at, " \t\r\n"); }

// The byte behind the closing quote of the string that opens at `at`, in text that is known to be JSON.
static const char* string_end(const char* at) {
    for (at++; *at != '"'; at++) at += *at == '\\';
    return at + 1;
}

// The byte behind the JSON value that starts at `at`, in text that is known to be JSON: strings are skipped whole, and the value
// ends before a comma or closing bracket at its own depth.
static const char* value_end(const char* at) {
    for (int depth = 0;; at++) {
        if (*at == '"') {
            at = string_end(at) - 1;
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if ((*at == '}' || *at == ']') && depth-- == 0) {
            break;
        } else if (*at == ',' && depth == 0) {
            break;
        }
    }
    while (strchr(" \t\r\n", at[-1])) at--;
    return at;
}

static bool spells(const char* quoted, const char* end, const char* key) {
    json_t* decoded = json_loadb(quoted, (size_t)(end - quoted), JSON_DECODE_ANY, NULL);
    bool same = json_is_string(decoded) && !strcmp(json_string_value(decoded), key);
    json_decref(decoded);
    return same;
}

static MemberText find_member(const char* text, const char* key) {
    MemberText member;
    memset(&member, 0, sizeof member);
    const char* at = skip_space(skip_space(text) + 1);   // behind the opening brace
    while (*at == '"' && !member.found) {
        member.key = at;
        const char* key_end = string_end(at);
        member.value = skip_space(skip_space(key_end) + 1);
        member.end = value_end(member.value);
        member.found = spells(member.key, key_end, key);
        at = skip_space(member.end);
        if (*at != ',' || member.found) break;
        member.before = at;
        at = skip_space(at + 1);
    }
    return member;
}

static json_t* parse_object(const char* text, size_t bytes, const char* where) {
    json_t* object = json_parse(text, bytes, where);
    if (!json_is_object(object)) user_error("%s: has to be an object", where);
    return object;
}

bool json_text_has(const char* text, size_t bytes, const char* key, const char* where) {
    json_t* object = parse_object(text, bytes, where);
    bool has = json_object_get(object, key) != NULL;
    json_decref(object);
    return has;
}

// A new text: `text` up to `cut`, then `middle`, then the text from `rest` on.
static char* splice(const char* text, const char* cut, const char* middle, const char* rest) {
    size_t head = (size_t)(cut - text), body = strlen(middle);
    char* out = (char*)host_alloc(head + body + strlen(rest) + 1);
    memcpy(out, text, head);
    memcpy(out + head, middle, body);
    strcpy(out + head + body, rest);
    return out;
}

// Checks an edit: the edited text, parsed, must equal `want`, the parsed source with the member changed.
static void check_edit(const char* text, json_t* want, const char* where) {
    json_t* got = json_parse(text, strlen(text), where);
    check(json_equal(got, want), "%s: an edit changed something else", where);
    json_decref(got);
    json_decref(want);
}

char* json_text_set(const char* text, size_t bytes, const char* key, const char* value, const char* where) {
    json_t* want = parse_object(text, bytes, where);
    MemberText member = find_member(text, key);
    char* out;
    if (member.found) {
        out = splice(text, member.value, value, member.end);
    } else {
        const char* body = strchr(text, '{') + 1;
        size_t room = strlen(key) + strlen(value) + 16;
        char* first = (char*)host_alloc(room);
        snprintf(first, room, "\n  \"%s\": %s%s", key, value, json_object_size(want) ? "," : "");
        out = splice(text, body, first, body);
        free(first);
    }
    json_t* meant = json_loads(value, JSON_DECODE_ANY, NULL);
    check(meant, "json_text_set: the new value of \"%s\" is no JSON", key);
    json_object_set_new(want, key, meant);
    check_edit(out, want, where);
    return out;
}

char* json_text_remove(const char* text, size_t bytes, const char* key, const char* where) {
    json_t* want = parse_object(text, bytes, where);
    MemberText member = find_member(text, key);
    const char *cut = text, *rest = text;
    if (member.found && member.before) {
        cut = member.before;
        rest = member.end;
    } else if (member.found) {
        cut = member.key;
        rest = skip_space(member.end);
        if (*rest == ',') rest = skip_space(rest + 1);
    }
    char* out = splice(text, cut, "", rest);
    json_object_del(want, key);
    check_edit(out, want, where);
    return out;
}
