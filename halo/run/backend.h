// The backend that --backend means on this machine.
#ifndef HALO_RUN_BACKEND_H
#define HALO_RUN_BACKEND_H

#include "../cuda/facts.h"
#include "../options.h"

// auto: the GPU if there is one, else the CPU. A user_error if a GPU was asked for and there is none.
C_API const Ops* backend_pick(BackendChoice choice);
// What CUDA says of this machine. false: the program was built without it.
C_API bool backend_cuda_facts(CudaFacts* facts);
// Which kernel the last product of a backend ran on.
C_API const char* backend_last_product(const Ops* ops);

#endif
