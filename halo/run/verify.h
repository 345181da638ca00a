// The command verify: whether checkpoints and models are whole.
#ifndef HALO_RUN_VERIFY_H
#define HALO_RUN_VERIFY_H

#include "../options.h"

// Checks of a checkpoint: every byte, by its checksums. Of a model's folder: names, shapes and formats of all tensors by config.json, that
// every value is finite, and the tokenizer's file. Of an adapter's folder: that its files can be read and every value is finite. Of a run's
// folder (--out): its checkpoints, and the model or adapter. Damage is a user_error, once everything was checked.
C_API int command_verify(Options o);

#endif
