// Rows and steps of training; see epochs.h.
#include "epochs.h"

#include <math.h>

DataOptions training_data_options(const Session* s, int ranks) {
    DataOptions options = data_options(s);
    if (s->o.pack == PACK_ROWS_AUTO) options.pack = PACK_AUTO;
    options.batch = s->o.batch;
    options.micro_batches = s->o.accum * ranks;
    return options;
}

Epochs epochs_of(const Options* o, int ranks, Dataset* d) {
    const DataStats* n = dataset_stats(d);
    double run_steps = count_steps(o, d), places = (double)(n->tokens - (size_t)n->examples);   // an example's last token takes no place
    Epochs e = {dataset_rows(d), dataset_steps(d), 0, 0, 0, 0, run_steps};
    double mean_rows = (double)e.rows / ((double)e.steps * o->accum * ranks);
    e.micro_rows = min_int((int)ceil(mean_rows), o->batch);
    e.step_examples = ceil_div(n->examples, e.steps);
    e.filled = places / ((double)e.rows * o->seq);
    e.step_tokens = places / e.steps;
    return e;
}

void epochs_print(const Epochs* e) {
    printf("  %-32s %10d   %.0f%% of their places filled\n", "rows an epoch", e->rows, 100 * e->filled);
    printf("  %-32s %10d   %d examples each\n", "steps an epoch", e->steps, e->step_examples);
    printf("  %-32s %10.0f\n", "steps of the run", e->run_steps);
}
