// The watchdog; see progress.h.
#include "progress.h"

#include <pthread.h>
#include <time.h>

static struct {
    int rank, ranks, timeout_seconds;
    void (*abort_job)(int exit_code);
    volatile int step, layer;
    const char* volatile phase;
    const char* volatile collective;
    volatile unsigned long changes;
    volatile bool watching;
    pthread_t thread;
} here = {0, 1, 0, NULL, 0, -1, "start", NULL, 0, false, 0};

void progress_step(int step) {
    here.step = step;
    here.changes++;
}

void progress_phase(const char* phase, int layer) {
    here.phase = phase;
    here.layer = layer;
    here.changes++;
}

void progress_collective(const char* collective) {
    here.collective = collective;
    here.changes++;
}

void progress_report(const char* why) {
    char text[256], layer[32] = "";
    const char* collective = here.collective;
    if (here.layer >= 0) snprintf(layer, sizeof layer, ", layer %d", here.layer);
    int n = snprintf(text, sizeof text, "train_llama3: rank %d of %d: step %d, %s%s, %s%s: %s\n", here.rank, here.ranks, here.step,
                     here.phase, layer, collective ? "waiting for the other ranks in " : "outside of collectives",
                     collective ? collective : "", why);
    if (write(2, text, (size_t)min_int(n, (int)sizeof text - 1)) < 0) return;   // nobody left to tell
}

static void nap(int milliseconds) {
    struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

enum { kLookMs = 200, kOthersReportMs = 2000 };

static void* watch(void* unused) {
    (void)unused;
    unsigned long seen = here.changes;
    double idle_ms = 0;
    while (here.watching) {
        nap(kLookMs);
        idle_ms += kLookMs;
        if (here.changes != seen) {
            seen = here.changes;
            idle_ms = 0;
        }
        if (idle_ms < 1000.0 * here.timeout_seconds) continue;
        char why[64];
        snprintf(why, sizeof why, "no progress for %d s (--timeout)", here.timeout_seconds);
        progress_report(why);
        nap(kOthersReportMs);   // the other ranks' watchdogs say where they are
        here.abort_job(kExitHang);
    }
    return NULL;
}

void progress_watch(int rank, int ranks, int timeout_seconds, void (*abort_job)(int exit_code)) {
    here.rank = rank;
    here.ranks = ranks;
    here.timeout_seconds = timeout_seconds;
    here.abort_job = abort_job;
    if (timeout_seconds == 0 || ranks == 1) return;
    here.watching = true;
    check(pthread_create(&here.thread, NULL, watch, NULL) == 0, "the watchdog's thread could not be started");
}

void progress_stop_watching(void) {
    if (!here.watching) return;
    here.watching = false;
    pthread_join(here.thread, NULL);
}
