// What a data file comes to as rows and steps of training.
#ifndef HALO_RUN_EPOCHS_H
#define HALO_RUN_EPOCHS_H

#include "session.h"

typedef struct {
    int rows, steps;        // of the first epoch
    int micro_rows;         // of a micro-step, on average, rounded up: packing fills fewer rows than --batch
    int step_examples;      // of a step, on average, rounded up
    double filled;          // share of the rows' places that hold a token
    double step_tokens;     // of a step, on average, without padding
    double run_steps;       // of the whole run
} Epochs;

// The options to load training data with, for `ranks` ranks.
C_API DataOptions training_data_options(const Session* s, int ranks);
// `d`: loaded with these options.
C_API Epochs epochs_of(const Options* o, int ranks, Dataset* d);
// Three lines of a table.
C_API void epochs_print(const Epochs* e);

#endif
