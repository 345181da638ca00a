// What a run depends on, by content: its data, and the weights, config.json, tokenizer and adapter that it starts from. When a run is resumed, and
// between ranks, paths may differ; contents may not.
#ifndef HALO_RUN_IDENTITY_H
#define HALO_RUN_IDENTITY_H

#include "../../data/digest.h"
#include "session.h"

// XXH3-128 of each in hexadecimal; "none" for what the run does not have.
typedef struct {
    char data[kHexBytes], val[kHexBytes], weights[kHexBytes], config[kHexBytes], tokenizer[kHexBytes];
} Identity;

// All ranks call it together, once the tokenizer's files have been read (s->files). A rank whose weight files are the same files as those of
// a lower rank on the same host takes that rank's hash; all other ranks read theirs whole. A rank with other contents than rank 0 is a
// user_error that names what differs, down to the tensor.
C_API void identity_take(const Session* s, Identity* id);

#endif
