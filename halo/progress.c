// The watchdog; see progress.h.
#include "progress.h"

#include <pthread.h>
#include <time.h>

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
    int rank, ranks, timeout_seconds;
    void (*abort_job)(int exit_code);
    DeviceProgress (*look)(void);
    void (*volatile give_up)(void);
    DeviceProgress device;   // what `look` returned last; under device_lock, since two threads use it
    volatile int step, layer;
    const char* volatile phase;
    const char* volatile collective;
    const char* volatile work;
    volatile double work_done, work_all;
    volatile bool line_stands;
    volatile unsigned long changes;
    volatile bool watching, ending;
    pthread_t thread, device_thread;
} here = {0, 1, 0, NULL, NULL, NULL, {0, false, {0, -1, NULL, NULL}, NULL}, 0, -1, "start", NULL, NULL, 0, 0, false, 0, false, false,
          0, 0};

// Once the job is being ended, transfers may be incomplete: this thread stops here for good, so that no wrong result is printed or saved.
static void change(void) {
    __atomic_fetch_add(&here.changes, 1, __ATOMIC_RELAXED);
    while (here.ending) pause();
}

void progress_step(int step) {
    here.step = step;
    change();
}

void progress_phase(const char* phase, int layer) {
    here.phase = phase;
    here.layer = layer;
    change();
}

void progress_collective(const char* collective) {
    here.collective = collective;
    change();
}

void progress_work(const char* what, double done, double all) {
    here.work_done = done;
    here.work_all = all;
    here.work = what;
    change();
}

ProgressWork progress_work_now(void) {
    ProgressWork w = {here.work, here.work_done, here.work_all};
    return w;
}

void progress_line_stands(bool stands) { here.line_stands = stands; }

ProgressPlace progress_place(void) {
    ProgressPlace p = {here.step, here.layer, here.phase, here.collective};
    return p;
}

static DeviceProgress device_progress(void) {
    pthread_mutex_lock(&device_lock);
    DeviceProgress device = here.device;
    pthread_mutex_unlock(&device_lock);
    return device;
}

// Only tries the lock, since a signal handler may have interrupted its holder: the report then says where the host is.
static void device_place(ProgressPlace* place) {
    if (pthread_mutex_trylock(&device_lock)) return;
    if (here.device.busy) *place = here.device.at;
    pthread_mutex_unlock(&device_lock);
}

void progress_report(const char* why) {
    char text[512], layer[32] = "";
    ProgressPlace p = progress_place();
    device_place(&p);
    if (p.layer >= 0) snprintf(layer, sizeof layer, ", layer %d", p.layer);
    int n = snprintf(text, sizeof text, "%strain_llama3: rank %d of %d: step %d, %s%s, %s%s: %s\n", here.line_stands ? "\r\033[K" : "", here.rank,
                     here.ranks, p.step, p.phase, layer, p.collective ? "waiting for the other ranks in " : "outside of collectives",
                     p.collective ? p.collective : "", why);
    if (write(2, text, (size_t)min_int(n, (int)sizeof text - 1)) < 0) return;   // nobody left to tell
}

static void nap(int milliseconds) {
    struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

enum { kLookMs = 200, kOthersReportMs = 2000 };

static void end_job(const char* why) {
    progress_report(why);
    nap(kOthersReportMs);   // the other ranks' watchdogs say where they are
    here.ending = true;
    if (here.give_up) here.give_up();
    here.abort_job(kExitHang);
}

static void* watch(void* unused) {
    (void)unused;
    unsigned long seen = here.changes, finished = 0;
    double idle_ms = 0;
    while (here.watching) {
        nap(kLookMs);
        idle_ms += kLookMs;
        DeviceProgress device = device_progress();
        if (device.error) end_job(device.error);
        if (here.changes != seen || device.finished != finished) {
            seen = here.changes;
            finished = device.finished;
            idle_ms = 0;
        }
        if (idle_ms < 1000.0 * here.timeout_seconds) continue;
        char why[64];
        snprintf(why, sizeof why, "no progress for %d s (--timeout)", here.timeout_seconds);
        end_job(why);
    }
    return NULL;
}

// On a thread of its own: if the driver blocks this call while it waits for the device, the watchdog still runs.
static void* watch_device(void* unused) {
    (void)unused;
    while (here.watching) {
        DeviceProgress device = here.look();
        pthread_mutex_lock(&device_lock);
        here.device = device;
        pthread_mutex_unlock(&device_lock);
        nap(kLookMs);
    }
    return NULL;
}

void progress_watch(int rank, int ranks, int timeout_seconds, void (*abort_job)(int exit_code)) {
    here.rank = rank;
    here.ranks = ranks;
    here.timeout_seconds = timeout_seconds;
    here.abort_job = abort_job;
    if (timeout_seconds == 0) return;
    here.watching = true;
    check(pthread_create(&here.thread, NULL, watch, NULL) == 0, "the watchdog's thread could not be started");
}

void progress_watch_device(DeviceProgress (*look)(void), void (*give_up)(void)) {
    if (!here.watching) return;
    here.give_up = give_up;
    here.look = look;
    check(pthread_create(&here.device_thread, NULL, watch_device, NULL) == 0, "the watchdog's second thread could not be started");
}

void progress_stop_watching(void) {
    if (!here.watching) return;
    here.watching = false;
    pthread_join(here.thread, NULL);
    if (here.look) pthread_join(here.device_thread, NULL);
}
