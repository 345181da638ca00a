// Faults on purpose: preloaded into the program (LD_PRELOAD), this library counts the calls that change files below $FAULT_PATH and lets
// the $FAULT_CALL-th of them go wrong as $FAULT_KIND says:
//
//   enospc, eio   the call fails with that error; so do all later writes (a disk that is full stays full)
//   short         each write from then on takes half of its bytes, so that the caller has to go on
//   kill          the process is killed before the call
//   hang          the call never ends
//   slow          each of them takes 20 ms longer
//   signal        the process sends itself $FAULT_SIGNAL before the call
//   nan           the $FAULT_CALL-th part of a gradient that rank $FAULT_RANK sends to the others (MPI_Alltoall) begins with a NaN
//
// $FAULT_PATH may also be MPI_, or the beginning of a collective's name (MPI_Alltoall): then these calls count.
// $FAULT_RANK: the one rank under mpirun whose calls count. $FAULT_MARK is a file that is made when that happens. $FAULT_FREE: the
// bytes that disks seem to have free. $FAULT_NO_MEMORY: none seems to be available.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const char* setting(const char* name) {
    const char* value = getenv(name);
    return value ? value : "";
}

static bool is_kind(const char* kind) { return !strcmp(setting("FAULT_KIND"), kind); }
static bool is_rank(void) { return atoi(setting("OMPI_COMM_WORLD_RANK")) == atoi(setting("FAULT_RANK")); }

static long calls;
static bool failing;

static bool counts(const char* path) {
    const char* below = setting("FAULT_PATH");
    return *below && is_rank() && !strncmp(path, below, strlen(below));
}

static bool counts_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return false;
    path[n] = 0;
    return counts(path);
}

// Counts a call; true if it has to fail, with errno set.
static bool goes_wrong(bool is_write) {
    if (is_kind("slow")) usleep(20000);
    bool now = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) == atol(setting("FAULT_CALL"));
    if (now) {
        int mark = REAL(open)(setting("FAULT_MARK"), O_CREAT | O_WRONLY, 0666);
        if (mark >= 0) REAL(close)(mark);
        if (is_kind("kill")) kill(getpid(), SIGKILL);
        if (is_kind("signal")) kill(getpid(), atoi(setting("FAULT_SIGNAL")));
        while (is_kind("hang")) pause();
        failing = true;
    }
    if (is_kind("short") || is_kind("signal") || is_kind("slow") || !(now || (failing && is_write))) return false;
    errno = is_kind("eio") ? EIO : ENOSPC;
    return true;
}

ssize_t write(int fd, const void* data, size_t bytes) {
    if (counts_fd(fd)) {
        if (goes_wrong(true)) return -1;
        if (failing && is_kind("short") && bytes > 1) bytes = (bytes + 1) / 2;
    }
    return REAL(write)(fd, data, bytes);
}

int open(const char* path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    if ((flags & O_CREAT) && counts(path) && goes_wrong(false)) return -1;
    return REAL(open)(path, flags, mode);
}

// With FAULT_NO_MEMORY the first question, whether the run fits, is answered truly, and the later one, whether a copy of its state does, with next
// to nothing.
FILE* fopen(const char* path, const char* mode) {
    static char text[] = "MemTotal: 4 kB\nMemAvailable: 4 kB\n";
    static int questions;
    if (*setting("FAULT_NO_MEMORY") && !strcmp(path, "/proc/meminfo") && questions++) return fmemopen(text, sizeof text - 1, mode);
    return REAL(fopen)(path, mode);
}

int fsync(int fd) { return counts_fd(fd) && goes_wrong(false) ? -1 : REAL(fsync)(fd); }
int close(int fd) { return counts_fd(fd) && goes_wrong(false) ? -1 : REAL(close)(fd); }
int rename(const char* from, const char* to) { return counts(to) && goes_wrong(false) ? -1 : REAL(rename)(from, to); }
int mkdir(const char* path, mode_t mode) { return counts(path) && goes_wrong(false) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char* path) { return counts(path) && goes_wrong(false) ? -1 : REAL(unlink)(path); }
int rmdir(const char* path) { return counts(path) && goes_wrong(false) ? -1 : REAL(rmdir)(path); }

// ---- collectives, as Open MPI declares them, whose handles are pointers

static void at_collective(const char* name) {
    if (counts(name)) goes_wrong(false);
}

int MPI_Alltoall(const void* in, int in_count, void* in_type, void* out, int out_count, void* out_type, void* comm);
int MPI_Alltoall(const void* in, int in_count, void* in_type, void* out, int out_count, void* out_type, void* comm) {
    static long parts;
    at_collective("MPI_Alltoall");
    if (is_kind("nan") && is_rank() && ++parts == atol(setting("FAULT_CALL"))) {
        const unsigned not_a_number = 0x7fc00000u;
        memcpy((void*)in, &not_a_number, sizeof not_a_number);
    }
    return REAL(MPI_Alltoall)(in, in_count, in_type, out, out_count, out_type, comm);
}
int MPI_Allgather(const void* in, int in_count, void* in_type, void* out, int out_count, void* out_type, void* comm);
int MPI_Allgather(const void* in, int in_count, void* in_type, void* out, int out_count, void* out_type, void* comm) {
    at_collective("MPI_Allgather");
    return REAL(MPI_Allgather)(in, in_count, in_type, out, out_count, out_type, comm);
}
int MPI_Bcast(void* data, int count, void* type, int root, void* comm);
int MPI_Bcast(void* data, int count, void* type, int root, void* comm) {
    at_collective("MPI_Bcast");
    return REAL(MPI_Bcast)(data, count, type, root, comm);
}
int MPI_Barrier(void* comm);
int MPI_Barrier(void* comm) {
    at_collective("MPI_Barrier");
    return REAL(MPI_Barrier)(comm);
}

int statvfs(const char* path, struct statvfs* disk) {
    int status = REAL(statvfs)(path, disk);
    if (!status && *setting("FAULT_FREE")) {
        disk->f_frsize = 1;
        disk->f_bavail = (fsblkcnt_t)atoll(setting("FAULT_FREE"));
    }
    return status;
}
