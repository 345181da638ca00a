// What a training run saves to be resumed from: checkpoints below --out, with every rank's weights and optimizer state, how far the run
// is, and what defines the run (flags, and the contents of its files). Random numbers need no state: seed, step and position name each.
#ifndef HALO_RUN_STATE_H
#define HALO_RUN_STATE_H

#include "../../data/checkpoint.h"
#include "identity.h"

typedef struct {
    int64_t step, epoch, step_in_epoch;   // how many are finished
    int64_t best_step, best_loss_bits;    // of the lowest loss on --val so far: its step (0: none yet), and the float's bits
} Progress;

#define WEIGHTS_SETTING "weights at the start (XXH3)"

// What must be the same in a resumed run. A RunSettings must not move: `list` points into it.
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
// A checkpoint's state is copied, and a thread writes the copy while training goes on; without memory for a copy the state is written at
// once, with a message. Values that are not finite are a user_error. `settings` must last until save_finish.
typedef struct Saving Saving;
// Begins to make room for the copies, which the first save does otherwise.
C_API void save_prepare(Session* s);
C_API Saving* save_start(Session* s, const RunSettings* settings, const Progress* progress);
// Once every rank has written its part, makes the checkpoint the newest and returns NULL. Before that it waits, or, with `wait` false,
// returns `saving`. A `saving` of NULL is none under way.
C_API Saving* save_finish(Session* s, Saving* saving, bool wait);
// Loads --resume-from, or else the newest checkpoint that is whole, and names damaged ones that it skips. False: there is no checkpoint yet.
// Checkpoints of which none is whole are a user_error.
C_API bool resume(Session* s, const RunSettings* settings, Progress* progress);
// The bytes that this rank writes for one checkpoint.
C_API size_t state_bytes(Session* s);

#endif
