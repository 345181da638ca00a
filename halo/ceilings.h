// What the machine does at best, measured: the rates of products and of copies with which a step is compared.
#ifndef HALO_CEILINGS_H
#define HALO_CEILINGS_H

#include "llama3.h"

// TFLOP/s of products alone, on the F, E and G shapes of the model's linears with operands in `fmt` and as many tokens as a micro-step
// has: all of their work over all of their time, after a second of it, at the clock rate of steady work.
C_API double ceiling_tflops(const Ops* ops, const Config* config, int tokens, Fmt fmt);
// GB/s of a copy of 512 MiB, bytes read and bytes written.
C_API double ceiling_gbs(const Ops* ops);

#endif
