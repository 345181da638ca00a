// CPU ranks over MPI. For a sum every rank's values are gathered, added in rank order in FP32 and rounded once: slower than a ring, but
// the same bits on every run. A collective has happened when it returns, so that start and wait have nothing to do.
#include <math.h>
#include <mpi.h>

#include "comm.h"
#include "../progress.h"
#include "../rng.h"

static Comm mpi;
static void* staging;            // grows to the largest request
static size_t staging_bytes;
static double sent;              // bytes

static void* staged(size_t bytes) {
    if (bytes > staging_bytes) {
        staging = host_grow(staging, bytes);
        staging_bytes = bytes;
    }
    return staging;
}

// Wraps every MPI call, to tell the watchdog where this rank waits.
#define COLLECTIVE(name, call)                                               \
    do {                                                                     \
        progress_collective(name);                                           \
        int status = call;                                                   \
        check(status == MPI_SUCCESS, "MPI: %s failed with %d", name, status); \
        progress_collective(NULL);                                           \
    } while (0)

static void count_sent(size_t bytes_to_each) { sent += (double)bytes_to_each * (mpi.ranks - 1); }

// MPI counts are ints: more bytes in one call are refused.
enum { kMostMpiBytes = 1 << 30 };

static void mpi_all_gather(void* out, const void* in, size_t bytes) {
    char* own = (char*)out + (size_t)mpi.rank * bytes;
    if (own != in) memcpy(own, in, bytes);
    check(bytes <= kMostMpiBytes, "all_gather: %zu bytes a rank", bytes);
    COLLECTIVE("all_gather", MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out, (int)bytes, MPI_BYTE, MPI_COMM_WORLD));
    count_sent(bytes);
}

static float value(const void* x, size_t i, Fmt fmt) {
    return fmt == F32 ? ((const float*)x)[i] : f32_from_bf16(((const uint16_t*)x)[i]);
}

static int bad_rank = -1;
// Sum i is not finite: whose value is the first that is not?
static void note_bad_rank(const void* pieces, size_t count, size_t i, Fmt fmt) {
    for (int r = 0; r < mpi.ranks && (bad_rank < 0 || r < bad_rank); r++)
        if (!isfinite(value(pieces, (size_t)r * count + i, fmt))) bad_rank = r;
}
static int mpi_bad_rank(void) {
    int rank = bad_rank;
    bad_rank = -1;
    return rank;
}

static void sum_in_rank_order(void* out, const void* pieces, size_t count, Fmt fmt, bool add, const Noise* noise) {
    for (size_t i = 0; i < count; i++) {
        float sum = add ? value(out, i, fmt) : 0;
        for (int r = 0; r < mpi.ranks; r++) sum += value(pieces, (size_t)r * count + i, fmt);
        if (!isfinite(sum)) note_bad_rank(pieces, count, i, fmt);
        if (fmt == F32) ((float*)out)[i] = sum;
        else if (!noise) ((uint16_t*)out)[i] = bf16_from_f32(sum);
        else ((uint16_t*)out)[i] = bf16_from_f32_stochastic(sum, noise_of_value(noise->seed, noise->offset + i, kGradNoise, noise->stream));
    }
}

static void mpi_reduce_scatter(void* out, const void* in, size_t count, Fmt fmt, bool add, const Noise* noise) {
    size_t bytes = count * fmt_bytes(fmt);
    check(bytes <= kMostMpiBytes, "reduce_scatter: %zu bytes a rank", bytes);
    void* pieces = staged(bytes * (size_t)mpi.ranks);
    COLLECTIVE("reduce_scatter", MPI_Alltoall(in, (int)bytes, MPI_BYTE, pieces, (int)bytes, MPI_BYTE, MPI_COMM_WORLD));
    count_sent(bytes);
    sum_in_rank_order(out, pieces, count, fmt, add, add ? noise : NULL);
}

static void mpi_all_reduce(void* x, size_t count, Fmt fmt) {
    size_t bytes = count * fmt_bytes(fmt);
    check(bytes <= kMostMpiBytes, "all_reduce: %zu bytes", bytes);
    void* pieces = staged(bytes * (size_t)mpi.ranks);
    COLLECTIVE("all_reduce", MPI_Allgather(x, (int)bytes, MPI_BYTE, pieces, (int)bytes, MPI_BYTE, MPI_COMM_WORLD));
    count_sent(bytes);
    sum_in_rank_order(x, pieces, count, fmt, false, NULL);
}

// Compares magnitudes as integers, so that a NaN is the largest (numfmt.h).
static void mpi_all_reduce_max(float* x, int n) {
    COLLECTIVE("all_reduce_max", MPI_Allreduce(MPI_IN_PLACE, x, n, MPI_UNSIGNED, MPI_MAX, MPI_COMM_WORLD));
    count_sent(sizeof(float) * (size_t)n);
}

static Transfer mpi_start(void) { return 0; }
static void mpi_wait(Transfer transfer) { (void)transfer; }
static double mpi_sent_bytes(void) { return sent; }

static void mpi_host_sum(double* x, int n) {
    double* pieces = (double*)host_alloc(sizeof(double) * (size_t)n * (size_t)mpi.ranks);
    COLLECTIVE("host_sum", MPI_Allgather(x, n, MPI_DOUBLE, pieces, n, MPI_DOUBLE, MPI_COMM_WORLD));
    for (int i = 0; i < n; i++) {
        x[i] = 0;
        for (int r = 0; r < mpi.ranks; r++) x[i] += pieces[(size_t)r * n + i];
    }
    free(pieces);
}

static void mpi_host_broadcast(void* x, size_t bytes) {
    check(bytes <= kMostMpiBytes, "host_broadcast: %zu bytes", bytes);
    COLLECTIVE("host_broadcast", MPI_Bcast(x, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD));
}

static void mpi_barrier(void) { COLLECTIVE("barrier", MPI_Barrier(MPI_COMM_WORLD)); }

static void mpi_finish(void) {
    free(staging);
    staging = NULL;
    staging_bytes = 0;
    MPI_Finalize();
}

static void mpi_abort(int exit_code) {
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

const Comm* comm_mpi(void) {
    int started = 0;
    MPI_Initialized(&started);
    if (!started) COLLECTIVE("start", MPI_Init(NULL, NULL));
    mpi.name = "mpi";
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi.ranks);
    mpi.all_gather = mpi_all_gather;
    mpi.reduce_scatter = mpi_reduce_scatter;
    mpi.all_reduce = mpi_all_reduce;
    mpi.all_reduce_max = mpi_all_reduce_max;
    mpi.start = mpi_start;
    mpi.wait = mpi_wait;
    mpi.sent_bytes = mpi_sent_bytes;
    mpi.bad_rank = mpi_bad_rank;
    mpi.host_sum = mpi_host_sum;
    mpi.host_broadcast = mpi_host_broadcast;
    mpi.barrier = mpi_barrier;
    mpi.finish = mpi_finish;
    mpi.abort_job = mpi_abort;
    return &mpi;
}

// "Open MPI v4.1.4", of the line that the library has for itself.
void mpi_version(char* text, size_t bytes) {
    char line[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(line, &length);
    snprintf(text, bytes, "%.*s", (int)strcspn(line, ",\n"), line);
}
