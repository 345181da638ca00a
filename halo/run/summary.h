// The end of a training run: what it came to, and the commands that go on from there.
#ifndef HALO_RUN_SUMMARY_H
#define HALO_RUN_SUMMARY_H

#include "run_state.h"
#include "train_step.h"

// What this process has done of a run since tally_start.
typedef struct {
    double started_at, joules;   // seconds_now, gpu_joules
    double tokens, examples;
    int first_step;              // 1, or behind the checkpoint that the run went on from
    double val_at_start;         // the loss on --val before the first step; NaN: there was none
} RunTally;

C_API RunTally tally_start(const Session* s, int64_t steps_done);
C_API void tally_add(RunTally* tally, StepResult r);
// All ranks call it together, rank 0 prints. `written`: --out holds the model.
C_API void print_summary(const Session* s, const RunTally* tally, const Progress* done, bool written);

#endif
