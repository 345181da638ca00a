// Files: see files.h.
#include "files.h"

#include "digest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

char* path_join(const char* dir, const char* name) {
    size_t dir_bytes = strlen(dir), name_bytes = strlen(name);
    bool slash = dir_bytes && dir[dir_bytes - 1] != '/';
    char* path = (char*)host_alloc(dir_bytes + slash + name_bytes + 1);
    memcpy(path, dir, dir_bytes);
    if (slash) path[dir_bytes] = '/';
    memcpy(path + dir_bytes + slash, name, name_bytes);
    return path;
}

bool path_exists(const char* path) { return access(path, F_OK) == 0; }

bool dir_holds(const char* dir, const char* name) {
    char* path = path_join(dir, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

bool has_ending(const char* name, const char* ending) {
    size_t n = strlen(name), k = strlen(ending);
    return n > k && !strcmp(name + n - k, ending);
}

int file_open(const char* path, size_t* bytes) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_NONBLOCK);   // else opening a pipe would wait for a writer
    if (fd < 0 || fstat(fd, &info)) user_error("%s: cannot be read: %s", path, strerror(errno));
    if (S_ISDIR(info.st_mode)) user_error("%s: cannot be read: a folder; name a file in it", path);
    if (!S_ISREG(info.st_mode)) user_error("%s: cannot be read: not a regular file; copy its contents into one", path);
    if (bytes) *bytes = (size_t)info.st_size;
    return fd;
}

void refuse_lfs_pointer(const char* path, const char* text, size_t bytes) {
    static const char opening[] = "version https://git-lfs.github.com/spec";
    if (bytes >= sizeof opening - 1 && !memcmp(text, opening, sizeof opening - 1))
        user_error("%s: a git-LFS pointer, not the file itself; run: git lfs pull", path);
}

char* file_read(const char* path, size_t* bytes) {
    int fd = file_open(path, NULL);
    char* text = NULL;
    size_t size = 0, capacity = 0;
    for (;;) {
        if (capacity - size < 2) {
            capacity = capacity ? 2 * capacity : 1 << 14;
            text = (char*)host_grow(text, capacity);
        }
        ssize_t got = read(fd, text + size, capacity - size - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) user_error("%s: cannot be read at byte %zu: %s", path, size, strerror(errno));
        if (got == 0) break;
        size += (size_t)got;
    }
    close(fd);
    text[size] = 0;
    refuse_lfs_pointer(path, text, size);
    if (bytes) *bytes = size;
    return text;
}

void file_digest(const char* path, char hex[33]) {
    enum { kPieceBytes = 4 << 20 };
    int fd = file_open(path, NULL);
    char* piece = (char*)host_alloc(kPieceBytes);
    XXH3_state_t* hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    for (;;) {
        ssize_t got = read(fd, piece, kPieceBytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) user_error("%s: cannot be read: %s", path, strerror(errno));
        if (got == 0) break;
        XXH3_128bits_update(hash, piece, (size_t)got);
    }
    hex_digest(XXH3_128bits_digest(hash), hex);
    XXH3_freeState(hash);
    free(piece);
    close(fd);
}

// ---- writing

static void write_failed(const OutFile* out) {
    const char* remedy = errno == ENOSPC || errno == EDQUOT ? "free some space or choose another place"
                       : errno == EFBIG ? "raise the file size limit (ulimit -f)"
                       : "check the disk";
    user_error("%s: cannot be written at byte %zu of %zu: %s; %s", out->path, out->written_bytes, out->total_bytes,
               strerror(errno), remedy);
}

OutFile out_open(const char* path, size_t total_bytes) {
    OutFile out = {-1, host_strdup(path), 0, total_bytes, 0, NULL};
    out.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (out.fd < 0) user_error("%s: cannot be created: %s", path, strerror(errno));
    return out;
}

// A large file goes to the disk on the way: its last sync would else be one wait without a word, longer than a watchdog's patience. What
// has been written is given to the disk, and what was given before that is waited for, so that the disk works while more is made.
enum { kSyncBytes = 64 << 20 };
static void sync_on_the_way(OutFile* out) {
    const unsigned start = SYNC_FILE_RANGE_WRITE, wait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    off_t given = (off_t)out->synced_bytes;
    bool failed = sync_file_range(out->fd, given, (off_t)out->written_bytes - given, start) ||
                  (given && sync_file_range(out->fd, 0, given, wait));
    if (failed && errno != EINVAL && errno != ESPIPE && errno != ENOSYS) write_failed(out);   // these three: not a file that can be synced
    out->synced_bytes = out->written_bytes;
}

void out_write(OutFile* out, const void* data, size_t bytes) {
    const char* from = (const char*)data;
    if (out->hash) XXH3_128bits_update((XXH3_state_t*)out->hash, data, bytes);
    while (bytes) {
        ssize_t put = write(out->fd, from, bytes);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) write_failed(out);
        from += put;
        bytes -= (size_t)put;
        out->written_bytes += (size_t)put;
    }
    if (out->written_bytes - out->synced_bytes >= kSyncBytes) sync_on_the_way(out);
}

void out_hash(OutFile* out) {
    out->hash = XXH3_createState();
    XXH3_128bits_reset((XXH3_state_t*)out->hash);
}

void out_digest(OutFile* out, char hex[33]) { hex_digest(XXH3_128bits_digest((XXH3_state_t*)out->hash), hex); }

void out_close(OutFile* out) {
    check(out->written_bytes == out->total_bytes, "%s: %zu bytes written, %zu announced", out->path, out->written_bytes,
          out->total_bytes);
    if (fsync(out->fd) && errno != EINVAL) write_failed(out);   // EINVAL: not a file that can be synced
    if (close(out->fd)) write_failed(out);
    free(out->path);
    if (out->hash) XXH3_freeState((XXH3_state_t*)out->hash);
    out->hash = NULL;
    out->path = NULL;
    out->fd = -1;
}

void file_write(const char* dir, const char* name, const void* data, size_t bytes) {
    char* path = path_join(dir, name);
    OutFile out = out_open(path, bytes);
    out_write(&out, data, bytes);
    out_close(&out);
    free(path);
}

void disk_require(const char* dir, size_t bytes) {
    struct statvfs disk;
    if (statvfs(dir, &disk)) user_error("%s: %s", dir, strerror(errno));
    uint64_t free_bytes = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (free_bytes < bytes)
        user_error("%s: %zu bytes are needed and %llu are free; free some space or choose another place", dir, bytes,
                   (unsigned long long)free_bytes);
}

double disk_free_bytes(const char* path) {
    struct statvfs disk;
    char* at = host_strdup(path);
    while (statvfs(at, &disk)) {
        if (errno != ENOENT || !*at) user_error("%s: %s", path, strerror(errno));
        char* slash = strrchr(at, '/');
        if (slash == at || !slash) strcpy(at, slash ? "/" : ".");
        else *slash = 0;
    }
    free(at);
    return (double)disk.f_bavail * (double)disk.f_frsize;
}

// ---- directories

bool dir_exists(const char* path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

void dir_make(const char* path) {
    char* prefix = host_strdup(path);
    for (char* end = prefix + 1; *prefix; end++) {
        if (*end != '/' && *end != 0) continue;
        char separator = *end;
        *end = 0;
        if (mkdir(prefix, 0777) && errno != EEXIST) user_error("%s: cannot be created: %s", prefix, strerror(errno));
        if (separator == 0) break;
        *end = separator;
    }
    free(prefix);
    struct stat info;
    if (stat(path, &info) || !S_ISDIR(info.st_mode)) user_error("%s: not a directory; choose another place", path);
}

void dir_sync(const char* path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0) user_error("%s: %s", path, strerror(errno));
    if (fsync(fd) && errno != EINVAL) user_error("%s: cannot be synced: %s", path, strerror(errno));
    close(fd);
}

int dir_names(const char* path, char*** names) {
    *names = NULL;
    DIR* dir = opendir(path);
    if (!dir) {
        if (errno == ENOENT) return 0;
        user_error("%s: cannot be listed: %s", path, strerror(errno));
    }
    int count = 0;
    for (struct dirent* entry; (entry = readdir(dir)) != NULL;) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        *names = (char**)host_grow(*names, (size_t)(count + 1) * sizeof **names);
        (*names)[count++] = host_strdup(entry->d_name);
    }
    closedir(dir);
    return count;
}

void dir_names_free(char** names, int count) {
    for (int i = 0; i < count; i++) free(names[i]);
    free(names);
}

void file_rename(const char* from, const char* to) {
    if (rename(from, to)) user_error("%s: cannot be renamed to %s: %s", from, to, strerror(errno));
}

void file_remove(const char* path) {
    if (unlink(path) && errno != ENOENT) user_error("%s: cannot be removed: %s", path, strerror(errno));
}
