// Work that may fail because of something the user can mend, where the program has something to save before it says so.
//
// A user_error on the thread that makes an attempt comes back here as a message instead of ending the program. What the work held
// (memory, files) is lost: an attempt is made once or twice in a run's life, by rank 0's disk writes at its end and by fuzz targets.
#ifndef HALO_ATTEMPT_H
#define HALO_ATTEMPT_H

#include "base.h"

enum { kAttemptBytes = 1024 };

// true: `work` came to its end. false: a user_error ended it, and `message` (kAttemptBytes) is the error's text without the program's name.
// Attempts do not nest: an attempt inside another is a bug.
C_API bool attempt(void (*work)(void* self), void* self, char* message);

#endif
