// A dry run: the program's own code on a backend that computes nothing and between ranks that send nothing, both of which count. So a
// machine without a GPU can say what a training step on some GPUs would allocate, send, move and multiply (profile.h notes its calls), by the
// same code that does it there.
//
// Memory is addresses alone: nothing lies behind them. Downloads give zeros.
#ifndef HALO_DRY_H
#define HALO_DRY_H

#include "comm/comm.h"

// The sizes of a backend: its name and format of activations, the scratch of its layers, and what it holds for itself. `like`: the backend whose
// sizes it has; NULL: the GPU's, also where there is none. One at a time; counting begins anew.
C_API const Ops* dry_ops(const Ops* like);
// The most bytes that were allocated at once, without workspace_bytes.
C_API size_t dry_peak_bytes(void);
// Rank 0 of `ranks`; `gpus`: ranks on GPUs (comm/nccl.cu), else CPU ranks. Its sent_bytes count as theirs do.
C_API const Comm* dry_comm(int ranks, bool gpus);

#endif
