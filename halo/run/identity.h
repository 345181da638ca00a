// What a run depends on, by content: its data, the weights, config.json and tokenizer it starts from. Paths may change between a run and
// the one that goes on from its checkpoints, or between ranks; contents may not.
#ifndef HALO_RUN_IDENTITY_H
#define HALO_RUN_IDENTITY_H

#include "../../data/digest.h"
#include "session.h"

// XXH3-128 of each; "none" where there is nothing of the kind.
typedef struct {
    char data[kHexBytes], val[kHexBytes], weights[kHexBytes], config[kHexBytes], tokenizer[kHexBytes];
} Identity;

// All ranks call it together, once the tokenizer's files have been read (s->files). A rank whose weight files are the very files of a
// lower rank on the same host trusts that one's hash; all others read theirs whole. A rank with other contents than rank 0 is a
// user_error that names what differs, down to the tensor.
C_API void identity_take(const Session* s, Identity* id);

#endif
