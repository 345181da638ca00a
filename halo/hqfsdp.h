// HQ-FSDP (HALO, section on low-precision FSDP communication): a layer's linears are gathered as codes.
//
// After each update every rank rotates the rows it owns and takes the maximum of its part of each matrix; ONE all-reduce of the
// maxima gives every matrix its scale on every rank; the rows are quantized and stay as codes until the next update. What a
// unit's gathering then moves is codes: half the bytes of BF16, or three eighths as packed FP6. Codes are the products'
// operands as they arrive; only the transposed copy for E is made locally, in the backward pass, and FP6 is unpacked.
//
// Under LoRA the linears never change: their codes are made once, while the rows are read, and no other copy of the weights is kept.
// A rank that holds whole matrices (`ranks` 1) gathers nothing: its codes are the operands.
#ifndef HALO_HQFSDP_H
#define HALO_HQFSDP_H

#include "shard.h"

typedef struct HqFsdp HqFsdp;

// ring: layers that can lie gathered at the same time. ranks: how many ranks share the rows of a matrix (1: each holds them all).
C_API HqFsdp* hqfsdp_new(const Config* config, const Linear* linear, const Comm* comm, int ranks, const Piece* pieces, int count, int ring);
C_API void hqfsdp_free(HqFsdp* h);
C_API size_t hqfsdp_bytes(const Config* config, const Linear* linear, int ranks, const Piece* pieces, int count, int ring);
// The part of hqfsdp_bytes that holds the codes of this rank's own rows.
C_API size_t hqfsdp_own_bytes(const Linear* linear, const Piece* pieces, int count);

// After an update: forget_maxima; absmax for every piece that travels as codes; share_absmax; quantize for every such piece.
// absmax and quantize take this rank's rows of a piece in one call or in many: `rows` from its row `first` on.
C_API void hqfsdp_forget_maxima(HqFsdp* h);
C_API void hqfsdp_absmax(HqFsdp* h, int piece, int first, Mat rows);
C_API void hqfsdp_share_absmax(HqFsdp* h);
C_API void hqfsdp_quantize(HqFsdp* h, int piece, int first, Mat rows);

// Adds the gathering of a piece's codes, into the ring's place `slot`, to the next transfer (comm.h).
C_API void hqfsdp_gather(HqFsdp* h, int piece, int slot);
// The piece gathered in `slot` as an operand of F, and in the backward pass of E. The transposed codes, and unpacked FP6, are
// valid until the same stack of another layer is asked for.
C_API WeightOperand hqfsdp_operand(HqFsdp* h, int piece, int slot, Pass pass);

#endif
