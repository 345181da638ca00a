// The optimizer; see optim.h.
#include "optim.h"

float optim_lr(const OptimConfig* c, int step) {
    if (step <= c->warmup) return c->lr * (float)step / (float)c->warmup;
    double left = (double)(c->steps + 1 - step) / (c->steps + 1 - c->warmup);   // 0 after the last step
    if (left < 0) left = 0;
    switch (c->schedule) {
        case SCHEDULE_LINEAR: return (float)(c->lr * left);
        case SCHEDULE_COSINE: return (float)(c->lr * 0.5 * (1 - cos(3.14159265358979323846 * left)));
        case SCHEDULE_CONSTANT: return c->lr;
    }
    die("optim_lr: schedule %d", (int)c->schedule);
}

Optim optim_new(const Ops* ops, OptimConfig config) {
    Optim o = {ops, config, (WideSum*)ops->alloc(sizeof(WideSum)), (float*)ops->alloc(kSquareSums * sizeof(float)),
               (float*)ops->alloc(sizeof(float))};
    return o;
}

void optim_free(Optim* o) {
    o->ops->release(o->squares);
    o->ops->release(o->square_sums);
    o->ops->release(o->grad_scale);
}

// Clipping needs the gradient's norm before the update, which costs a pass over all gradients; else the update itself sums the squares.
static bool clips(const OptimConfig* c) { return c->max_norm > 0; }

void optim_step(Optim* o, Shard* shard, int step) {
    const OptimConfig* c = &o->config;
    AdamW a;
    memset(&a, 0, sizeof a);
    if (clips(c)) {
        shard_sum_squares(shard, o->squares);
        o->ops->clip_scale(o->grad_scale, o->squares, c->max_norm);
        a.grad_scale = o->grad_scale;
    } else {
        a.square_sums = o->square_sums;
    }
    a.lr = optim_lr(c, step);
    a.beta1 = c->beta1;
    a.beta2 = c->beta2;
    a.eps = c->eps;
    a.weight_decay = c->weight_decay;
    a.step = step;
    a.noise.seed = c->seed;
    a.noise.stream = (uint64_t)step;
    shard_update(shard, a);
}

static float clipped_norm(const Optim* o) {
    WideSum squares;
    o->ops->download(&squares, o->squares, sizeof squares);
    return (float)sqrt(wide_value(squares));
}

float optim_grad_norm(const Optim* o, const Shard* shard) {
    if (clips(&o->config)) return clipped_norm(o);
    float sums[kSquareSums];
    o->ops->download(sums, o->square_sums, sizeof sums);
    double sum = 0;
    for (int i = 0; i < kSquareSums; i++) sum += sums[i];
    return (float)sqrt(shard_sum_over_rows(shard, sum));
}
