// The command plan; see plan.h. All of its lines fit 80 columns but the command line at the end, which is meant to be copied.
#include "plan.h"

#include "../../data/files.h"
#include "../dry.h"
#include "backend.h"
#include "clock.h"
#include "epochs.h"
#include "export.h"
#include "roofline.h"

typedef struct {
    Options given;       // as the command line has them: what the suggestion repeats
    Session s;
    const Ops* real;     // NULL: GPUs that this machine has not
    size_t limit;        // bytes of a GPU; 0: unknown
    StepCost cost;
    PlannedMemory memory;
    double steps;        // of the run; 0: unknown
    double step_tokens;  // of the data, without padding, on average; without data all that there is room for
} Planning;

static bool on_gpus(const Planning* p) { return !strcmp(p->s.ops->name, "cuda"); }

Options planned_options(Options o) {
    if (!o.model || !dir_exists(o.model)) return o;
    o.from_scratch = o.model;
    o.model = NULL;
    return o;
}

// GPUs, here or not, unless CPU ranks were asked for.
static void open_plan(Planning* p) {
    const Options* o = &p->given;
    bool cpu = o->backend == BACKEND_CPU || o->backend == BACKEND_CPU_F32;
    const Ops* here = backend_pick(cpu ? o->backend : BACKEND_AUTO);
    if (o->gpus < 1) user_error("--gpus %d: must be at least 1", o->gpus);
    if (cpu || !strcmp(here->name, "cuda")) p->real = here;
    p->s = session_on(planned_options(*o), PLAN, dry_ops(p->real), dry_comm(o->gpus, !cpu));
    p->limit = (size_t)(o->gpu_gb * (1 << 30));
    if (!p->limit && p->real) p->limit = cpu ? p->real->free_bytes() / (size_t)o->gpus : p->real->total_bytes();
}

// ---- the data

static int percent_of(double part, double all) { return all > 0 ? (int)(100 * part / all + 0.5) : 0; }

// The rows of a micro-step, on average.
static int read_data(Planning* p) {
    Session* s = &p->s;
    const Options* o = &s->o;
    open_tokenizer(s);
    DataOptions options = training_data_options(s, s->comm->ranks);
    Dataset* d = dataset_load(o->data, s->tokenizer, &options);
    const DataStats* n = dataset_stats(d);
    Epochs e = epochs_of(o, s->comm->ranks, d);
    p->steps = e.run_steps;
    p->step_tokens = e.step_tokens;
    printf("\ndata\n");
    printf("  %-32s %10d\n", "records", n->records);
    printf("  %-32s %10d\n", "examples", n->examples);
    printf("  %-32s %10d   %d%%, at --seq %d\n", "truncated", n->truncated, percent_of(n->truncated, n->examples), o->seq);
    printf("  %-32s %10d\n", "left out", n->skipped);
    printf("  %-32s %10zu\n", "tokens", n->tokens);
    printf("  %-32s %10zu   %d%%\n", "trained tokens", n->scored, percent_of((double)n->scored, (double)n->tokens));
    epochs_print(&e);
    dataset_free(d);
    return e.micro_rows;
}

// ---- what it takes

static void print_gib(const char* what, size_t bytes, const char* note) {
    printf("  %-32s %10.3f%s%s\n", what, gib(bytes), *note ? "   " : "", note);
}

static void print_memory(const Planning* p) {
    const PlannedMemory* m = &p->memory;
    bool gpu = on_gpus(p);
    printf("\nmemory of %s, GiB\n", gpu ? "a GPU" : "a rank");
    print_gib("weights", m->plan.shard.weights, "");
    print_gib("gradients", m->plan.shard.gradients, "");
    print_gib("optimizer", m->plan.shard.optimizer, "");
    print_gib("gathered", m->plan.shard.gathered, "layers at work, whole");
    print_gib("codes", m->plan.model.codes, "prepared weights");
    print_gib("activations", m->plan.model.activations, "kept for the backward pass");
    print_gib("scratch", m->plan.model.scratch, "");
    print_gib("staging", m->plan.staging, "");
    print_gib("together", m->plan.together, "as the start of a run prints it");
    print_gib("tables", m->tables, "");
    if (gpu) print_gib("driver and libraries", m->libraries, "an estimate");
    print_gib("in all", m->all, "");
    if (p->limit) print_gib("there are", p->limit, m->all <= p->limit ? "it fits" : "IT DOES NOT FIT");
}

static void print_batch(const Planning* p) {
    const Options* o = &p->s.o;
    if (!p->limit) return;
    int most = largest_batch(&p->s, o, p->memory.tables, p->limit);
    if (most) printf("\nlargest --batch that fits: %d (x %d tokens)\n", most, o->seq);
    else printf("\nnot even --batch 1 fits\n");
}

static void print_traffic_and_disk(const Planning* p) {
    const Options* o = &p->s.o;
    int ranks = p->s.comm->ranks, kept = o->save_every ? max_int(o->keep, 1) : 0;
    double one = (double)p->cost.state_bytes * ranks, model = (double)written_bytes(&p->s), most = kept * one + (one > model ? one : model);
    char note[40] = "when it stops early";
    if (kept) snprintf(note, sizeof note, "--keep %d and one more", kept);
    printf("\na step sends, and a run writes, GB\n");
    printf("  %-32s %10.3f\n", "sent by each rank, every step", p->cost.sent_bytes * 1e-9);
    printf("  %-32s %10.3f\n", "a checkpoint", one * 1e-9);
    printf("  %-32s %10.3f\n", "the trained model", model * 1e-9);
    printf("  %-32s %10.3f   %s\n", "disk at most", most * 1e-9, note);
    if (o->out) printf("  %-32s %10.3f\n", "free on the disk of --out", disk_free_bytes(o->out) * 1e-9);
}

// ---- time

static void print_times(const Planning* p) {
    int ranks = p->s.comm->ranks;
    const GpuKind* kinds = gpu_kinds();
    const Options* o = &p->s.o;
    double room = (double)o->batch * o->seq * o->accum * ranks, tokens = p->step_tokens > 0 ? p->step_tokens : room;
    printf("\ntime: AN ESTIMATE from data sheets and a dry run of a step (* held against\n"
           "measured steps, within about a tenth; the others may be far off)\n");
    printf("  %-14s %5s %12s %12s %10s  %s\n", "GPU", "fits", "ms a step", "tokens/s", "TFLOP/s", p->steps > 0 ? "to the end" : "");
    for (int i = 0; i < kGpuKinds; i++) {
        const GpuKind* g = &kinds[i];
        char name[32], time[32] = "";
        snprintf(name, sizeof name, "%s%s", g->name, g->measured ? " *" : "");
        double seconds = p->cost.ms[i] * 1e-3;
        if (p->steps > 0) duration_text(p->steps * seconds, time);
        printf("  %-14s %5s %12.1f %12.0f %10.1f  %8s\n", name, (double)p->memory.all <= g->gib * (1 << 30) ? "yes" : "no", p->cost.ms[i],
               tokens / seconds, tokens / seconds * train_flops_per_token(&p->s.config, o->seq) / 1e12 / ranks, time);
    }
    if (ranks > 1) printf("  tokens/s of all %d GPUs, TFLOP/s of each, on one host\n", ranks);
    if (p->steps == 0) printf("  --steps N, or --data FILE, gives the time to the end\n");
}

// ---- what fits instead

static void print_line(const Planning* p, const Options* fitting, int gpus) {
    Options o = p->given;
    const Options* f = fitting;   // the flags of the ladder (plan_search.c)
    o.recompute = f->recompute;
    o.codes = f->codes;
    o.state_dtype = f->state_dtype;
    o.grad_dtype = f->grad_dtype;
    o.master = f->master;
    o.batch = f->batch;
    o.accum = f->accum;
    o.zero = f->zero;
    o.logits_mb = f->logits_mb;
    o.qfsdp = f->qfsdp;
    o.prefetch = f->prefetch;
    o.adapter = f->adapter;
    o.level = f->level;
    o.lr = f->lr;
    char launcher[64] = "", *line = options_line(&o);
    if (gpus > 1) snprintf(launcher, sizeof launcher, "mpirun --bind-to none -np %d ", gpus);
    printf("  %s./train_llama3 %s%s\n", launcher, line, o.data ? "" : " --data FILE");
    if (o.preset) printf("  (--preset begins with random weights: to fine-tune, name the model with --model in its place)\n");
    free(line);
}

// The first number of GPUs, from those planned on doubling, on which the flags can be made to fit.
static void print_fit(Planning* p) {
    enum { kMostGpus = 1024 };
    if (!p->limit || p->memory.all <= p->limit) return;
    bool gpu = on_gpus(p);
    for (int gpus = p->given.gpus; gpus <= kMostGpus; gpus *= 2) {
        Options o = p->s.o;
        p->s.comm = dry_comm(gpus, gpu);
        if (!cheapest_fit(&p->s, &o, p->memory.tables, p->limit)) continue;
        if (gpus == p->given.gpus) puts("\nthis fits; nothing cheaper was found:");
        else printf("\nno flags make it fit on %d; on %d this does:\n", p->given.gpus, gpus);
        print_line(p, &o, gpus);
        printf("  %.3f GiB in all\n", gib(planned_memory(&p->s, &o, p->memory.tables).all));
        return;
    }
    printf("\nno flags make it fit, on up to %d GPUs: take a smaller --seq, or another model\n", (int)kMostGpus);
}

static void print_what(const Planning* p) {
    const Session* s = &p->s;
    const Options* o = &s->o;
    int ranks = s->comm->ranks;
    printf("plan: %.1fM parameters, %d layers, recipe %s%s\n", (double)param_count(&s->config) / 1e6, s->config.L, s->recipe->name,
           s->config.adapter.kind == ADAPTER_LORA ? ", LoRA" : adapts(s) ? ", HUT" : "");
    printf("%d %s%s, --batch %d x --seq %d x --accum %d: at most %.0f tokens a step\n", ranks, on_gpus(p) ? "GPU" : "CPU rank",
           ranks > 1 ? "s" : "", o->batch, o->seq, o->accum, (double)o->batch * o->seq * o->accum * ranks);
}

int command_plan(Options o) {
    Planning p;
    memset(&p, 0, sizeof p);
    p.given = o;
    open_plan(&p);
    const Session* s = &p.s;
    p.s.remade = remade_by_flag(s, &o);
    model_options(s, true);   // flags that contradict the model
    print_what(&p);
    p.steps = o.steps;
    int rows = o.data ? read_data(&p) : o.batch;
    p.cost = step_cost(s, rows);
    p.memory = planned_memory(s, &s->o, 0);
    p.memory = planned_memory(s, &s->o, p.cost.peak_bytes + held_bytes(s) - p.memory.plan.together);
    print_memory(&p);
    print_batch(&p);
    print_traffic_and_disk(&p);
    if (on_gpus(&p)) print_times(&p);
    print_fit(&p);
    session_close(&p.s);
    return 0;
}
