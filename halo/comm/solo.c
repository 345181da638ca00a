// One rank: gathering and reducing are copies, or nothing where input and output are the same memory.
#include "comm.h"

static void solo_all_gather(void* out, const void* in, size_t bytes) {
    check(out == in, "solo all_gather: %zu bytes to another place", bytes);
}
static void solo_reduce_scatter(void* out, const void* in, size_t count, Fmt fmt, bool add, const Noise* noise) {
    (void)noise;
    check(out == in && !add, "solo reduce_scatter: %zu %s values to another place", count, fmt_name(fmt));
}
static void solo_all_reduce(void* x, size_t count, Fmt fmt) { (void)x, (void)count, (void)fmt; }
static void solo_all_reduce_max(float* x, int n) { (void)x, (void)n; }
static Transfer solo_start(void) { return 0; }
static void solo_wait(Transfer transfer) { (void)transfer; }
static double solo_sent_bytes(void) { return 0; }
static int solo_bad_rank(void) { return -1; }
static void solo_host_sum(double* x, int n) { (void)x, (void)n; }
static void solo_host_broadcast(void* x, size_t bytes) { (void)x, (void)bytes; }
static void solo_nothing(void) {}

const Comm* comm_solo(void) {
    static const Comm solo = {"solo", 0, 1, 1, 0, solo_all_gather, solo_reduce_scatter, solo_all_reduce, solo_all_reduce_max,
                              solo_start, solo_wait, solo_sent_bytes, solo_bad_rank, solo_host_sum, solo_host_broadcast, solo_nothing,
                              solo_nothing, _exit, NULL, NULL};
    return &solo;
}
