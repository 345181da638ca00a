// Data files as tokenized examples, and the order in which an epoch visits them.
//
// An example of n tokens takes n - 1 positions of a row: the last token is only ever predicted. A row holds `seq`
// positions: one example, or, packed, several that do not see each other. An epoch's rows are one global list, made from
// (seed, epoch) and the size of a global batch, so that any number of ranks cut the same list and a resumed run finds its place by the
// number of its step.
//
// A global batch, the rows of one optimizer step, is cut into `micro_batches` (accum x ranks, however these two multiply to it):
//   PACK_OFF    of `batch` rows each, an example a row
//   PACK_ON     of `batch` rows each, as full as they get
//   PACK_AUTO   with the examples of PACK_OFF, batch x micro_batches of them, on as few rows as first fit decreasing needs, dealt out
//               evenly: with R rows each has R / micro_batches of them, and the first R % micro_batches one more
#ifndef DATA_DATASET_H
#define DATA_DATASET_H

#include "chat.h"

typedef enum { LONG_TRUNCATE, LONG_SKIP } LongPolicy;
typedef enum { PACK_OFF, PACK_ON, PACK_AUTO } PackMode;

// All but the first three may stay zero.
typedef struct {
    const ChatFormat* chat;
    int seq;                  // positions in a row
    PackMode pack;
    int batch;                // rows of a micro-batch, at most; batch and micro_batches are needed for PACK_AUTO and dataset_micro_batch
    int micro_batches;        // of a global batch: micro-steps x ranks
    bool train_on_prompt;     // score every token, not only completions and their end tokens
    LongPolicy long_policy;   // conversations above seq + 1 tokens: cut from the prompt side (chat_encode_within), or leave out
    const char* prompt_file;  // see records_read
    double val_split;         // this share of the records, chosen by their hashes, is held out
    bool held_out;            // take only the held-out records, instead of all others
    int limit;                // only this many records, the first ones; 0: all
    bool inspect;             // keep examples with nothing to train, and tokens behind the last answer
    int texts;                // with `inspect`: keep the texts of this many examples, the first ones
} DataOptions;

typedef struct {
    int* tokens;              // (count)
    unsigned char* scored;    // (count): 1 for a token to predict; never the first token, which nothing precedes
    int count;                // 2 .. seq + 1
    int scored_count;
    int prompt_count;         // tokens before the last completion, from which it is generated; 0 for plain text
    int* prompt;              // (own_prompt_count) the tokens to generate from, if these are no beginning of `tokens`; else NULL
    int own_prompt_count;
    char* reference;          // the last completion as the file has it, NUL-terminated; NULL for plain text
    char* text;               // the rendered text, NUL-terminated; NULL where DataOptions.texts does not ask for it
    size_t text_bytes;
    const char* path;         // the file that its record stands in, and the line
    int line;
} Example;

typedef struct {
    int records;              // in the files
    int examples;             // to train on; a plain text longer than a row makes several
    int truncated;            // conversations that were shortened
    int skipped;              // records left out: too long (the completion alone, or by policy), or with nothing to predict
    size_t tokens;            // in all examples
    size_t scored;            // those of `tokens` that are to be predicted
    int untrained;            // how many of `skipped` (with `inspect`: of `examples`) have nothing to predict
    int lost;                 // answers that are not trained, because they are not found in the template's text of the conversation
    int parted;               // answers whose generation prompt the template does not write into the whole conversation
    int kept;                 // spellings of special tokens in the data that stayed text
} DataStats;

typedef struct Dataset Dataset;

// Reads and tokenizes all of `paths` (records_read; on all cores, the result does not depend on their number), then plans epoch 0 of
// seed 0. Malformed data, a template that fails, answers that are all empty, and data that leave no token to predict are user_errors.
C_API Dataset* dataset_load(const char* paths, const Tokenizer* tokenizer, const DataOptions* options);
// Prints what form each file was taken for, the first example as the model sees it, and what the user should know: a line each.
C_API void dataset_report(const Dataset* d, FILE* out);
C_API void dataset_free(Dataset* d);
C_API const DataStats* dataset_stats(const Dataset* d);
C_API const Example* dataset_example(const Dataset* d, int index);   // in the order of the file

// Shuffles and packs the rows of one epoch and returns their number. Packed, it may differ a little between epochs.
// PACK_ON is first fit: each example of the shuffled order goes into the first of the newest kOpenRows rows that has room.
enum { kOpenRows = 64 };
C_API int dataset_plan(Dataset* d, uint64_t seed, int epoch);
C_API int dataset_rows(const Dataset* d);
// The examples of one row: writes a pointer to their indices and returns their number. Rows past the end hold none.
C_API int dataset_row(const Dataset* d, int row, const int** examples);
// Tokens to predict in rows [first, first + rows); rows past the end count as empty. So every rank knows the number of the
// whole global batch before the step, which is what the loss is divided by.
C_API size_t dataset_scored(const Dataset* d, int first, int rows);

// ---- the planned epoch as optimizer steps
C_API int dataset_steps(const Dataset* d);
C_API size_t dataset_step_scored(const Dataset* d, int step);   // tokens to predict in the whole global batch
C_API int dataset_step_examples(const Dataset* d, int step);    // examples in the global batch
// A micro-batch: the `rows` rows from `first` on, laid out on `room` rows, of which the last may stay empty. `room` takes at most
// kRoomSizes values in all epochs: `batch`, and under PACK_AUTO two more that leave the fewest rows empty. Under PACK_AUTO no micro-batch
// with rows follows one without rows.
enum { kRoomSizes = 3 };
typedef struct {
    int first, rows, room;
} MicroBatch;
C_API MicroBatch dataset_micro_batch(const Dataset* d, int step, int index);

#endif
