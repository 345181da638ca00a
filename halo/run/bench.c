// The command bench; see bench.h.
#include "bench.h"

#include "../ceilings.h"
#include "../profile.h"
#include "../progress.h"
#include "bench_generation.h"
#include "clock.h"
#include "plan.h"
#include "start.h"
#include "train_step.h"

enum { kBenchWarmup = 2, kProfileSteps = 2 };

static int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static double median(double* x, int n) {
    qsort(x, (size_t)n, sizeof(double), compare_doubles);
    return x[n / 2];
}

// Runs one optimizer step on random tokens; returns its seconds.
static double bench_step(Session* s, Trainer* t, int step) {
    const Options* o = &s->o;
    double start = seconds_now();
    progress_step(step);
    shard_begin_step(s->shard, step);
    for (int a = 0; a < o->accum; a++) {
        batch_random(&t->batch, s->config.V, (uint64_t)step * (uint64_t)o->accum + (uint64_t)a);
        model_train_step(t->model, &t->batch.arrays, 1.0f / ((float)t->batch.scored * (float)o->accum * (float)s->comm->ranks), t->losses);
        shard_end_micro_step(s->shard);
    }
    update_weights(s, t, step);
    s->ops->sync();
    return seconds_now() - start;
}

// The median of --steps steps, in seconds.
static double time_steps(Session* s, Trainer* t) {
    int steps = s->o.steps;
    double* times = (double*)host_alloc(sizeof(double) * (size_t)steps);
    for (int step = 1; step <= kBenchWarmup + steps; step++) {
        double seconds = bench_step(s, t, step);
        if (step > kBenchWarmup) times[step - kBenchWarmup - 1] = seconds;
    }
    double seconds = median(times, steps);
    free(times);
    return seconds;
}

// Waiting for and sending to other ranks in a step, as means over ranks.
typedef struct {
    double waited_ms, sent_bytes;
} RankTraffic;

// Runs more steps, noting every call for the profile.
static RankTraffic profile_steps(Session* s, Trainer* t) {
    double start = s->comm->sent_bytes(), sums[2];
    model_record(t->model, false);   // a record's calls cannot be noted
    profile_begin();
    for (int step = 0; step < kProfileSteps; step++) bench_step(s, t, kBenchWarmup + s->o.steps + 1 + step);
    profile_end();
    sums[0] = profile_waited_ms() / kProfileSteps / s->comm->ranks;
    sums[1] = (s->comm->sent_bytes() - start) / kProfileSteps / s->comm->ranks;
    s->comm->host_sum(sums, 2);
    RankTraffic traffic = {sums[0], sums[1]};
    return traffic;
}

static void print_speed(const Session* s, double seconds, double plain_tflops, size_t planned, size_t left) {
    const Options* o = &s->o;
    double per_second = (double)(o->batch * o->seq) * o->accum * s->comm->ranks / seconds;
    double tflops = per_second * train_flops_per_token(&s->config, o->seq) / 1e12 / s->comm->ranks;
    printf("bench: %.1f ms a step  %.0f tok/s  %.3f TFLOP/s a rank  %.2f of the plain GEMM's %.3f  %.3f GiB a rank, %.3f left\n",
           1e3 * seconds, per_second, tflops, tflops / plain_tflops, plain_tflops, gib(planned), gib(left));
}

// Only of a GPU, since other programs use the host's memory too. left_before: bytes that were free before the weights were loaded.
static void print_memory_taken(const Session* s, size_t planned, size_t left_before, size_t left) {
    size_t used = left_before + held_bytes(s) - left;
    printf("memory: %.3f GiB taken, %.3f planned (%+.1f%%); context and libraries beside it %.3f, %.3f planned\n", gib(used), gib(planned),
           100 * ((double)used / (double)planned - 1), gib(s->ops->total_bytes() - held_bytes(s) - left_before),
           gib(planned_libraries(s->ops, s->comm)));
}

// Measures, on all ranks, the ceilings that the profile compares with, and prints the profile.
static void show_profile(const Session* s, Ceilings ceilings, double seconds) {
    int tokens = s->o.batch * s->o.seq;
    if (fmt_bytes(s->recipe->fw.fmt) == 1) ceilings.coded_tflops = ceiling_tflops(s->ops, &s->config, tokens, s->recipe->fw.fmt);
    ceilings.copy_gbs = ceiling_gbs(s->ops);
    if (!leads(s)) return;
    profile_print(ceilings, kProfileSteps, 1e3 * seconds);
}

// Sets AdamW's moments to 1, so that it writes every value. AdamW skips values that have never had a gradient, such as the rows of unseen
// tokens; but haloi's casts turn most gradients to 0, and skipping those would make the speed bound look better than it is.
static void fill_moments(const Session* s) {
    enum { kFillBytes = 4 << 20 };
    StateArray arrays[kMaxStateArrays];
    int count = shard_state(s->shard, arrays);
    uint32_t* ones = (uint32_t*)host_alloc(kFillBytes);
    for (size_t i = 0; i < kFillBytes / sizeof *ones; i++) ones[i] = 0x3f803f80u;   // two values of 1 in BF16, one of 1.002 in F32
    for (int i = 0; i < count; i++) {
        bool moment = !strcmp(arrays[i].name, "m") || !strcmp(arrays[i].name, "v");
        for (size_t at = 0; moment && at < arrays[i].bytes; at += kFillBytes)
            s->ops->upload((char*)arrays[i].data + at, ones, arrays[i].bytes - at < kFillBytes ? arrays[i].bytes - at : (size_t)kFillBytes);
    }
    free(ones);
}

int command_bench(Options o) {
    if (!o.steps) o.steps = 10;
    Session s = session_open(o, BENCH);
    if (o.generate) {
        bench_generation(&s);
        session_close(&s);
        return 0;
    }
    print_start(&s);
    bool notes_waits = s.comm->ranks > 1;
    if (notes_waits) s.comm = profile_comm(s.comm, s.ops);
    if (o.profile) s.ops = profile_ops(s.ops);
    size_t left_before = s.ops->free_bytes();
    load_weights(&s, true);
    if (!strncmp(s.recipe->name, "haloi", 5)) fill_moments(&s);
    Trainer t = trainer_new(&s, o.steps);
    double seconds = time_steps(&s, &t);
    RankTraffic traffic = {0, 0};
    if (o.profile || notes_waits) traffic = profile_steps(&s, &t);
    size_t left = s.ops->free_bytes(), planned = plan_memory(&s).together;
    trainer_free(&s, &t);   // makes room for the products that measure the ceiling
    Ceilings ceilings = {0, ceiling_tflops(s.ops, &s.config, o.batch * o.seq, s.ops->act), 0};
    if (leads(&s)) print_speed(&s, seconds, ceilings.plain_tflops, planned, left);
    if (leads(&s) && !strcmp(s.ops->name, "cuda")) print_memory_taken(&s, planned, left_before, left);
    if (leads(&s) && notes_waits)
        printf("ranks: %.2f ms a step waiting for each other (%.1f%%)  %.3f GB sent a step by each\n", traffic.waited_ms,
               0.1 * traffic.waited_ms / seconds, 1e-9 * traffic.sent_bytes);
    if (o.profile) show_profile(&s, ceilings, seconds);
    session_close(&s);
    return 0;
}
