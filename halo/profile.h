// Where the time of a step goes: a table of Ops around another one. It notes every call of a layer, product or quantizer, with the
// bytes that the call must move, its multiplications, and marks (ops.h) before and behind the call.
//
// Floors: bytes over the copy bandwidth, each input read once and each output written once; multiplications over the rate of
// the plain product, or of a product of codes where they are of codes. The larger of the two is a call's floor.
#ifndef HALO_PROFILE_H
#define HALO_PROFILE_H

#include "comm/comm.h"

// A table that notes its calls (between profile_begin and profile_end) and has `inner` do the work. One table at a time.
C_API const Ops* profile_ops(const Ops* inner);
// A Comm around another one: the time for which `ops` is idle until a transfer arrives is the family "waiting for ranks".
C_API const Comm* profile_comm(const Comm* comm, const Ops* ops);
// Starts noting, after forgetting what was noted before; ends noting.
C_API void profile_begin(void);
C_API void profile_end(void);
C_API double profile_waited_ms(void);   // for transfers, over all steps noted

// Every call that was noted, in order, with its family, the bytes that it moves and its multiplications and additions: 2 a product's term.
typedef void (*VisitCall)(void* self, const char* family, double bytes, double flops);
C_API void profile_calls(VisitCall visit, void* self);

typedef struct {
    double copy_gbs;       // bytes read and written by a copy
    double plain_tflops;   // BF16 (F32 on cpu_f32) products
    double coded_tflops;   // products of 8-bit codes; 0: none were measured
} Ceilings;
// Prints a line per family of calls: milliseconds and percent of `step_ms`, GB/s, TFLOP/s, percent of the floor. `steps` steps were noted;
// step_ms is what a step takes without noting, and the part of it that no call accounts for is printed as idle.
C_API void profile_print(Ceilings ceilings, int steps, double step_ms);

#endif
