// Ranks talking to each other: one table of collectives, with one implementation at work: comm_solo.c (one rank),
// comm_mpi.c (CPU ranks), comm_nccl.cu (GPU ranks).
//
// The collectives on backend memory run in call order with the backend's work. Sums are taken in rank order in FP32 and
// rounded once, so that the result does not depend on timing.
#ifndef HALO_COMM_H
#define HALO_COMM_H

#include "ops.h"

typedef struct {
    const char* name;   // "solo" | "mpi" | "nccl"
    int rank, ranks;
    // out (ranks, bytes) <- every rank's in (bytes); `in` may be this rank's place in out.
    void (*all_gather)(void* out, const void* in, size_t bytes);
    // out (count) <- [out +] in of rank 0 + in of rank 1 + ..., this rank's slice of each `in` (ranks, count), F32 or BF16; out may
    // be that slice of in. With `add`, a rank's sum over micro-steps has the order in which one rank alone would take it.
    void (*reduce_scatter)(void* out, const void* in, size_t count, Fmt fmt, bool add);
    void (*all_reduce)(void* x, size_t count, Fmt fmt);   // the sum, on every rank
    void (*all_reduce_max)(float* x, int n);   // on the backend
    void (*all_reduce_sum)(float* x, int n);   // on the backend
    // On host memory; these wait.
    void (*host_sum)(double* x, int n);
    void (*host_broadcast)(void* x, size_t bytes);   // from rank 0
    void (*barrier)(void);
    void (*finish)(void);
    void (*abort_job)(int exit_code);   // ends all ranks
} Comm;

C_API const Comm* comm_solo(void);
#ifdef HALO_MPI
C_API const Comm* comm_mpi(void);
#endif
// The ranks of this process's job: MPI's if a launcher started more than one, else solo. A launcher around a program that was
// built without MPI is a user_error.
C_API const Comm* comm_start(void);

#endif
