// HQ-FSDP (HALO, section on low-precision FSDP communication): a layer's linears are gathered as codes.
//
// After each update every rank rotates the rows it owns and takes the maximum of its part of each matrix; ONE all-reduce of the
// maxima gives every matrix its scale on every rank; the rows are quantized and stay as codes until the next update. What a
// unit's gathering then moves is codes: half the bytes of BF16, or three eighths as packed FP6. They are the products'
// operands as they arrive; only the transposed copy for E is made locally, in the backward pass, and FP6 is unpacked.
//
// Under an adapter the linears never change: their codes are made once, of the rows as they are read, and are all there is of them.
// A rank that holds whole matrices (`ranks` 1) gathers nothing: its codes are the operands.
#ifndef HALO_HQFSDP_H
#define HALO_HQFSDP_H

#include "shard.h"

typedef struct HqFsdp HqFsdp;

// `ring` layers can be gathered at once; `ranks`: that share a matrix.
C_API HqFsdp* hqfsdp_new(const Config* config, const Linear* linear, const Comm* comm, int ranks, const Piece* pieces, int count, int ring);
C_API void hqfsdp_free(HqFsdp* h);
C_API size_t hqfsdp_bytes(const Config* config, const Linear* linear, int ranks, const Piece* pieces, int count, int ring);
// Of these, the codes of this rank's rows.
C_API size_t hqfsdp_own_bytes(const Linear* linear, const Piece* pieces, int count);

// After an update, for every piece that travels as codes (its index, and this rank's rows of it): first the maxima of all,
// then share_absmax, then the codes of all. Both take a piece's rows in one call or, from `first` on of this rank's, in many.
C_API void hqfsdp_forget_maxima(HqFsdp* h);
C_API void hqfsdp_absmax(HqFsdp* h, int piece, int first, Mat rows);
C_API void hqfsdp_share_absmax(HqFsdp* h);
C_API void hqfsdp_quantize(HqFsdp* h, int piece, int first, Mat rows);

// A collective of the next transfer (comm.h): the codes of a piece, into the ring's place `slot`.
C_API void hqfsdp_gather(HqFsdp* h, int piece, int slot);
// The piece that lies there as an operand: for F, and in the backward pass for E. The transposed codes, and unpacked FP6, are
// valid until the same stack of another layer is asked for.
C_API WeightOperand hqfsdp_operand(HqFsdp* h, int piece, int slot, Pass pass);

#endif
