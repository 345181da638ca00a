// The records of one data file as JSON objects: see record_source.h.
#include "record_source.h"

#include "../halo/attempt.h"
#include "csv.h"
#include "files.h"
#include "json.h"

#include <zlib.h>

// ---- places

enum { kPlaceBytes = 512, kPlaceSlots = 8 };

// The line and column of byte `at` of the record's text.
static const char* place_of_byte(const Place* place, size_t at) {
    static char slots[kPlaceSlots][kPlaceBytes];
    static int next;
    char* out = slots[next++ % kPlaceSlots];
    int line = place->line, column = place->column;
    for (size_t i = 0; place->text && i < at && i < place->bytes; i++) {
        column++;
        if (place->text[i] != '\n') continue;
        line++;
        column = 1;
    }
    snprintf(out, kPlaceBytes, "%s:%d:%d", place->path, line, column);
    return out;
}

const char* place_at(const Place* place, const char* key) {
    size_t n = key ? strlen(key) : 0, found = 0;
    for (size_t at = 0; key && place->text && at + n + 2 <= place->bytes; at++)
        if (place->text[at] == '"' && !memcmp(place->text + at + 1, key, n) && place->text[at + n + 1] == '"') {
            found = at;
            break;
        }
    return place_of_byte(place, found);
}

// ---- gzip

// The unpacked bytes, followed by a NUL; of several gzip members in one file, all of them.
static char* gunzip(const char* path, const char* packed, size_t packed_bytes, size_t* bytes) {
    z_stream z;
    memset(&z, 0, sizeof z);
    check(inflateInit2(&z, 15 + 16) == Z_OK, "zlib does not start");
    size_t capacity = 4 * packed_bytes + 1024, in = 0, out = 0;
    char* text = (char*)host_alloc(capacity);
    for (bool ended = false; !ended || in < packed_bytes;) {
        if (ended) inflateReset(&z);
        if (out + 1 >= capacity) text = (char*)host_grow(text, capacity *= 2);
        size_t room = capacity - 1 - out, rest = packed_bytes - in;
        z.next_in = (Bytef*)(packed + in);
        z.avail_in = (uInt)(rest < 1u << 30 ? rest : 1u << 30);
        z.next_out = (Bytef*)(text + out);
        z.avail_out = (uInt)(room < 1u << 30 ? room : 1u << 30);
        uInt had_in = z.avail_in, had_out = z.avail_out;
        int state = inflate(&z, Z_NO_FLUSH);
        in += had_in - z.avail_in;
        out += had_out - z.avail_out;
        ended = state == Z_STREAM_END;
        bool moved = had_in != z.avail_in || had_out != z.avail_out;
        if ((state != Z_OK && !ended && state != Z_BUF_ERROR) || (!ended && !moved))
            user_error("%s: the gzip data are broken or cut off at byte %zu of %zu; fetch the file again", path, in, packed_bytes);
    }
    inflateEnd(&z);
    text[out] = 0;
    *bytes = out;
    return text;
}

// ---- JSON

static void advance(Place* place, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        place->column++;
        if (place->text[i] != '\n') continue;
        place->line++;
        place->column = 1;
    }
    place->text += bytes;
    place->bytes -= bytes;
}

static size_t space_bytes(const Place* place) {
    size_t n = 0;
    while (n < place->bytes && place->text[n] && strchr(" \t\r\n", place->text[n])) n++;
    return n;
}

// whole: the text is a line, which has to be one value; else what follows the value is left.
static json_t* parse(const Place* place, size_t bytes, bool whole, size_t* used) {
    json_error_t error;
    size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | (whole ? 0 : JSON_DISABLE_EOF_CHECK);
    json_t* object = json_loadb(place->text, bytes, flags | JSON_DECODE_ANY, &error);
    if (!object) {
        size_t at = error.line > 1 || error.column < 1 ? (size_t)max_int(error.position, 0) : (size_t)error.column - 1;
        if (whole && (has_ending(error.text, "near end of file") || !strncmp(error.text, "premature end", strlen("premature end"))))
            user_error("%s: not valid JSON: the line ends inside a value; a record is one whole line, or the file one JSON array of records",
                       place_of_byte(place, bytes));
        const char* where = place_of_byte(place, at < bytes ? at : bytes);
        if (whole && !strncmp(error.text, "end of file expected", strlen("end of file expected")))
            user_error("%s: not valid JSON: something follows the value; a record is one whole line, or the file one JSON array of records", where);
        user_error("%s: not valid JSON: %s", where, printable(error.text));
    }
    if (used) *used = (size_t)error.position;
    return object;
}

typedef struct {
    Place place;
    RecordFn fn;
    void* receiver;
} Line;

// Work of an attempt.
static void read_line(void* self) {
    const Line* line = (const Line*)self;
    json_t* object = parse(&line->place, line->place.bytes, true, NULL);
    line->fn(line->receiver, &line->place, object);
    json_decref(object);
}

// fault: NULL, or who is told what is wrong with a line instead of the program's end.
static void read_lines(Place at, RecordFn fn, FaultFn fault, void* receiver) {
    while (at.bytes) {
        const char* newline = (const char*)memchr(at.text, '\n', at.bytes);
        Line line = {at, fn, receiver};
        line.place.bytes = newline ? (size_t)(newline - at.text) : at.bytes;
        if (space_bytes(&line.place) < line.place.bytes) {
            char message[kAttemptBytes];
            if (!fault) read_line(&line);
            else if (!attempt(read_line, &line, message)) fault(receiver, message);
        }
        size_t step = line.place.bytes + (newline != NULL);
        at.text += step;
        at.bytes -= step;
        at.line++;
    }
}

static void read_array(Place at, RecordFn fn, void* receiver) {
    advance(&at, 1);   // the bracket
    advance(&at, space_bytes(&at));
    bool more = at.bytes && *at.text != ']';
    while (more) {
        size_t used;
        json_t* object = parse(&at, at.bytes, false, &used);
        Place record = at;
        record.bytes = used;
        fn(receiver, &record, object);
        json_decref(object);
        advance(&at, used);
        advance(&at, space_bytes(&at));
        more = at.bytes && *at.text == ',';
        if (more) advance(&at, 1);
        if (more) advance(&at, space_bytes(&at));
    }
    if (at.bytes && *at.text == ']') advance(&at, 1);
    else user_error("%s: a comma or the list's closing bracket has to follow a record", place_of_byte(&at, 0));
    if (space_bytes(&at) < at.bytes) user_error("%s: something follows the list of records", place_of_byte(&at, space_bytes(&at)));
}

// Does the file's text begin as an array, rather than as lines with one object each?
static bool is_array(const Place* at) {
    size_t n = space_bytes(at);
    return n < at->bytes && at->text[n] == '[';
}

// ---- CSV

static void read_csv(const char* path, const char* text, size_t bytes, RecordFn fn, void* receiver) {
    Csv csv = csv_open(path, text, bytes);
    char* names[kMaxCsvFields];
    int columns = csv_next(&csv) ? csv.count : 0;
    for (int i = 0; i < columns; i++) {
        names[i] = host_strdup(csv.field[i]);
        for (int k = 0; k < i; k++)
            if (!strcmp(names[k], names[i])) user_error("%s:1:1: two columns are called \"%s\"", path, printable(names[i]));
    }
    while (csv_next(&csv)) {
        if (csv.count != columns) user_error("%s:%d:1: %d fields where the first line has %d", path, csv.first_line, csv.count, columns);
        json_t* object = json_object();
        for (int i = 0; i < columns; i++) json_object_set_new(object, names[i], json_stringn(csv.field[i], csv.field_bytes[i]));
        Place place = {path, csv.first_line, 1, NULL, 0};
        fn(receiver, &place, object);
        json_decref(object);
    }
    for (int i = 0; i < columns; i++) free(names[i]);
    csv_close(&csv);
}

// ---- files

static void refuse_other_kinds(const char* path, const char* text, size_t bytes) {
    static const char lfs[] = "version https://git-lfs";
    if (bytes >= 4 && !memcmp(text, "PAR1", 4))
        user_error("%s: a Parquet file, which is not read; make JSON Lines of it with: python3 -c \"import pandas; "
                   "pandas.read_parquet('%s').to_json('%s.jsonl', orient='records', lines=True)\"", path, path, path);
    if (bytes >= 2 && (!memcmp(text, "\xff\xfe", 2) || !memcmp(text, "\xfe\xff", 2)))
        user_error("%s: UTF-16, and only UTF-8 is read; make it with: iconv -f utf-16 -t utf-8 '%s' > FILE", path, path);
    if (bytes >= 4 && !memcmp(text, "PK\x03\x04", 4))
        user_error("%s: a ZIP archive or a spreadsheet; unpack it, or save the sheet as CSV", path);
    if (bytes >= sizeof lfs - 1 && !memcmp(text, lfs, sizeof lfs - 1))
        user_error("%s: a git-LFS pointer, not the data; fetch them with: git lfs pull --include '%s'", path, path);
}

void source_read(const char* path, RecordFn fn, void* receiver) { source_read_on(path, fn, NULL, receiver); }

void source_read_on(const char* path, RecordFn fn, FaultFn fault, void* receiver) {
    size_t bytes, mark = 0;
    char* text = file_read(path, &bytes);
    if (bytes >= 2 && !memcmp(text, "\x1f\x8b", 2)) {
        char* packed = text;
        text = gunzip(path, packed, bytes, &bytes);
        free(packed);
    }
    refuse_other_kinds(path, text, bytes);
    if (bytes >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) mark = 3;   // a byte order mark, as spreadsheets write it
    Place at = {path, 1, 1, text + mark, bytes - mark};
    if (has_ending(path, ".csv") || has_ending(path, ".csv.gz")) {
        read_csv(path, at.text, at.bytes, fn, receiver);
    } else if (is_array(&at)) {
        advance(&at, space_bytes(&at));
        read_array(at, fn, receiver);
    } else {
        read_lines(at, fn, fault, receiver);
    }
    free(text);
}
