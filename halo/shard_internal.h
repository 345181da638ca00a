// What shard.c (layout and traffic) and shard_state.c (weights and state, in and out) share: struct Shard and its addresses.
//
// Flat arrays hold the pieces one after the other, each at its own aligned offset:
//   local: this rank's shares (share * cols values each)      full: whole matrices (ranks * share * cols values each)
// With zero 0, and with one rank, the two are the same memory.
#ifndef HALO_SHARD_INTERNAL_H
#define HALO_SHARD_INTERNAL_H

#include "hqfsdp.h"
#include "shard.h"

enum { kMaxPiecesPerUnit = 8, kPieceAlign = 128 };   // values

// A place: memory in which a unit's weights are whole, or its gradients of one micro-step.
typedef struct {
    char* data;
    int unit;            // the unit that lies here or is on its way; -1: none
    Transfer transfer;   // the one that brings weights; 0: the backend has waited for it. reduced[unit] takes gradients away
} GatherPlace;

// Whose parameters a shard holds: the model's, or those of the adapter beside it.
typedef enum { SHARD_MODEL, SHARD_ADAPTER } ShardPart;

struct Shard {
    ShardPart part;
    Shard* adapter;           // of a frozen model: the shard of all that is trained. NULL: the model itself is trained
    Config c;
    const Ops* ops;
    const Comm* comm;
    ShardOptions opt;
    int zero;                 // the stage at work
    Linear linear;            // of the blocks: how weights become codes, and how gradients are finished
    ParamSpec specs[kMaxParamSpecs];
    int spec_count;
    Piece* pieces;
    int count;
    int* first_piece;         // (L + 3): of each unit; the last: count
    size_t local_values, full_values;
    bool owns_all;            // local is full: one rank, or zero 0

    char* weights;            // full, in act (zero 3: local)
    char* grads;              // full, in grad_fmt (zero 2 and 3: local)
    float* master;            // local
    char *m, *v;              // local, in state_fmt
    // Whole weights: the embedding, the tail, then `ring` layers. Zero 3: in memory of their own; else every unit, within `weights`
    GatherPlace* places;
    int ring;
    // The whole gradients of one micro-step, where makes_alone: the embedding, the tail, then grad_ring layers
    GatherPlace* grad_places;
    int grad_ring;
    Transfer* reduced;        // (L + 2): the transfer that sums a unit's gradients; 0: none, or the backend has waited for it
    HqFsdp* codes;            // NULL: linears are gathered as weights
    // Zero 3: the layer's matrix that shard_read gathered last, where it lies whole, and the memory for it if no grad_place could lend any.
    const Piece* read_piece;
    char *read_place, *read_buffer;
    Unit unit;                // what shard_acquire hands out
    int step, micro_step;     // from 1; from 0
    NoiseShift* add_shift;    // on the backend: names the noise with which the micro-step's gradients are added on this rank
    unsigned version;         // of the weights
    bool unfinished;          // shard_reduce_gradients was called; gradients are not yet rotated back
};

// ---- the layout of `comm`'s rank, without memory on the backend; shard_forget frees the layout's host memory
C_API void shard_describe(Shard* s, ShardPart part, const Config* config, const Ops* ops, const Comm* comm, ShardOptions options);
C_API void shard_forget(Shard* s);
C_API ShardBytes shard_count_bytes(const Shard* s);

// ---- traffic
// Starts the gathering of a unit, unless the unit is there or on its way.
C_API void shard_start_gather(Shard* s, int unit);
C_API void shard_wait_for(const Shard* s, Transfer* transfer);
// Waits until the gradients in this place have been reduced: then new ones may go there.
C_API void shard_wait_for_gradients(const Shard* s, const GatherPlace* place);
C_API void shard_wait_for_places(Shard* s);
// Waits for gathers in flight, then marks every gathered copy stale.
C_API void shard_forget_gathered(Shard* s);
// To be called after this part's weights, trained or frozen, were written: makes gathered copies and codes anew.
C_API void shard_replace_weights(Shard* s);

// ---- what follows from the options
static inline int unit_of(const Config* c, Stack stack, int layer) {
    if (stack == S_EMBED) return 0;
    return stack == S_FINAL_NORM || stack == S_HEAD ? c->L + 1 : 1 + layer;
}

static inline Shard* trained_part(Shard* s) { return s->adapter ? s->adapter : s; }
static inline bool is_frozen(const Shard* s) { return s->part == SHARD_MODEL && s->c.adapter.kind != ADAPTER_NONE; }
// Are the linears held as codes alone, as those of a frozen model?
static inline bool holds_codes(const Shard* s) {
    return is_frozen(s) && s->c.adapter.kind == ADAPTER_LORA && linear_gathers_codes(s->opt.recipe);
}
static inline bool keeps_master(const Shard* s) { return s->opt.master && s->ops->act == BF16; }
static inline bool gathers(const Shard* s) { return !s->owns_all && s->zero == 3; }
// Stages 1 and 2: each rank updates its own rows, and the others' are gathered beside them.
static inline bool gathers_weights_in_place(const Shard* s) { return !s->owns_all && s->zero < 3; }
static inline bool reduces_each_micro_step(const Shard* s) { return s->zero >= 2; }
// Are a micro-step's gradients made in a buffer of their own, and then added to those before? With stages 0 and 1 the first
// micro-step's are made in place.
static inline bool makes_alone(const Shard* s) { return reduces_each_micro_step(s) || (s->opt.grad_fmt == BF16 && s->opt.micro_steps > 1); }
static inline bool makes_in_place(const Shard* s) { return !makes_alone(s) || (!reduces_each_micro_step(s) && s->micro_step == 0); }

// ---- places: 0 is the embedding's, 1 the tail's; then come the layers'

static inline int tail_of(const Shard* s) { return s->c.L + 1; }
static inline int place_index(const Shard* s, int unit, int ring) { return unit == 0 ? 0 : unit == tail_of(s) ? 1 : 2 + (unit - 1) % ring; }
static inline GatherPlace* place_of(const Shard* s, int unit) { return &s->places[place_index(s, unit, s->ring)]; }
static inline GatherPlace* grad_place_of(const Shard* s, int unit) { return &s->grad_places[place_index(s, unit, s->grad_ring)]; }
static inline int slot_of(const Shard* s, int unit) { return (unit - 1) % s->ring; }
// Does the unit stay whole from one update to the next, because it shares its place with no other unit?
static inline bool stays_whole(const Shard* s, int unit) { return !gathers(s) || unit == 0 || unit == tail_of(s); }
// A unit whose place this is; which layer does not matter, since all layers have one size.
static inline int unit_at(const Shard* s, int place) { return place == 0 ? 0 : place == 1 ? tail_of(s) : place - 1; }

static inline size_t act_bytes(const Shard* s) { return fmt_bytes(s->ops->act); }
static inline size_t grad_bytes(const Shard* s) { return fmt_bytes(s->opt.grad_fmt); }
static inline size_t unit_start(const Shard* s, int unit) {
    int first = s->first_piece[unit];
    return first < s->count ? s->pieces[first].full : s->full_values;
}
static inline bool is_empty(const Shard* s, int unit) { return s->first_piece[unit] == s->first_piece[unit + 1]; }   // an adapter's first and last

// The values of a unit in its place: all of them for gradients; for `weights` those that don't travel as codes.
static inline size_t unit_values(const Shard* s, int unit, bool weights) {
    size_t values = 0;
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        size_t next = i + 1 < s->count ? s->pieces[i + 1].full : s->full_values;
        if (!(weights && travels_as_codes(&s->pieces[i]))) values += next - s->pieces[i].full;
    }
    return values;
}

// ---- addresses

static inline char* whole_weights(const Shard* s, const Piece* p) {
    size_t offset = gathers(s) ? p->gathered : p->full - unit_start(s, p->unit);
    return place_of(s, p->unit)->data + offset * act_bytes(s);
}
// The whole matrix's gradient, summed over this rank's micro-steps; only stages 0 and 1 keep one.
static inline char* summed_grads(const Shard* s, const Piece* p) { return s->grads + p->full * grad_bytes(s); }
static inline char* whole_grads(const Shard* s, const Piece* p) {
    if (makes_in_place(s)) return summed_grads(s, p);
    return grad_place_of(s, p->unit)->data + (p->full - unit_start(s, p->unit)) * grad_bytes(s);
}
// Where this rank's share starts within the whole matrix, in values; then its addresses in the flat arrays.
static inline size_t share_offset(const Shard* s, const Piece* p) {
    return s->owns_all ? 0 : (size_t)s->comm->rank * p->share * p->cols;
}
static inline char* own_weights(const Shard* s, const Piece* p) {
    if (gathers(s)) return s->weights + p->local * act_bytes(s);
    return s->weights + (p->full + share_offset(s, p)) * act_bytes(s);
}
static inline char* own_grads(const Shard* s, const Piece* p) {
    if (reduces_each_micro_step(s)) return s->grads + p->local * grad_bytes(s);
    return s->grads + (p->full + share_offset(s, p)) * grad_bytes(s);
}

static inline Mat mat_of_own_rows(const Shard* s, const Piece* p) { return mat(own_weights(s, p), p->own, p->cols, s->ops->act); }

#endif
