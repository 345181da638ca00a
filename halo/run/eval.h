// The command eval, and the evaluations of a training run: the mean loss over a data file, under the products of a recipe.
#ifndef HALO_RUN_EVAL_H
#define HALO_RUN_EVAL_H

#include "session.h"

typedef struct {
    double loss;   // mean over the scored tokens
    size_t scored;
    const char* recipe;   // of the blocks' products
    Fmt act;              // of everything else
} Evaluation;

// Goes over all rows of `d`, divided among the ranks; all ranks call it together. `losses`: scratch, (batch, seq) floats on the backend.
C_API Evaluation evaluate(const Session* s, Model* model, Dataset* d, float* losses);
C_API void print_evaluation(const char* path, Evaluation e);
C_API int command_eval(Options o);

#endif
