// RFC 4180: see csv.h.
#include "csv.h"

#include "utf8.h"

static void require_utf8(const char* path, const char* text, size_t bytes) {
    size_t valid = utf8_valid_bytes(text, bytes);
    if (valid == bytes) return;
    int line = 1;
    size_t start = 0;
    for (size_t i = 0; i < valid; i++)
        if (text[i] == '\n') line++, start = i + 1;
    user_error("%s:%d:%d: not valid UTF-8; convert the file, say with: iconv -f latin1 -t utf8", path, line, (int)(valid - start) + 1);
}

Csv csv_open(const char* path, const char* text, size_t bytes) {
    require_utf8(path, text, bytes);
    Csv csv;
    memset(&csv, 0, sizeof csv);
    csv.path = path;
    csv.text = text;
    csv.bytes = bytes;
    csv.line = 1;
    csv.storage = (char*)host_alloc(bytes + kMaxCsvFields);   // room for any record: at most all of the text, and a NUL for each field
    return csv;
}

void csv_close(Csv* csv) {
    free(csv->storage);
    csv->storage = NULL;
}

static int peek(const Csv* csv) { return csv->at < csv->bytes ? (unsigned char)csv->text[csv->at] : -1; }

static bool at_line_end(const Csv* csv) {
    int c = peek(csv);
    return c < 0 || c == '\n' || (c == '\r' && csv->at + 1 < csv->bytes && csv->text[csv->at + 1] == '\n');
}

static void next_line(Csv* csv) {
    if (peek(csv) == '\r') csv->at++;
    if (peek(csv) == '\n') csv->at++;
    csv->line++;
    csv->line_start = csv->at;
}

static int column(const Csv* csv) { return (int)(csv->at - csv->line_start) + 1; }

// Reads a quoted field, from behind its opening quote to behind its closing one, to `out`; returns the end of what was written.
static char* quoted_field(Csv* csv, char* out) {
    int first_line = csv->line, first_column = column(csv) - 1;
    for (;;) {
        int c = peek(csv);
        if (c < 0)
            user_error("%s:%d:%d: this quote is never closed; double the quotes inside a field", csv->path, first_line,
                       first_column);
        csv->at++;
        if (c == '"' && peek(csv) != '"') return out;
        if (c == '"') csv->at++;
        *out++ = (char)c;
        if (c == '\n') {
            csv->line++;
            csv->line_start = csv->at;
        }
    }
}

bool csv_next(Csv* csv) {
    while (peek(csv) >= 0 && at_line_end(csv)) next_line(csv);
    if (peek(csv) < 0) return false;
    char* out = csv->storage;
    csv->count = 0;
    csv->first_line = csv->line;
    for (;;) {
        if (csv->count == kMaxCsvFields)
            user_error("%s:%d:%d: more than %d fields", csv->path, csv->line, column(csv), kMaxCsvFields);
        char* field = out;
        if (peek(csv) == '"') {
            csv->at++;
            out = quoted_field(csv, out);
            if (peek(csv) != ',' && !at_line_end(csv))
                user_error("%s:%d:%d: a comma or the line's end has to follow a closing quote; double the quotes inside a "
                           "field", csv->path, csv->line, column(csv));
        } else {
            for (; peek(csv) != ',' && !at_line_end(csv); csv->at++) {
                if (peek(csv) == '"')
                    user_error("%s:%d:%d: a quote inside an unquoted field; quote the whole field", csv->path, csv->line,
                               column(csv));
                *out++ = csv->text[csv->at];
            }
        }
        csv->field[csv->count] = field;
        csv->field_bytes[csv->count++] = (size_t)(out - field);
        *out++ = 0;
        if (peek(csv) != ',') break;
        csv->at++;
    }
    if (peek(csv) >= 0) next_line(csv);
    return true;
}
