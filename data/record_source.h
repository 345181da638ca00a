// The records of one data file as JSON objects, whatever holds them: JSON Lines, a JSON array, CSV, and any of these packed with gzip.
#ifndef DATA_RECORD_SOURCE_H
#define DATA_RECORD_SOURCE_H

#include "../halo/base.h"

#include <jansson.h>

// Where a record's text lies in its file.
typedef struct {
    const char* path;
    int line;            // from 1: the line that the text begins on
    int column;          // from 1, in bytes
    const char* text;    // of JSON; NULL for CSV
    size_t bytes;
} Place;

// "FILE:LINE:COLUMN" of the first "key" in the record; of its beginning if the key is NULL or is not found. Lives until the eighth call
// after this one.
C_API const char* place_at(const Place* place, const char* key);

// Receives a record; the object lives until it returns.
typedef void (*RecordFn)(void* receiver, const Place* place, json_t* object);
// Calls fn for each record of the file. What cannot be read (a broken line, a file of another kind) is a user_error.
C_API void source_read(const char* path, RecordFn fn, void* receiver);

#endif
