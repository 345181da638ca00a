// HQ-FSDP (HALO, section on low-precision FSDP communication): a layer's linears are gathered as codes.
//
// After each update every rank rotates the rows it owns and takes the maximum of its part of each matrix; ONE all-reduce of the
// maxima gives every matrix its scale on every rank; the rows are quantized and stay as codes until the next update. What a
// unit's gathering then moves is codes: half the bytes of BF16, or three eighths as packed FP6. They are the products'
// operands as they arrive; only the transposed copy for E is made locally.
#ifndef HALO_HQFSDP_H
#define HALO_HQFSDP_H

#include "shard.h"

typedef struct HqFsdp HqFsdp;

// Does this piece travel as codes?
C_API bool hqfsdp_takes(const Piece* p);
C_API HqFsdp* hqfsdp_new(const Config* config, const Ops* ops, const Comm* comm, const Piece* pieces, int count, Fmt fmt);
C_API void hqfsdp_free(HqFsdp* h);
C_API size_t hqfsdp_bytes(const Config* config, const Comm* comm, const Piece* pieces, int count, Fmt fmt);

// After an update, for every piece that travels as codes (its index, and this rank's rows of it): first the maxima of all,
// then share_absmax, then the codes of all.
C_API void hqfsdp_absmax(HqFsdp* h, const Linear* linear, int piece, Mat own_rows);
C_API void hqfsdp_share_absmax(HqFsdp* h);
C_API void hqfsdp_quantize(HqFsdp* h, const Linear* linear, int piece, Mat own_rows);

// The operand of a piece; all ranks call it together. It is valid until the same stack of another layer is gathered;
// without `gather` it is the one that is still there.
C_API WeightOperand hqfsdp_gather(HqFsdp* h, int piece, bool gather);

#endif
