// The command verify: whether checkpoints and models are whole.
#ifndef HALO_RUN_VERIFY_H
#define HALO_RUN_VERIFY_H

#include "../options.h"

// Of a checkpoint: every byte against its checksums. Of a model's folder: names, shapes and formats of all tensors against config.json,
// every value finite, and the tokenizer's file. Of a run's folder (--out): both. Anything damaged is a user_error, after all was looked at.
C_API int command_verify(Options o);

#endif
