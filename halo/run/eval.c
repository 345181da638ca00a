// Evaluation; see eval.h.
#include "eval.h"

#include <math.h>

#include "../../data/batch.h"

Evaluation evaluate(const Session* s, Model* model, Dataset* d, float* losses) {
    int rows = dataset_rows(d), B = s->o.batch, BT = B * s->o.seq, ranks = s->comm->ranks;
    RowBatch batch = batch_new(B, s->o.seq);
    float* host = (float*)host_alloc(sizeof(float) * (size_t)BT);
    double sums[2] = {0, 0};   // loss, tokens
    for (int first = 0; first < rows; first += B * ranks) {
        batch_fill_rows(&batch, d, first + s->comm->rank * B);
        model_loss(model, &batch.arrays, losses);
        s->ops->download(host, losses, sizeof(float) * (size_t)BT);
        for (int i = 0; i < BT; i++) sums[0] += host[i];
        sums[1] += batch.scored;
    }
    s->comm->host_sum(sums, 2);
    free(host);
    batch_free(&batch);
    Evaluation e = {sums[0] / sums[1], (size_t)sums[1]};
    return e;
}

void print_evaluation(const char* path, Evaluation e) {
    printf("%s: loss %.6f  perplexity %.4f  over %zu tokens\n", path, e.loss, exp(e.loss), e.scored);
}

int command_eval(Options o) {
    Session s = session_open(o, EVAL);
    open_tokenizer(&s);
    Dataset* d = open_data(&s, o.data, DATA_TO_EVALUATE);
    load_weights(&s, false);
    Model* model = model_new(&s.config, s.ops, s.recipe, s.shard, model_options(&s, false));
    float* losses = (float*)s.ops->alloc(sizeof(float) * (size_t)o.batch * o.seq);
    Evaluation e = evaluate(&s, model, d, losses);
    if (leads(&s)) print_evaluation(o.data, e);
    s.ops->release(losses);
    model_free(model);
    dataset_free(d);
    session_close(&s);
    return 0;
}
