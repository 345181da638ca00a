// train_llama3: fine-tunes Llama-3 models with every large matrix product in 8 or 6 bits.
//
// This file is the program: its sub-commands and the training loop (the flags are in halo/options.c). It holds no CUDA; nvcc
// builds it where there is a GPU, a C compiler (-x c) where there is none. The model is in halo/, everything on disk in data/.
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

#include "data/batch.h"
#include "data/checkpoint.h"
#include "data/files.h"
#include "data/hf_config.h"
#include "data/hf_model.h"
#include "data/json.h"
#include "data/utf8.h"
#include "halo/ceilings.h"
#include "halo/hadamard.h"
#include "halo/optim.h"
#include "halo/options.h"
#include "halo/profile.h"
#include "halo/progress.h"
#include "halo/rng.h"
#include "halo/sampler.h"

// ---- what every command sets up

typedef struct {
    Options o;
    const Comm* comm;
    const Ops* ops;
    const Recipe* recipe;
    Config config;
    HfModel* source;          // NULL: random weights
    const char* source_dir;   // of config.json; NULL for a preset
    Tokenizer* tokenizer;     // NULL if the command needs none
    const char* tokenizer_dir;
    ChatFormat chat;
    Shard* shard;
} Session;

static bool leads(const Session* s) { return s->comm->rank == 0; }

static const Ops* pick_backend(const char* name) {
    if (!strcmp(name, "cpu")) return &cpu_bf16_ops;
    if (!strcmp(name, "cpu-f32")) return &cpu_f32_ops;
#ifdef HALO_CUDA
    if (cuda_device_count() > 0) return &cuda_ops;
    if (!strcmp(name, "cuda")) user_error("--backend cuda: no usable GPU was found (nvidia-smi shows what the driver sees)");
#else
    if (!strcmp(name, "cuda")) user_error("--backend cuda: this program was built without CUDA; install nvcc and run make again");
#endif
    return &cpu_bf16_ops;
}

// config.json, --preset or --from-scratch, and where its tokenizer is.
static void open_source(Session* s) {
    const Options* o = &s->o;
    if (!!o->model + !!o->preset + !!o->from_scratch != 1)
        user_error("name one of --model DIR, --preset NAME (%s) or --from-scratch DIR", config_preset_names());
    if (o->model) {
        s->source = hf_model_open(o->model, &s->config);
        s->source_dir = o->model;
    } else if (o->from_scratch) {
        hf_config_read(o->from_scratch, &s->config);
        s->source_dir = o->from_scratch;
    } else if (!config_preset(&s->config, o->preset)) {
        user_error("--preset %s: must be one of %s", o->preset, config_preset_names());
    }
    if (o->layers > s->config.L) user_error("--layers %d: the model has %d", o->layers, s->config.L);
    if (o->layers) s->config.L = o->layers;
    s->tokenizer_dir = o->tokenizer ? o->tokenizer : s->source_dir;
}

static void open_tokenizer(Session* s) {
    if (!s->tokenizer_dir) user_error("--preset: name the folder of a tokenizer.json with --tokenizer DIR");
    s->tokenizer = tokenizer_load(s->tokenizer_dir);
    if (tokenizer_size(s->tokenizer) > s->config.V)
        user_error("%s/tokenizer.json: %d tokens, but the model's vocab_size is %d", s->tokenizer_dir,
                   tokenizer_size(s->tokenizer), s->config.V);
    ChatOptions chat = {s->o.chat, NULL, SPECIALS_AUTO};
    s->chat = chat_open(s->tokenizer_dir, s->tokenizer, &chat);
}

static void read_source_rows(void* self, int spec, int layer, int row0, int rows, float* dst) {
    hf_model_rows((const HfModel*)self, spec, layer, row0, rows, F32, dst);
}

static Fmt state_fmt(const char* name) { return strcmp(name, "bf16") ? F32 : BF16; }

// HQ-FSDP at work: one rank gathers nothing.
static bool gathers_codes(const Session* s) { return s->o.qfsdp && s->comm->ranks > 1; }

static ShardOptions shard_options(const Session* s, bool train) {
    int zero = s->o.zero == kAuto ? kZeroAuto : s->o.zero;
    ShardOptions shard = {zero, !strcmp(s->o.master, "fp32"), F32, F32, train, s->o.prefetch, s->o.accum, (uint64_t)s->o.seed, F32};
    if (!train) return shard;
    if (zero > 3) user_error("--zero %d: must be 0, 1, 2 or 3", zero);
    shard.grad_fmt = state_fmt(s->o.grad_dtype);
    shard.state_fmt = state_fmt(s->o.state_dtype);
    if (gathers_codes(s) && zero != 3 && zero != kZeroAuto) user_error("--qfsdp --zero %d: codes are gathered with --zero 3 only", zero);
    if (s->o.qfsdp && !linear_gathers_codes(s->recipe))
        user_error("--qfsdp: recipe %s does not quantize weights per tensor; choose a halo or switchback recipe", s->recipe->name);
    if (s->o.qfsdp) shard.wire = s->recipe->fw.fmt;
    return shard;
}

static void load_weights(Session* s, bool train) {
    s->shard = shard_new(&s->config, s->ops, s->comm, shard_options(s, train));
    RandomWeights random = {&s->config, (uint64_t)s->o.seed, s->config.init_std};
    if (s->source) shard_load(s->shard, read_source_rows, s->source);
    else shard_load(s->shard, random_weights_read, &random);
}

// Tokens of one optimizer step on all ranks are counted in ints, and a micro-step's number is 20 bits of its noise (shard.h).
enum { kMostStepTokens = 1 << 30, kMostMicroSteps = 1 << 20 };
static void check_global_batch(const Session* s) {
    const Options* o = &s->o;
    if ((double)o->batch * o->seq * o->accum * s->comm->ranks > kMostStepTokens)
        user_error("--batch %d --seq %d --accum %d on %d rank%s: more than %d tokens an optimizer step", o->batch, o->seq, o->accum,
                   s->comm->ranks, s->comm->ranks > 1 ? "s" : "", (int)kMostStepTokens);
    if (o->accum > kMostMicroSteps) user_error("--accum %d: at most %d micro-steps", o->accum, (int)kMostMicroSteps);
}

static Session session_open(Options o) {
    Session s;
    memset(&s, 0, sizeof s);
    s.o = o;
    s.ops = pick_backend(o.backend);
    s.comm = comm_start();
    progress_watch(s.comm->rank, s.comm->ranks, o.timeout, s.comm->abort_job);
    s.comm = comm_on(s.comm, s.ops);
    check_global_batch(&s);
    open_source(&s);
    return s;
}

static void session_close(Session* s) {
    progress_stop_watching();
    if (s->shard) shard_free(s->shard);
    if (s->source) hf_model_close(s->source);
    if (s->tokenizer) {
        chat_free(&s->chat);
        tokenizer_free(s->tokenizer);
    }
    s->comm->finish();
}

// The row that the flags name; what it rotates has to have an order that hadamard.h knows.
static const Recipe* pick_recipe(const Session* s) {
    const Options* o = &s->o;
    const Config* c = &s->config;
    const Recipe* r = o->recipe ? recipe_find(o->recipe) : recipe_pick(o->level, o->dtype);
    if (!r) user_error("--recipe %s: no such row; train_llama3 --help lists them", o->recipe);
    const struct {
        const char* name;
        int order;
    } widths[] = {{"hidden_size", c->C}, {"num_attention_heads * head_dim", c->NH * c->HD}, {"intermediate_size", c->F}};
    for (size_t i = 0; r->fw.rotate && i < sizeof widths / sizeof widths[0]; i++)
        if (!hadamard_supported(widths[i].order))
            user_error("recipe %s: there is no Hadamard transform of order %d, the model's %s; choose a --level that does not "
                       "rotate (halo0, switchback, jetfire)", r->name, widths[i].order, widths[i].name);
    if (r->ee.rotate && o->token_block && !hadamard_supported(o->token_block))
        user_error("--token-block %d: there is no Hadamard transform of that order; choose a power of two", o->token_block);
    return r;
}

static ModelOptions model_options(const Session* s, bool train) {
    const Options* o = &s->o;
    if (o->seq < 1 || o->batch < 1 || o->accum < 1)
        user_error("--batch %d --seq %d --accum %d: each must be at least 1", o->batch, o->seq, o->accum);
    if (o->seq > s->config.max_T)
        user_error("--seq %d: the model's max_position_embeddings is %d", o->seq, s->config.max_T);
    if ((double)o->batch * o->seq > 1 << 24) user_error("--batch %d --seq %d: more than %d tokens a micro-step", o->batch, o->seq, 1 << 24);
    if (train && s->recipe->ge.fmt == INT8 && o->batch * o->seq > kInt8Longest)
        user_error("--batch %d --seq %d: recipe %s sums INT8 products over at most %d tokens; take a smaller --batch, and a larger --accum "
                   "instead", o->batch, o->seq, s->recipe->name, (int)kInt8Longest);
    Recompute recompute = RECOMPUTE_NONE;
    if (train && !strcmp(o->recompute, "norm-act")) recompute = RECOMPUTE_NORM_ACT;
    if (train && !strcmp(o->recompute, "block")) recompute = RECOMPUTE_BLOCK;
    ModelOptions m = {o->batch, o->seq, train, recompute, (size_t)max_int(o->logits_mb, 1) << 20, o->token_block,
                      recipe_find(train && !strcmp(o->head_dtype, "fp8") ? "halo0-fp8" : "bf16"), train && o->quant_stats && leads(s)};
    return m;
}

static DataOptions data_options(const Session* s) {
    DataOptions d;
    memset(&d, 0, sizeof d);
    d.chat = &s->chat;
    d.seq = s->o.seq;
    d.pack = s->o.pack;
    d.train_on_prompt = s->o.train_on_prompt;
    d.long_policy = strcmp(s->o.long_policy, "skip") ? LONG_TRUNCATE : LONG_SKIP;
    return d;
}

// What a rank runs, a line a fact.
enum { kFactBytes = 64 << 10 };
typedef struct {
    char text[kFactBytes];
    size_t used;
} Facts;
__attribute__((format(printf, 2, 3)))
static void state_fact(Facts* f, const char* format, ...) {
    size_t room = kFactBytes - f->used;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(f->text + f->used, room, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= room) user_error("the flags of this run have more than %d characters", (int)kFactBytes);
    f->used += (size_t)n;
}

// Every rank has to run the same thing: what rank 0 runs is sent to the others.
static void ranks_agree(const Session* s, const DataStats* data) {
    Facts *mine = (Facts*)host_alloc(sizeof(Facts)), *first = (Facts*)host_alloc(sizeof(Facts));
    RunFlag flags[kMaxRunFlags];
    int flag_count = options_flags(&s->o, flags, true);
    for (int i = 0; i < flag_count; i++) state_fact(mine, "--%s %s\n", flags[i].name, flags[i].value);
    const Config* c = &s->config;
    state_fact(mine, "config.json: V %d C %d L %d NH %d NKV %d HD %d F %d theta %g\n", c->V, c->C, c->L, c->NH, c->NKV, c->HD, c->F,
               c->rope_theta);
    float* row = (float*)host_alloc(sizeof(float) * (size_t)max_int(c->C, max_int(c->F, c->NH * c->HD)));
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(c, specs);
    for (int i = 0; s->source && i < count; i++) {
        hf_model_rows(s->source, i, 0, 0, 1, F32, row);
        double sum = 0;
        for (int k = 0; k < specs[i].cols; k++) sum += row[k] * (k % 7 + 1);
        state_fact(mine, "the weights of %s: %.9g\n", specs[i].name, sum);
    }
    state_fact(mine, "the data: %d examples, %zu tokens, %zu scored\n", data->examples, data->tokens, data->scored);
    *first = *mine;
    s->comm->host_broadcast(first, sizeof *first);
    for (const char *a = first->text, *b = mine->text; *a || *b;) {
        int na = (int)strcspn(a, "\n"), nb = (int)strcspn(b, "\n");
        if (na != nb || strncmp(a, b, (size_t)na))
            user_error("rank %d disagrees with rank 0: it has '%.*s', rank 0 has '%.*s'; start all ranks with the same model, data "
                       "and flags", s->comm->rank, nb, b, na, a);
        a += na + 1;   // both have a line, the same one
        b += nb + 1;
    }
    free(row);
    free(mine);
    free(first);
}

static Dataset* open_data(const Session* s, const char* path) {
    DataOptions options = data_options(s);
    Dataset* d = dataset_load(path, s->tokenizer, &options);
    const DataStats* n = dataset_stats(d);
    if (leads(s))
        printf("%s: %d records, %d examples (%d truncated, %d skipped), %zu tokens, %zu of them scored, %d rows of %d\n", path,
               n->records, n->examples, n->truncated, n->skipped, n->tokens, n->scored, dataset_rows(d), s->o.seq);
    if (leads(s)) dataset_report(d, stdout);
    return d;
}

static double gib(size_t bytes) { return (double)bytes / (1 << 30); }

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- writing models

static void read_shard_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read((Shard*)self, spec, layer, row0, rows, dst);
}

static void write_model(Session* s, const char* dir) {
    size_t shard_bytes = (size_t)(s->o.shard_gb * 1e9);
    HfOutput out = {leads(s) ? dir : NULL, s->o.layers ? NULL : s->source_dir, s->tokenizer_dir, s->ops->act,
                    shard_bytes ? shard_bytes : kDefaultShardBytes};
    hf_model_write(&out, &s->config, read_shard_rows, s->shard);
    if (leads(s)) printf("wrote %s\n", dir);
}

// ---- checkpoints

typedef struct {
    int64_t step, epoch, step_in_epoch;   // finished so far
} Progress;

// One state array, on this rank's backend or in the file that a rank has saved.
typedef struct {
    Session* s;
    StateArray array;
    int index, from_rank, from_ranks;
} StateBlob;

static void state_read(void* self, size_t offset, size_t bytes, void* dst) {
    StateBlob* b = (StateBlob*)self;
    progress_phase("saving", -1);
    b->s->ops->download(dst, (char*)b->array.data + offset, bytes);
}
static void state_write(void* self, size_t offset, size_t bytes, const void* src) {
    StateBlob* b = (StateBlob*)self;
    progress_phase("resuming", -1);
    shard_take(b->s->shard, b->index, b->from_rank, b->from_ranks, offset, bytes, src);
}

static char* checkpoint_dir(const Session* s) { return path_join(s->o.out, "checkpoints"); }

// What a run's state consists of, as rank `rank` of `ranks` saves it. Random numbers have no state of their own: seed, step and
// position name them.
typedef struct {
    CheckpointState state;
    Blob blobs[kMaxStateArrays];
    StateBlob places[kMaxStateArrays];
    CheckpointNumber numbers[3];
    RunFlag flags[kMaxRunFlags];
    CheckpointSetting settings[kMaxRunFlags + 1];
    char global_rows[16];
} RunState;

static void describe_state(Session* s, Progress* progress, int rank, int ranks, RunState* r) {
    StateArray arrays[kMaxStateArrays];
    int count = ranks == s->comm->ranks ? shard_state(s->shard, arrays) : shard_state_of(s->shard, ranks, arrays);
    for (int i = 0; i < count; i++) {
        StateBlob place = {s, arrays[i], i, rank, ranks};
        Blob blob = {arrays[i].name, arrays[i].bytes, state_read, state_write, &r->places[i]};
        r->places[i] = place;
        r->blobs[i] = blob;
    }
    const CheckpointNumber numbers[] = {
        {"step", &progress->step}, {"epoch", &progress->epoch}, {"step_in_epoch", &progress->step_in_epoch}};
    memcpy(r->numbers, numbers, sizeof numbers);
    int setting_count = options_flags(&s->o, r->flags, false);
    for (int i = 0; i < setting_count; i++) {
        bool backend = !strcmp(r->flags[i].name, "backend");   // what "auto" came to: another one has other bits
        CheckpointSetting setting = {r->flags[i].name, backend ? s->ops->name : r->flags[i].value};
        r->settings[i] = setting;
    }
    snprintf(r->global_rows, sizeof r->global_rows, "%d", s->o.batch * s->o.accum * s->comm->ranks);
    CheckpointSetting global = {"rows of a global batch (--batch x --accum x ranks)", r->global_rows};
    r->settings[setting_count++] = global;
    CheckpointState state = {rank, ranks, r->blobs, count, r->numbers, 3, r->settings, setting_count};
    r->state = state;
}

static void save_checkpoint(Session* s, Progress* progress) {
    RunState run;
    describe_state(s, progress, s->comm->rank, s->comm->ranks, &run);
    char* dir = checkpoint_dir(s);
    checkpoint_write(dir, (int)progress->step, &run.state);
    s->comm->barrier();
    if (leads(s)) checkpoint_commit(dir, (int)progress->step, s->comm->ranks, max_int(s->o.keep, 1));
    s->comm->barrier();
    if (leads(s)) printf("saved step %d in %s\n", (int)progress->step, dir);
    free(dir);
}

// As many ranks as saved it read their own parts; other numbers take the rows that they own from all parts.
static void load_checkpoint(Session* s, Progress* progress, const char* path) {
    int ranks = checkpoint_ranks(path);
    bool same = ranks == s->comm->ranks;
    RunState run;
    for (int rank = 0; rank < ranks; rank++) {
        if (same && rank != s->comm->rank) continue;
        describe_state(s, progress, rank, ranks, &run);
        checkpoint_load(path, &run.state);
    }
    shard_state_restored(s->shard);
}

static void resume(Session* s, Progress* progress) {
    char* dir = checkpoint_dir(s);
    char* path = checkpoint_latest(dir);
    if (!path) user_error("--resume: no complete checkpoint in %s", dir);
    load_checkpoint(s, progress, path);
    if (leads(s)) printf("resumed from %s\n", path);
    free(path);
    free(dir);
}

// Before any work: --out can be written, and a fresh run does not go over the checkpoint of another, which its own first
// one would remove.
static void claim_out(const Session* s) {
    const Options* o = &s->o;
    if (!o->out && o->resume) user_error("--resume: name the run's folder with --out DIR");
    if (!o->out && o->save_every) user_error("--save-every %d: name the folder to save in with --out DIR", o->save_every);
    if (!leads(s)) return;
    if (!o->out) {
        printf("no --out DIR: the trained model will not be saved\n");
        return;
    }
    dir_make(o->out);
    if (access(o->out, W_OK)) user_error("--out %s: cannot be written: %s", o->out, strerror(errno));
    char* dir = checkpoint_dir(s);
    char* path = checkpoint_latest(dir);
    if (path && !o->resume)
        user_error("--out %s: holds the checkpoint %s; go on with it (--resume), choose another --out, or remove %s", o->out,
                   path, dir);
    free(path);
    free(dir);
}

// ---- evaluation

typedef struct {
    double loss;   // mean over the scored tokens
    size_t scored;
} Evaluation;

static Evaluation evaluate(const Session* s, Model* model, Dataset* d, float* losses) {
    int rows = dataset_rows(d), B = s->o.batch, BT = B * s->o.seq, ranks = s->comm->ranks;
    RowBatch batch = batch_new(B, s->o.seq);
    float* host = (float*)host_alloc(sizeof(float) * (size_t)BT);
    double sums[2] = {0, 0};   // loss, tokens
    for (int first = 0; first < rows; first += B * ranks) {
        batch_fill(&batch, d, first + s->comm->rank * B);
        model_loss(model, &batch.arrays, losses);
        s->ops->download(host, losses, sizeof(float) * (size_t)BT);
        for (int i = 0; i < BT; i++) sums[0] += host[i];
        sums[1] += batch.scored;
    }
    s->comm->host_sum(sums, 2);
    free(host);
    batch_free(&batch);
    Evaluation e = {sums[0] / sums[1], (size_t)sums[1]};
    return e;
}

static void print_evaluation(const char* path, Evaluation e) {
    printf("%s: loss %.6f  perplexity %.4f  over %zu tokens\n", path, e.loss, exp(e.loss), e.scored);
}

static int command_eval(Options o) {
    Session s = session_open(o);
    if (!o.data) user_error("eval: name the data with --data FILE");
    open_tokenizer(&s);
    Dataset* d = open_data(&s, o.data);
    load_weights(&s, false);
    Model* model = model_new(&s.config, s.ops, recipe_find("bf16"), shard_units(s.shard), model_options(&s, false));
    model_weights_changed(model);
    float* losses = (float*)s.ops->alloc(sizeof(float) * (size_t)o.batch * o.seq);
    Evaluation e = evaluate(&s, model, d, losses);
    if (leads(&s)) print_evaluation(o.data, e);
    s.ops->release(losses);
    model_free(model);
    dataset_free(d);
    session_close(&s);
    return 0;
}

// ---- training

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    interrupted = 1;
    signal(signal_number, SIG_DFL);   // a second one ends the program at once
}

// With several ranks, SIGTERM is how the launcher ends the others after one has died; there is no step to finish then. (It passes
// SIGUSR1 on: that stops all ranks as Ctrl-C stops one.)
static void on_job_end(int signal_number) {
    (void)signal_number;
    progress_report("ended from outside, or because another rank has died");
    _exit(kExitHang);
}

static void catch_signals(int ranks) {
    signal(SIGUSR1, on_interrupt);
    if (ranks == 1) signal(SIGINT, on_interrupt);
    signal(SIGTERM, ranks == 1 ? on_interrupt : on_job_end);
}

// Everything one optimizer step needs.
typedef struct {
    Model* model;
    Optim optim;
    RowBatch batch;
    float *losses, *host_losses;   // (accum, BT)
} Trainer;

static size_t loss_bytes(const Options* o) { return sizeof(float) * (size_t)o->accum * (size_t)o->batch * (size_t)o->seq; }

static Trainer trainer_new(const Session* s, int steps) {
    const Options* o = &s->o;
    Schedule schedule = !strcmp(o->schedule, "linear") ? SCHEDULE_LINEAR
                      : !strcmp(o->schedule, "cosine") ? SCHEDULE_COSINE : SCHEDULE_CONSTANT;
    int warmup = o->warmup == kAuto ? min_int(20, steps / 10) : o->warmup;
    OptimConfig optim = {(float)o->lr, warmup, steps, schedule, (float)o->beta1, (float)o->beta2, (float)o->eps,
                         (float)o->weight_decay, (float)o->clip, (uint64_t)o->seed};
    Trainer t;
    t.model = model_new(&s->config, s->ops, s->recipe, shard_units(s->shard), model_options(s, true));
    t.optim = optim_new(s->ops, optim);
    t.batch = batch_new(o->batch, o->seq);
    t.losses = (float*)s->ops->alloc(loss_bytes(o));
    t.host_losses = (float*)host_alloc(loss_bytes(o));
    model_weights_changed(t.model);
    return t;
}

static void trainer_free(const Session* s, Trainer* t) {
    model_free(t->model);
    optim_free(&t->optim);
    batch_free(&t->batch);
    s->ops->release(t->losses);
    free(t->host_losses);
}

static void finish_gradient(void* self, Mat g, Stack stack) { model_finish_gradients((const Model*)self, g, stack); }

// The end of an optimizer step, once all its micro-steps are done.
static void update_weights(Session* s, Trainer* t, int step) {
    shard_reduce_gradients(s->shard, finish_gradient, t->model);
    optim_step(&t->optim, s->shard, step);
    model_weights_changed(t->model);
}

typedef struct {
    double loss;
    float grad_norm;
    size_t tokens;   // not padding, on all ranks
} StepResult;

// --quant-stats looks at rank 0's first micro-step.
static bool observes(const Session* s, int step) { return s->o.quant_stats && step % s->o.quant_stats == 0 && leads(s); }

// One optimizer step over the global batch that begins at `first_row` of the planned epoch.
static StepResult train_step(Session* s, Trainer* t, const Dataset* d, int first_row, int step) {
    const Options* o = &s->o;
    int ranks = s->comm->ranks, B = o->batch, BT = B * o->seq;
    size_t scored = dataset_scored(d, first_row, o->accum * ranks * B);
    progress_step(step);
    double sums[2] = {0, 0};   // loss, tokens
    shard_begin_step(s->shard, step);
    for (int a = 0; a < o->accum; a++) {
        progress_phase("loading a batch", -1);
        batch_fill(&t->batch, d, first_row + (a * ranks + s->comm->rank) * B);
        if (a == 0 && observes(s, step)) model_observe(t->model);
        model_train_step(t->model, &t->batch.arrays, 1.0f / (float)scored, t->losses + (size_t)a * BT);
        shard_end_micro_step(s->shard);
        sums[1] += t->batch.used;
    }
    update_weights(s, t, step);
    s->ops->download(t->host_losses, t->losses, loss_bytes(o));
    for (int i = 0; i < o->accum * BT; i++) sums[0] += t->host_losses[i];
    s->comm->host_sum(sums, 2);
    StepResult r = {sums[0] / (double)scored, optim_grad_norm(&t->optim, s->shard), (size_t)sums[1]};
    return r;
}

static void duration(double seconds, char text[32]) {
    int t = (int)(seconds + 0.5);
    if (t >= 3600) snprintf(text, 32, "%dh%02dm", t / 3600, t / 60 % 60);
    else if (t >= 60) snprintf(text, 32, "%dm%02ds", t / 60, t % 60);
    else snprintf(text, 32, "%ds", t);
}

typedef struct {
    FILE* file;   // log.jsonl, or NULL
    int steps;
    double mean_step_seconds;   // smoothed
} StepLog;

// The steps after the checkpoint that a run goes on from will be made again: takes their lines away, and one that a crash
// has cut short.
static void log_rewind(const char* path, int64_t step) {
    static const char kOpening[] = "{\"step\": ";
    if (!path_exists(path)) return;
    char *text = file_read(path, NULL), *line = text;
    for (char* end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        if (!strncmp(line, kOpening, strlen(kOpening)) && strtol(line + strlen(kOpening), NULL, 10) > step) break;
    if (truncate(path, line - text)) user_error("%s: cannot be written: %s", path, strerror(errno));
    free(text);
}

static StepLog log_open(const Session* s, int steps, int64_t steps_done) {
    StepLog log = {NULL, steps, 0};
    if (!s->o.log || !leads(s)) return log;
    dir_make(s->o.log);
    char* path = path_join(s->o.log, "log.jsonl");
    if (s->o.resume) log_rewind(path, steps_done);
    log.file = fopen(path, s->o.resume ? "a" : "w");
    if (!log.file) user_error("%s: cannot be written: %s", path, strerror(errno));
    free(path);
    return log;
}

static void log_flush(StepLog* log) {
    if (fflush(log->file)) user_error("--log: log.jsonl cannot be written: %s", strerror(errno));
}

static void log_step(StepLog* log, int step, double epoch, StepResult r, float lr, double seconds) {
    log->mean_step_seconds = log->mean_step_seconds > 0 ? 0.9 * log->mean_step_seconds + 0.1 * seconds : seconds;
    double eta = (log->steps - step) * log->mean_step_seconds, tokens_per_second = (double)r.tokens / seconds;
    char eta_text[32];
    duration(eta, eta_text);
    printf("step %*d/%d  epoch %.2f  loss %.4f  norm %.4f  lr %.2e  %.0f tok/s  ETA %s\n", log->steps > 999 ? 5 : 3, step,
           log->steps, epoch, r.loss, r.grad_norm, lr, tokens_per_second, eta_text);
    fflush(stdout);
    if (!log->file) return;
    fprintf(log->file, "{\"step\": %d, \"epoch\": %.6f, \"loss\": %.9g, \"grad_norm\": %.9g, \"lr\": %.9g, "
                       "\"tokens_per_second\": %.1f, \"eta_seconds\": %.1f}\n",
            step, epoch, r.loss, (double)r.grad_norm, (double)lr, tokens_per_second, eta);
    log_flush(log);
}

static void log_quant_stats(StepLog* log, const Trainer* t, int step) {
    quant_stats_report(model_quant_stats(t->model), step, log->file);
    if (log->file) log_flush(log);
}

static void log_evaluation(StepLog* log, const char* path, int step, Evaluation e) {
    print_evaluation(path, e);
    if (!log->file) return;
    fprintf(log->file, "{\"step\": %d, \"val_loss\": %.9g, \"val_tokens\": %zu}\n", step, e.loss, e.scored);
    log_flush(log);
}

// Bytes a rank needs on the backend.
typedef struct {
    ShardBytes shard;
    ModelBytes model;
    size_t staging, together;   // staging: what ranks and the backend hold for themselves
} MemoryPlan;

static MemoryPlan plan_memory(const Session* s) {
    ShardBytes b = shard_bytes(&s->config, s->ops, s->comm, shard_options(s, true));
    ModelBytes model = model_bytes(&s->config, s->ops, s->recipe, gathers_codes(s), model_options(s, true));
    model.scratch += loss_bytes(&s->o);
    size_t staging = s->comm->staging_bytes + s->ops->workspace_bytes();
    MemoryPlan plan = {b, model, staging, b.weights + b.gradients + b.optimizer + b.gathered + model_bytes_together(model) + staging};
    return plan;
}

static void print_memory(const Session* s) {
    MemoryPlan p = plan_memory(s);
    size_t left = s->ops->free_bytes() + s->comm->staging_bytes;   // which is taken already
    printf("memory per rank, GiB: weights %.3f  gradients %.3f  optimizer %.3f  gathered %.3f  codes %.3f  activations %.3f  scratch %.3f  "
           "staging %.3f  together %.3f of %.3f free\n", gib(p.shard.weights), gib(p.shard.gradients), gib(p.shard.optimizer),
           gib(p.shard.gathered), gib(p.model.codes), gib(p.model.activations), gib(p.model.scratch), gib(p.staging), gib(p.together), gib(left));
    if (p.together > left)
        user_error("%.1f GiB are needed, and %.1f are free: a smaller --batch or --seq, --recompute block, or --master bf16-sr --grad-dtype bf16 "
                   "--state-dtype bf16 take less; so do more ranks", gib(p.together), gib(left));
}

static void print_start(const Session* s) {
    const Config* c = &s->config;
    printf("%s backend, %d rank%s (%s), recipe %s, lm_head in %s\n", s->ops->name, s->comm->ranks, s->comm->ranks > 1 ? "s" : "",
           s->comm->name, s->recipe->name, s->o.head_dtype);
    if (!strncmp(s->recipe->name, "haloi", 5))
        printf("haloi casts without scales: it bounds the speed of the other levels, and its losses mean nothing\n");
    printf("model: %.1fM parameters, %d layers of width %d, MLP %d, heads %d/%d of %d, vocabulary %d%s\n",
           (double)param_count(c) / 1e6, c->L, c->C, c->F, c->NH, c->NKV, c->HD, c->V, c->tied ? ", tied" : "");
    print_memory(s);
}

static int command_train(Options o) {
    Session s = session_open(o);
    if (!o.data) user_error("train: name the data with --data FILE");
    if (o.beta1 >= 1 || o.beta2 >= 1) user_error("--beta1 %g --beta2 %g: both must be below 1", o.beta1, o.beta2);
    if (o.eval_every && !o.val) user_error("--eval-every %d: name the file to evaluate on with --val FILE", o.eval_every);
    s.recipe = pick_recipe(&s);
    if (leads(&s)) options_print(&o, TRAIN);
    model_options(&s, true);   // contradictions are told before anything is loaded
    open_tokenizer(&s);
    Dataset* data = open_data(&s, o.data);
    ranks_agree(&s, dataset_stats(data));
    Dataset* val = o.val ? open_data(&s, o.val) : NULL;
    Progress done = {0, 0, 0};
    int global_rows = o.batch * o.accum * s.comm->ranks;
    int rows = dataset_plan(data, (uint64_t)o.seed, 0);
    double steps_planned = o.steps ? o.steps : ceil(o.epochs * ceil_div(rows, global_rows));
    if (steps_planned < 1 || steps_planned > 1e9) user_error("--epochs %g: that is %.0f steps", o.epochs, steps_planned);
    int steps = (int)steps_planned;
    if (leads(&s)) print_start(&s);
    claim_out(&s);
    load_weights(&s, true);
    if (o.resume) resume(&s, &done);
    Trainer t = trainer_new(&s, steps);
    StepLog log = log_open(&s, steps, done.step);
    catch_signals(s.comm->ranks);

    if (done.epoch) rows = dataset_plan(data, (uint64_t)o.seed, (int)done.epoch);
    bool stopping = false;
    while (done.step < steps && !stopping) {
        double start = seconds_now();
        int step = (int)done.step + 1;
        StepResult r = train_step(&s, &t, data, (int)done.step_in_epoch * global_rows, step);
        if (!isfinite(r.loss) || !isfinite(r.grad_norm))
            user_error("step %d: loss %g, gradient norm %g: not finite, and nothing of this step was saved; lower --lr or look at its data "
                       "(checkpoints up to step %d are whole)", step, r.loss, (double)r.grad_norm, step - 1);
        int steps_per_epoch = ceil_div(rows, global_rows);
        double epoch = (double)done.epoch + (double)(done.step_in_epoch + 1) / steps_per_epoch;
        if (leads(&s)) log_step(&log, step, epoch, r, optim_lr(&t.optim.config, step), seconds_now() - start);
        if (observes(&s, step)) log_quant_stats(&log, &t, step);
        done.step++;
        if (++done.step_in_epoch == steps_per_epoch) {
            done.step_in_epoch = 0;
            rows = dataset_plan(data, (uint64_t)o.seed, (int)++done.epoch);
        }
        bool last = done.step == steps;
        if (val && (last || (o.eval_every && step % o.eval_every == 0))) {
            Evaluation e = evaluate(&s, t.model, val, t.losses);
            if (!isfinite(e.loss))
                user_error("step %d: loss %g on %s: not finite, and nothing was saved of it; lower --lr", step, e.loss, o.val);
            if (leads(&s)) log_evaluation(&log, o.val, step, e);
        }
        double stop = interrupted;   // asked once a step: one decision, for all ranks and for saving as for stopping
        s.comm->host_sum(&stop, 1);
        stopping = stop > 0;
        if (o.out && !last && ((o.save_every && step % o.save_every == 0) || stopping)) save_checkpoint(&s, &done);
    }
    if (done.step == steps && o.out) write_model(&s, o.out);
    if (done.step < steps && leads(&s))
        printf("stopped after step %d of %d%s\n", (int)done.step, steps,
               o.out ? "; the same command with --resume goes on" : " (no --out, nothing was saved)");
    if (log.file) fclose(log.file);
    trainer_free(&s, &t);
    if (val) dataset_free(val);
    dataset_free(data);
    session_close(&s);
    return 0;
}

// ---- generate

enum { kMaxContext = 8192 };   // tokens of prompt and answer: what the KV cache is made for

typedef struct {
    const Tokenizer* tokenizer;
    const Config* config;
    Decoder* decoder;
    Sampler sampler;
    int stop[kMaxEos + 1], stop_count;   // tokens that end an answer
    int max_tokens;
} Writer;

static bool ends_answer(const Writer* w, int token) {
    for (int i = 0; i < w->stop_count; i++)
        if (w->stop[i] == token) return true;
    return false;
}

// Continues `prompt`; the text goes to `out`, and to stdout piece by piece if `live`.
static void write_answer(Writer* w, const int* prompt, int count, uint64_t number, bool live, Text* out) {
    DecodeStream stream;
    memset(&stream, 0, sizeof stream);
    decoder_reset(w->decoder);
    if (count == 0) user_error("the prompt has no tokens to go on from (the tokenizer adds no BOS); write something");
    if (count >= decoder_room(w->decoder))
        user_error("the prompt has %d tokens; there is room for %d (max_position_embeddings, at most %d)", count,
                   decoder_room(w->decoder) - 1, kMaxContext);
    const float* logits = decoder_feed(w->decoder, prompt, count);
    for (int i = 0; i < w->max_tokens; i++) {
        int token = sample_token(&w->sampler, logits, w->config->V, number << 32 | (uint64_t)i);
        if (ends_answer(w, token)) break;
        size_t before = out->bytes;
        tokenizer_decode_next(w->tokenizer, &stream, token, true, out);
        if (live && out->bytes > before) {
            fwrite(out->data + before, 1, out->bytes - before, stdout);
            fflush(stdout);
        }
        if (decoder_room(w->decoder) == 0 || i + 1 == w->max_tokens) break;
        logits = decoder_feed(w->decoder, &token, 1);
    }
    size_t before = out->bytes;
    tokenizer_decode_finish(&stream, out);
    if (live) fwrite(out->data ? out->data + before : "", 1, out->bytes - before, stdout);
}

static void answer_prompt(Session* s, Writer* w, const char* prompt) {
    Text text = {NULL, 0, 0};
    TokenList tokens = {NULL, 0, 0};
    chat_prompt(&s->chat, s->tokenizer, prompt, &tokens);
    write_answer(w, tokens.ids, tokens.count, 0, true, &text);
    putchar('\n');
    token_list_free(&tokens);
    text_free(&text);
}

static bool same_trimmed(const char* a, const char* b) {
    size_t na = strlen(a), nb = strlen(b);
    while (*a == ' ' || *a == '\n') a++, na--;
    while (*b == ' ' || *b == '\n') b++, nb--;
    while (na && (a[na - 1] == ' ' || a[na - 1] == '\n')) na--;
    while (nb && (b[nb - 1] == ' ' || b[nb - 1] == '\n')) nb--;
    return na == nb && !memcmp(a, b, na);
}

// What a model writes need not be UTF-8; bytes that are not become U+FFFD.
static json_t* json_text(const char* bytes, size_t count) {
    Text valid = {NULL, 0, 0};
    text_append(&valid, "", 0);
    for (size_t at = 0; at < count; at++) {
        size_t good = utf8_valid_bytes(bytes + at, count - at);
        text_append(&valid, bytes + at, good);
        at += good;
        if (at < count) text_append(&valid, "\xef\xbf\xbd", 3);
    }
    json_t* string = json_stringn(valid.data, valid.bytes);
    text_free(&valid);
    return string;
}

// One JSON line per example of --data, and the share of exact matches.
static void answer_data(Session* s, Writer* w) {
    s->o.seq = decoder_room(w->decoder) - 1;
    s->o.long_policy = "truncate";
    DataOptions options = data_options(s);
    Dataset* d = dataset_load(s->o.data, s->tokenizer, &options);
    int count = dataset_stats(d)->examples, matches = 0;
    for (int i = 0; i < count; i++) {
        const Example* e = dataset_example(d, i);
        if (!e->reference) user_error("%s: plain text has no prompts to answer", s->o.data);
        Text text = {NULL, 0, 0}, prompt = {NULL, 0, 0};
        const int* ids = e->prompt ? e->prompt : e->tokens;
        int id_count = e->prompt ? e->own_prompt_count : e->prompt_count;
        write_answer(w, ids, id_count, (uint64_t)i, false, &text);
        text_append(&text, "", 0);
        tokenizer_decode(s->tokenizer, ids, id_count, true, &prompt);
        bool match = same_trimmed(text.data, e->reference);
        matches += match;
        json_t* line = json_pack("{s:o, s:o, s:o, s:b}", "prompt", json_text(prompt.data, prompt.bytes),
                                 "expected", json_text(e->reference, strlen(e->reference)),
                                 "generated", json_text(text.data, text.bytes), "match", match);
        json_dumpf(line, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(line);
        text_free(&text);
        text_free(&prompt);
    }
    fprintf(stderr, "exact match %d/%d (%.1f%%), %d records left out\n", matches, count, 100.0 * matches / count,
            dataset_stats(d)->skipped);
    dataset_free(d);
}

static int command_generate(Options o) {
    Session s = session_open(o);
    if (s.comm->ranks > 1) user_error("generate: runs on one rank; start it without mpirun");
    if (!!o.prompt + !!o.data != 1) user_error("generate: name one of --prompt TEXT and --data FILE");
    open_tokenizer(&s);
    load_weights(&s, false);
    Writer w;
    memset(&w, 0, sizeof w);
    w.tokenizer = s.tokenizer;
    w.config = &s.config;
    w.max_tokens = o.max_tokens;
    Sampler sampler = {(float)o.temperature, (float)o.top_p, (uint64_t)o.seed};
    w.sampler = sampler;
    w.stop_count = hf_config_eos(s.source_dir, w.stop);
    if (s.chat.turn_end >= 0) w.stop[w.stop_count++] = s.chat.turn_end;
    w.decoder = decoder_new(&s.config, s.ops, shard_units(s.shard), min_int(s.config.max_T, kMaxContext));
    if (o.prompt) answer_prompt(&s, &w, o.prompt);
    else answer_data(&s, &w);
    decoder_free(w.decoder);
    session_close(&s);
    return 0;
}

// ---- export: with --resume and the flags of the run, its newest checkpoint; without, --model in this backend's format

static int command_export(Options o) {
    Session s = session_open(o);
    if (!o.out) user_error("export: name the folder to write with --out DIR");
    s.recipe = pick_recipe(&s);
    load_weights(&s, o.resume);
    Progress done;
    if (o.resume) resume(&s, &done);
    write_model(&s, o.out);
    session_close(&s);
    return 0;
}

// ---- bench

static int compare_doubles(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}
static double median(double* x, int n) {
    qsort(x, (size_t)n, sizeof(double), compare_doubles);
    return x[n / 2];
}

enum { kBenchWarmup = 2, kProfileSteps = 2 };

// One optimizer step on random tokens; the seconds until it is done.
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

static int command_bench(Options o) {
    if (!o.steps) o.steps = 10;
    Session s = session_open(o);
    s.recipe = pick_recipe(&s);
    if (leads(&s)) print_start(&s);
    bool notes_waits = s.comm->ranks > 1;
    if (notes_waits) s.comm = profile_comm(s.comm, s.ops);
    if (o.profile) s.ops = profile_ops(s.ops);
    size_t left_before = s.ops->free_bytes();
    load_weights(&s, true);
    Trainer t = trainer_new(&s, o.steps);
    double* times = (double*)host_alloc(sizeof(double) * (size_t)o.steps);
    int tokens = o.batch * o.seq;
    for (int step = 1; step <= kBenchWarmup + o.steps; step++) {
        double seconds = bench_step(&s, &t, step);
        if (step > kBenchWarmup) times[step - kBenchWarmup - 1] = seconds;
    }
    double seconds = median(times, o.steps), per_second = (double)tokens * o.accum * s.comm->ranks / seconds;
    double tflops = per_second * train_flops_per_token(&s.config, o.seq) / 1e12 / s.comm->ranks;
    double waited[2] = {0, s.comm->sent_bytes()};   // ms and bytes sent a step, the mean over ranks
    if (o.profile || notes_waits) {
        profile_begin();
        for (int step = 0; step < kProfileSteps; step++) bench_step(&s, &t, kBenchWarmup + o.steps + 1 + step);
        profile_end();
        waited[0] = profile_waited_ms() / kProfileSteps / s.comm->ranks;
        waited[1] = (s.comm->sent_bytes() - waited[1]) / kProfileSteps / s.comm->ranks;
        s.comm->host_sum(waited, 2);
    }
    size_t left = s.ops->free_bytes(), planned = plan_memory(&s).together, used = left_before + s.comm->staging_bytes - left;
    trainer_free(&s, &t);   // room for the products that show the ceiling
    Ceilings ceilings = {0, ceiling_tflops(s.ops, &s.config, tokens, s.ops->act), 0};
    if (leads(&s))
        printf("bench: %.1f ms a step  %.0f tok/s  %.3f TFLOP/s a rank  %.2f of the plain GEMM's %.3f  %.3f GiB a rank, %.3f left\n",
               1e3 * seconds, per_second, tflops, tflops / ceilings.plain_tflops, ceilings.plain_tflops, gib(planned), gib(left));
    if (leads(&s) && !strcmp(s.ops->name, "cuda"))   // a host's memory is not ours alone
        printf("memory: %.3f GiB taken, %.3f planned (%+.1f%%); context and libraries beside it %.3f\n", gib(used), gib(planned),
               100 * ((double)used / (double)planned - 1), gib(s.ops->total_bytes() - s.comm->staging_bytes - left_before));
    if (leads(&s) && notes_waits)
        printf("ranks: %.2f ms a step waiting for each other (%.1f%%)  %.3f GB sent a step by each\n", waited[0], 0.1 * waited[0] / seconds,
               1e-9 * waited[1]);
    if (o.profile) {
        if (fmt_bytes(s.recipe->fw.fmt) == 1) ceilings.coded_tflops = ceiling_tflops(s.ops, &s.config, tokens, s.recipe->fw.fmt);
        ceilings.copy_gbs = ceiling_gbs(s.ops);
        if (leads(&s)) profile_print(ceilings, kProfileSteps, 1e3 * seconds);
    }
    free(times);
    session_close(&s);
    return 0;
}

int main(int argc, char** argv) {
    int command;
    setvbuf(stdout, NULL, _IOLBF, 0);   // a log file is up to date to its last line
    Options o = options_parse(argc, argv, &command);
    switch (command) {
        case EVAL: return command_eval(o);
        case GENERATE: return command_generate(o);
        case BENCH: return command_bench(o);
        case EXPORT: return command_export(o);
        default: return command_train(o);
    }
}
