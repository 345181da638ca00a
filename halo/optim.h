// The optimizer: learning-rate schedules, gradient clipping, AdamW over shards.
#ifndef HALO_OPTIM_H
#define HALO_OPTIM_H

#include "shard.h"

typedef enum { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT } Schedule;

typedef struct {
    float lr;                    // peak
    int warmup, steps;           // optimizer steps: rising from lr/warmup to lr, then falling, to 0 after step `steps`
    Schedule schedule;
    float beta1, beta2, eps, weight_decay;
    float max_norm;              // clip the global gradient norm; 0: never
    uint64_t seed;               // of stochastic rounding
} OptimConfig;

// The learning rate of step 1, 2, ..., config->steps.
C_API float optim_lr(const OptimConfig* config, int step);

typedef struct {
    const Ops* ops;
    OptimConfig config;
    // On the backend, of the last step's gradient: with clipping the sum of squares, without (kSquareSums) sums of this rank's rows.
    WideSum* squares;
    float* square_sums;
    float* grad_scale;
} Optim;

// Allocates square_sums and grad_scale; optim_free releases them.
C_API Optim optim_new(const Ops* ops, OptimConfig config);
C_API void optim_free(Optim* o);
// One update, with the gradients whose reduction shard_reduce_gradients has started; `step` counts from 1. With clipping, a norm that is
// not finite leaves the weights as they are; without, the norm is known only after the update.
C_API void optim_step(Optim* o, Shard* shard, int step);
// The norm of the last step's gradient before clipping; all ranks call it together, and wait.
C_API float optim_grad_norm(const Optim* o, const Shard* shard);

#endif
