// Trials kept from run to run; see trial_cache.h.
#include "trial_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum { kFormatVersion = 1, kIdentityBytes = 496, kMostRecords = 1 << 16, kPathBytes = 1024 };

typedef struct {
    char magic[8];
    uint32_t version, record_bytes;
    char identity[kIdentityBytes];
} TrialHeader;

struct TrialCache {
    TrialHeader header;
    size_t key_bytes, value_bytes;
    uint64_t seed;
    unsigned char* records;   // count of header.record_bytes each
    int count;
    char dir[kPathBytes], path[kPathBytes];   // "" where there is no directory
    int turn;                                 // the open file whose lock is this process's turn; -1: it has none
};

static unsigned char* record_at(const TrialCache* c, int i) { return c->records + (size_t)i * c->header.record_bytes; }

static uint64_t checksum_of(const TrialCache* c, const unsigned char* record) {
    return XXH3_64bits_withSeed(record, c->key_bytes + c->value_bytes, c->seed);
}

static int find(const TrialCache* c, const void* key) {
    for (int i = 0; i < c->count; i++)
        if (!memcmp(record_at(c, i), key, c->key_bytes)) return i;
    return -1;
}

static void put(TrialCache* c, const void* key, const void* value) {
    int i = find(c, key);
    if (i < 0 && c->count == kMostRecords) return;
    if (i < 0) {
        i = c->count++;
        c->records = (unsigned char*)host_grow(c->records, (size_t)c->count * c->header.record_bytes);
    }
    unsigned char* record = record_at(c, i);
    memcpy(record, key, c->key_bytes);
    memcpy(record + c->key_bytes, value, c->value_bytes);
    uint64_t checksum = checksum_of(c, record);
    memcpy(record + c->key_bytes + c->value_bytes, &checksum, sizeof checksum);
}

// ---- the file

static bool read_fully(int file, void* to, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t got = read(file, (char*)to + done, bytes - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        done += (size_t)got;
    }
    return true;
}

// Takes over the whole records of the file whose keys are not known yet.
static void merge_file(TrialCache* c) {
    int file = *c->path ? open(c->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    if (file < 0) return;
    TrialHeader header;
    struct stat what;
    bool ours = !fstat(file, &what) && S_ISREG(what.st_mode) && read_fully(file, &header, sizeof header) && !memcmp(&header, &c->header, sizeof header);
    unsigned char* record = (unsigned char*)host_alloc(c->header.record_bytes);
    for (int i = 0; ours && i < kMostRecords && read_fully(file, record, c->header.record_bytes); i++) {
        uint64_t checksum;
        memcpy(&checksum, record + c->key_bytes + c->value_bytes, sizeof checksum);
        if (checksum == checksum_of(c, record) && find(c, record) < 0) put(c, record, record + c->key_bytes);
    }
    free(record);
    close(file);
}

// Written under another name and renamed: readers see the old file or the new one.
static void write_file(const TrialCache* c) {
    char temporary[kPathBytes + 32];
    if (!*c->path) return;
    snprintf(temporary, sizeof temporary, "%s.%ld.new", c->path, (long)getpid());
    int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return;
    bool written = write_whole(file, &c->header, sizeof c->header) && write_whole(file, c->records, (size_t)c->count * c->header.record_bytes);
    written = !close(file) && written;
    if (!written || rename(temporary, c->path)) unlink(temporary);
}

// $XDG_CACHE_HOME has to be absolute to count, by its own specification.
static void name_file(TrialCache* c) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = 0;
    if (cache && *cache == '/') n = snprintf(c->dir, sizeof c->dir, "%s", cache);
    else if (home && *home == '/') n = snprintf(c->dir, sizeof c->dir, "%s/.cache", home);
    if (n > 0 && n + 64 < kPathBytes) {
        mkdir(c->dir, 0700);
        strcat(c->dir, "/train_llama3");
        if (!mkdir(c->dir, 0700) || errno == EEXIST)
            n = snprintf(c->path, sizeof c->path, "%s/products-%016llx", c->dir, (unsigned long long)c->seed);
        if (n >= kPathBytes) c->path[0] = 0;
    }
}

TrialCache* trial_cache_open(const char* identity, size_t key_bytes, size_t value_bytes) {
    static const char kMagic[8] = {'H', 'A', 'L', 'O', 't', 'r', 'y', '\n'};
    TrialCache* c = (TrialCache*)host_alloc(sizeof(TrialCache));
    memcpy(c->header.magic, kMagic, sizeof kMagic);
    c->header.version = kFormatVersion;
    c->header.record_bytes = (uint32_t)(key_bytes + value_bytes + sizeof(uint64_t));
    snprintf(c->header.identity, sizeof c->header.identity, "%s", identity);
    c->key_bytes = key_bytes;
    c->value_bytes = value_bytes;
    c->seed = XXH3_64bits(&c->header, sizeof c->header);
    c->turn = -1;
    name_file(c);
    merge_file(c);
    return c;
}

void trial_cache_free(TrialCache* c) {
    free(c->records);
    free(c);
}

bool trial_cache_find(const TrialCache* c, const void* key, void* value) {
    int i = find(c, key);
    if (i >= 0) memcpy(value, record_at(c, i) + c->key_bytes, c->value_bytes);
    return i >= 0;
}

void trial_cache_add(TrialCache* c, const void* key, const void* value) {
    put(c, key, value);
    merge_file(c);
    write_file(c);
}

// The lock is held by the open file: it ends with the process, however that ends. Where a lock cannot be had at all, nobody waits.
void trial_cache_begin(TrialCache* c, double seconds) {
    enum { kPollMs = 10 };
    const struct timespec pause = {0, kPollMs * 1000000L};
    char name[kPathBytes + 32];
    check(c->turn < 0, "trials: begun twice");
    if (!*c->path) return;
    snprintf(name, sizeof name, "%s.lock", c->path);
    c->turn = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    for (double waited = 0; c->turn >= 0 && waited < seconds; waited += 1e-3 * kPollMs) {
        if (flock(c->turn, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) break;
        nanosleep(&pause, NULL);
    }
    merge_file(c);
}
void trial_cache_end(TrialCache* c) {
    if (c->turn >= 0) {
        flock(c->turn, LOCK_UN);   // even if a forked process has the open file too
        close(c->turn);
    }
    c->turn = -1;
}

const char* trial_cache_path(const TrialCache* c) { return c->path; }
