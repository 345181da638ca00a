// Names for bytes: 128 bits of XXH3, as 32 hexadecimal digits.
#ifndef DATA_DIGEST_H
#define DATA_DIGEST_H

#include "../halo/base.h"

#include <xxhash.h>

enum { kHexBytes = 33 };   // with the NUL

static inline void hex_digest(XXH128_hash_t hash, char hex[kHexBytes]) {
    snprintf(hex, kHexBytes, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
}

#endif
