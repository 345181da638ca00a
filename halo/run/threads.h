// How the threads of this process wait for each other.
#ifndef HALO_RUN_THREADS_H
#define HALO_RUN_THREADS_H

#include "../base.h"

// To be called early in main: starts the program again, in the same process, with OMP_WAIT_POLICY=passive in its environment, so that a
// thread which waits sleeps. OpenMP's library reads that variable before main begins, and by default lets waiting threads spin; where
// something else runs on one of the cores, a thread that spins keeps the one it waits for from its core, and training on the CPU takes up
// to twenty times as long. Returns where the environment says already how threads wait, or the program cannot be started again. (valgrind
// follows with --trace-children=yes, or where the variable is set.)
C_API void let_waiting_threads_sleep(char** argv);

#endif
