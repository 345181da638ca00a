// Changes of one top-level member of a JSON object's text that leave every other byte as it stands, so that a configuration
// file keeps its author's order, spacing and spelling of numbers.
#ifndef DATA_JSON_EDIT_H
#define DATA_JSON_EDIT_H

#include "../halo/base.h"

// A copy of the object `text` in which the member `key` has the value `value` (JSON text). Keys are compared as JSON decodes
// them, so "torch\u005fdtype" is torch_dtype. An absent member is put first. The caller frees the copy; text that is no JSON
// object is a user_error that starts with `where`.
C_API char* json_text_set(const char* text, size_t bytes, const char* key, const char* value, const char* where);

// A copy of the object without the member; an absent member is no error.
C_API char* json_text_remove(const char* text, size_t bytes, const char* key, const char* where);

// Does the object have the member, null or not?
C_API bool json_text_has(const char* text, size_t bytes, const char* key, const char* where);

#endif
