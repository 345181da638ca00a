// train_llama3: fine-tunes Llama-3 models with every large matrix product in 8 or 6 bits.
//
// This file is the program: its table of commands and the training loop. It holds no CUDA; nvcc builds it where there is a GPU, a C
// compiler (-x c) where there is none. The flags are in halo/options.c, the other commands and the stages of training in halo/run/,
// the model in halo/, everything on disk in data/.
#include <math.h>

#include "halo/run/answer.h"
#include "halo/run/bench.h"
#include "halo/run/clock.h"
#include "halo/run/config_file.h"
#include "halo/run/doctor.h"
#include "halo/run/eval.h"
#include "halo/run/export.h"
#include "halo/run/generate.h"
#include "halo/run/help.h"
#include "halo/run/inspect.h"
#include "halo/run/locate.h"
#include "halo/run/out_dir.h"
#include "halo/run/plan.h"
#include "halo/run/run_log.h"
#include "halo/run/run_state.h"
#include "halo/run/start.h"
#include "halo/run/status.h"
#include "halo/run/stop.h"
#include "halo/run/summary.h"
#include "halo/run/threads.h"
#include "halo/run/verify.h"

// ---- training

typedef struct {
    Session s;
    Dataset *data, *val;   // val: NULL without --val and --val-split
    const char* val_name;  // the name of `val` in messages
    Dataset* prompts;      // the examples of `val`, to be answered; NULL without --val-metric
    Trainer trainer;
    StepLog log;
    RunTally tally;
    Progress done;
    RunSettings settings;
    Saving* saving;        // a checkpoint that is being written; or NULL
    int left_out;          // steps skipped in a row (--on-nan skip)
    int steps;             // optimizer steps of the whole run
} TrainingRun;

static void plan_epoch(const TrainingRun* r, int epoch) { dataset_plan(r->data, (uint64_t)r->s.o.seed, epoch); }

static void open_training_data(TrainingRun* r) {
    Session* s = &r->s;
    const Options* o = &s->o;
    open_tokenizer(s);
    r->data = open_data(s, o->data, DATA_TO_TRAIN_ON);
    ranks_agree(s, dataset_stats(r->data));
    run_settings(s, &r->settings);
    r->val_name = o->val ? o->val : "held-out records";
    if (o->val) r->val = open_data(s, o->val, DATA_TO_EVALUATE);
    else if (o->val_split > 0) r->val = open_data(s, o->data, DATA_HELD_OUT);
    if (o->val_metric) r->prompts = open_prompts(s, o->val ? o->val : o->data, !o->val);
    double steps = count_steps(o, r->data);
    if (steps < 1 || steps > 1e9) user_error("--epochs %g: that is %.0f steps", o->epochs, steps);
    r->steps = (int)steps;
    if (o->warmup > r->steps) user_error("--warmup %d: longer than the run of %d steps", o->warmup, r->steps);
}

static void open_trainer(TrainingRun* r) {
    Session* s = &r->s;
    double ceiling_tflops = log_ceiling(s);
    load_weights(s, true);
    if (s->o.resume) resume(s, &r->settings, &r->done);
    if (s->o.out) require_space(s, state_bytes(s), written_bytes(s));
    r->trainer = trainer_new(s, r->steps);
    if (r->prompts) check_answers_fit(s, r->prompts);
    r->log = log_open(s, r->steps, r->done.step, ceiling_tflops);
    r->tally = tally_start(s, r->done.step);
    plan_epoch(r, (int)r->done.epoch);
}

enum { kExamplesBytes = 512 };
// Adds "FILE line N", or "N" alone behind another line of the file; false when there is no room for more.
static bool name_example(const TrainingRun* r, int index, const char** path, char text[kExamplesBytes]) {
    const Example* e = dataset_example(r->data, index);
    char more[kExamplesBytes / 2];
    int used = (int)strlen(text);
    bool first = e->path != *path;
    int bytes = snprintf(more, sizeof more, "%s%.*s%s%d", used ? ", " : "", first ? 200 : 0, e->path, first ? " line " : "", e->line);
    bool fits = used + bytes + 8 < kExamplesBytes;
    snprintf(text + used, (size_t)(kExamplesBytes - used), "%s", fits ? more : ", ...");
    *path = e->path;
    return fits;
}

// The examples in the current step, as many as `text` has room for: those of one rank, or with -1 of all.
static void name_examples(const TrainingRun* r, int of_rank, char text[kExamplesBytes]) {
    int micro_batches = r->s.o.accum * r->s.comm->ranks;
    const char* path = NULL;
    text[0] = 0;
    for (int m = 0; m < micro_batches; m++) {
        if (of_rank >= 0 && m % r->s.comm->ranks != of_rank) continue;
        MicroBatch micro = dataset_micro_batch(r->data, (int)r->done.step_in_epoch, m);
        for (int row = micro.first; row < micro.first + micro.rows; row++) {
            const int* of_row;
            int count = dataset_row(r->data, row, &of_row);
            for (int i = 0; i < count; i++)
                if (!name_example(r, of_row[i], &path, text)) return;
        }
    }
    if (!*text && of_rank >= 0) name_examples(r, -1, text);   // a rank without a row in this step
}

enum { kMostLeftOut = 10 };   // steps skipped in a row after which the run ends: then not the data is at fault

// Reports a step whose loss or gradient is not finite: where, with which recipe, on which examples. Ends the run unless --on-nan skip.
static void report_not_finite(TrainingRun* r, StepResult result, int step) {
    const Session* s = &r->s;
    bool skip = s->o.on_nan == ON_NAN_SKIP && r->left_out < kMostLeftOut;
    if (!leads(s)) {
        if (!skip) s->comm->barrier();   // waits for rank 0 to end the job
        return;
    }
    char examples[kExamplesBytes], rank[64] = "", tensor[kTensorNameBytes + 32] = "";
    name_examples(r, result.bad_rank, examples);
    if (result.bad_rank >= 0) snprintf(rank, sizeof rank, " on rank %d", result.bad_rank);
    if (*result.bad_tensor) snprintf(tensor, sizeof tensor, ", first the gradient of %s", result.bad_tensor);
    if (!skip)
        user_error("step %d: loss %g, gradient norm %g: not finite%s%s, with recipe %s on %s, and nothing of this step was "
                   "saved; lower --lr, look at these examples, or leave such steps out with --on-nan skip (checkpoints up to step %d are "
                   "whole)", step, result.loss, (double)result.grad_norm, rank, tensor, s->recipe->name, examples, step - 1);
    fprintf(stderr, "train_llama3: step %d: not finite%s%s, with recipe %s on %s: left out (--on-nan skip)\n", step, rank, tensor,
            s->recipe->name, examples);
}

static void take_step(TrainingRun* r) {
    Session* s = &r->s;
    double start = seconds_now();
    int step = (int)r->done.step + 1;
    StepResult result = train_step(s, &r->trainer, r->data, (int)r->done.step_in_epoch, step);
    r->left_out = result.finite ? 0 : r->left_out + 1;
    if (!result.finite) report_not_finite(r, result, step);
    double epoch = (double)r->done.epoch + (double)(r->done.step_in_epoch + 1) / dataset_steps(r->data);
    if (leads(s)) log_step(&r->log, step, epoch, result, optim_lr(&r->trainer.optim.config, step), seconds_now() - start);
    if (result.finite) tally_add(&r->tally, result);
    if (observes(s, step)) log_quant_stats(&r->log, &r->trainer, step);
    r->done.step++;
    if (++r->done.step_in_epoch == dataset_steps(r->data)) {
        r->done.step_in_epoch = 0;
        r->done.epoch++;
        plan_epoch(r, (int)r->done.epoch);
    }
}

// Answers the prompts of the evaluation's data and judges them (--val-metric).
static void judge_step(TrainingRun* r, int step) {
    const Session* s = &r->s;
    Verdict v = judge_answers(s, r->prompts, metric_find(s->o.val_metric), NULL);
    if (leads(s)) log_verdict(&r->log, s->o.val_metric, step, v);
    free(v.line);
}

static Evaluation evaluate_now(TrainingRun* r) {
    const Session* s = &r->s;
    int step = (int)r->done.step;
    Evaluation e = evaluate(s, r->trainer.model, r->val, r->trainer.losses);
    if (!isfinite(e.loss))
        user_error("step %d: loss %g on %s: not finite, and nothing was saved of it; lower --lr", step, e.loss, r->val_name);
    if (leads(s)) log_evaluation(&r->log, r->val_name, step, e);
    return e;
}

// Evaluates on `val`; returns whether the loss is the lowest so far.
static bool evaluate_step(TrainingRun* r) {
    int step = (int)r->done.step;
    Evaluation e = evaluate_now(r);
    if (r->prompts) judge_step(r, step);
    if (r->done.best_step && (float)e.loss >= f32_from_bits((uint32_t)r->done.best_loss_bits)) return false;
    r->done.best_step = step;
    r->done.best_loss_bits = f32_bits((float)e.loss);
    return true;
}

static void run_steps(TrainingRun* r) {
    Session* s = &r->s;
    const Options* o = &s->o;
    bool stopping = false;
    if (o->out && (o->save_every || o->keep_best)) save_prepare(s);
    if (r->val && r->done.step == 0) r->tally.val_at_start = evaluate_now(r).loss;
    while (r->done.step < r->steps && !stopping) {
        take_step(r);
        int step = (int)r->done.step;
        bool last = step == r->steps, best = false;
        if (r->val && (last || (o->eval_every && step % o->eval_every == 0))) best = evaluate_step(r) && o->keep_best;
        double stop = stop_asked();   // read once a step, so that all ranks, and saving and stopping, follow one decision
        s->comm->host_sum(&stop, 1);
        stopping = stop > 0 && !last;
        bool due = !last && ((o->save_every && step % o->save_every == 0) || stopping);
        bool saves = o->out && (due || best);
        r->saving = save_finish(s, r->saving, saves || stopping || last);
        if (saves) r->saving = save_start(s, &r->settings, &r->done);
    }
    r->saving = save_finish(s, r->saving, true);
}

// Writes the model; if that fails, a checkpoint from which the model can be written later, so that nothing of the run is lost.
static void write_result(TrainingRun* r) {
    Session* s = &r->s;
    char fault[kFaultBytes] = "";
    become_chat_model(s);
    note_finished_run(s->files, r->settings.list, r->settings.count);
    note_config(s->files, &s->o);
    if (write_model(s, s->o.out, s->files, fault)) return;
    if (leads(s)) fprintf(stderr, "train_llama3: the model could not be written: %s\n", fault);
    save_finish(s, save_start(s, &r->settings, &r->done), true);
    if (leads(s))
        user_error("all %d steps are done and saved in %s/checkpoints, but the model could not be written: %s; when that is mended, the "
                   "same command with --resume writes it", r->steps, s->o.out, fault);
    s->comm->barrier();   // waits for rank 0 to end the job
}

static void close_training(TrainingRun* r) {
    log_close(&r->log);
    status_close();
    if (r->trainer.model) trainer_free(&r->s, &r->trainer);
    if (r->val) dataset_free(r->val);
    if (r->prompts) dataset_free(r->prompts);
    dataset_free(r->data);
    session_close(&r->s);
}

static int command_train(Options o) {
    TrainingRun r;
    memset(&r, 0, sizeof r);
    r.s = session_open(o, TRAIN);
    Session* s = &r.s;
    if (leads(s)) status_open();
    if (leads(s) && o.demo)
        printf("the demo, since there is no --model and no --data: the small Llama of %s is fine-tuned on %s, with flags of its own\n", o.model,
               o.data);
    model_options(s, true);   // called only for its user_errors: flags that contradict the model, before anything is loaded
    refuse_taken_places(s);
    open_training_data(&r);
    print_run(s, r.steps);
    print_start(s);
    claim_out(s);
    bool finished = o.resume && run_is_finished(s, r.settings.list, r.settings.count), all = true;
    if (finished) {
        if (leads(s)) printf("finished: %s holds the %s that all %d steps made\n", o.out, s->config.adapter.kind == ADAPTER_LORA ? "adapter" : "model", r.steps);
    } else {
        open_trainer(&r);
        catch_signals(s->comm->ranks);
        run_steps(&r);
        all = r.done.step == r.steps;
        if (all && o.out) write_result(&r);
        print_summary(s, &r.tally, &r.done, all && o.out);
        if (!all && leads(s))
            printf("stopped after step %d of %d%s\n", (int)r.done.step, r.steps,
                   o.out ? "; the same command with --resume goes on" : " (no --out, nothing was saved)");
    }
    close_training(&r);
    return all ? 0 : kExitStopped;
}

// ---- the table of commands; without a command the first row runs

static const Command kCommands[] = {
    {"train", TRAIN, "fine-tune (the default)", command_train},
    {"eval", EVAL, "the loss on a data file, or the share of its prompts that are answered right", command_eval},
    {"generate", GENERATE, "answer a prompt, every prompt of a data file, or you, at the terminal", command_generate},
    {"bench", BENCH, "time optimizer steps on random tokens", command_bench},
    {"plan", PLAN, "what training with these flags would take: memory, largest batch, time; needs no GPU", command_plan},
    {"doctor", DOCTOR, "whether this machine has what training needs, and what to do where it has not", command_doctor},
    {"inspect", INSPECT, "show examples of a data file as the model will see them", command_inspect},
    {"export", EXPORT, "write a model, or the newest checkpoint of a run, as a Hugging Face directory or a GGUF file", command_export},
    {"verify", VERIFY, "whether the checkpoints and the model in a folder are whole: verify DIR", command_verify},
};
enum { kCommandCount = sizeof kCommands / sizeof kCommands[0] };

int main(int argc, char** argv) {
    const Command* command;
    let_waiting_threads_sleep(argv);
    open_standard_streams();
    setvbuf(stdout, NULL, _IOLBF, 0);   // so that a file of the output is up to date to its last line
    if (help_asked(argc, argv, kCommands, kCommandCount)) return 0;
    Options o = options_parse(argc, argv, kCommands, kCommandCount, read_config, &command);
    locate_inputs(&o, command->bit);
    return command->run(o);
}
