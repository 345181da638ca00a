// Strict JSON: see json.h.
#include "json.h"

#include "utf8.h"

#include "files.h"

#include <math.h>

enum { kPrintableBytes = 160, kPrintableSlots = 8 };

const char* printable(const char* text) {
    static char slots[kPrintableSlots][kPrintableBytes];
    static int next;
    char* out = slots[next++ % kPrintableSlots];
    size_t n = 0;
    for (; text[n] && n < kPrintableBytes - 4; n++) {
        unsigned char c = (unsigned char)text[n];
        out[n] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    strcpy(out + n, text[n] ? "..." : "");
    return out;
}

json_t* json_parse(const char* text, size_t bytes, const char* where) {
    json_error_t error;
    json_t* value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!value)
        user_error("%s: not valid JSON at line %d, column %d (byte %d): %s", where, error.line, error.column, error.position,
                   printable(error.text));
    return value;
}

json_t* json_parse_file(const char* path) {
    size_t bytes;
    char* text = file_read(path, &bytes);
    json_t* value = json_parse(text, bytes, path);
    free(text);
    return value;
}

bool has_member(const json_t* object, const char* key) {
    const json_t* value = json_object_get(object, key);
    return value && !json_is_null(value);
}

static const json_t* demand(const json_t* object, const char* key, const char* where) {
    if (!has_member(object, key)) user_error("%s: \"%s\" is missing", where, key);
    return json_object_get(object, key);
}

int member_int(const json_t* object, const char* key, int low, int high, const char* where) {
    const json_t* value = demand(object, key, where);
    if (!json_is_integer(value)) user_error("%s: \"%s\" has to be a whole number", where, key);
    json_int_t number = json_integer_value(value);
    if (number < low || number > high)
        user_error("%s: \"%s\" is %lld, allowed are %d to %d", where, key, (long long)number, low, high);
    return (int)number;
}

double member_positive(const json_t* object, const char* key, const char* where) {
    const json_t* value = demand(object, key, where);
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number > 0) || !isfinite(number))
        user_error("%s: \"%s\" has to be a number above 0", where, key);
    return number;
}

bool member_bool(const json_t* object, const char* key, const char* where) {
    const json_t* value = demand(object, key, where);
    if (!json_is_boolean(value)) user_error("%s: \"%s\" has to be true or false", where, key);
    return json_is_true(value);
}

const char* member_string(const json_t* object, const char* key, const char* where) {
    const json_t* value = demand(object, key, where);
    if (!json_is_string(value)) user_error("%s: \"%s\" has to be a string", where, key);
    return json_string_value(value);
}

const json_t* member_object(const json_t* object, const char* key, const char* where) {
    const json_t* value = demand(object, key, where);
    if (!json_is_object(value)) user_error("%s: \"%s\" has to be an object", where, key);
    return value;
}

json_t* json_utf8(const char* text) {
    size_t bytes = strlen(text), n = 0;
    char* valid = (char*)host_alloc(3 * bytes + 1);
    for (size_t at = 0; at < bytes;) {
        int length = utf8_char_bytes(text + at, bytes - at);
        memcpy(valid + n, length > 0 ? text + at : "\xef\xbf\xbd", length > 0 ? (size_t)length : 3);
        n += length > 0 ? (size_t)length : 3;
        at += length > 0 ? (size_t)length : 1;
    }
    json_t* value = json_stringn(valid, n);
    free(valid);
    check(value, "json_utf8: no string");
    return value;
}
