// RFC 4180: comma-separated values. Fields may be quoted, a quote inside a quoted field is doubled, and quoted fields may
// hold commas and line ends. Records end with LF or CRLF.
#ifndef DATA_CSV_H
#define DATA_CSV_H

#include "../halo/base.h"

enum { kMaxCsvFields = 64 };

typedef struct {
    const char* path;    // for messages
    const char* text;
    size_t bytes, at;
    int line;            // from 1: the line that `at` is on
    size_t line_start;   // where it starts

    // the record that csv_next read; fields are NUL-terminated and live until the next call
    int count, first_line;
    const char* field[kMaxCsvFields];
    size_t field_bytes[kMaxCsvFields];
    char* storage;
} Csv;

// `text` stays the caller's; text that is no UTF-8 is a user_error with line and column. csv_close frees what the reader holds itself.
C_API Csv csv_open(const char* path, const char* text, size_t bytes);
// Reads the next record, skipping empty lines; false at the end. A stray or unclosed quote is a user_error with line and
// column (bytes from 1).
C_API bool csv_next(Csv* csv);
C_API void csv_close(Csv* csv);

#endif
