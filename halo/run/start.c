// The start of a run; see start.h.
#include "start.h"

#include <errno.h>

#include "../version.h"

MemoryPlan plan_memory(const Session* s) {
    return memory_plan(&s->config, s->ops, s->comm, s->recipe, shard_options(s, true), model_options(s, true));
}

void print_run(const Session* s, int steps) {
    if (!leads(s)) return;
    const Options* o = &s->o;
    char* line = options_line(o);
    printf("train_llama3 %s: ", HALO_VERSION);
    print_shell_word(stdout, program_invocation_name);
    printf(" %s\n%d step%s, --batch %d x --accum %d x %d rank%s, --seq %d, --lr %g, --seed %d\n", line, steps, steps == 1 ? "" : "s", o->batch,
           o->accum, s->comm->ranks, s->comm->ranks == 1 ? "" : "s", o->seq, o->lr, o->seed);
    free(line);
}

static void print_adapter(const Config* c) {
    const Adapter* a = &c->adapter;
    if (a->kind == ADAPTER_NONE) return;
    ParamSpec specs[kMaxParamSpecs];
    int count = adapter_specs(c, specs);
    double trained = 0;
    for (int i = 0; i < count; i++) trained += (double)specs[i].rows * specs[i].cols * c->L;
    printf("%s of rank %d, scale %g, dropout %g, on", a->kind == ADAPTER_HUT ? "HUT" : "LoRA", a->rank, (double)adapter_scale(a), (double)a->dropout);
    for (int t = 0; t < kTargets; t++)
        if (a->targets >> t & 1) printf(" %s", kTargetNames[t]);
    printf(": %.2fM parameters are trained\n", trained / 1e6);
    if (a->rslora) puts("--rslora: some servers (vLLM among them, in some versions) read alpha / sqrt(rank) as alpha / rank; merge for those");
}

static void print_model(const Session* s) {
    const Config* c = &s->config;
    printf("%s backend, %d rank%s (%s), recipe %s, lm_head in %s\n", s->ops->name, s->comm->ranks, s->comm->ranks > 1 ? "s" : "",
           s->comm->name, s->recipe->name, s->o.head_dtype == HEAD_FP8 ? "fp8" : "bf16");
    print_adapter(&s->config);
    if (!strncmp(s->recipe->name, "haloi", 5))
        printf("haloi casts without scales: it bounds the speed of the other levels, and its losses mean nothing\n");
    printf("model: %.1fM parameters, %d layers of width %d, MLP %d, heads %d/%d of %d, vocabulary %d%s\n",
           (double)param_count(c) / 1e6, c->L, c->C, c->F, c->NH, c->NKV, c->HD, c->V, c->tied ? ", tied" : "");
}

static void print_memory(MemoryPlan p, size_t left) {
    printf("memory per rank, GiB: weights %.3f  gradients %.3f  optimizer %.3f  gathered %.3f  codes %.3f  activations %.3f  scratch %.3f  "
           "staging %.3f  together %.3f of %.3f free\n", gib(p.shard.weights), gib(p.shard.gradients), gib(p.shard.optimizer),
           gib(p.shard.gathered), gib(p.model.codes), gib(p.model.activations), gib(p.model.scratch), gib(p.staging), gib(p.together), gib(left));
}

// Both free memory and the memory needed differ between ranks: all ranks learn both of each rank, and rank 0 reports the tightest.
static void check_fit(const Session* s, size_t needed, size_t left) {
    int ranks = s->comm->ranks, tightest = 0;
    double* told = (double*)host_alloc(sizeof(double) * 2 * (size_t)ranks);   // (ranks, 2): needed, left
    told[2 * s->comm->rank] = (double)needed;
    told[2 * s->comm->rank + 1] = (double)left;
    s->comm->host_sum(told, 2 * ranks);
    for (int i = 1; i < ranks; i++)
        if (told[2 * i + 1] - told[2 * i] < told[2 * tightest + 1] - told[2 * tightest]) tightest = i;
    double gib_needed = told[2 * tightest] / (1 << 30), gib_left = told[2 * tightest + 1] / (1 << 30);
    free(told);
    if (gib_needed <= gib_left) return;
    char where[32] = "";
    if (ranks > 1) snprintf(where, sizeof where, "rank %d: ", tightest);
    if (leads(s))
        user_error("%s%.1f GiB are needed, and %.1f are free: a smaller --batch or --seq, --recompute block, or --master bf16-sr --grad-dtype bf16 "
                   "--state-dtype bf16 take less; so do more ranks", where, gib_needed, gib_left);
    s->comm->barrier();   // waits for rank 0 to end the job
}

// Does this rank make codes out of 16-bit weights, which it could make again? Not where codes are gathered, or are all that is held of a model.
static bool prepares_weights(const Session* s) {
    return linear_prepares_weight(s->recipe) && !shard_would_give_codes(&s->config, s->comm, shard_options(s, true));
}

static size_t planned_with(Session* s, int remade) {
    s->remade = remade;
    return plan_memory(s).together;
}

// The fewest layers that have to be remade for the plan to fit into `left`, all of them if it fits with none. Something is left for what a
// plan does not know: libraries, and answers during training.
static int fewest_remade(Session* s, size_t left) {
    const double share_to_use = 0.95;
    size_t room = (size_t)(share_to_use * (double)left);
    if (planned_with(s, 0) <= room) return 0;
    int low = 1, high = s->config.L;
    while (low < high) {   // more remade layers never take more
        int middle = (low + high) / 2;
        if (planned_with(s, middle) <= room) high = middle;
        else low = middle + 1;
    }
    return low;
}

// All ranks remake as many layers as the one that has to remake most.
static void decide_codes(Session* s, size_t left) {
    static const char* const kWords[] = {"auto", "keep", "remake"};   // in the order of CodesChoice
    const Options* o = &s->o;
    s->remade = 0;
    if (!prepares_weights(s)) {
        if (o->codes == CODES_REMAKE && leads(s)) puts("--codes remake: no quantized weights are made of 16-bit ones in this run");
        return;
    }
    int ranks = s->comm->ranks, most = o->codes == CODES_REMAKE ? s->config.L : 0;
    if (o->codes == CODES_AUTO) {
        double* told = (double*)host_alloc(sizeof(double) * (size_t)ranks);
        told[s->comm->rank] = fewest_remade(s, left);
        s->comm->host_sum(told, ranks);
        for (int i = 0; i < ranks; i++) most = max_int(most, (int)told[i]);
        free(told);
    }
    s->remade = most;
    if (most && leads(s))
        printf("--codes %s: the quantized weights of %d of %d layers are made again for each pass\n", kWords[o->codes], most, s->config.L);
}

void print_start(Session* s) {
    size_t left = s->ops->free_bytes() + held_bytes(s);   // the plan counts held bytes too, so they count as free here
    decide_codes(s, left);
    MemoryPlan plan = plan_memory(s);
    if (leads(s)) {
        print_model(s);
        print_memory(plan, left);
    }
    check_fit(s, plan.together, left);
}
