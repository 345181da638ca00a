// Files of settings; see toml.h.
#include "toml.h"

#include "files.h"
#include "text.h"
#include "utf8.h"

// ---- the text and the place in it

typedef struct {
    const char* path;
    const char *at, *end;
    const char* line_start;
    int line;
} TomlReader;

__attribute__((noreturn, format(printf, 2, 3)))
static void refuse(const TomlReader* r, const char* format, ...) {
    char what[512];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    user_error("%s:%d:%d: %s", r->path, r->line, (int)(r->at - r->line_start) + 1, what);
}

static char peek(const TomlReader* r) { return r->at < r->end ? *r->at : 0; }

static bool begins(const TomlReader* r, const char* word) {
    size_t n = strlen(word);
    return (size_t)(r->end - r->at) >= n && !memcmp(r->at, word, n);
}

static void skip_blanks(TomlReader* r) {
    while (peek(r) == ' ' || peek(r) == '\t') r->at++;
}

// A comment, if one begins here, up to the line's end.
static void skip_comment(TomlReader* r) {
    if (peek(r) != '#') return;
    for (; r->at < r->end && *r->at != '\n' && !begins(r, "\r\n"); r->at++)
        if (((unsigned char)*r->at < 0x20 && *r->at != '\t') || *r->at == 0x7f) refuse(r, "a control character in a comment");
}

// The end of a line, if it is here.
static bool take_line_end(TomlReader* r) {
    if (begins(r, "\r\n")) r->at++;
    if (peek(r) != '\n') return false;
    r->at++;
    r->line++;
    r->line_start = r->at;
    return true;
}

static void skip_lines(TomlReader* r) {
    do {
        skip_blanks(r);
        skip_comment(r);
    } while (take_line_end(r));
}

static void append_code_point(const TomlReader* r, Text* t, uint32_t c) {
    char utf8[4];
    if (c == 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) refuse(r, "an escape that is no character here: U+%04X", c);
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char kLead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = n - 1; i > 0; i--, c >>= 6) utf8[i] = (char)(0x80 | (c & 0x3f));
    utf8[0] = (char)(kLead[n] | c);
    text_append(t, utf8, (size_t)n);
}

// ---- values

// Behind a backslash.
static void take_escape(TomlReader* r, Text* t) {
    static const char kLetters[] = "btnfr\"\\", kMeans[] = "\b\t\n\f\r\"\\";
    char c = peek(r);
    const char* letter = c ? strchr(kLetters, c) : NULL;
    if (letter) {
        text_append(t, &kMeans[letter - kLetters], 1);
        r->at++;
        return;
    }
    int digits = c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (!digits) refuse(r, "an unknown escape; write a backslash as two, or the text in 'single quotes'");
    uint32_t code = 0;
    for (int i = 1; i <= digits; i++) {
        char d = r->at + i < r->end ? r->at[i] : 0;
        int value = d >= '0' && d <= '9' ? d - '0' : d >= 'a' && d <= 'f' ? d - 'a' + 10 : d >= 'A' && d <= 'F' ? d - 'A' + 10 : -1;
        if (value < 0) refuse(r, "%d hexadecimal digits are expected in an escape", digits);
        code = code << 4 | (uint32_t)value;
    }
    append_code_point(r, t, code);
    r->at += 1 + digits;
}

static void take_string(TomlReader* r, Text* t) {
    char quote = *r->at;
    if (begins(r, "\"\"\"") || begins(r, "'''")) refuse(r, "a string over several lines is not read here; write it in one");
    text_append(t, "", 0);
    for (r->at++; peek(r) != quote; ) {
        if (r->at == r->end || *r->at == '\n' || *r->at == '\r') refuse(r, "the string does not end in its line: a %c is missing", quote);
        if (((unsigned char)*r->at < 0x20 && *r->at != '\t') || *r->at == 0x7f) refuse(r, "a control character in a string; write it as an escape");
        if (quote == '"' && *r->at == '\\') {
            r->at++;
            take_escape(r, t);
        } else {
            text_append(t, r->at++, 1);
        }
    }
    r->at++;
}

static void take_strings(TomlReader* r, Text* t) {
    text_append(t, "", 0);
    r->at++;
    for (skip_lines(r); peek(r) != ']'; skip_lines(r)) {
        if (peek(r) != '"' && peek(r) != '\'') refuse(r, "an array's strings are expected here, each in quotes");
        if (t->bytes) text_append(t, ",", 1);
        size_t before = t->bytes;
        take_string(r, t);
        if (t->bytes == before) refuse(r, "an empty string in an array");
        if (strchr(t->data + before, ',')) refuse(r, "a string with a comma in an array, where commas separate");
        skip_lines(r);
        if (peek(r) == ',') r->at++;
        else if (peek(r) != ']') refuse(r, "a comma or ] is expected");
    }
    r->at++;
}

// Digits, with single '_' between them; how many.
static int take_digits(TomlReader* r, Text* t) {
    int n = 0;
    for (; peek(r) >= '0' && peek(r) <= '9'; n++) {
        text_append(t, r->at++, 1);
        if (peek(r) == '_' && r->at + 1 < r->end && r->at[1] >= '0' && r->at[1] <= '9') r->at++;
    }
    return n;
}

// What ends a value: a blank, a comment, the line's end, and in an array a comma or ].
static bool at_value_end(const TomlReader* r) { return r->at == r->end || strchr(" \t\r\n#,]", *r->at); }

static TomlType take_number(TomlReader* r, Text* t) {
    const char* start = r->at;
    bool is_float = false;
    text_append(t, "", 0);
    if (peek(r) == '-') text_append(t, "-", 1);
    if (peek(r) == '-' || peek(r) == '+') r->at++;
    const char* first = r->at;
    bool whole = take_digits(r, t) > 0 && (*first != '0' || r->at == first + 1);
    if (whole && peek(r) == '.') {
        is_float = true;
        text_append(t, r->at++, 1);
        whole = take_digits(r, t) > 0;
    }
    if (whole && (peek(r) == 'e' || peek(r) == 'E')) {
        is_float = true;
        text_append(t, r->at++, 1);
        if (peek(r) == '-') text_append(t, "-", 1);
        if (peek(r) == '-' || peek(r) == '+') r->at++;
        whole = take_digits(r, t) > 0;
    }
    if (whole && at_value_end(r)) return is_float ? TOML_FLOAT : TOML_INTEGER;
    r->at = start;
    int n = (int)strcspn(start, " \t\r\n#,]");
    refuse(r, "'%.*s' is no value: text stands in quotes, numbers are decimal (12, 0.5, 1e-5), switches true or false", n > 40 ? 40 : n, start);
}

static TomlType take_value(TomlReader* r, Text* t) {
    if (peek(r) == '"' || peek(r) == '\'') {
        take_string(r, t);
        return TOML_STRING;
    }
    if (peek(r) == '[') {
        take_strings(r, t);
        return TOML_STRINGS;
    }
    if (peek(r) == '{') refuse(r, "an inline table is not read here");
    static const char* const kWords[] = {"true", "false"};
    for (int i = 0; i < 2; i++) {
        if (!begins(r, kWords[i])) continue;
        text_append(t, kWords[i], strlen(kWords[i]));
        r->at += strlen(kWords[i]);
        if (at_value_end(r)) return TOML_BOOLEAN;
        r->at -= strlen(kWords[i]);
        t->bytes = 0;
    }
    return take_number(r, t);
}

// ---- the file

static char* take_key(TomlReader* r) {
    static const char kLetters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    if (peek(r) == '[') refuse(r, "a table is not read here; write its keys without a heading");
    if (peek(r) == '"' || peek(r) == '\'') refuse(r, "a key stands without quotes");
    Text key = {NULL, 0, 0};
    while (peek(r) && strchr(kLetters, peek(r))) text_append(&key, r->at++, 1);
    if (!key.bytes) refuse(r, "a line of the form key = value is expected");
    skip_blanks(r);
    if (peek(r) == '.') refuse(r, "a dotted key is not read here");
    if (peek(r) != '=') refuse(r, "an = is expected behind the key '%.40s'", key.data);
    r->at++;
    skip_blanks(r);
    return key.data;
}

static void check_text(const char* path, const char* text, size_t bytes) {
    size_t valid = utf8_valid_bytes(text, bytes);
    if (valid < bytes) user_error("%s: is not UTF-8 at byte %zu", path, valid);
    if (strlen(text) < bytes) user_error("%s: has a NUL at byte %zu", path, strlen(text));
}

Toml toml_read(const char* path) {
    size_t bytes;
    char* text = file_read(path, &bytes);
    check_text(path, text, bytes);
    TomlReader r = {path, text, text + bytes, text, 1};
    if (begins(&r, "\xef\xbb\xbf")) r.at += 3;
    Toml toml = {NULL, 0};
    for (skip_lines(&r); r.at < r.end; skip_lines(&r)) {
        TomlEntry e = {NULL, NULL, TOML_STRING, r.line};
        Text value = {NULL, 0, 0};
        const char* start = r.at;
        e.key = take_key(&r);
        for (int i = 0; i < toml.count; i++)
            if (!strcmp(toml.entries[i].key, e.key)) {
                r.at = start;
                refuse(&r, "%.40s stands in line %d already", e.key, toml.entries[i].line);
            }
        e.type = take_value(&r, &value);
        e.value = value.data;
        skip_blanks(&r);
        skip_comment(&r);
        if (r.at < r.end && peek(&r) != '\n' && !begins(&r, "\r\n")) refuse(&r, "the end of the line is expected behind a value");
        toml.entries = (TomlEntry*)host_grow(toml.entries, sizeof(TomlEntry) * (size_t)(toml.count + 1));
        toml.entries[toml.count++] = e;
    }
    free(text);
    return toml;
}

void toml_free(Toml* toml) {
    for (int i = 0; i < toml->count; i++) {
        free(toml->entries[i].key);
        free(toml->entries[i].value);
    }
    free(toml->entries);
    toml->entries = NULL;
    toml->count = 0;
}
