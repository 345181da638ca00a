// Checkpoints: the complete state of a training run, from which it continues bit for bit.
//
//   DIR/step-00000040/rank-00000-of-00004.bin    the blobs of one rank, one after the other
//   DIR/step-00000040/rank-00000-of-00004.json   what they are, their XXH3-128 checksums, numbers and settings
//   DIR/step-00000080.tmp/                       a checkpoint being written, or one whose writing was cut short
//   DIR/step-00000040.old/                       one that is being replaced by another of the same step
//
// A directory without suffix is complete: it gets its name by one rename, after every byte of every rank is on disk. Older
// checkpoints are removed only after that. Every byte of both files is under a checksum; a damaged, cut off or foreign
// checkpoint is a user_error.
#ifndef DATA_CHECKPOINT_H
#define DATA_CHECKPOINT_H

#include "../halo/base.h"

// Named bytes that may lie anywhere (host, GPU): `read` fetches `bytes` of them from `offset` on to `dst` when saving,
// `write` puts them back when loading.
typedef struct {
    const char* name;
    size_t bytes;
    void (*read)(void* context, size_t offset, size_t bytes, void* dst);
    void (*write)(void* context, size_t offset, size_t bytes, const void* src);
    void* context;
} Blob;
// A blob in ordinary host memory, which must outlive the Blob.
C_API Blob host_blob(const char* name, void* data, size_t bytes);

typedef struct {
    const char* name;
    int64_t* value;       // saved from, loaded to: step, epoch, data position, random state
} CheckpointNumber;

typedef struct {
    const char* name;
    const char* value;    // must be the same in a run that continues: model, recipe, learning rate, data, seed
    const char* remedy;   // what to do where it is another; NULL: to resume with the same value
} CheckpointSetting;

// One description serves saving and loading: a checkpoint loads only into the blobs, numbers and settings it was saved from.
typedef struct {
    int rank, ranks;
    const Blob* blobs;
    int blob_count;
    const CheckpointNumber* numbers;
    int number_count;
    const CheckpointSetting* settings;
    int setting_count;
} CheckpointState;

// Saving takes two calls, so that a checkpoint gets its name only when all ranks have finished: every rank writes; then,
// after a barrier, one of them commits. The committed step is the newest from then on: the latest `keep` (at least 1)
// checkpoints up to it stay, and that of step `best` (-1: none). Older ones are removed, and so are those of later steps,
// which are left over if this run was resumed from an earlier step. Other files in DIR are not touched.
C_API void checkpoint_write(const char* dir, int step, const CheckpointState* state);
C_API void checkpoint_commit(const char* dir, int step, int ranks, int keep, int best);

// The path of the newest complete checkpoint in DIR (the caller frees it), or NULL if there is none.
C_API char* checkpoint_latest(const char* dir);
// The steps of all complete checkpoints in DIR, newest first (the caller frees them); returns how many there are. Plain files and foreign
// folders are skipped.
C_API int checkpoint_steps(const char* dir, int** steps);
C_API char* checkpoint_path(const char* dir, int step);   // the caller frees it

// Checks every rank's part of a checkpoint by its checksums: NULL if all parts are whole, else the path of the first damaged part's
// manifest, or `path` itself if it is no checkpoint (the caller frees the result). Reads every byte.
C_API char* checkpoint_verify(const char* path);
// As checkpoint_verify, for the parts of ranks first, first + stride, ..., so that several readers divide the work. `tick` (may be
// NULL) is called every few megabytes.
C_API char* checkpoint_verify_parts(const char* path, int first, int stride, void (*tick)(void));
// Does the folder hold a rank's part of a checkpoint, whole or not?
C_API bool is_checkpoint(const char* path);
// How many ranks wrote the checkpoint.
C_API int checkpoint_ranks(const char* path);
// Loads one rank's part from the path of a checkpoint; state->ranks is the number that wrote it.
C_API void checkpoint_load(const char* path, const CheckpointState* state);

#endif
