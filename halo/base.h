// What every file stands on: failing loudly, arenas, and a few integer helpers.
//
// Two ways to fail, both on in release builds:
//   die(...)         a broken promise inside the program (a shape, a format, a missing kernel): exit code 1
//   user_error(...)  something the user can mend (a file, a flag, a full disk): one line, exit code 2
#ifndef HALO_BASE_H
#define HALO_BASE_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __cplusplus
#define C_API extern "C"
#else
#define C_API extern
#endif

#if defined(__GNUC__)
#define PRINTF_LIKE(fmt_index) __attribute__((noreturn, format(printf, fmt_index, fmt_index + 1)))
#else
#define PRINTF_LIKE(fmt_index)
#endif

enum { kExitBug = 1, kExitUser = 2, kExitStopped = 4 };   // stopped: early, when asked to, with its state saved

PRINTF_LIKE(3) static inline void die_at(const char* file, int line, const char* format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "train_llama3: %s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    fflush(stderr);
    va_end(args);
    _exit(kExitBug);
}

// With several ranks, rank 0 speaks first: its end is the end of the job, so that an error that all ranks meet is printed once.
static inline void let_rank_0_speak(void) {
    const char* rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!rank) rank = getenv("PMI_RANK");
    if (!rank) rank = getenv("PMIX_RANK");
    if (rank && strcmp(rank, "0")) sleep(3);
}

// During an attempt (attempt.h): takes the message back to the attempt and does not return; else returns. NULL in programs without attempts.
C_API __attribute__((weak)) void user_error_caught(const char* message);

// The message says what is wrong, where (file, line, byte), and what to do. The process ends at once, without exit handlers: no
// handler may fail in a way that hides the message.
PRINTF_LIKE(1) static inline void user_error(const char* format, ...) {
    va_list args;
    if (user_error_caught) {
        char message[1024];
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
        user_error_caught(message);
    }
    va_start(args, format);
    fflush(stdout);
    let_rank_0_speak();
    fputs("train_llama3: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    fflush(stderr);
    va_end(args);
    _exit(kExitUser);
}

#define die(...) die_at(__FILE__, __LINE__, __VA_ARGS__)
#define check(condition, ...) do { if (!(condition)) die(__VA_ARGS__); } while (0)

static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }
static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Zeroed host memory; never NULL.
static inline void* host_alloc(size_t bytes) {
    void* p = calloc(1, bytes ? bytes : 1);
    check(p, "out of host memory: %zu bytes", bytes);
    return p;
}

static inline void* host_grow(void* p, size_t bytes) {
    p = realloc(p, bytes ? bytes : 1);
    check(p, "out of host memory: %zu bytes", bytes);
    return p;
}

static inline char* host_strdup(const char* s) {
    char* copy = (char*)host_alloc(strlen(s) + 1);
    return strcpy(copy, s);
}

// Writes all of the bytes, or returns false with errno.
static inline bool write_whole(int fd, const void* data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t put = write(fd, (const char*)data + done, bytes - done);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return false;
        done += (size_t)put;
    }
    return true;
}

// A region that is laid out by running the same code twice: first with base == NULL, where arena_take only counts, then
// with memory of `used` bytes behind it, where the same calls place their pieces.
typedef struct {
    char* base;
    size_t used;   // bytes handed out so far
} Arena;

enum { kArenaAlign = 256 };

// `bytes` bytes aligned to kArenaAlign; NULL while measuring.
static inline void* arena_take(Arena* arena, size_t bytes) {
    size_t at = arena->used;
    arena->used += round_up(bytes, kArenaAlign);
    return arena->base ? arena->base + at : NULL;
}

#endif
