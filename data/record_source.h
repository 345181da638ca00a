// The records of one data file as JSON objects: from JSON Lines, a JSON array or CSV, each also packed with gzip.
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

// "FILE:LINE:COLUMN" of the first "key" in the record; of the record's beginning if the key is NULL or not found. Lives until the eighth
// call after this one.
C_API const char* place_at(const Place* place, const char* key);

// Receives a record; the object lives until the function returns.
typedef void (*RecordFn)(void* receiver, const Place* place, json_t* object);
// Calls fn for each record of the file. A broken line, or a file of another kind, is a user_error.
C_API void source_read(const char* path, RecordFn fn, void* receiver);

// Receives what is wrong with a line.
typedef void (*FaultFn)(void* receiver, const char* message);

// As source_read, but a user_error about a line of JSON Lines, from its JSON or from fn, goes to `fault`, and the next line is read. Not to be
// called inside an attempt (halo/attempt.h).
C_API void source_read_on(const char* path, RecordFn fn, FaultFn fault, void* receiver);

#endif
