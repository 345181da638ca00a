// One optimizer step; see train_step.h.
#include "train_step.h"

#include <math.h>

#include "../progress.h"

static size_t losses_bytes(const Options* o) { return sizeof(float) * (size_t)o->accum * (size_t)o->batch * (size_t)o->seq; }

Trainer trainer_new(const Session* s, int steps) {
    const Options* o = &s->o;
    int warmup = o->warmup == kAuto ? max_int(1, min_int(20, steps / 10)) : o->warmup;
    OptimConfig optim = {(float)o->lr, warmup, steps, o->schedule, (float)o->beta1, (float)o->beta2, (float)o->eps,
                         (float)o->weight_decay, (float)o->clip, (uint64_t)o->seed};
    Trainer t;
    t.model = model_new(&s->config, s->ops, s->recipe, s->shard, model_options(s, true));
    t.optim = optim_new(s->ops, optim);
    t.batch = batch_new(o->batch, o->seq);
    t.losses = (float*)s->ops->alloc(losses_bytes(o));
    t.host_losses = (float*)host_alloc(losses_bytes(o));
    return t;
}

void trainer_free(const Session* s, Trainer* t) {
    model_free(t->model);
    optim_free(&t->optim);
    batch_free(&t->batch);
    s->ops->release(t->losses);
    free(t->host_losses);
}

void update_weights(Session* s, Trainer* t, int step) {
    shard_reduce_gradients(s->shard);
    optim_step(&t->optim, s->shard, step);
}

bool observes(const Session* s, int step) { return s->o.quant_stats && step % s->o.quant_stats == 0 && leads(s); }

// Sets the loss and tokens of the global batch in *r, from this rank's `cells` losses and sums[1], this rank's tokens.
static void sum_losses(Session* s, Trainer* t, size_t cells, size_t scored, double sums[2], StepResult* r) {
    s->ops->download(t->host_losses, t->losses, sizeof(float) * cells);
    for (size_t i = 0; i < cells; i++) sums[0] += t->host_losses[i];
    double flags = isfinite(sums[0]) ? 0 : ldexp(1, -s->comm->rank);   // a bit a rank: the highest bit of the sum is the lowest bad rank's
    s->comm->host_sum(&flags, 1);
    s->comm->host_sum(sums, 2);
    r->loss = sums[0] / (double)scored;
    r->tokens = (size_t)sums[1];
    r->bad_rank = flags > 0 ? -ilogb(flags) : -1;
}

// For --on-nan skip: checks before the weights change, at the cost of a pass over the gradients.
static bool gradient_is_finite(Session* s, Trainer* t) {
    WideSum squares;
    shard_reduce_gradients(s->shard);
    shard_sum_squares(s->shard, t->optim.squares);
    s->ops->download(&squares, t->optim.squares, sizeof squares);
    return isfinite(wide_value(squares));
}

// What the ranks know of gradients that are not finite: all of them find the same.
static void find_bad_gradient(Session* s, StepResult* r) {
    enum { kTensors, kRow, kRank, kKnown };
    int ranks = s->comm->ranks;
    BadGradient own = shard_bad_gradient(s->shard), first = {-1, 0};
    double* known = (double*)host_alloc(sizeof(double) * (size_t)(kKnown * ranks));
    double* mine = known + (size_t)(kKnown * s->comm->rank);
    mine[kTensors] = own.tensors_before;
    mine[kRow] = own.row;
    mine[kRank] = s->comm->bad_rank();
    s->comm->host_sum(known, kKnown * ranks);
    int bad_rank = -1;
    for (const double* of = known; of < known + (size_t)(kKnown * ranks); of += kKnown) {
        BadGradient other = {(int)of[kTensors], (int)of[kRow]};
        if (other.tensors_before >= 0 && (first.tensors_before < 0 || other.tensors_before < first.tensors_before)) first = other;
        if (of[kRank] >= 0 && (bad_rank < 0 || of[kRank] < bad_rank)) bad_rank = (int)of[kRank];
    }
    free(known);
    if (r->bad_rank < 0) r->bad_rank = bad_rank;
    if (first.tensors_before >= 0) shard_bad_gradient_name(s->shard, first, r->bad_tensor);
}

StepResult train_step(Session* s, Trainer* t, const Dataset* d, int step_in_epoch, int step) {
    const Options* o = &s->o;
    int ranks = s->comm->ranks;
    size_t scored = dataset_step_scored(d, step_in_epoch), cells = 0;
    progress_step(step);
    double sums[2] = {0, 0};   // loss, tokens
    shard_begin_step(s->shard, step);
    for (int a = 0; a < o->accum; a++) {
        if (dataset_micro_batch(d, step_in_epoch, a * ranks).rows == 0) break;   // no later micro-batch has rows either
        progress_phase("loading a batch", -1);
        batch_fill(&t->batch, d, dataset_micro_batch(d, step_in_epoch, a * ranks + s->comm->rank));
        if (a == 0 && observes(s, step)) model_observe(t->model);
        model_train_step(t->model, &t->batch.arrays, 1.0f / (float)scored, t->losses + cells);
        shard_end_micro_step(s->shard);
        cells += (size_t)t->batch.arrays.B * (size_t)t->batch.T;
        sums[1] += t->batch.used;
    }
    StepResult r = {0, NAN, 0, dataset_step_examples(d, step_in_epoch), false, -1, ""};
    if (o->on_nan == ON_NAN_SKIP) {
        sum_losses(s, t, cells, scored, sums, &r);
        bool finite = gradient_is_finite(s, t);
        if (!finite || !isfinite(r.loss)) {
            find_bad_gradient(s, &r);
            return r;
        }
        optim_step(&t->optim, s->shard, step);
    } else {
        update_weights(s, t, step);
        sum_losses(s, t, cells, scored, sums, &r);
    }
    r.grad_norm = optim_grad_norm(&t->optim, s->shard);
    r.finite = isfinite(r.loss) && isfinite(r.grad_norm);
    if (!r.finite) find_bad_gradient(s, &r);
    return r;
}
