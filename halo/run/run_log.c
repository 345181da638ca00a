// The log of a run; see run_log.h.
#include "run_log.h"

#include <errno.h>
#include <math.h>
#include <time.h>

#include "../../data/files.h"
#include "../ceilings.h"
#include "clock.h"
#include "out_dir.h"
#include "status.h"
#include "stop.h"

static double wall_time(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- opening and closing

// Removes the lines of steps after `step`, which a resumed run does again, and a last line that a crash has cut short. Without a
// checkpoint (step 0) all lines go.
static void log_rewind(const char* path, int64_t step) {
    static const char kOpening[] = "{\"step\": ";
    if (!path_exists(path)) return;
    char *text = file_read(path, NULL), *line = text;
    for (char* end; step && (end = strchr(line, '\n')) != NULL; line = end + 1)
        if (!strncmp(line, kOpening, strlen(kOpening)) && strtol(line + strlen(kOpening), NULL, 10) > step) break;
    if (truncate(path, line - text)) user_error("%s: cannot be written: %s", path, strerror(errno));
    free(text);
}

// If a part of the log cannot be written, says so once, and the run goes on without that part: the log is only a convenience.
static void tell_given_up(const char* name, int fault) {
    fprintf(stderr, "train_llama3: --log: %s cannot be written: %s; the run goes on without it\n", name, strerror(fault));
}

static void give_up_events(StepLog* log) {
    tell_given_up("TensorBoard's events", errno);
    events_close(&log->events);
}

// The last part of a path: "models/Llama-3.2-1B/" gives "Llama-3.2-1B".
static void last_part(const char* path, char text[64]) {
    int bytes = (int)strlen(path), start;
    while (bytes > 1 && path[bytes - 1] == '/') bytes--;
    for (start = bytes; start > 0 && path[start - 1] != '/';) start--;
    snprintf(text, 64, "%.*s", bytes - start, path + start);
}

static char* title_of(const Session* s) {
    char model[64], data[64], title[192];
    last_part(s->source_path ? s->source_path : s->o.preset, model);
    last_part(s->o.data, data);
    snprintf(title, sizeof title, "%s on %s, %s", model, data, s->recipe->name);
    return host_strdup(title);
}

static void open_folder(StepLog* log, const char* lines, int64_t steps_done) {
    const Session* s = log->s;
    log->picture = path_join(s->o.log, "loss.svg");
    log->title = title_of(s);
    if (s->o.resume) curves_read(&log->curves, lines);
    if (s->o.overwrite && !s->o.resume) events_remove(s->o.log);
    if (!events_open(&log->events, s->o.log, wall_time(), s->o.resume ? steps_done + 1 : 0)) give_up_events(log);
}

StepLog log_open(const Session* s, int steps, int64_t steps_done, double ceiling_tflops) {
    StepLog log;
    memset(&log, 0, sizeof log);
    log.s = s;
    log.steps = steps;
    log.first_step = (int)steps_done + 1;
    log.ceiling_tflops = ceiling_tflops;
    log.events.fd = -1;
    log.step_ended_at = log.pictured_at = seconds_now();
    if (!leads(s)) return log;
    StatusNumbers at_start = {(int)steps_done, steps, NAN, 0, 0, 0, 0, 0, 0};
    status_set(&at_start);
    if (!s->o.log) return log;
    bool folder;
    char* path = log_lines_path(s->o.log, &folder);
    if (folder) dir_make(s->o.log);
    if (s->o.resume) log_rewind(path, steps_done);
    log.file = fopen(path, s->o.resume ? "a" : "w");
    if (!log.file) user_error("%s: cannot be written: %s", path, strerror(errno));
    if (folder) open_folder(&log, path, steps_done);
    free(path);
    return log;
}

static void log_flush(StepLog* log) {
    if (!fflush(log->file)) return;
    tell_given_up("log.jsonl", errno);
    fclose(log->file);
    log->file = NULL;
}

static void log_events(StepLog* log, int step, const EventValue* values, int count) {
    if (log->events.fd >= 0 && !events_write(&log->events, wall_time(), step, values, count)) give_up_events(log);
}

// ---- the picture

static bool write_picture(const StepLog* log, const char* aside) {
    size_t bytes;
    char* svg = curves_svg(&log->curves, log->title, log->steps, &bytes);
    FILE* f = fopen(aside, "w");
    bool written = f && fwrite(svg, 1, bytes, f) == bytes;
    if (f && fclose(f)) written = false;
    free(svg);
    return written && rename(aside, log->picture) == 0;
}

// Draws loss.svg into another file and renames that, so that a reader finds it whole.
static void draw_picture(StepLog* log) {
    if (!log->picture || !log->curves.count[CURVE_LOSS]) return;
    double start = seconds_now();
    char* aside = path_join(log->s->o.log, ".loss.svg.part");
    if (!write_picture(log, aside)) {
        tell_given_up("loss.svg", errno);
        unlink(aside);
        free(log->picture);
        log->picture = NULL;
    }
    free(aside);
    log->pictured_at = seconds_now();
    log->picture_seconds = log->pictured_at - start;
}

// Draws the picture if the last drawing is five seconds old, or fifty times as old as it took: a long run spends at most 2% on drawing.
static void draw_picture_in_time(StepLog* log) {
    if (seconds_now() - log->pictured_at > fmax(5, 50 * log->picture_seconds)) draw_picture(log);
}

void log_close(StepLog* log) {
    if (!log->s || !leads(log->s)) return;
    draw_picture(log);
    if (log->file) fclose(log->file);
    events_close(&log->events);
    curves_free(&log->curves);
    free(log->picture);
    free(log->title);
}

// ---- steps

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

// Updates step_seconds, the time from step to step including evaluations and saves: the mean over the first fifty steps, later a moving mean
// over about as many. The first step, in which much is set up, counts only until there is a second.
static void note_time(StepLog* log, double seconds) {
    const int most = 50;
    double now = seconds_now(), whole = log->timed ? now - log->step_ended_at : seconds;
    int among = log->timed < 2 ? 1 : min_int(log->timed, most);
    log->step_seconds += (whole - log->step_seconds) / among;
    log->step_ended_at = now;
    log->timed++;
}

// Bytes in use: of the GPU's memory by everybody, or of the host's by this process.
static double used_memory(const Session* s) {
    long pages = 0, resident = 0;
    if (!strcmp(s->ops->name, "cuda")) return (double)s->ops->total_bytes() - (double)s->ops->free_bytes();
    FILE* f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%ld %ld", &pages, &resident) != 2) resident = 0;
    if (f) fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

double log_ceiling(const Session* s) {
    if (!leads(s) || !status_live() || strcmp(s->ops->name, "cuda")) return 0;
    progress_work("measuring plain products", 0, 0);
    double tflops = ceiling_tflops(s->ops, &s->config, s->o.batch * s->o.seq, s->ops->act);
    progress_work(NULL, 0, 0);
    return tflops;
}

static void show_step(StepLog* log, int step, StepResult r, float lr, double eta) {
    const Session* s = log->s;
    double now = seconds_now(), per_second = (double)r.tokens / log->step_seconds;
    if (now - log->memory_at > 1) {
        log->used_bytes = used_memory(s);
        log->memory_at = now;
    }
    double tflops = per_second * train_flops_per_token(&s->config, s->o.seq) / 1e12 / s->comm->ranks;
    StatusNumbers numbers = {step, log->steps, r.loss, (double)lr, per_second, eta, log->ceiling_tflops > 0 ? tflops / log->ceiling_tflops : 0,
                             log->used_bytes, (double)s->ops->total_bytes()};
    status_set(&numbers);
}

// Does this step get a line? Without a live line every step does; with one the first, the last, and one step every half a minute.
static bool step_line_due(StepLog* log, int step) {
    const double between = 30;
    double now = seconds_now();
    if (status_live() && step != log->first_step && step != log->steps && now - log->line_at < between) return false;
    log->line_at = now;
    return true;
}

void log_step(StepLog* log, int step, double epoch, StepResult r, float lr, double seconds) {
    note_time(log, seconds);
    double eta = (log->steps - step) * log->step_seconds, tokens_per_second = (double)r.tokens / seconds;
    char eta_text[32];
    duration_text(eta, eta_text);
    if (step_line_due(log, step))
        printf("step %*d/%d  epoch %.2f  loss %.4f  norm %.4f  lr %.2e  %.0f tok/s  ETA %s\n", log->steps > 999 ? 5 : 3, step,
               log->steps, epoch, r.loss, r.grad_norm, lr, tokens_per_second, eta_text);
    if (status_live()) show_step(log, step, r, lr, eta);
    tell_spike(log, step, r.loss);
    stop_if_unheard();
    const EventValue values[] = {{"train/loss", r.loss}, {"train/gradient_norm", (double)r.grad_norm}, {"train/learning_rate", (double)lr},
                                 {"train/tokens_per_second", tokens_per_second}};
    log_events(log, step, values, 4);
    if (log->picture) {
        const Curve curves[] = {CURVE_LOSS, CURVE_NORM, CURVE_LR, CURVE_SPEED};
        for (int i = 0; i < 4; i++) curves_add(&log->curves, curves[i], step, values[i].value);
        draw_picture_in_time(log);
    }
    if (!log->file) return;
    char loss[32], norm[32], rate[32];
    fprintf(log->file, "{\"step\": %d, \"epoch\": %.6f, \"loss\": %s, \"grad_norm\": %s, \"lr\": %s, "
                       "\"tokens_per_second\": %.1f, \"eta_seconds\": %.1f}\n",
            step, epoch, json_number(r.loss, loss), json_number((double)r.grad_norm, norm), json_number((double)lr, rate),
            tokens_per_second, eta);
    log_flush(log);
}

// ---- evaluations

void log_quant_stats(StepLog* log, const Trainer* t, int step) {
    QuantHealth h = quant_stats_report(model_quant_stats(t->model), step, log->file);
    if (log->file) log_flush(log);
    if (log->picture) curves_add_health(&log->curves, step, &h);
    const EventValue values[] = {{"quantization/dw_cosine_mean", h.cosine_mean}, {"quantization/dw_cosine_least", h.cosine_least},
                                 {"quantization/x_clipped_percent", h.clipped[0]}, {"quantization/w_clipped_percent", h.clipped[1]},
                                 {"quantization/dy_clipped_percent", h.clipped[2]}, {"quantization/x_underflow_percent", h.underflow[0]},
                                 {"quantization/w_underflow_percent", h.underflow[1]}, {"quantization/dy_underflow_percent", h.underflow[2]}};
    log_events(log, step, values, 8);
}

void log_verdict(StepLog* log, const char* metric, int step, Verdict v) {
    puts(v.line);
    char tag[64];
    snprintf(tag, sizeof tag, "val/%s_percent", metric);
    const EventValue value = {tag, v.percent};
    log_events(log, step, &value, 1);
    if (!log->file) return;
    fprintf(log->file, "{\"step\": %d, \"val_metric\": \"%s\", \"val_percent\": %.6g, \"val_answers\": %d}\n", step, metric, v.percent, v.count);
    log_flush(log);
}

void log_evaluation(StepLog* log, const char* path, int step, Evaluation e) {
    if (!step) printf("before the first step, ");
    print_evaluation(path, e);
    const EventValue value = {"val/loss", e.loss};
    log_events(log, step, &value, 1);
    if (log->picture) curves_add(&log->curves, CURVE_VAL, step, e.loss);
    if (!log->file) return;
    fprintf(log->file, "{\"step\": %d, \"val_loss\": %.9g, \"val_tokens\": %zu}\n", step, e.loss, e.scored);
    log_flush(log);
}
