// Which flags make training fit; see plan.h.
#include "plan.h"

int remade_by_flag(const Session* s, const Options* o) { return o->codes == CODES_REMAKE ? s->config.L : 0; }

// Measured on H100 and H200: the context, the code of kernels and cuBLASLt (0.52 GiB); with ranks NCCL's buffers too: together 1.36 GiB where copy
// engines do the large transfers, as within a host, else 1.80.
size_t planned_libraries(const Ops* ops, const Comm* comm) {
    int mib = comm->ranks == 1 ? 640 : comm->host_ranks == comm->ranks ? 1408 : 1856;
    return strcmp(ops->name, "cuda") ? 0 : (size_t)mib << 20;
}

PlannedMemory planned_memory(const Session* session, const Options* o, size_t tables) {
    Session s = *session;
    s.o = *o;
    s.recipe = options_recipe(o);
    if (!s.peft) s.config.adapter = options_adapter(o);   // else it is that of the file
    s.remade = remade_by_flag(&s, o);
    PlannedMemory m;
    memset(&m, 0, sizeof m);
    m.plan = memory_plan(&s.config, s.ops, s.comm, s.recipe, shard_options(&s, true), model_options(&s, true));
    m.tables = tables;
    m.libraries = planned_libraries(s.ops, s.comm);
    m.all = m.plan.together + m.tables + m.libraries;
    return m;
}

static bool fits(const Session* s, const Options* o, size_t tables, size_t limit) { return planned_memory(s, o, tables).all <= limit; }

int largest_batch(const Session* s, const Options* given, size_t tables, size_t limit) {
    Options o = *given;
    int most = (1 << 24) / o.seq, good = 0, bad;   // options_check: tokens of a micro-step
    if (options_recipe(&o)->ge.fmt == INT8) most = min_int(most, kInt8Longest / o.seq);
    for (bad = 1; bad <= most; bad *= 2) {
        o.batch = bad;
        if (!fits(s, &o, tables, limit)) break;
        good = bad;
    }
    bad = min_int(bad, most + 1);
    while (bad - good > 1) {
        o.batch = good + (bad - good) / 2;
        *(fits(s, &o, tables, limit) ? &good : &bad) = o.batch;
    }
    return good;
}

// ---- the ladder: what to change, the cheapest first

typedef struct {
    const char *flag, *value;   // NULL: the batch
    int batch;                  // examples of a micro-step; there are more micro-steps for it
} Rung;
enum { kMostRungs = 64 };
typedef struct {
    Rung rungs[kMostRungs];
    bool taken[kMostRungs];
    int count;
} Ladder;

static void add_rung(Ladder* l, bool wanted, const char* flag, const char* value, int batch) {
    if (!wanted) return;
    check(l->count < kMostRungs, "plan: more than %d rungs", (int)kMostRungs);
    Rung r = {flag, value, batch};
    l->rungs[l->count++] = r;
}

// Time, then accuracy, then what is trained at all. Activations made again cost time alone, the first kind very little; narrow states are
// rounded stochastically; small micro-steps use the GPU badly; ranks that share more send more; an adapter trains something else.
static void make_ladder(Ladder* l, const Session* s, const Options* o) {
    bool ranks = s->comm->ranks > 1, full = o->adapter == ADAPT_NONE && !o->adapter_dir, zero_3 = o->zero == kAuto || o->zero == 3;
    memset(l, 0, sizeof *l);
    add_rung(l, o->recompute == RECOMPUTE_NONE, "recompute", "norm-act", 0);
    add_rung(l, full && !o->qfsdp && o->codes == CODES_AUTO && linear_prepares_weight(options_recipe(o)), "codes", "remake", 0);
    add_rung(l, full && o->state_dtype == F32, "state-dtype", "bf16", 0);
    add_rung(l, full && o->grad_dtype == F32, "grad-dtype", "bf16", 0);
    add_rung(l, full && o->master == MASTER_FP32, "master", "bf16-sr", 0);
    add_rung(l, o->recompute != RECOMPUTE_BLOCK, "recompute", "block", 0);
    for (int batch = o->batch - 1, last = o->batch; batch >= 1; batch--) {   // divisors, so that the global batch stays what it is
        if (o->batch % batch || batch > last * 2 / 3) continue;
        add_rung(l, true, NULL, NULL, batch);
        last = batch;
    }
    add_rung(l, ranks && !zero_3, "zero", "3", 0);
    add_rung(l, o->logits_mb > 128, "logits-mb", "128", 0);
    add_rung(l, ranks && full && !o->qfsdp && linear_gathers_codes(options_recipe(o)), "qfsdp", "yes", 0);
    add_rung(l, ranks && o->prefetch > 0, "prefetch", "0", 0);
    add_rung(l, full, "adapter", "lora", 0);
    add_rung(l, full && !o->recipe && !strcmp(o->level, "bf16"), "level", "halo0", 0);   // of frozen weights the codes are enough
}

static Options climbed(const Ladder* l, const Options* given) {
    Options o = *given;
    for (int i = 0; i < l->count; i++) {
        const Rung* r = &l->rungs[i];
        if (!l->taken[i]) continue;
        if (r->flag) {
            check(options_set(&o, TRAIN, r->flag, r->value), "plan: --%s", r->flag);
            continue;
        }
        o.batch = r->batch;
        o.accum = given->accum * (given->batch / r->batch);
    }
    if (o.qfsdp) o.codes = given->codes;   // gathered codes are not remade
    bool adapted = o.adapter == ADAPT_LORA && given->adapter == ADAPT_NONE;
    if (adapted) {
        o.qfsdp = given->qfsdp;
        if (given->lr == 1e-5) o.lr = 3e-4;   // the default is a full fine-tune's, this the paper's for LoRA
    }
    return o;
}

bool cheapest_fit(const Session* s, Options* o, size_t tables, size_t limit) {
    Ladder l;
    make_ladder(&l, s, o);
    Options tried = *o;
    bool found = fits(s, &tried, tables, limit);
    for (int i = 0; !found && i < l.count; i++) {
        l.taken[i] = true;
        tried = climbed(&l, o);
        found = fits(s, &tried, tables, limit);
    }
    if (!found) return false;
    for (int i = l.count - 1; i >= 0; i--) {   // the dearest first
        if (!l.taken[i]) continue;
        l.taken[i] = false;
        tried = climbed(&l, o);
        l.taken[i] = !fits(s, &tried, tables, limit);
    }
    *o = climbed(&l, o);
    return true;
}
