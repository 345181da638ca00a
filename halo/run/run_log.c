// The log of a run; see run_log.h.
#include "run_log.h"

#include <errno.h>
#include <math.h>

#include "../../data/files.h"
#include "stop.h"

static void duration(double seconds, char text[32]) {
    int t = (int)(seconds + 0.5);
    if (t >= 3600) snprintf(text, 32, "%dh%02dm", t / 3600, t / 60 % 60);
    else if (t >= 60) snprintf(text, 32, "%dm%02ds", t / 60, t % 60);
    else snprintf(text, 32, "%ds", t);
}

// Removes the lines of steps after `step`, which a resumed run does again, and a last line that a crash has cut short.
static void log_rewind(const char* path, int64_t step) {
    static const char kOpening[] = "{\"step\": ";
    if (!path_exists(path)) return;
    char *text = file_read(path, NULL), *line = text;
    for (char* end; (end = strchr(line, '\n')) != NULL; line = end + 1)
        if (!strncmp(line, kOpening, strlen(kOpening)) && strtol(line + strlen(kOpening), NULL, 10) > step) break;
    if (truncate(path, line - text)) user_error("%s: cannot be written: %s", path, strerror(errno));
    free(text);
}

// If the log cannot be written, says so once, and the run goes on without a log: it is only a convenience.
static void give_up_log(StepLog* log, const char* why) {
    fprintf(stderr, "train_llama3: --log: log.jsonl cannot be written: %s; the run goes on without it\n", why);
    fclose(log->file);
    log->file = NULL;
}

StepLog log_open(const Session* s, int steps, int64_t steps_done) {
    StepLog log;
    memset(&log, 0, sizeof log);
    log.steps = steps;
    if (!s->o.log || !leads(s)) return log;
    dir_make(s->o.log);
    char* path = path_join(s->o.log, "log.jsonl");
    if (s->o.resume) log_rewind(path, steps_done);
    log.file = fopen(path, s->o.resume ? "a" : "w");
    if (!log.file) user_error("%s: cannot be written: %s", path, strerror(errno));
    free(path);
    return log;
}

void log_close(StepLog* log) {
    if (log->file) fclose(log->file);
}

static void log_flush(StepLog* log) {
    if (fflush(log->file)) give_up_log(log, strerror(errno));
}

// JSON has no infinities and no NaN: null stands for them.
static const char* json_number(double x, char text[32]) {
    if (isfinite(x)) snprintf(text, 32, "%.9g", x);
    else strcpy(text, "null");
    return text;
}

static int by_size(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static double median_of(double* x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

// Says when a loss lies far above the recent ones: 8 robust deviations (1.4826 times the median distance from the median, which is the
// standard deviation where losses are normal).
static void tell_spike(StepLog* log, int step, double loss) {
    const int least = kRecentLosses / 2;
    const double far = 8;
    int n = min_int(log->losses, kRecentLosses);
    if (!isfinite(loss)) return;
    if (n >= least) {
        double sorted[kRecentLosses], distances[kRecentLosses];
        memcpy(sorted, log->recent, sizeof sorted);
        double median = median_of(sorted, n);
        for (int i = 0; i < n; i++) distances[i] = fabs(sorted[i] - median);
        double deviation = 1.4826 * median_of(distances, n), z = deviation > 0 ? (loss - median) / deviation : 0;
        if (z > far)
            printf("step %d: loss %.4f is a spike: %.1f robust deviations above the last %d's median %.4f\n", step, loss, z, n, median);
    }
    log->recent[log->losses++ % kRecentLosses] = loss;
}

void log_step(StepLog* log, int step, double epoch, StepResult r, float lr, double seconds) {
    log->mean_step_seconds = log->mean_step_seconds > 0 ? 0.9 * log->mean_step_seconds + 0.1 * seconds : seconds;
    double eta = (log->steps - step) * log->mean_step_seconds, tokens_per_second = (double)r.tokens / seconds;
    char eta_text[32];
    duration(eta, eta_text);
    printf("step %*d/%d  epoch %.2f  loss %.4f  norm %.4f  lr %.2e  %.0f tok/s  ETA %s\n", log->steps > 999 ? 5 : 3, step,
           log->steps, epoch, r.loss, r.grad_norm, lr, tokens_per_second, eta_text);
    tell_spike(log, step, r.loss);
    stop_if_unheard();
    if (!log->file) return;
    char loss[32], norm[32], rate[32];
    fprintf(log->file, "{\"step\": %d, \"epoch\": %.6f, \"loss\": %s, \"grad_norm\": %s, \"lr\": %s, "
                       "\"tokens_per_second\": %.1f, \"eta_seconds\": %.1f}\n",
            step, epoch, json_number(r.loss, loss), json_number((double)r.grad_norm, norm), json_number((double)lr, rate),
            tokens_per_second, eta);
    log_flush(log);
}

void log_quant_stats(StepLog* log, const Trainer* t, int step) {
    quant_stats_report(model_quant_stats(t->model), step, log->file);
    if (log->file) log_flush(log);
}

void log_verdict(StepLog* log, const char* metric, int step, Verdict v) {
    puts(v.line);
    if (!log->file) return;
    fprintf(log->file, "{\"step\": %d, \"val_metric\": \"%s\", \"val_percent\": %.6g, \"val_answers\": %d}\n", step, metric, v.percent, v.count);
    log_flush(log);
}

void log_evaluation(StepLog* log, const char* path, int step, Evaluation e) {
    print_evaluation(path, e);
    if (!log->file) return;
    fprintf(log->file, "{\"step\": %d, \"val_loss\": %.9g, \"val_tokens\": %zu}\n", step, e.loss, e.scored);
    log_flush(log);
}
