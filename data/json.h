// JSON as this program takes it: jansson in its strict form (duplicate keys refused), with errors that name the file and
// the place, and members that have the type and the range the caller says.
#ifndef DATA_JSON_H
#define DATA_JSON_H

#include "../halo/base.h"

#include <jansson.h>

// Text from a file, fit for a one-line message: control characters become '?', the end of a long one is cut off. The result
// lives until the eighth call after this one.
C_API const char* printable(const char* text);

// The parsed value; `where` (a file, a part of one) opens the message of a syntax error.
C_API json_t* json_parse(const char* text, size_t bytes, const char* where);
C_API json_t* json_parse_file(const char* path);

// A string value; bytes that are no UTF-8 (a model's text may break off inside a character) become U+FFFD.
C_API json_t* json_utf8(const char* text);

// Members of an object. A member that is null counts as absent, as in Hugging Face files. The `member_` functions demand
// the member: absent, of another type, or out of range is a user_error that starts with `where` and names the key.
C_API bool has_member(const json_t* object, const char* key);
C_API int member_int(const json_t* object, const char* key, int low, int high, const char* where);
C_API double member_positive(const json_t* object, const char* key, const char* where);   // a finite number > 0
C_API bool member_bool(const json_t* object, const char* key, const char* where);
C_API const char* member_string(const json_t* object, const char* key, const char* where);
C_API const json_t* member_object(const json_t* object, const char* key, const char* where);

#endif
