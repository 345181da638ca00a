// The choice of a backend; see backend.h. The only file of halo/run/ that asks whether the program was built with CUDA.
#include "backend.h"

const Ops* backend_pick(BackendChoice choice) {
    if (choice == BACKEND_CPU) return &cpu_bf16_ops;
    if (choice == BACKEND_CPU_F32) return &cpu_f32_ops;
#ifdef HALO_CUDA
    if (cuda_device_count() > 0) return &cuda_ops;
    if (choice == BACKEND_CUDA) user_error("--backend cuda: no usable GPU was found (nvidia-smi shows what the driver sees)");
#else
    if (choice == BACKEND_CUDA) user_error("--backend cuda: this program was built without CUDA; install nvcc and run make again");
#endif
    return &cpu_bf16_ops;
}

bool backend_cuda_facts(CudaFacts* facts) {
    memset(facts, 0, sizeof *facts);
#ifdef HALO_CUDA
    cuda_facts(facts);
    return true;
#else
    return false;
#endif
}

const char* backend_last_product(const Ops* ops) {
#ifdef HALO_CUDA
    if (ops == &cuda_ops) return cuda_last_product();
#endif
    return ops == &cpu_f32_ops ? "CPU, FP32" : "CPU";
}
