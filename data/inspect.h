// What a dataset looks like to the model: its first examples as text or as JSON lines.
#ifndef DATA_INSPECT_H
#define DATA_INSPECT_H

#include "dataset.h"

typedef struct {
    int count;         // examples to show
    bool json;         // only a line an example, {"text", "tokens", "trained"}; `trained` has a 1 for each trained token, else 0
    bool colour;       // trained tokens in green, for a terminal; else between [[ and ]]
} InspectOptions;

// Writes the first examples of a dataset that was loaded with DataOptions.inspect and at least `count` texts, and then (not with json)
// the counts: truncated, skipped, untrained, lost, kept special tokens.
C_API void inspect_dataset(const Dataset* d, const Tokenizer* tokenizer, const InspectOptions* options, FILE* out);

#endif
