// Rows of a dataset laid out as the arrays that the model reads.
//
// A document (one example) of n tokens fills n - 1 neighbouring positions of its row: position i holds token i and, as its
// target, token i + 1 if that is to be predicted. Positions count from 0 in each document, and attention stays inside it.
// Positions that no document fills are padding: token 0, no target, and each a document of its own, so that it neither sees
// nor is seen by others, and costs attention next to nothing.
#ifndef DATA_BATCH_H
#define DATA_BATCH_H

#include "../halo/llama3.h"
#include "dataset.h"

typedef struct {
    int B, T;         // B: rows that there is room for
    Batch arrays;     // for the model, with as many rows as were filled; points into `storage`
    int scored;       // targets that are not -100
    int used;         // positions that are not padding
    int* storage;     // the six arrays, and scratch
} RowBatch;

// Room for B rows of T positions on the host.
C_API RowBatch batch_new(int B, int T);
C_API void batch_free(RowBatch* b);
// Lays out a micro-batch of at most B rows; T has to be the dataset's seq. Rows past the end of the micro-batch, or of the epoch, are all
// padding. With R ranks, rank r's micro-step a is micro-batch a * R + r of the step.
C_API void batch_fill(RowBatch* b, const Dataset* d, MicroBatch m);
// Lays out the B rows from `first` on.
C_API void batch_fill_rows(RowBatch* b, const Dataset* d, int first);
// Full rows of random tokens below V, each predicting its successor: for timing.
C_API void batch_random(RowBatch* b, int V, uint64_t seed);

#endif
