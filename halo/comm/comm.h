// Ranks talking to each other: one table of collectives, with one implementation at work: solo.c (one rank),
// mpi.c (CPU ranks), nccl.cu (GPU ranks).
//
// Sums are taken in rank order in FP32 and rounded once, so that the result does not depend on timing.
//
// Order: calls of collectives on backend memory are collected, and `start` makes one transfer of them. The transfer starts after the
// backend's work queued so far and then runs beside the backend's later work and beside other transfers; nobody else may touch the
// memory that it reads and writes until `wait`, which makes the backend's later work start behind the transfer. Neither `start` nor `wait`
// blocks the host. Every rank starts the same transfers in the same order. Collectives of one transfer may run in any order. With CPU ranks
// each collective has happened when its call returns.
#ifndef HALO_COMM_H
#define HALO_COMM_H

#include "../ops.h"

// What comm_nccl holds of a GPU's memory, two halves of it; the emulation of NCCL takes less, and has small slices.
enum { kNcclStagingBytes = 128 << 20 };

typedef unsigned long Transfer;   // counted from 1; 0 is none: nothing to wait for

typedef struct {
    const char* name;   // "solo" | "mpi" | "nccl"
    int rank, ranks;
    int host_ranks;         // those on this rank's host, itself among them
    size_t staging_bytes;   // of the backend's memory that this Comm holds for itself
    // ---- on the backend
    // out (ranks, bytes) <- every rank's in (bytes); `in` may be this rank's place in out.
    void (*all_gather)(void* out, const void* in, size_t bytes);
    // out (count) <- [out +] in of rank 0 + in of rank 1 + ..., this rank's slice of each `in` (ranks, count), F32 or BF16; out may
    // be that slice of in. With `add`, a rank's sum over micro-steps has the order in which one rank alone would take it, and BF16 is
    // rounded stochastically unless noise is NULL.
    void (*reduce_scatter)(void* out, const void* in, size_t count, Fmt fmt, bool add, const Noise* noise);
    void (*all_reduce)(void* x, size_t count, Fmt fmt);   // the sum, on every rank
    void (*all_reduce_max)(float* x, int n);   // of magnitudes
    Transfer (*start)(void);
    void (*wait)(Transfer transfer);
    double (*sent_bytes)(void);   // by this rank to others, in transfers so far, but for parts of gathers that copy engines bring back to their own rank
    // The lowest rank whose values made a sum of this rank's not finite since it was asked last; -1: none. For when all sums have been waited for.
    int (*bad_rank)(void);
    // ---- on host memory; these block until all ranks have called them
    void (*host_sum)(double* x, int n);
    void (*host_broadcast)(void* x, size_t bytes);   // from rank 0
    void (*barrier)(void);
    void (*finish)(void);
    void (*abort_job)(int exit_code);   // ends all ranks
    // ---- memory of the backend, zeroed, that other ranks can write to, so that gathering into it costs the backend's work the least.
    // All ranks call each of the two together, `alloc` for as many bytes. NULL: the backend's own memory is as good (comm_alloc). `release` takes
    // the backend's own memory too, on any rank by itself
    void* (*alloc)(size_t bytes);
    void (*release)(void* p);
} Comm;

static inline void* comm_alloc(const Comm* comm, const Ops* ops, size_t bytes) { return comm->alloc ? comm->alloc(bytes) : ops->alloc(bytes); }
static inline void comm_release(const Comm* comm, const Ops* ops, void* p) {
    if (comm->release) comm->release(p);
    else ops->release(p);
}

C_API const Comm* comm_solo(void);
#ifdef HALO_MPI
C_API const Comm* comm_mpi(void);
C_API void mpi_version(char* text, size_t bytes);
#endif
#ifdef HALO_NCCL
C_API const Comm* comm_nccl(const Comm* mpi);
C_API int nccl_version(void);
#endif
// The ranks of this process's job: MPI's if a launcher started it, else solo. A launcher around a program that was built without
// MPI is a user_error.
C_API const Comm* comm_start(void);
// The same ranks, with collectives on the memory of `ops`: NCCL for a GPU's memory; the rank's number on its host then picks the current
// GPU. Call before the backend is first used. Ranks without a GPU of their own, ranks on different backends, and a build without NCCL are
// user_errors.
C_API const Comm* comm_on(const Comm* ranks, const Ops* ops);
// The libraries that this program was built with: NCCL's version as 10000 * major + 100 * minor + patch; MPI's name and version. 0 and "": none.
typedef struct {
    int nccl;
    char mpi[96];
} CommLibraries;
C_API CommLibraries comm_libraries(void);

#endif
