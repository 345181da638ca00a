// How much of the host's memory this process may take: the machine's, or less in a container or under a job's limit.
#ifndef HALO_HOST_MEMORY_H
#define HALO_HOST_MEMORY_H

#include "base.h"

typedef struct {
    size_t total;   // bytes: the machine's memory, or the smallest limit of a control group around this process
    size_t left;    // bytes that can still be taken, caches that would be given up for it included
} HostMemory;

// `root` is put before /proc and /sys: "" for this machine; tests give the root of a tree of their own. Never fails: what is missing
// there limits nothing.
C_API HostMemory host_memory(const char* root);

#endif
