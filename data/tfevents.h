// TensorBoard's event files: scalars over steps, written natively.
//
// A file is a row of records (TFRecord): the payload's length in 8 bytes, the masked CRC-32C of these, the payload, its masked CRC-32C, all
// little-endian. A payload is a protocol buffer, the message Event of tensorflow/core/util/event.proto:
//   Event {1: wall_time double, 2: step int64, 3: file_version string, 5: Summary, 7: SessionLog}
//   Summary {1: repeated Value {1: tag string, 2: simple_value float}}        SessionLog {1: status enum, 1 is START}
// The first event of a file names the version of the format. TensorBoard reads the files of a folder in the order of their names, which hold
// the times of their beginnings. A SessionLog START withdraws all earlier events from its step on: a run that resumes at a checkpoint begins
// a new file with a START.
//
// Functions that fail return false with errno set; a run then goes on without its events.
#ifndef DATA_TFEVENTS_H
#define DATA_TFEVENTS_H

#include "../halo/base.h"

typedef struct {
    int fd;       // -1: closed
    char* path;
} EventFile;

typedef struct {
    const char* tag;   // "train/loss": TensorBoard groups by what stands before the slash
    double value;
} EventValue;

// Begins a new file in `dir`. `wall_time`: seconds since 1970. `first_step` above 0: the step that a resumed run goes on with.
C_API bool events_open(EventFile* file, const char* dir, double wall_time, int64_t first_step);
C_API bool events_write(EventFile* file, double wall_time, int64_t step, const EventValue* values, int count);
C_API void events_close(EventFile* file);
// Removes the files that events_open made in `dir`, and no others.
C_API bool events_remove(const char* dir);

// CRC-32C (Castagnoli), and as TFRecord stores it: rotated right by 15 bits, plus 0xa282ead8.
C_API uint32_t crc32c(const void* data, size_t bytes);
C_API uint32_t crc32c_masked(const void* data, size_t bytes);

#endif
