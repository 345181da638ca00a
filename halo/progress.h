// Where this rank is: step, phase, layer, collective. A watchdog thread ends the whole job when this place stops changing, and every
// rank says where it was: a rank that hangs outside a collective names itself, the others name the collective they wait in.
//
// A GPU runs behind its host: queued work is labelled with the host's place at that time, and the watchdog asks how far the GPU is.
#ifndef HALO_PROGRESS_H
#define HALO_PROGRESS_H

#include "base.h"

enum { kExitHang = 3 };   // this rank, or one it waits for, made no progress for the time allowed

typedef struct {
    int step, layer;          // layer -1: none
    const char* phase;
    const char* collective;   // NULL: outside of them
} ProgressPlace;

// Each call counts as progress, on whatever thread. Phases and collectives are literals; layer -1: none.
C_API void progress_step(int step);
C_API void progress_phase(const char* phase, int layer);
// Entered before a collective, left (NULL) behind it.
C_API void progress_collective(const char* collective);
C_API ProgressPlace progress_place(void);

// What this rank does outside of optimizer steps (loading, evaluating, writing), shown to people: `done` of `all`, in any unit (all 0: unknown).
// `what` is a literal; NULL: the work is over. A call counts as progress.
typedef struct {
    const char* what;
    double done, all;
} ProgressWork;
C_API void progress_work(const char* what, double done, double all);
C_API ProgressWork progress_work_now(void);
// Tells whether the live line (run/status.h) is on the terminal, so that a report erases the line first.
C_API void progress_line_stands(bool stands);

// Watches from now on; `abort_job` ends all ranks with the given exit code. 0 seconds: never.
C_API void progress_watch(int rank, int ranks, int timeout_seconds, void (*abort_job)(int exit_code));
C_API void progress_stop_watching(void);
// How far a device is with what the host has queued.
typedef struct {
    unsigned long finished;   // a change is progress
    bool busy;                // there is work left, and the device is at:
    ProgressPlace at;
    const char* error;        // why the work left will never be done; or NULL
} DeviceProgress;
// From now on a second thread calls `look` for the watchdog, which calls `give_up` before it ends the job.
C_API void progress_watch_device(DeviceProgress (*look)(void), void (*give_up)(void));
// "rank 1 of 4: step 12, backward, layer 3, in all_gather" to standard error, at once; callable from a signal handler.
C_API void progress_report(const char* why);

#endif
