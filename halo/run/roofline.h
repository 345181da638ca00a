// How long a training step should take on a GPU, from what its calls move and multiply and from the GPU's data sheet: an estimate, whose
// shares of the data sheet were measured on one kind of GPU alone.
#ifndef HALO_RUN_ROOFLINE_H
#define HALO_RUN_ROOFLINE_H

#include "session.h"

// A kind of GPU, by its data sheet: dense rates with 32-bit sums, and how fast it sends to the other GPUs of its host.
typedef struct {
    const char* name;
    double gib;              // as the driver tells them
    double bf16_tflops, fp8_tflops, int8_tflops;
    double memory_gbs, link_gbs;
    bool measured;           // the estimate was held against measured steps of this kind
} GpuKind;
enum { kGpuKinds = 8 };
C_API const GpuKind* gpu_kinds(void);   // (kGpuKinds)

// What one optimizer step of rank 0 asks of its GPU, found by a dry run (dry.h).
typedef struct {
    size_t peak_bytes;       // allocated at once, all but what backend and ranks hold from their start
    size_t state_bytes;      // that this rank writes of a checkpoint
    double sent_bytes;       // to other ranks
    double ms[kGpuKinds];
} StepCost;
// `s`: on dry_ops and dry_comm. rows: of a micro-step, on average (packing fills fewer than --batch).
C_API StepCost step_cost(const Session* s, int rows);

#endif
