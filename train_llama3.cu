// train_llama3: fine-tunes Llama-3 models with every large matrix product in 8 or 6 bits.
//
// This file is the program: its table of commands and the training loop. It holds no CUDA; nvcc builds it where there is a GPU, a C
// compiler (-x c) where there is none. The flags are in halo/options.c, the other commands and the stages of training in halo/run/,
// the model in halo/, everything on disk in data/.
#include <math.h>
#include <signal.h>

#include "halo/progress.h"
#include "halo/run/bench.h"
#include "halo/run/eval.h"
#include "halo/run/export.h"
#include "halo/run/generate.h"
#include "halo/run/inspect.h"
#include "halo/run/run_log.h"
#include "halo/run/run_state.h"
#include "halo/run/start.h"

// ---- signals

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

// ---- training

typedef struct {
    Session s;
    Dataset *data, *val;   // val: NULL without --val and --val-split
    const char* val_name;  // as messages call it
    Trainer trainer;
    StepLog log;
    Progress done;
    int steps;             // optimizer steps of the whole run
} TrainingRun;

static void plan_epoch(const TrainingRun* r, int epoch) { dataset_plan(r->data, (uint64_t)r->s.o.seed, epoch); }

// Steps of --epochs passes. Under --pack on each pass may have another number of them, so each is planned once to be counted.
static double count_steps(const TrainingRun* r) {
    const Options* o = &r->s.o;
    double epochs = floor(o->epochs), steps = 0;
    plan_epoch(r, 0);
    if (o->steps) return o->steps;
    if (o->pack != PACK_ROWS_ON || o->epochs * dataset_steps(r->data) > 1e9) return ceil(o->epochs * dataset_steps(r->data));
    for (int epoch = 0; epoch < epochs; epoch++) {
        plan_epoch(r, epoch);
        steps += dataset_steps(r->data);
    }
    plan_epoch(r, (int)epochs);
    return steps + ceil((o->epochs - epochs) * dataset_steps(r->data));
}

static void open_training_data(TrainingRun* r) {
    Session* s = &r->s;
    const Options* o = &s->o;
    open_tokenizer(s);
    r->data = open_data(s, o->data, DATA_TO_TRAIN_ON);
    ranks_agree(s, dataset_stats(r->data));
    r->val_name = o->val ? o->val : "held-out records";
    if (o->val) r->val = open_data(s, o->val, DATA_TO_EVALUATE);
    else if (o->val_split > 0) r->val = open_data(s, o->data, DATA_HELD_OUT);
    double steps = count_steps(r);
    if (steps < 1 || steps > 1e9) user_error("--epochs %g: that is %.0f steps", o->epochs, steps);
    r->steps = (int)steps;
}

static void open_trainer(TrainingRun* r) {
    Session* s = &r->s;
    load_weights(s, true);
    if (s->o.resume) resume(s, &r->done);
    r->trainer = trainer_new(s, r->steps);
    r->log = log_open(s, r->steps, r->done.step);
    plan_epoch(r, (int)r->done.epoch);
}

static void take_step(TrainingRun* r) {
    Session* s = &r->s;
    double start = seconds_now();
    int step = (int)r->done.step + 1;
    StepResult result = train_step(s, &r->trainer, r->data, (int)r->done.step_in_epoch, step);
    if (!isfinite(result.loss) || !isfinite(result.grad_norm))
        user_error("step %d: loss %g, gradient norm %g: not finite, and nothing of this step was saved; lower --lr or look at its data "
                   "(checkpoints up to step %d are whole)", step, result.loss, (double)result.grad_norm, step - 1);
    double epoch = (double)r->done.epoch + (double)(r->done.step_in_epoch + 1) / dataset_steps(r->data);
    if (leads(s)) log_step(&r->log, step, epoch, result, optim_lr(&r->trainer.optim.config, step), seconds_now() - start);
    if (observes(s, step)) log_quant_stats(&r->log, &r->trainer, step);
    r->done.step++;
    if (++r->done.step_in_epoch == dataset_steps(r->data)) {
        r->done.step_in_epoch = 0;
        r->done.epoch++;
        plan_epoch(r, (int)r->done.epoch);
    }
}

static void evaluate_step(TrainingRun* r) {
    const Session* s = &r->s;
    int step = (int)r->done.step;
    Evaluation e = evaluate(s, r->trainer.model, r->val, r->trainer.losses);
    if (!isfinite(e.loss))
        user_error("step %d: loss %g on %s: not finite, and nothing was saved of it; lower --lr", step, e.loss, r->val_name);
    if (leads(s)) log_evaluation(&r->log, r->val_name, step, e);
}

static void run_steps(TrainingRun* r) {
    Session* s = &r->s;
    const Options* o = &s->o;
    bool stopping = false;
    while (r->done.step < r->steps && !stopping) {
        take_step(r);
        int step = (int)r->done.step;
        bool last = step == r->steps;
        if (r->val && (last || (o->eval_every && step % o->eval_every == 0))) evaluate_step(r);
        double stop = interrupted;   // asked once a step: one decision, for all ranks and for saving as for stopping
        s->comm->host_sum(&stop, 1);
        stopping = stop > 0;
        if (o->out && !last && ((o->save_every && step % o->save_every == 0) || stopping)) save_checkpoint(s, &r->done);
    }
}

static void close_training(TrainingRun* r) {
    log_close(&r->log);
    trainer_free(&r->s, &r->trainer);
    if (r->val) dataset_free(r->val);
    dataset_free(r->data);
    session_close(&r->s);
}

static int command_train(Options o) {
    TrainingRun r;
    memset(&r, 0, sizeof r);
    r.s = session_open(o, TRAIN);
    Session* s = &r.s;
    if (leads(s)) options_print(&o, TRAIN);
    model_options(s, true);   // flags that contradict the model are told before anything is loaded
    open_training_data(&r);
    print_start(s);
    claim_out(s);
    open_trainer(&r);
    catch_signals(s->comm->ranks);
    run_steps(&r);
    bool all = r.done.step == r.steps;
    if (all && o.out) write_model(s, o.out);
    if (!all && leads(s))
        printf("stopped after step %d of %d%s\n", (int)r.done.step, r.steps,
               o.out ? "; the same command with --resume goes on" : " (no --out, nothing was saved)");
    close_training(&r);
    return 0;
}

// ---- the table of commands; the first is what runs when none is named

static const Command kCommands[] = {
    {"train", TRAIN, "fine-tune (the default)", command_train},
    {"eval", EVAL, "the loss on a data file", command_eval},
    {"generate", GENERATE, "answer a prompt, or every prompt of a data file", command_generate},
    {"bench", BENCH, "time optimizer steps on random tokens", command_bench},
    {"inspect", INSPECT, "show examples of a data file as the model will see them", command_inspect},
    {"export", EXPORT, "write a model, or the newest checkpoint of a run, as a Hugging Face directory", command_export},
};
enum { kCommandCount = sizeof kCommands / sizeof kCommands[0] };

int main(int argc, char** argv) {
    const Command* command;
    setvbuf(stdout, NULL, _IOLBF, 0);   // a log file is up to date to its last line
    Options o = options_parse(argc, argv, kCommands, kCommandCount, &command);
    return command->run(o);
}
