// What a dataset looks like to the model: its first examples as text or as JSON lines.
#ifndef DATA_INSPECT_H
#define DATA_INSPECT_H

#include "dataset.h"

typedef struct {
    int count;         // examples to show
    bool json;         // only a line an example, {"text", "tokens", "trained"}; `trained` has a 1 for each trained token, else 0
    bool colour;       // trained tokens in green, for a terminal; else between [[ and ]]
} InspectOptions;

// Writes the first examples of a dataset that was loaded with DataOptions.inspect and at least `count` texts.
C_API void inspect_dataset(const Dataset* d, const Tokenizer* tokenizer, const InspectOptions* options, FILE* out);

// Writes what the examples are like, in lines of at most 80 columns: counts, a histogram of their lengths with the longest ones and where they
// stand, and what is likely a mistake: a beginning token twice, answers that no end token closes (such a model does not learn to stop), empty
// answers, examples that are there already, token for token. `chat` and `seq`: of the options that the dataset was loaded with.
C_API void inspect_summary(const Dataset* d, const Tokenizer* tokenizer, const ChatFormat* chat, int seq, FILE* out);

#endif
