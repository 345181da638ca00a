// TensorBoard's event files; see tfevents.h.
#include "tfevents.h"

#include <errno.h>
#include <fcntl.h>

#include "files.h"
#include "text.h"

static const char kPrefix[] = "events.out.tfevents.", kSuffix[] = ".train_llama3";

// ---- CRC-32C, a byte at a time

uint32_t crc32c(const void* data, size_t bytes) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 256; i-- > 0;) {   // table[1] last: it says that the table is whole
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            table[i] = c;
        }
    uint32_t crc = ~0u;
    for (const unsigned char* p = (const unsigned char*)data; bytes--; p++) crc = crc >> 8 ^ table[(crc ^ *p) & 0xff];
    return ~crc;
}

uint32_t crc32c_masked(const void* data, size_t bytes) {
    uint32_t crc = crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

// ---- bytes of records and messages

static void put_little_endian(Text* b, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)(value >> 8 * i);
        text_append(b, &byte, 1);
    }
}

static void put_varint(Text* b, uint64_t value) {
    for (; value > 0x7f; value >>= 7) put_little_endian(b, (value & 0x7f) | 0x80, 1);
    put_little_endian(b, value, 1);
}

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static void put_key(Text* b, int field, int wire) { put_varint(b, (uint64_t)(field << 3 | wire)); }

static void put_field(Text* b, int field, const void* data, size_t bytes) {
    put_key(b, field, WIRE_BYTES);
    put_varint(b, bytes);
    text_append(b, data, bytes);
}

static Text event_at(double wall_time, int64_t step) {
    Text event = {NULL, 0, 0};
    uint64_t time_bits;
    memcpy(&time_bits, &wall_time, sizeof time_bits);
    put_key(&event, 1, WIRE_64);
    put_little_endian(&event, time_bits, 8);
    if (step) {
        put_key(&event, 2, WIRE_VARINT);
        put_varint(&event, (uint64_t)step);
    }
    return event;
}

static void put_value(Text* event_summary, const EventValue* v) {
    Text value = {NULL, 0, 0};
    float number = (float)v->value;
    uint32_t number_bits;
    memcpy(&number_bits, &number, sizeof number_bits);
    put_field(&value, 1, v->tag, strlen(v->tag));
    put_key(&value, 2, WIRE_32);
    put_little_endian(&value, number_bits, 4);
    put_field(event_summary, 1, value.data, value.bytes);
    free(value.data);
}

// ---- files

// Writes a record by one call, so that a reader of the growing file finds it whole or not at all. Frees the event.
static bool write_record(EventFile* file, Text event) {
    Text record = {NULL, 0, 0};
    put_little_endian(&record, event.bytes, 8);
    put_little_endian(&record, crc32c_masked(record.data, 8), 4);
    text_append(&record, event.data, event.bytes);
    put_little_endian(&record, crc32c_masked(event.data, event.bytes), 4);
    bool written = write_whole(file->fd, record.data, record.bytes);
    int fault = errno;
    free(record.data);
    free(event.data);
    errno = fault;
    return written;
}

bool events_open(EventFile* file, const char* dir, double wall_time, int64_t first_step) {
    static const char kVersion[] = "brain.Event:2";
    file->fd = -1;
    for (long long second = (long long)wall_time;; second++) {   // of two files begun in one second the later gets the next second's name
        char name[80];
        snprintf(name, sizeof name, "%s%010lld%s", kPrefix, second, kSuffix);
        file->path = path_join(dir, name);
        file->fd = open(file->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->fd >= 0) break;
        bool taken = errno == EEXIST;
        if (!taken) return false;
        free(file->path);
    }
    Text version = event_at(wall_time, 0);
    put_field(&version, 3, kVersion, sizeof kVersion - 1);
    if (!write_record(file, version)) return false;
    if (first_step <= 0) return true;
    static const unsigned char kStart[] = {1 << 3 | WIRE_VARINT, 1};
    Text start = event_at(wall_time, first_step);
    put_field(&start, 7, kStart, sizeof kStart);
    return write_record(file, start);
}

bool events_write(EventFile* file, double wall_time, int64_t step, const EventValue* values, int count) {
    Text event = event_at(wall_time, step), summary = {NULL, 0, 0};
    for (int i = 0; i < count; i++) put_value(&summary, &values[i]);
    put_field(&event, 5, summary.data, summary.bytes);
    free(summary.data);
    return write_record(file, event);
}

void events_close(EventFile* file) {
    if (file->fd >= 0) close(file->fd);
    free(file->path);
    file->fd = -1;
    file->path = NULL;
}

bool events_remove(const char* dir) {
    char** names;
    int count = dir_names(dir, &names);
    bool removed = true;
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], kPrefix, sizeof kPrefix - 1) || !has_ending(names[i], kSuffix)) continue;
        char* path = path_join(dir, names[i]);
        removed = unlink(path) == 0 && removed;
        free(path);
    }
    dir_names_free(names, count);
    return removed;
}
