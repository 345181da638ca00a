// Files: whole reads, checked writes, directories. Whatever goes wrong here is the user's to mend (a path, a permission, a
// full disk), so every failure is a user_error that names the file.
#ifndef DATA_FILES_H
#define DATA_FILES_H

#include "../halo/base.h"

// "dir/name" in memory of its own.
C_API char* path_join(const char* dir, const char* name);
C_API bool path_exists(const char* path);
// Is there anything called `name` in the folder?
C_API bool dir_holds(const char* dir, const char* name);
// Does a name end in `ending` (".jsonl"), behind at least one other character?
C_API bool has_ending(const char* name, const char* ending);

// A descriptor of a regular file and its size (bytes may be NULL); a pipe, a device or a directory is a user_error.
C_API int file_open(const char* path, size_t* bytes);
// If `text` is a Git LFS pointer, which stands for a large file that has not been fetched: a user_error that names the command to fetch it.
C_API void refuse_lfs_pointer(const char* path, const char* text, size_t bytes);

// The whole file, followed by a NUL that *bytes (may be NULL) does not count.
C_API char* file_read(const char* path, size_t* bytes);
// The digest (digest.h) of a file's bytes; the file is read in parts.
C_API void file_digest(const char* path, char hex[33]);

// ---- writing. total_bytes: what the file will hold in the end, for the message if the disk is full.
typedef struct {
    int fd;
    char* path;
    size_t written_bytes, total_bytes, synced_bytes;
    void* hash;          // of the bytes so far; NULL unless out_hash was called
} OutFile;

C_API OutFile out_open(const char* path, size_t total_bytes);   // replaces the file
C_API void out_write(OutFile* out, const void* data, size_t bytes);
C_API void out_hash(OutFile* out);                              // hashes what is written; call before the first byte
C_API void out_digest(OutFile* out, char hex[33]);              // XXH3-128 of all bytes written (digest.h)
C_API void out_close(OutFile* out);                             // on disk (fsync) when it returns; dies if bytes are missing

// Writes dir/name whole.
C_API void file_write(const char* dir, const char* name, const void* data, size_t bytes);

// A user_error unless `bytes` more bytes fit on the disk that holds `dir`. Called before writing starts.
C_API void disk_require(const char* dir, size_t bytes);
// What is free on the disk of a path, which need not be there yet.
C_API double disk_free_bytes(const char* path);

// ---- directories
C_API bool dir_exists(const char* path);
C_API void dir_make(const char* path);                          // with its parents; fine if it is there
C_API void dir_sync(const char* path);                          // makes renames inside it survive a power cut
C_API int dir_names(const char* path, char*** names);           // all but . and ..; 0 if there is no such directory
C_API void dir_names_free(char** names, int count);
C_API void file_rename(const char* from, const char* to);
C_API void file_remove(const char* path);                       // fine if it is not there

#endif
