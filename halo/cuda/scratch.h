// What memory the CUDA backend's ops take beside their arguments, in bytes: plain C, so that a machine without a GPU can count it too.
#ifndef HALO_CUDA_SCRATCH_H
#define HALO_CUDA_SCRATCH_H

#include "../base.h"

enum { kWorkspaceBytes = 32 << 20 };   // one for all ops, see cuda_workspace in device.cuh

#endif
