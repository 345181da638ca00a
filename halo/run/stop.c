// Stopping a run from outside; see stop.h.
#include "stop.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>

#include "../progress.h"
#include "clock.h"

static volatile sig_atomic_t asked;
static volatile double asked_at;   // seconds; set before `asked`
static bool on_terminal;           // is there someone on a terminal who waits for a word after Ctrl-C?

static void on_stop(int signal_number) {
    if (!asked) {
        static const char kWord[] = "\nstopping after this step; Ctrl-C once more ends the run at once, without saving this\n";
        int saved_errno = errno;
        asked_at = seconds_now();
        asked = 1;
        if (on_terminal && write(STDERR_FILENO, kWord, sizeof kWord - 1) < 0) on_terminal = false;
        errno = saved_errno;
    } else if (seconds_now() - asked_at > 1) {   // within a second it is the same request: launchers and terminals send a signal twice
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
}

static void on_job_end(int signal_number) {
    (void)signal_number;
    progress_report("ended from outside, or because another rank has died");
    _exit(kExitHang);
}

static void catch_signal(int signal_number, void (*handler)(int)) {
    struct sigaction action, before;
    if (!sigaction(signal_number, NULL, &before) && before.sa_handler == SIG_IGN) return;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(signal_number, &action, NULL);
}

void catch_signals(int ranks) {
    on_terminal = isatty(STDERR_FILENO) == 1;
    const int stops[] = {SIGUSR1, SIGINT, SIGHUP};
    for (size_t i = 0; i < sizeof stops / sizeof stops[0]; i++) catch_signal(stops[i], on_stop);
    catch_signal(SIGTERM, ranks == 1 ? on_stop : on_job_end);
}

bool stop_asked(void) { return asked; }

void stop_if_unheard(void) {
    if (fflush(stdout) == 0 && !ferror(stdout)) return;
    clearerr(stdout);
    // The write that failed may have been long ago, and its errno lost: one more byte shows which error it is.
    if (write(1, "\n", 1) < 0 && (errno == EPIPE || errno == EFBIG)) asked = 1;
}

void open_standard_streams(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) _exit(kExitBug);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}
