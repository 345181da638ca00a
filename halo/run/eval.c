// Evaluation; see eval.h.
#include "eval.h"

#include <math.h>

#include "../../data/batch.h"
#include "../progress.h"
#include "answer.h"
#include "status.h"

Evaluation evaluate(const Session* s, Model* model, Dataset* d, float* losses) {
    int rows = dataset_rows(d), B = s->o.batch, BT = B * s->o.seq, ranks = s->comm->ranks;
    RowBatch batch = batch_new(B, s->o.seq);
    float* host = (float*)host_alloc(sizeof(float) * (size_t)BT);
    double sums[2] = {0, 0};   // loss, tokens
    for (int first = 0; first < rows; first += B * ranks) {
        batch_fill_rows(&batch, d, first + s->comm->rank * B);
        progress_work("evaluating", first, rows);
        model_loss(model, &batch.arrays, losses);
        s->ops->download(host, losses, sizeof(float) * (size_t)BT);
        for (int i = 0; i < BT; i++) sums[0] += host[i];
        sums[1] += batch.scored;
    }
    progress_work(NULL, 0, 0);
    s->comm->host_sum(sums, 2);
    free(host);
    batch_free(&batch);
    Evaluation e = {sums[0] / sums[1], (size_t)sums[1], s->recipe->name, s->ops->act};
    return e;
}

void print_evaluation(const char* path, Evaluation e) {
    printf("%s: loss %.6f  perplexity %.4f  over %zu tokens, recipe %s in %s\n", path, e.loss, exp(e.loss), e.scored, e.recipe, fmt_name(e.act));
}

// The metric of --metric; NULL: the loss.
static const Metric* metric_of(const Options* o) { return metric_find(o->metric); }

static int score_file(const Options* o) {
    const Metric* metric = metric_of(o);
    if (!metric) user_error("eval --score: choose what judges the answers with --metric %s", metric_names());
    char* line = answers_score(o->score, metric);
    puts(line);
    free(line);
    return 0;
}

static void evaluate_answers(Session* s) {
    const Options* o = &s->o;
    Dataset* d = open_prompts(s, o->data, false);
    load_weights(s, false);
    Verdict v = judge_answers(s, d, metric_of(o), o->answers);
    if (leads(s)) puts(v.line);
    free(v.line);
    dataset_free(d);
}

static void evaluate_loss(Session* s) {
    const Options o = s->o;
    Dataset* d = open_data(s, o.data, DATA_TO_EVALUATE);
    load_weights(s, false);
    Model* model = model_new(&s->config, s->ops, s->recipe, s->shard, model_options(s, false));
    float* losses = (float*)s->ops->alloc(sizeof(float) * (size_t)o.batch * o.seq);
    Evaluation e = evaluate(s, model, d, losses);
    if (leads(s)) print_evaluation(o.data, e);
    s->ops->release(losses);
    model_free(model);
    dataset_free(d);
}

int command_eval(Options o) {
    if (o.score) return score_file(&o);
    Session s = session_open(o, EVAL);
    if (leads(&s)) status_open();
    open_tokenizer(&s);
    if (metric_of(&o)) evaluate_answers(&s);
    else evaluate_loss(&s);
    status_close();
    session_close(&s);
    return 0;
}
