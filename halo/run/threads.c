// How the threads of this process wait for each other; see threads.h.
#include "threads.h"

#include <limits.h>
#include <unistd.h>

void let_waiting_threads_sleep(char** argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    char program[PATH_MAX];   // by its own name, which tools such as ps show, not as /proc/self/exe
    ssize_t bytes = readlink("/proc/self/exe", program, sizeof program - 1);
    if (bytes <= 0 || setenv("OMP_WAIT_POLICY", "passive", 1)) return;
    program[bytes] = 0;
    execv(program, argv);
}
