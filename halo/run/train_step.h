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
    float *losses, *host_losses;   // (accum BT): of one micro-step after the other
} Trainer;

typedef struct {
    double loss;
    float grad_norm;
    size_t tokens;   // not padding, on all ranks
    bool finite;     // loss and gradient norm are, on all ranks; else the step was left out (--on-nan skip), or is the run's last
    int bad_rank;    // the first rank whose own losses are not finite, or else its part of a gradient's sum; -1: none is known
    char bad_tensor[kTensorNameBytes];   // the first whose gradient is not finite, in the order of the backward pass; or ""
} StepResult;

C_API Trainer trainer_new(const Session* s, int steps);
C_API void trainer_free(const Session* s, Trainer* t);
// One optimizer step over global batch `step_in_epoch` (from 0) of the planned epoch; `step` counts from 1. Micro-steps in which no rank has
// a row are left out.
C_API StepResult train_step(Session* s, Trainer* t, const Dataset* d, int step_in_epoch, int step);
// The end of an optimizer step, after its micro-steps: sums gradients over ranks, updates the weights, prepares them anew.
C_API void update_weights(Session* s, Trainer* t, int step);
// Whether this rank reports on quantization after `step` (--quant-stats: rank 0, on its first micro-step).
C_API bool observes(const Session* s, int step);

#endif
