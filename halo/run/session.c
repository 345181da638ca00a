// A command's session; see session.h.
#include "session.h"

#include <math.h>

#include "../../data/files.h"
#include "../../data/hf_config.h"
#include "../../data/safetensors.h"
#include "../hadamard.h"
#include "../progress.h"
#include "backend.h"
#include "clock.h"
#include "locate.h"

// config.json and the tokenizer's files, from the model's own (which this function frees) and --tokenizer's. A cut model's config.json is
// made anew, so that the source's is left out.
static ModelFiles* source_files(const Options* o, ModelFiles* own) {
    if (!o->tokenizer && !o->layers) return own;
    ModelFiles* files = o->tokenizer ? model_files_from_dirs(NULL, o->tokenizer) : model_files_new();
    for (int i = 0; i < model_files_count(own); i++) {
        const ModelFile* f = model_files_at(own, i);
        bool config = !strcmp(f->name, "config.json") || !strcmp(f->name, "generation_config.json");
        if (config ? !o->layers : !o->tokenizer) model_files_set(files, f->name, f->text, f->bytes);
    }
    model_files_free(own);
    return files;
}

// Reads the model's sizes from --model, --preset or --from-scratch, and its tokenizer's files.
static void open_source(Session* s) {
    const Options* o = &s->o;
    ModelFiles* own = NULL;
    if (o->model) {
        s->source = model_source_open(o->model, &s->config);
        s->source_path = o->model;
        own = model_source_files(s->source);
    } else if (o->from_scratch) {
        own = model_files_from_dir(o->from_scratch);
        hf_config_of_files(own, o->from_scratch, &s->config);
        s->source_path = o->from_scratch;
    } else {
        own = model_files_new();
        check(config_preset(&s->config, o->preset), "--preset %s passed options_check", o->preset);
    }
    if (o->layers > s->config.L) user_error("--layers %d: the model has %d", o->layers, s->config.L);
    if (o->layers) s->config.L = o->layers;
    s->tokenizer_path = o->tokenizer ? o->tokenizer : s->source_path;
    s->files = source_files(o, own);
}

void open_chat(Session* s) {
    static const SpecialsPolicy kPolicies[] = {SPECIALS_AUTO, SPECIALS_TEMPLATE, SPECIALS_ANSWERS, SPECIALS_ALL};   // in the order of the flag's words
    ChatOptions chat = {s->o.chat, s->o.date, kPolicies[s->o.special_tokens]};
    s->chat = chat_open_in(s->files, s->tokenizer_path, s->tokenizer, &chat);
}

void load_tokenizer(Session* s) {
    const ModelFile* file = model_files_get(s->files, "tokenizer.json");
    if (!file) {
        s->tokenizer = tokenizer_load(s->tokenizer_path);   // ends with a user_error that says what is missing
        return;
    }
    char* path = path_join(s->tokenizer_path, "tokenizer.json");
    s->tokenizer = tokenizer_parse(file->text, file->bytes, path);
    free(path);
}

// The end of a path or of a name on the hub, without slashes behind it.
static const char* last_part(const char* path, char text[256]) {
    size_t n = strlen(path), first;
    while (n > 1 && path[n - 1] == '/') n--;
    for (first = n; first > 0 && path[first - 1] != '/'; first--) {}
    snprintf(text, 256, "%.*s", (int)(n - first), path + first);
    return text;
}

// An adapter fits any model of its base's sizes, and spoils the answers of each but its base. Names are all that tells them apart, and a
// folder may have been renamed: hence a note.
static void note_other_base(const Session* s) {
    const char *base = peft_base(s->peft), *model = s->o.model;
    if (!base || !model || !leads(s)) return;
    char its[256], ours[256], found[256], *real = realpath(model, NULL);
    last_part(base, its);
    if (strcmp(its, last_part(name_as_given(model), ours)) && strcmp(its, last_part(real ? real : model, found)))
        fprintf(stderr, "train_llama3: note: the adapter %s was trained on %s; on another model than that its answers are wrong, and --model is %s\n",
                s->o.adapter_dir, base, name_as_given(model));
    free(real);
}

// The adapter of --adapter-dir, or the new one that --adapter asks for.
static void open_adapter(Session* s) {
    Options* o = &s->o;
    s->config.adapter = options_adapter(o);
    if (!o->adapter_dir) return;
    s->peft = peft_open(o->adapter_dir, &s->config);
    options_take_adapter(o, &s->config.adapter);
    note_other_base(s);
}

void open_tokenizer(Session* s) {
    if (!s->tokenizer_path) user_error("--preset: name the folder of a tokenizer.json with --tokenizer DIR");
    load_tokenizer(s);
    if (tokenizer_size(s->tokenizer) > s->config.V)
        user_error("%s/tokenizer.json: %d tokens, but the model's vocab_size is %d", s->tokenizer_path, tokenizer_size(s->tokenizer),
                   s->config.V);
    open_chat(s);
}

// Rows [row0, row0 + rows) of a tensor, as they were read from `path`: a user_error unless all values are finite.
static void check_finite(const char* path, const char* what, const ParamSpec* spec, int layer, int row0, int rows, const float* x) {
    size_t cols = (size_t)spec->cols, count = (size_t)rows * cols, bad = first_not_finite(x, count, F32);
    if (bad == count) return;
    char name[128];
    param_name(spec, layer, name, sizeof name);
    user_error("%s: tensor \"%s\" is not finite at row %zu, column %zu (%g): the %s itself is damaged; write or download it again", path, name,
               (size_t)row0 + bad / cols, bad % cols, (double)x[bad], what);
}

static void read_source_rows(void* self, int spec, int layer, int row0, int rows, float* dst) {
    const Session* s = (const Session*)self;
    model_source_rows(s->source, spec, layer, row0, rows, F32, dst);
    ParamSpec specs[kMaxParamSpecs];
    param_specs(&s->config, specs);
    check_finite(s->source_path, "model", &specs[spec], layer, row0, rows, dst);
}

static void read_peft_rows(void* self, int spec, int layer, int row0, int rows, float* dst) {
    const Session* s = (const Session*)self;
    peft_rows(s->peft, spec, layer, row0, rows, dst);
    ParamSpec specs[kMaxParamSpecs];
    adapter_specs(&s->config, specs);
    check_finite(s->o.adapter_dir, "adapter", &specs[spec], layer, row0, rows, dst);
}

// With --zero auto several ranks use stage 3, and one rank alone stage 0, which adds up gradients in place.
ShardOptions shard_options(const Session* s, bool train) {
    const Options* o = &s->o;
    bool given = o->zero != kAuto;
    ShardOptions shard = {given ? o->zero : 3, given ? o->zero : 0, o->master == MASTER_FP32, F32, F32, train, o->prefetch, o->accum,
                          (uint64_t)o->seed, s->recipe, false};
    if (!train) return shard;
    shard.grad_fmt = o->grad_dtype;
    shard.state_fmt = o->state_dtype;
    shard.codes = o->qfsdp;
    return shard;
}

// Since `start`, by this rank; its own rows alone where weights are cut.
static void print_loading(const Session* s, double start) {
    s->ops->sync();
    double seconds = seconds_now() - start;
    double gb = 1e-9 * (double)param_count(&s->config) * (double)fmt_bytes(model_source_fmt(s->source));
    if (leads(s)) printf("%s: %.2f GB of weights loaded in %.1f s (%.2f GB/s)\n", s->source_path, gb, seconds, gb / seconds);
}

void load_weights(Session* s, bool train) {
    s->shard = shard_new(&s->config, s->ops, s->comm, shard_options(s, train));
    RandomWeights random = {&s->config, (uint64_t)s->o.seed, s->config.init_std};
    double start = seconds_now();
    if (s->source) shard_load(s->shard, read_source_rows, s);
    else shard_load(s->shard, random_weights_read, &random);
    if (s->source && train) print_loading(s, start);
    if (s->peft) shard_load_adapter(s->shard, read_peft_rows, s);
    else if (adapts(s)) shard_load_adapter(s->shard, lora_start_read, &random);
}

// The recipe that the flags name; the widths that it rotates must be orders that hadamard.h supports.
static const Recipe* pick_recipe(const Session* s) {
    const Options* o = &s->o;
    const Config* c = &s->config;
    const Recipe* r = options_recipe(o);
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

Session session_on(Options o, int command, const Ops* ops, const Comm* comm) {
    Session s;
    memset(&s, 0, sizeof s);
    s.o = o;
    s.ops = ops;
    s.comm = comm;
    if (command == EVAL) s.o.batch = o.batch = o.slots == kAuto ? kEvalRows : o.slots;
    if (o.share_batch) s.o.batch = o.batch = max_int(1, o.batch / comm->ranks);
    options_check(&o, command, comm->ranks);
    open_source(&s);
    open_adapter(&s);
    s.recipe = pick_recipe(&s);
    return s;
}

Session session_open(Options o, int command) {
    const Ops* ops = backend_pick(o.backend);
    const Comm* comm = comm_start();
    bool watched = comm->ranks > 1 || command == TRAIN;   // other commands on one rank need no watchdog: their user sees a hang
    progress_watch(comm->rank, comm->ranks, watched ? o.timeout : 0, comm->abort_job);
    return session_on(o, command, ops, comm_on(comm, ops));
}

void session_close(Session* s) {
    progress_stop_watching();
    if (s->shard) shard_free(s->shard);
    model_source_close(s->source);
    model_files_free(s->files);
    if (s->peft) peft_close(s->peft);
    if (s->tokenizer) {
        chat_free(&s->chat);
        tokenizer_free(s->tokenizer);
    }
    s->comm->finish();
}

ModelOptions model_options(const Session* s, bool train) {
    const Options* o = &s->o;
    if (o->seq > s->config.max_T)
        user_error("--seq %d: the model's max_position_embeddings is %d", o->seq, s->config.max_T);
    ModelOptions m = {o->batch, o->seq, train, train ? o->recompute : RECOMPUTE_NONE, (size_t)max_int(o->logits_mb, 1) << 20, o->token_block,
                      recipe_find(train && o->head_dtype == HEAD_FP8 ? "halo0-fp8" : "bf16"), train && o->quant_stats && leads(s), 0, 0,
                      train ? s->remade : 0};
    return m;
}

DataOptions data_options(const Session* s) {
    DataOptions d;
    memset(&d, 0, sizeof d);
    d.chat = &s->chat;
    d.seq = s->o.seq;
    d.pack = s->o.pack == PACK_ROWS_OFF ? PACK_OFF : PACK_ON;
    d.train_on_prompt = s->o.train_on_prompt;
    d.long_policy = s->o.long_policy == LONG_ROWS_SKIP ? LONG_SKIP : LONG_TRUNCATE;
    d.prompt_file = s->o.prompt_file;
    d.val_split = s->o.val_split;
    d.limit = s->o.limit;
    return d;
}

// What a rank runs, one line for each fact.
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

// Every rank has to run the same: rank 0 sends its facts to the others, which compare them with their own.
void ranks_agree(const Session* s, const DataStats* data) {
    Facts *mine = (Facts*)host_alloc(sizeof(Facts)), *first = (Facts*)host_alloc(sizeof(Facts));
    RunFlag flags[kMaxRunFlags];
    int flag_count = options_flags(&s->o, flags, true);
    for (int i = 0; i < flag_count; i++) state_fact(mine, "--%s %s\n", flags[i].name, flags[i].value);
    const Config* c = &s->config;
    state_fact(mine, "config.json: V %d C %d L %d NH %d NKV %d HD %d F %d theta %g\n", c->V, c->C, c->L, c->NH, c->NKV, c->HD, c->F,
               c->rope_theta);
    state_fact(mine, "the data: %d examples, %zu tokens, %zu scored\n", data->examples, data->tokens, data->scored);
    *first = *mine;
    s->comm->host_broadcast(first, sizeof *first);
    for (const char *a = first->text, *b = mine->text; *a || *b;) {
        int na = (int)strcspn(a, "\n"), nb = (int)strcspn(b, "\n");
        if (na != nb || strncmp(a, b, (size_t)na))
            user_error("rank %d disagrees with rank 0: it has '%.*s', rank 0 has '%.*s'; start all ranks with the same model, data "
                       "and flags", s->comm->rank, nb, b, na, a);
        a += na + 1;   // the lines are the same: on to the next
        b += nb + 1;
    }
    free(mine);
    free(first);
}

Dataset* open_data(const Session* s, const char* path, DataUse use) {
    DataOptions options = data_options(s);
    if (use == DATA_TO_TRAIN_ON && s->o.pack == PACK_ROWS_AUTO) options.pack = PACK_AUTO;
    options.batch = s->o.batch;
    options.micro_batches = s->o.accum * s->comm->ranks;
    options.held_out = use == DATA_HELD_OUT;
    if (options.held_out) options.limit = 0;
    Dataset* d = dataset_load(path, s->tokenizer, &options);
    const DataStats* n = dataset_stats(d);
    if (leads(s))
        printf("%s: %d records, %d examples (%d truncated, %d skipped), %zu tokens, %zu of them scored, %d rows of %d\n", path,
               n->records, n->examples, n->truncated, n->skipped, n->tokens, n->scored, dataset_rows(d), s->o.seq);
    if (leads(s)) dataset_report(d, stdout);
    if (leads(s) && n->skipped > n->records / 10)
        printf("%s: NOTE: %d of %d records are left out: longer than --seq %d, or without an answer to learn\n", path, n->skipped, n->records,
               s->o.seq);
    if (leads(s) && n->truncated > n->examples / 2)
        printf("%s: NOTE: %d of %d prompts lose their beginning: a longer --seq than %d keeps them whole\n", path, n->truncated, n->examples,
               s->o.seq);
    return d;
}

// Under --pack on each pass may have another number of steps, so that every pass is planned once to count them.
double count_steps(const Options* o, Dataset* d) {
    uint64_t seed = (uint64_t)o->seed;
    dataset_plan(d, seed, 0);
    if (o->steps) return o->steps;
    int first = dataset_steps(d);
    if (o->pack != PACK_ROWS_ON || o->epochs * first > 1e9) return ceil(o->epochs * first);
    double epochs = floor(o->epochs), steps = 0;
    for (int epoch = 0; epoch < epochs; epoch++) {
        dataset_plan(d, seed, epoch);
        steps += dataset_steps(d);
    }
    dataset_plan(d, seed, (int)epochs);
    steps += ceil((o->epochs - epochs) * dataset_steps(d));
    dataset_plan(d, seed, 0);
    return steps;
}
