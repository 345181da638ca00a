// Where this rank is: step, phase, layer, collective. A watchdog thread ends the whole job when that stops changing, and says
// where everybody was: a rank that hangs outside a collective names itself, the others name the collective they wait in.
#ifndef HALO_PROGRESS_H
#define HALO_PROGRESS_H

#include "base.h"

enum { kExitHang = 3 };   // this rank, or one it waits for, made no progress for the time allowed

// Each call counts as progress. Phases and collectives are literals; layer -1: none.
C_API void progress_step(int step);
C_API void progress_phase(const char* phase, int layer);
// Entered before a collective, left (NULL) behind it.
C_API void progress_collective(const char* collective);

// Watches from now on; `abort_job` ends all ranks with the given exit code. 0 seconds: never.
C_API void progress_watch(int rank, int ranks, int timeout_seconds, void (*abort_job)(int exit_code));
C_API void progress_stop_watching(void);
// "rank 1 of 4: step 12, backward, layer 3, in all_gather" to standard error, at once; callable from a signal handler.
C_API void progress_report(const char* why);

#endif
