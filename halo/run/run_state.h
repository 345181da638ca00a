// What a training run keeps on disk to go on from: checkpoints below --out, of every rank's weights and optimizer state, of how far
// the run is, and of the flags that define it. Random numbers need no state: seed, step and position name each of them.
#ifndef HALO_RUN_STATE_H
#define HALO_RUN_STATE_H

#include "session.h"

typedef struct {
    int64_t step, epoch, step_in_epoch;   // finished so far
} Progress;

// Before any work: checks that --out can be written and that a fresh run does not overwrite the checkpoints of another run.
C_API void claim_out(const Session* s);
// All ranks call these together. A run resumes on any number of ranks, with the flags that defined it.
C_API void save_checkpoint(Session* s, Progress* progress);
C_API void resume(Session* s, Progress* progress);

#endif
