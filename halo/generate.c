// Generation; see generate.h.
#include "generate.h"

ModelOptions generation_options(int slots, int positions) {
    ModelOptions o;
    memset(&o, 0, sizeof o);
    o.B = 1;
    o.T = max_int(kPromptRows, slots);
    o.logits_bytes = (size_t)64 << 20;
    o.head = recipe_find("bf16");
    o.slots = slots;
    o.positions = positions;
    return o;
}

Sequence sequence_new(Model* model, const Config* config, int slot, int positions) {
    Sequence s = {model, slot, 0, positions, (float*)host_alloc(sizeof(float) * (size_t)config->V)};
    return s;
}

void sequence_free(Sequence* s) { free(s->logits); }

void sequence_feed(Sequence* s, const int* tokens, int count) {
    check(count > 0 && count <= sequence_room(s), "sequence_feed: %d tokens, room for %d", count, sequence_room(s));
    for (int at = 0, rows; at < count; at += rows) {
        int slot[kPromptRows], pos[kPromptRows];
        rows = min_int(kPromptRows, count - at);
        for (int i = 0; i < rows; i++) {
            slot[i] = s->slot;
            pos[i] = s->used + i;
        }
        NewTokens piece = {rows, tokens + at, slot, pos};
        int last = rows - 1;
        model_extend(s->model, &piece, &last, at + rows == count, s->logits);
        s->used += rows;
    }
}
