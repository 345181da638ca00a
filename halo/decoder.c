// Generation: the forward pass of llama3.c over a few new tokens, with the keys and values of the earlier ones in a cache.
// Products run in the backend's plain format whatever recipe the weights were trained with.
#include "llama3.h"

enum { kChunk = 128 };   // tokens of a prompt taken at once

struct Decoder {
    Config c;
    const Ops* ops;
    UnitSource units;
    int positions, used;
    Mat* cache;      // L of (positions, 2 NKV HD)
    Mat res, h, qkv, att, branch, gate_up, act, logits;
    float *rstd, *cos_sin, *host_logits;
    int* tokens;     // 3 * kChunk on the backend: ids, positions, then slots (all 0: one sequence)
    void* memory;
};

static void place_decoder(Decoder* d, Arena* arena) {
    const Config* c = &d->c;
    Fmt act = d->ops->act;
    const struct {
        Mat* m;
        int rows, cols;
    } mats[] = {{&d->res, kChunk, c->C},
                {&d->h, kChunk, c->C},       {&d->qkv, kChunk, (c->NH + 2 * c->NKV) * c->HD},
                {&d->att, kChunk, c->NH * c->HD}, {&d->branch, kChunk, c->C},
                {&d->gate_up, kChunk, 2 * c->F},  {&d->act, kChunk, c->F},
                {&d->logits, 1, c->V}};
    for (size_t i = 0; i < sizeof mats / sizeof mats[0]; i++)
        *mats[i].m = mat(arena_take(arena, (size_t)mats[i].rows * mats[i].cols * fmt_bytes(act)), mats[i].rows, mats[i].cols, act);
    int kv = 2 * c->NKV * c->HD;
    for (int l = 0; l < c->L; l++)
        d->cache[l] = mat(arena_take(arena, (size_t)d->positions * kv * fmt_bytes(act)), d->positions, kv, act);
    d->rstd = (float*)arena_take(arena, sizeof(float) * kChunk);
    d->tokens = (int*)arena_take(arena, sizeof(int) * 3 * kChunk);
}

Decoder* decoder_new(const Config* config, const Ops* ops, UnitSource units, int positions) {
    Decoder* d = (Decoder*)host_alloc(sizeof(Decoder));
    d->c = *config;
    d->ops = ops;
    d->units = units;
    d->positions = positions;
    d->cache = (Mat*)host_alloc(sizeof(Mat) * (size_t)config->L);
    Arena measure = {NULL, 0};
    place_decoder(d, &measure);
    d->memory = ops->alloc(measure.used);
    Arena arena = {(char*)d->memory, 0};
    place_decoder(d, &arena);
    d->cos_sin = rope_table(config, ops, positions);
    d->host_logits = (float*)host_alloc(sizeof(float) * (size_t)config->V);
    return d;
}

void decoder_free(Decoder* d) {
    d->ops->release(d->memory);
    d->ops->release(d->cos_sin);
    free(d->cache);
    free(d->host_logits);
    free(d);
}

void decoder_reset(Decoder* d) { d->used = 0; }
int decoder_room(const Decoder* d) { return d->positions - d->used; }

static void product(const Decoder* d, Mat y, Mat x, Mat w) {
    d->ops->gemm(y, plain_side(x, false), plain_side(w, false), 0);
}

// The stream takes up what the last branch computed (nothing for the first norm); h <- its norm.
static void norm(const Decoder* d, int n, bool add_branch, Mat w) {
    Mat res = mat_rows(d->res, 0, n), delta = mat_rows(d->branch, 0, n);
    if (!add_branch) delta.data = NULL;
    d->ops->rmsnorm_forward(mat_rows(d->h, 0, n), d->rstd, res, res, delta, w, d->c.norm_eps, kPrepNone);
}

static void feed_chunk(Decoder* d, const int* tokens, int n) {
    const Config* c = &d->c;
    const Ops* ops = d->ops;
    int staged[3 * kChunk];
    for (int i = 0; i < n; i++) {
        staged[i] = tokens[i];
        staged[kChunk + i] = d->used + i;
        staged[2 * kChunk + i] = 0;
    }
    ops->upload(d->tokens, staged, sizeof staged);
    const int *pos = d->tokens + kChunk, *slot = d->tokens + 2 * kChunk;
    Mat h = mat_rows(d->h, 0, n), branch = mat_rows(d->branch, 0, n);
    Mat qkv = mat_rows(d->qkv, 0, n), att = mat_rows(d->att, 0, n);
    Mat gate_up = mat_rows(d->gate_up, 0, n), act = mat_rows(d->act, 0, n);

    const Unit* u = d->units.acquire(d->units.self, 0, FORWARD);
    ops->embed_forward(mat_rows(d->res, 0, n), u->w[S_EMBED], d->tokens);
    for (int l = 0; l < c->L; l++) {
        u = d->units.acquire(d->units.self, 1 + l, FORWARD);
        norm(d, n, l > 0, u->w[S_ATTN_NORM]);
        product(d, qkv, h, u->w[S_QKV]);
        ops->rope(qkv, d->cos_sin, pos, c->NH, c->NKV, c->HD, false, NULL);
        ops->attention_cached(att, d->cache[l], qkv, slot, pos, d->positions, c->NH, c->NKV, c->HD);
        product(d, branch, att, u->w[S_O]);
        norm(d, n, true, u->w[S_MLP_NORM]);
        product(d, gate_up, h, u->w[S_GATE_UP]);
        ops->swiglu_forward(act, gate_up, kPrepNone);
        product(d, branch, act, u->w[S_DOWN]);
    }
    u = d->units.acquire(d->units.self, c->L + 1, FORWARD);
    norm(d, n, true, u->w[S_FINAL_NORM]);
    d->used += n;
}

const float* decoder_feed(Decoder* d, const int* tokens, int count) {
    check(count > 0 && count <= decoder_room(d), "decoder_feed: %d tokens, room for %d", count, decoder_room(d));
    int n = 0;
    for (int at = 0; at < count; at += n) {
        n = min_int(kChunk, count - at);
        feed_chunk(d, tokens + at, n);
    }
    int unit = d->c.tied ? 0 : d->c.L + 1;
    const Unit* head = d->units.acquire(d->units.self, unit, FORWARD);
    product(d, d->logits, mat_rows(d->h, n - 1, 1), head->w[d->c.tied ? S_EMBED : S_HEAD]);
    size_t V = (size_t)d->c.V;
    d->ops->download(d->host_logits, d->logits.data, mat_bytes(d->logits));
    if (d->ops->act == BF16)   // widen in place, from the end
        for (size_t i = V; i-- > 0;) {
            uint16_t half;
            memcpy(&half, (char*)d->host_logits + 2 * i, 2);
            d->host_logits[i] = f32_from_bf16(half);
        }
    return d->host_logits;
}
