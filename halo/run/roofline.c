// The time of a step; see roofline.h.
//
//   a call of a family    max(bytes / copy rate, flops / rate of products) / the family's share of that floor + what a launch costs
//   a step                max(all calls and what lies between them + what transfers take from them, transfers)
//
// Shares were measured on an H200 and an H100 (dev/RESULTS.md: bench --profile, bench_attention, scaling.sh). Measured over estimated tokens a
// second on H200 (test_plan holds the estimates to that table): full fine-tunes of 8B 1.02 to 1.07; of 1B 0.99 to 1.03; LoRA 0.97 to
// 0.99; two GPUs 0.98 to 1.00. haloi is faster than estimated, 1.16 to 1.20: its gradients are zeros, at which products take less power.
#include "roofline.h"

#include "../dry.h"
#include "../profile.h"
#include "run_state.h"
#include "train_step.h"

static const GpuKind kKinds[kGpuKinds] = {
    //  name           GiB    BF16  FP8   INT8  GB/s  link
    {"H100 SXM",       79.6,  989,  1979, 1979, 3350, 450, true},
    {"H200",           140.4, 989,  1979, 1979, 4800, 450, true},
    {"A100 80GB",      79.2,  312,  150,  624,  2039, 300, false},   // no FP8 units: codes are multiplied as BF16 by the program's own kernel
    {"L40S",           44.5,  362,  733,  733,  864,  32,  false},
    {"RTX 4090",       23.5,  165,  330,  660,  1008, 32,  false},
    {"RTX 5090",       31.4,  210,  419,  838,  1792, 64,  false},
    {"RTX PRO 6000",   94.9,  503,  1007, 1007, 1792, 64,  false},
    {"B200",           178.4, 2250, 4500, 4500, 8000, 900, false},
};

const GpuKind* gpu_kinds(void) { return kKinds; }

// ---- shares of the data sheet

// Of the copy rate, of plain products, and of products of codes, which meet the GPU's power limit first.
static const double kCopyShare = 0.87, kPlainShare = 0.74, kCodedShare = 0.72, kLaunchMs = 0.002;
static const double kBetweenCalls = 1.03;   // a step's time over that of its calls
// Of the link's rate, and of a transfer's time the part by which products beside it are slowed down: where copy engines transfer, over NVLink, and
// where NCCL's kernels do, on multiprocessors.
typedef struct {
    double link_share, toll;
} LinkUse;
static LinkUse link_use(const GpuKind* gpu) {
    const LinkUse engines = {0.7, 0.2}, kernels = {0.5, 0.5};
    return gpu->link_gbs >= 300 ? engines : kernels;
}

static bool begins(const char* text, const char* with) { return !strncmp(text, with, strlen(with)); }

// What a family reaches of its floor. Attention, of T tokens, starts and ends its rows with little to multiply.
static double family_share(const char* family, int T) {
    static const struct {
        const char* begins;
        double share;
    } shares[] = {{"gemm", 0.95}, {"max, codes, rotated tokens", 0.47}, {"quantize, rotated features", 0.51}, {"quantize", 0.91},
                  {"absmax, rotated features", 0.50}, {"rotate tokens", 0.41}, {"rotate features", 0.80}, {"cross entropy", 0.70},
                  {"rope", 0.75}, {"rmsnorm", 0.83}, {"embed", 0.70}, {"sum of squares", 0.72}};
    if (!strcmp(family, "attention forward")) return 0.89 * T / (T + 680.0);
    if (!strcmp(family, "attention backward")) return 0.74 * T / (T + 410.0);
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++)
        if (begins(family, shares[i].begins)) return shares[i].share;
    return 0.95;
}

static double product_tflops(const GpuKind* gpu, const char* family) {
    if (begins(family, "gemm int8")) return kCodedShare * gpu->int8_tflops;
    if (begins(family, "gemm fp")) return kCodedShare * gpu->fp8_tflops;
    return kPlainShare * gpu->bf16_tflops;
}

// ---- the dry run

typedef struct {
    int T;
    double ms[kGpuKinds];
} CallTimes;

static void add_call(void* self, const char* family, double bytes, double flops) {
    CallTimes* t = (CallTimes*)self;
    double share = family_share(family, t->T);
    for (int i = 0; i < kGpuKinds; i++) {
        double move_ms = bytes / (kCopyShare * kKinds[i].memory_gbs) * 1e-6, multiply_ms = flops / product_tflops(&kKinds[i], family) * 1e-9;
        t->ms[i] += (move_ms > multiply_ms ? move_ms : multiply_ms) / share + kLaunchMs;
    }
}

typedef struct {
    double sent_bytes, ms[kGpuKinds];   // of calls alone
} StepCalls;

static StepCalls run_step(Session* s, Trainer* t, int step, int micro_steps) {
    StepCalls calls;
    CallTimes times;
    memset(&times, 0, sizeof times);
    times.T = s->o.seq;
    double before = s->comm->sent_bytes();
    profile_begin();
    shard_begin_step(s->shard, step);
    for (int a = 0; a < micro_steps; a++) {
        model_train_step(t->model, &t->batch.arrays, 1, t->losses);
        shard_end_micro_step(s->shard);
    }
    update_weights(s, t, step);
    profile_end();
    calls.sent_bytes = s->comm->sent_bytes() - before;
    profile_calls(add_call, &times);
    memcpy(calls.ms, times.ms, sizeof calls.ms);
    return calls;
}

// The cost of a step of `all` micro-steps, from dry runs of `run` of them and of one fewer: a micro-step beyond the second costs what the one
// before it does.
static double of_all(double fewer, double more, int run, int all) { return more + (more - fewer) * (all - run); }

StepCost step_cost(const Session* session, int rows) {
    Session s = *session;
    int micro_steps = s.o.accum, run = min_int(micro_steps, 3);
    s.ops = profile_ops(s.ops);
    s.shard = shard_new(&s.config, s.ops, s.comm, shard_options(&s, true));
    shard_weights_replaced(s.shard);
    Trainer t = trainer_new(&s, 1);
    t.batch.arrays.B = rows;
    (void)run_step(&s, &t, 1, run);   // what the first step alone does
    StepCalls more = run_step(&s, &t, 2, run), fewer = run == micro_steps ? more : run_step(&s, &t, 3, run - 1);
    StepCost cost;
    memset(&cost, 0, sizeof cost);
    cost.peak_bytes = dry_peak_bytes();
    cost.state_bytes = state_bytes(&s);
    cost.sent_bytes = of_all(fewer.sent_bytes, more.sent_bytes, run, micro_steps);
    for (int i = 0; i < kGpuKinds; i++) {
        LinkUse use = link_use(&kKinds[i]);
        double calls_ms = of_all(fewer.ms[i], more.ms[i], run, micro_steps);
        double wire_ms = cost.sent_bytes / (use.link_share * kKinds[i].link_gbs) * 1e-6;
        double step_ms = kBetweenCalls * calls_ms + use.toll * wire_ms;
        cost.ms[i] = step_ms > wire_ms ? step_ms : wire_ms;
    }
    trainer_free(&s, &t);
    shard_free(s.shard);
    return cost;
}
