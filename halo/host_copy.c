// Copies by several threads; see host_copy.h.
#include "host_copy.h"

void host_copy(void* dst, const void* src, size_t bytes) {
    enum { kPieceBytes = 512 << 10 };
    int pieces = (int)((bytes + kPieceBytes - 1) / kPieceBytes);
#pragma omp parallel for if (pieces > 2)
    for (int i = 0; i < pieces; i++) {
        size_t at = (size_t)i * kPieceBytes, n = bytes - at < (size_t)kPieceBytes ? bytes - at : (size_t)kPieceBytes;
        memcpy((char*)dst + at, (const char*)src + at, n);
    }
}
