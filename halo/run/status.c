// The live line; see status.h.
#include "status.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <time.h>

#include "clock.h"

// ---- the text

// The parts of the line behind its bar, in the order in which they stand. kLeftOut: the order in which parts are left out of a line that is
// too long.
enum { PART_STEP, PART_LOSS, PART_LR, PART_SPEED, PART_SHARE, PART_MEMORY, PART_ETA, PART_PLACE, kParts };
static const int kLeftOut[] = {PART_PLACE, PART_LR, PART_MEMORY, PART_SHARE, PART_SPEED, PART_LOSS, PART_ETA};
enum { kPartBytes = 64, kLeastBar = 10, kMostBar = 40, kBetween = 2 };
enum { kPlaceWidth = 20 };   // always: the bar does not breathe with what a step is at

typedef struct {
    char text[kParts][kPartBytes];   // "": there is none
    double share;                    // of the bar; below 0: no bar
} StatusParts;

static void short_count(double x, char text[16]) {
    if (x < 1e4) snprintf(text, 16, "%.0f", x);
    else if (x < 1e6) snprintf(text, 16, "%.1fk", x / 1e3);
    else snprintf(text, 16, "%.2fM", x / 1e6);
}

static void memory_part(const StatusNumbers* n, char text[kPartBytes]) {
    double gib = 1 << 30;
    if (n->used_bytes > 0 && n->memory_bytes > 0) snprintf(text, kPartBytes, "%.1f/%.0f GiB", n->used_bytes / gib, n->memory_bytes / gib);
    else if (n->used_bytes > 0) snprintf(text, kPartBytes, "%.1f GiB", n->used_bytes / gib);
}

static void step_parts(const StatusNumbers* n, ProgressPlace place, StatusParts* p) {
    char count[16], eta[32];
    p->share = n->steps > 0 ? (double)n->step / n->steps : -1;
    if (n->steps > 0) snprintf(p->text[PART_STEP], kPartBytes, "%d/%d", n->step, n->steps);
    if (isfinite(n->loss)) snprintf(p->text[PART_LOSS], kPartBytes, "loss %.4f", n->loss);
    if (n->lr > 0) snprintf(p->text[PART_LR], kPartBytes, "lr %.2e", n->lr);
    if (n->tokens_per_second > 0) {
        short_count(n->tokens_per_second, count);
        snprintf(p->text[PART_SPEED], kPartBytes, "%s tok/s", count);
    }
    if (n->ceiling_share > 0) snprintf(p->text[PART_SHARE], kPartBytes, "%.0f%% of GEMM", 100 * n->ceiling_share);
    memory_part(n, p->text[PART_MEMORY]);
    if (n->eta_seconds > 0) {
        duration_text(n->eta_seconds, eta);
        snprintf(p->text[PART_ETA], kPartBytes, "ETA %s", eta);
    }
    if (n->steps <= 0) return;
    char at[kPartBytes] = "";
    if (place.phase && place.layer >= 0) snprintf(at, sizeof at, "%.40s, layer %d", place.phase, place.layer);
    else if (place.phase) snprintf(at, sizeof at, "%.40s", place.phase);
    if (*at) snprintf(p->text[PART_PLACE], kPartBytes, "%-*s", (int)kPlaceWidth, at);
}

static void work_parts(const StatusNumbers* n, ProgressWork work, StatusParts* p) {
    p->share = work.all > 0 ? fmin(fmax(work.done / work.all, 0), 1) : -1;
    snprintf(p->text[PART_STEP], kPartBytes, "%.40s", work.what);
    if (p->share >= 0) snprintf(p->text[PART_LOSS], kPartBytes, "%.0f%%", floor(100 * p->share));
    if (n->step > 0) snprintf(p->text[PART_SPEED], kPartBytes, "after step %d/%d", n->step, n->steps);
    memory_part(n, p->text[PART_MEMORY]);
}

// Blocks in eighths, or '#' and '-'.
static char* put_bar(char* to, double share, int width, StatusLook look) {
    static const char* const kEighths[] = {" ", "\u258f", "\u258e", "\u258d", "\u258c", "\u258b", "\u258a", "\u2589", "\u2588"};
    int eighths = (int)(8 * width * share), full = eighths / 8;
    to += sprintf(to, "%s%s", look.color ? "\033[32m" : "", look.unicode ? "\u2595" : "[");
    for (int i = 0; i < width; i++) {
        if (look.unicode) to += sprintf(to, "%s", kEighths[i < full ? 8 : i == full ? eighths % 8 : 0]);
        else *to++ = i < full ? '#' : '-';
    }
    return to + sprintf(to, "%s%s", look.unicode ? "\u258f" : "]", look.color ? "\033[0m" : "");
}

void status_text(const StatusNumbers* numbers, ProgressWork work, ProgressPlace place, StatusLook look, char text[kStatusBytes]) {
    StatusParts p;
    memset(&p, 0, sizeof p);
    if (work.what) work_parts(numbers, work, &p);
    else step_parts(numbers, place, &p);
    int room = look.columns - 1, needed, left_out = 0, least = p.share >= 0 ? kLeastBar + 2 + kBetween : 0;   // 2: its ends
    for (;; left_out++) {
        needed = least;
        for (int i = 0; i < kParts; i++)
            if (*p.text[i]) needed += (int)strlen(p.text[i]) + kBetween;
        if (needed - kBetween <= room || left_out == (int)(sizeof kLeftOut / sizeof kLeftOut[0])) break;
        p.text[kLeftOut[left_out]][0] = 0;
    }
    char* to = text;
    bool first = true;
    *to = 0;
    if (least && needed - kBetween <= room) {
        to = put_bar(to, p.share, min_int(kMostBar, kLeastBar + room - (needed - kBetween)), look);
        first = false;
    }
    for (int i = 0; i < kParts; i++) {
        if (!*p.text[i]) continue;
        bool dim = look.color && i == PART_PLACE;
        to += sprintf(to, "%*s%s%.*s%s", first ? 0 : (int)kBetween, "", dim ? "\033[2m" : "", max_int(room, 0), p.text[i], dim ? "\033[0m" : "");
        first = false;
    }
}

// ---- the terminal

static struct {
    pthread_mutex_t lock;
    pthread_t thread;
    FILE *out, *err;       // the streams as they were
    int size_fd;           // of the terminal, asked for its width
    bool unicode, color, launched;
    volatile bool live;
    bool stands;           // the line is on the screen
    bool amid_line;        // the last text printed did not end its line: the live line waits for the rest
    StatusNumbers numbers;
    double numbers_at;     // seconds; the ETA counts down from there
} screen = {PTHREAD_MUTEX_INITIALIZER, 0, NULL, NULL, -1, false, false, false, false, false, false, {0, 0, NAN, 0, 0, 0, 0, 0, 0}, 0};

enum { kDrawMs = 250 };

static void erase_line(void) {
    static const char kErase[] = "\r\033[K";
    if (screen.stands) write_whole(1, kErase, sizeof kErase - 1);
    screen.stands = false;
    progress_line_stands(false);
}

// The work that progress.h reports; or, where nobody reported work, a phase outside of steps that may take long.
static ProgressWork work_of(ProgressPlace place) {
    static const char* const kSlow[] = {"reading data", "saving", "waiting for the disk", "resuming", "looking for a whole checkpoint",
                                        "reading weights whole"};
    ProgressWork work = progress_work_now();
    for (size_t i = 0; !work.what && i < sizeof kSlow / sizeof kSlow[0]; i++)
        if (!strcmp(kSlow[i], place.phase)) work.what = kSlow[i];
    return work;
}

static void draw_line(void) {
    struct winsize size;
    pid_t shown = screen.launched ? 0 : tcgetpgrp(screen.size_fd);
    if (shown > 0 && shown != getpgrp()) return;   // in the background the terminal is somebody else's
    if (screen.amid_line || ioctl(screen.size_fd, TIOCGWINSZ, &size) || size.ws_col < 2) return;
    char text[kStatusBytes + 16];
    ProgressPlace place = progress_place();
    StatusNumbers numbers = screen.numbers;
    numbers.eta_seconds = fmax(numbers.eta_seconds - (seconds_now() - screen.numbers_at), 0);
    StatusLook look = {min_int(size.ws_col, 400), screen.unicode, screen.color};
    memcpy(text, "\r", 2);
    status_text(&numbers, work_of(place), place, look, text + 1);
    if (!text[1] && !screen.stands) return;
    strcat(text, "\033[K");
    screen.stands = write_whole(1, text, strlen(text));
    progress_line_stands(screen.stands);
}

static void* draw_on(void* unused) {
    (void)unused;
    const struct timespec pause = {0, kDrawMs * 1000000L};
    while (screen.live) {
        pthread_mutex_lock(&screen.lock);
        if (screen.live) draw_line();
        pthread_mutex_unlock(&screen.lock);
        nanosleep(&pause, NULL);
    }
    return NULL;
}

// The write function of the streams: erases the line, prints, and draws the line again. `cookie`: the descriptor, 1 or 2.
static ssize_t print_around(void* cookie, const char* text, size_t bytes) {
    int fd = (int)(intptr_t)cookie;
    pthread_mutex_lock(&screen.lock);
    erase_line();
    bool written = write_whole(fd, text, bytes);
    int fault = errno;
    if (bytes) screen.amid_line = text[bytes - 1] != '\n';
    if (written && fd == 1) draw_line();   // not below an error's message: the process may end there, and would leave the line behind
    pthread_mutex_unlock(&screen.lock);
    errno = fault;
    return written ? (ssize_t)bytes : 0;
}

static FILE* stream_around(int fd, int buffering) {
    cookie_io_functions_t functions;
    memset(&functions, 0, sizeof functions);
    functions.write = print_around;
    FILE* stream = fopencookie((void*)(intptr_t)fd, "w", functions);
    if (stream) setvbuf(stream, NULL, buffering, 0);
    return stream;
}

// A descriptor of the terminal that shows this process' stdout; -1: there is none. A rank under mpirun prints into a pipe to mpirun, which
// copies the bytes to its own stdout: the terminal is then that of the parent process.
static int find_terminal(void) {
    struct winsize size;
    const char* term = getenv("TERM");
    if (!term || !*term || !strcmp(term, "dumb")) return -1;
    if (!screen.launched) return isatty(1) && !ioctl(1, TIOCGWINSZ, &size) && size.ws_col > 0 ? dup(1) : -1;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/1", (int)getppid());
    int fd = open(path, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && isatty(fd) && !ioctl(fd, TIOCGWINSZ, &size) && size.ws_col > 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static bool speaks_utf8(void) {
    static const char* const kNames[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < 3; i++) {
        const char* value = getenv(kNames[i]);
        if (value && *value) return strcasestr(value, "utf-8") || strcasestr(value, "utf8");
    }
    return false;
}

void status_open(void) {
    if (screen.live) return;
    screen.launched = getenv("OMPI_COMM_WORLD_SIZE") != NULL;
    if ((screen.size_fd = find_terminal()) < 0) return;
    const char* plain = getenv("NO_COLOR");
    screen.color = !plain || !*plain;
    screen.unicode = speaks_utf8();
    fflush(stdout);
    FILE *out = stream_around(1, _IOLBF), *err = screen.launched || isatty(2) ? stream_around(2, _IONBF) : NULL;
    screen.live = out != NULL;
    if (!out || pthread_create(&screen.thread, NULL, draw_on, NULL)) {
        screen.live = false;
        if (out) fclose(out);
        if (err) fclose(err);
        return;
    }
    screen.out = stdout;
    screen.err = err ? stderr : NULL;
    stdout = out;
    if (err) stderr = err;
}

bool status_live(void) { return screen.live; }

void status_set(const StatusNumbers* numbers) {
    if (!screen.live) return;
    pthread_mutex_lock(&screen.lock);
    screen.numbers = *numbers;
    screen.numbers_at = seconds_now();
    draw_line();
    pthread_mutex_unlock(&screen.lock);
}

void status_close(void) {
    if (!screen.live) return;
    screen.live = false;
    pthread_join(screen.thread, NULL);
    FILE *out = stdout, *err = stderr;
    fflush(out);
    erase_line();
    stdout = screen.out;
    if (screen.err) stderr = screen.err;
    fclose(out);
    if (screen.err) fclose(err);
    close(screen.size_fd);
}
