// One rank: gathering and reducing are copies, and mostly not even that.
#include "comm.h"

static void solo_all_gather(void* out, const void* in, size_t bytes) {
    check(out == in, "solo all_gather: %zu bytes to another place", bytes);
}
static void solo_reduce_scatter(void* out, const void* in, size_t count, Fmt fmt, bool add) {
    check(out == in && !add, "solo reduce_scatter: %zu %s values to another place", count, fmt_name(fmt));
}
static void solo_all_reduce(void* x, size_t count, Fmt fmt) { (void)x, (void)count, (void)fmt; }
static void solo_floats(float* x, int n) { (void)x, (void)n; }
static void solo_host_sum(double* x, int n) { (void)x, (void)n; }
static void solo_host_broadcast(void* x, size_t bytes) { (void)x, (void)bytes; }
static void solo_nothing(void) {}

const Comm* comm_solo(void) {
    static const Comm solo = {"solo", 0, 1, solo_all_gather, solo_reduce_scatter, solo_all_reduce, solo_floats,
                              solo_floats, solo_host_sum, solo_host_broadcast, solo_nothing, solo_nothing, _exit};
    return &solo;
}

const Comm* comm_start(void) {
    const char* const launchers[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    bool launched = false;
    for (size_t i = 0; i < sizeof launchers / sizeof launchers[0]; i++)
        if (getenv(launchers[i])) launched = true;
#ifdef HALO_MPI
    if (launched) return comm_mpi();
#else
    if (launched) user_error("started by mpirun, but built without MPI: install OpenMPI (scripts/setup.sh) and run make again");
#endif
    return comm_solo();
}
