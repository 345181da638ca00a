// Work that may fail because of something the user can mend, where the program has something to save before it says so.
//
// A user_error on the thread that makes an attempt comes back here as a message instead of ending the program. What the work held
// (memory, files) is lost: an attempt is made once or twice in a run's life, by rank 0's disk writes at its end and by fuzz targets.
#ifndef HALO_ATTEMPT_H
#define HALO_ATTEMPT_H

#include "base.h"

enum { kAttemptBytes = 1024 };

// true: `work` came to its end. false: a user_error ended it, and `message` (kAttemptBytes) is its text without the program's name.
// An attempt inside another is a broken promise.
C_API bool attempt(void (*work)(void* self), void* self, char* message);

#endif
