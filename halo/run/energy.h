// The energy that a GPU has used, as reported by NVIDIA's management library (NVML), which is loaded at the first call.
#ifndef HALO_RUN_ENERGY_H
#define HALO_RUN_ENERGY_H

#include "../base.h"

// The joules that the current GPU of this thread has used since its driver was loaded; below 0: unknown (no GPU, no NVML, or a GPU model that
// does not count its energy).
C_API double gpu_joules(void);

#endif
