// What a training run keeps on disk to go on from: checkpoints below --out, of every rank's weights and optimizer state, of how far
// the run is, and of what defines it (flags, and the contents of its files). Random numbers need no state: seed, step and position
// name each of them.
#ifndef HALO_RUN_STATE_H
#define HALO_RUN_STATE_H

#include "../../data/checkpoint.h"
#include "identity.h"

typedef struct {
    int64_t step, epoch, step_in_epoch;   // finished so far
    int64_t best_step, best_loss_bits;    // of the lowest loss on --val so far: its step (0: none yet), and the float's bits
} Progress;

#define WEIGHTS_SETTING "weights at the start (XXH3)"

// What has to be the same in a run that goes on. Must not move: the settings point into it.
typedef struct {
    RunFlag flags[kMaxRunFlags];
    Identity identity;
    char global_rows[16];
    CheckpointSetting list[kMaxRunFlags + 8];
    int count;
} RunSettings;
C_API void run_settings(const Session* s, RunSettings* r);   // all ranks call it together (identity_take)

// All ranks call these together. A run resumes on any number of ranks, with the settings that defined it.
//
// A checkpoint is copied, and written by a thread while training goes on; where memory for the copy is lacking it is written at once, and
// that is said. Values that are not finite are not saved: a user_error. `settings` must last until save_finish.
typedef struct Saving Saving;
// Begins to make room for the copies, which the first save does otherwise.
C_API void save_prepare(Session* s);
C_API Saving* save_start(Session* s, const RunSettings* settings, const Progress* progress);
// Once every rank has written its part, makes the checkpoint the newest and returns NULL; before, with `wait` false, `saving`. NULL is none.
C_API Saving* save_finish(Session* s, Saving* saving, bool wait);
// Goes on from --resume-from, or else from the newest checkpoint that is whole, and names the damaged ones that are passed over. False:
// there is no checkpoint yet. Checkpoints of which none is whole are a user_error.
C_API bool resume(Session* s, const RunSettings* settings, Progress* progress);
// The bytes of one checkpoint that this rank writes.
C_API size_t state_bytes(Session* s);

#endif
