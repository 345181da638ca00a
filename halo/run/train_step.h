// One optimizer step: micro-steps over a global batch, the sum of gradients over ranks, AdamW.
#ifndef HALO_RUN_TRAIN_STEP_H
#define HALO_RUN_TRAIN_STEP_H

#include "../../data/batch.h"
#include "../optim.h"
#include "session.h"

// Everything one optimizer step needs.
typedef struct {
    Model* model;
    Optim optim;
    RowBatch batch;
    float *losses, *host_losses;   // (accum, B, T): each token's loss, on the backend and on the host
} Trainer;

typedef struct {
    double loss;
    float grad_norm;
    size_t tokens;   // of all ranks, without padding
    int examples;    // of the global batch
    bool finite;     // all ranks' losses and the gradient norm are finite; else the step was skipped (--on-nan skip), or is the run's last
    int bad_rank;    // the first rank with losses that are not finite, or else with such a part of a gradient's sum; -1: none is known
    char bad_tensor[kTensorNameBytes];   // the first with a gradient that is not finite, in the order of the backward pass; or ""
} StepResult;

// steps: optimizer steps of the whole run, over which the learning rate falls. The session's shard must be loaded.
C_API Trainer trainer_new(const Session* s, int steps);
C_API void trainer_free(const Session* s, Trainer* t);
// One optimizer step over global batch `step_in_epoch` (from 0) of the planned epoch; `step` counts from 1. Micro-steps in which no rank has
// a row are left out.
C_API StepResult train_step(Session* s, Trainer* t, const Dataset* d, int step_in_epoch, int step);
// The end of an optimizer step, after its micro-steps: sums gradients over ranks and updates the weights.
C_API void update_weights(Session* s, Trainer* t, int step);
// Does this rank report on quantization after `step`? (--quant-stats: rank 0 does, on its first micro-step.)
C_API bool observes(const Session* s, int step);

#endif
