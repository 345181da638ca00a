// The end of a run; see summary.h.
#include "summary.h"

#include <errno.h>
#include <math.h>

#include "../../data/files.h"
#include "clock.h"
#include "energy.h"
#include "locate.h"

static bool on_gpu(const Session* s) { return !strcmp(s->ops->name, "cuda"); }

RunTally tally_start(const Session* s, int64_t steps_done) {
    RunTally t = {seconds_now(), on_gpu(s) ? gpu_joules() : -1, 0, 0, (int)steps_done + 1, NAN};
    return t;
}

void tally_add(RunTally* t, StepResult r) {
    t->tokens += (double)r.tokens;
    t->examples += r.examples;
}

// The joules that all ranks' GPUs have used since tally_start; below 0: not all of them report their energy.
static double joules_since(const Session* s, const RunTally* t) {
    double now = t->joules >= 0 ? gpu_joules() : -1, sums[2] = {now - t->joules, now < 0};
    s->comm->host_sum(sums, 2);
    return sums[1] > 0 ? -1 : sums[0];
}

static void print_flag(const char* flag, const char* value) {
    printf(" --%s ", flag);
    print_shell_word(stdout, value);
}

// vLLM serves an adapter beside its base only where the base is a Hugging Face directory: an adapter on a GGUF file is merged into a model first.
static void print_serving(const Session* s, bool adapter) {
    const Options* o = &s->o;
    if (adapter && !dir_exists(s->source_path)) {
        char* merged = path_join(o->out, "merged");
        printf("  merge it:    %s export", program_invocation_name);
        print_flag("model", s->source_path);
        print_flag("adapter-dir", o->out);
        printf(" --merge");
        print_flag("out", merged);
        printf("\n  serve that:  vllm serve ");
        print_shell_word(stdout, merged);
        putchar('\n');
        free(merged);
        return;
    }
    printf("  serve it:    vllm serve ");
    print_shell_word(stdout, adapter ? name_as_given(s->source_path) : o->out);
    if (adapter) {
        printf(" --enable-lora --max-lora-rank %d --lora-modules tuned=", s->config.adapter.rank);
        print_shell_word(stdout, o->out);
    }
    putchar('\n');
}

static void print_commands(const Session* s) {
    const Options* o = &s->o;
    bool adapter = adapts(s) && s->config.adapter.kind != ADAPTER_HUT;
    const char* model = adapter ? s->source_path : o->out;
    printf("the %s is in %s\n", adapter ? "adapter" : "model", o->out);
    if (!model) return;   // an adapter of a preset's random weights
    printf("  talk to it:  %s generate", program_invocation_name);
    print_flag("model", name_as_given(model));
    if (adapter) print_flag("adapter-dir", o->out);
    puts(" --prompt \"...\"");
    print_serving(s, adapter);
}

void print_summary(const Session* s, const RunTally* t, const Progress* done, bool written) {
    double joules = joules_since(s, t);
    if (!leads(s)) return;
    char time[32];
    int steps = (int)done->step - t->first_step + 1;
    duration_text(seconds_now() - t->started_at, time);
    printf("%d step%s in %s%s, %.0f tokens, %.0f examples", steps, steps == 1 ? "" : "s", time,
           t->first_step > 1 ? " since the resume" : "", t->tokens, t->examples);
    if (joules >= 0) printf(", %.1f Wh by the GPU%s", joules / 3600, s->comm->ranks > 1 ? "s" : "");
    putchar('\n');
    if (done->best_step) {
        printf("best validation loss %.4f at step %d", (double)f32_from_bits((uint32_t)done->best_loss_bits), (int)done->best_step);
        if (isfinite(t->val_at_start)) printf(" (%.4f before the first)", t->val_at_start);
        putchar('\n');
    }
    if (written) print_commands(s);
}
