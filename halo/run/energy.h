// The energy that GPUs have used, if their driver tells: from its management library (NVML), which is loaded when it is asked for.
#ifndef HALO_RUN_ENERGY_H
#define HALO_RUN_ENERGY_H

#include "../base.h"

// Joules that the GPU at work in this thread has used since its driver was loaded; below 0: nobody tells (no GPU, no library, an
// older model).
C_API double gpu_joules(void);

#endif
