// Generation: sequences that grow by what a model answers, in the slots of its KV cache.
#ifndef HALO_GENERATE_H
#define HALO_GENERATE_H

#include "llama3.h"

// Rows that a model for generation takes at once: a prompt goes in by pieces of as many tokens.
enum { kPromptRows = 128 };

// A model that generates: `slots` sequences of up to `positions` tokens side by side.
C_API ModelOptions generation_options(int slots, int positions);

// One sequence. `logits` (V) are those after its last token.
typedef struct {
    Model* model;
    int slot, used, positions;
    float* logits;
} Sequence;

C_API Sequence sequence_new(Model* model, const Config* config, int slot, int positions);
C_API void sequence_free(Sequence* s);
static inline int sequence_room(const Sequence* s) { return s->positions - s->used; }   // tokens that still fit
// Appends `count` tokens; leaves the logits after the last one.
C_API void sequence_feed(Sequence* s, const int* tokens, int count);

#endif
