// What trials have found, kept from run to run: a file of records, each a key (what was tried) and a value (what won), in the user's cache
// directory: $XDG_CACHE_HOME/train_llama3, or ~/.cache/train_llama3.
//
// An identity names all that trials depend on beside the key: machine, driver, library. Every identity has a file of its own, which opens
// with it. A file is never trusted: one of another format, identity or record size holds nothing, and so does a record whose checksum is
// wrong; what such a file held is replaced by the next trial. What a value means, and whether it is still valid, is for the caller to check.
// Nothing here ends a run: without a directory that can be written, nothing is kept.
//
// Layout: TrialHeader, then records of key, value and XXH3 of both, seeded with XXH3 of the header.
#ifndef HALO_TRIAL_CACHE_H
#define HALO_TRIAL_CACHE_H

#include "base.h"

typedef struct TrialCache TrialCache;

// Reads what is there. Never NULL.
C_API TrialCache* trial_cache_open(const char* identity, size_t key_bytes, size_t value_bytes);
C_API void trial_cache_free(TrialCache* c);
// Copies the value of this key; false: there is none.
C_API bool trial_cache_find(const TrialCache* c, const void* key, void* value);
// Notes a value, in place of one that is there, and writes the file anew, with what other processes have added since. The file is whole at
// any time.
C_API void trial_cache_add(TrialCache* c, const void* key, const void* value);
// Processes that share the file make their trials in turn, since each would disturb the other's timing on a GPU that they share: begin waits,
// at most `seconds`, until no other process is between begin and end, and takes over what others have found. Without a directory it does not wait.
C_API void trial_cache_begin(TrialCache* c, double seconds);
C_API void trial_cache_end(TrialCache* c);
// Where the file is or would be; "" without a directory.
C_API const char* trial_cache_path(const TrialCache* c);

#endif
