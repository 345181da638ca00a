// Choosing the next token; see sampler.h.
#include "sampler.h"

#include "rng.h"

typedef struct {
    float probability;
    int token;
} Candidate;

static int likelier_first(const void* a, const void* b) {
    const Candidate *x = (const Candidate*)a, *y = (const Candidate*)b;
    if (x->probability != y->probability) return x->probability > y->probability ? -1 : 1;
    return x->token - y->token;
}

static int likeliest(const float* logits, int V) {
    int best = 0;
    for (int i = 1; i < V; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

int sample_token(const Sampler* s, const float* logits, int V, uint64_t draw) {
    int best = likeliest(logits, V);
    if (s->temperature <= 0) return best;
    Candidate* candidates = (Candidate*)host_alloc(sizeof(Candidate) * (size_t)V);
    double total = 0;
    for (int i = 0; i < V; i++) {
        candidates[i].token = i;
        candidates[i].probability = expf((logits[i] - logits[best]) / s->temperature);
        total += candidates[i].probability;
    }
    if (s->top_p < 1) {
        qsort(candidates, (size_t)V, sizeof(Candidate), likelier_first);
        double wanted = s->top_p * total;
        total = 0;
        int kept = 0;
        while (kept < V && (kept == 0 || total < wanted)) total += candidates[kept++].probability;
        V = kept;
    }
    double point = uniform_from_word(random_words(s->seed, draw, 0).word[0]) * total;
    int chosen = candidates[V - 1].token;
    for (int i = 0; i < V; i++) {
        point -= candidates[i].probability;
        if (point < 0) {
            chosen = candidates[i].token;
            break;
        }
    }
    free(candidates);
    return chosen;
}
