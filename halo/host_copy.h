// Copies between the host's own memories.
#ifndef HALO_HOST_COPY_H
#define HALO_HOST_COPY_H

#include "base.h"

// memcpy by as many threads as a large copy has use for: one core moves about half of what a GPU's link takes.
C_API void host_copy(void* dst, const void* src, size_t bytes);

#endif
