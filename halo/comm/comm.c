// Which ranks there are, and which collectives serve them; see comm.h.
#include "comm.h"

const Comm* comm_start(void) {
    const char* const launchers[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
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

static bool is_gpu(const Ops* ops) {
#ifdef HALO_CUDA
    return ops == &cuda_ops;
#else
    (void)ops;
    return false;
#endif
}

const Comm* comm_on(const Comm* ranks, const Ops* ops) {
    if (ranks->ranks == 1) return ranks;
    double gpus = is_gpu(ops);
    ranks->host_sum(&gpus, 1);
    if (gpus > 0 && gpus < ranks->ranks)
        user_error("%.0f of %d ranks run on a GPU: start the others where there is one too, or all of them with --backend cpu", gpus,
                   ranks->ranks);
    if (gpus == 0) return ranks;
#ifdef HALO_NCCL
    return comm_nccl(ranks);
#else
    user_error("%d ranks on GPUs, but built without NCCL: install it (nccl.h, libnccl) and run make again, or run on CPUs with "
               "--backend cpu", ranks->ranks);
#endif
}

CommLibraries comm_libraries(void) {
    CommLibraries l;
    memset(&l, 0, sizeof l);
#ifdef HALO_MPI
    mpi_version(l.mpi, sizeof l.mpi);
#endif
#ifdef HALO_NCCL
    l.nccl = nccl_version();
#endif
    return l;
}
