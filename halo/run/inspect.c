// The command inspect; see inspect.h.
#include "inspect.h"

#include "../../data/files.h"
#include "../../data/inspect.h"
#include "../../data/record.h"
#include "../attempt.h"
#include "../dry.h"
#include "clock.h"
#include "epochs.h"
#include "plan.h"
#include "roofline.h"

// The tokenizer's files of a Hugging Face directory, with or without weights, or of a GGUF file.
static ModelFiles* tokenizer_files(const char* path) {
    if (dir_exists(path) || !path_exists(path)) return model_files_from_dirs(NULL, path);
    Config config;
    ModelSource* source = model_source_open(path, &config);
    ModelFiles* files = model_source_files(source);
    model_source_close(source);
    return files;
}

// ---- what training on the file would come to

typedef struct {
    Session* s;
    Epochs epochs;
} TrainingView;

static void view_training(void* self) {
    TrainingView* v = (TrainingView*)self;
    DataOptions options = training_data_options(v->s, 1);
    Dataset* d = dataset_load(v->s->o.data, v->s->tokenizer, &options);
    v->epochs = epochs_of(&v->s->o, 1, d);
    dataset_free(d);
    printf("\ntraining: --batch %d --seq %d --accum %d --pack %s, one rank\n", v->s->o.batch, v->s->o.seq, v->s->o.accum,
           v->s->o.pack == PACK_ROWS_OFF ? "off" : v->s->o.pack == PACK_ROWS_ON ? "on" : "auto");
    epochs_print(&v->epochs);
}

// The time of a full fine-tune in BF16 on one GPU, for the kinds of GPU that it fits on.
static void view_time(void* self) {
    const TrainingView* v = (const TrainingView*)self;
    Session s = session_on(planned_options(v->s->o), PLAN, dry_ops(NULL), dry_comm(1, true));
    StepCost cost = step_cost(&s, v->epochs.micro_rows);
    size_t needed = planned_memory(&s, &s.o, 0).all;
    int shown = 0;
    const GpuKind* kinds = gpu_kinds();
    printf("  time of a full fine-tune in BF16 on one GPU, AN ESTIMATE:\n");
    for (int i = 0; i < kGpuKinds; i++) {
        if ((double)needed > kinds[i].gib * (1 << 30)) continue;
        char time[32];
        duration_text(v->epochs.run_steps * cost.ms[i] * 1e-3, time);
        printf("%s%-14s%8s", shown % 3 == 0 ? shown ? "\n    " : "    " : "  ", kinds[i].name, time);
        shown++;
    }
    printf(shown ? "\n" : "    it fits on none of the GPUs that plan knows, by itself\n");
    printf("  train_llama3 plan with the flags of the run says more\n");
    session_close(&s);
}

// Data that training would refuse get a line with the reason, and inspect goes on: its user wants to see them.
static void print_training(Session* s) {
    char message[kAttemptBytes];
    TrainingView v;
    memset(&v, 0, sizeof v);
    v.s = s;
    if (!attempt(view_training, &v, message)) printf("\ntraining would refuse these data: %s\n", message);
    else if (s->o.model && !attempt(view_time, &v, message)) printf("  no estimate of the time: %s\n", message);
}

int command_inspect(Options o) {
    Session s;
    memset(&s, 0, sizeof s);
    s.o = o;
    options_check(&o, INSPECT, 1);
    s.tokenizer_path = o.tokenizer ? o.tokenizer : o.model;
    s.files = tokenizer_files(s.tokenizer_path);
    load_tokenizer(&s);
    open_chat(&s);
    int faults = records_faults(o.data, o.prompt_file, stderr);
    if (faults)
        user_error("%s: %d line%s no record%s, and training ends at the first one: mend or remove %s", o.data, faults,
                   faults == 1 ? " is" : "s are", faults == 1 ? "" : "s", faults == 1 ? "it" : "them");
    DataOptions options = data_options(&s);
    options.inspect = true;
    options.texts = o.examples;
    Dataset* d = dataset_load(o.data, s.tokenizer, &options);
    InspectOptions how = {o.examples, o.json, isatty(STDOUT_FILENO) == 1};
    inspect_dataset(d, s.tokenizer, &how, stdout);
    if (!o.json) inspect_summary(d, s.tokenizer, &s.chat, o.seq, stdout);
    dataset_free(d);
    if (!o.json) print_training(&s);
    chat_free(&s.chat);
    tokenizer_free(s.tokenizer);
    model_files_free(s.files);
    return 0;
}
