// A small, strict part of TOML 1.0 (toml.io): files of settings.
//
//   # a comment
//   key = "text"          a basic string with its escapes, or a 'literal' one
//   key = 12              a decimal integer, 1e-5 a float, true or false
//   key = ["a", "b"]      an array of strings, which may go over several lines
//
// Tables, dotted or quoted keys, dates, other numbers and nested arrays are refused. Every refusal is a user_error that names file, line and
// column.
#ifndef DATA_TOML_H
#define DATA_TOML_H

#include "../halo/base.h"

typedef enum { TOML_STRING, TOML_INTEGER, TOML_FLOAT, TOML_BOOLEAN, TOML_STRINGS } TomlType;

typedef struct {
    char* key;
    char* value;     // the text of a string; a number without '_' and '+'; "true"; the strings of an array, separated by commas
    TomlType type;
    int line;        // from 1
} TomlEntry;

typedef struct {
    TomlEntry* entries;   // in the order of the file
    int count;
} Toml;

C_API Toml toml_read(const char* path);
C_API void toml_free(Toml* toml);

#endif
