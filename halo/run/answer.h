// Answers to prompts: to one prompt, or to those of a data file, for the commands generate and eval and the evaluations of a training run.
#ifndef HALO_RUN_ANSWER_H
#define HALO_RUN_ANSWER_H

#include "../../data/hf_config.h"
#include "../../data/metric.h"
#include "../generate.h"
#include "session.h"

// Opens a data file whose examples are to be answered; prompts may be as long as the model's positions allow. A file of plain texts is a
// user_error. held_out: only the examples that --val-split keeps from training.
C_API Dataset* open_prompts(const Session* s, const char* path, bool held_out);

// Answers the prompts of all examples with the weights of the session's shard, and hands the answers over in the order of the file as they
// are done. All ranks call it together and get the same answers, of which each makes its share where an answer does not depend on its
// neighbours, else all; the memory of the model that generates is given back.
typedef void (*TakeAnswer)(void* context, const Answer* answer);
C_API void answer_examples(const Session* s, const Dataset* d, TakeAnswer take, void* context);

// A user_error unless the free memory can hold the model that answers d's prompts. Called at a run's start, not at its first evaluation.
C_API void check_answers_fit(const Session* s, const Dataset* d);

// Answers one prompt on stdout, character by character.
C_API void answer_prompt(const Session* s, const char* prompt);

// A model for one answer at a time, for as many positions as it has and memory allows, and what it decodes with; the caller sets d's token,
// end and context, and frees the model. `stop` has to live as long as d.
C_API Model* open_talker(const Session* s, Decoding* d, int stop[kMaxEos + 1]);

// What `metric` says of all answers together.
typedef struct {
    char* line;        // the summary (metric.h); the caller frees it
    double percent;    // of answers that are right
    int count;
} Verdict;
// `answers`: NULL, or the file that gets the answers and their verdicts; rank 0 writes it.
C_API Verdict judge_answers(const Session* s, const Dataset* d, const Metric* metric, const char* answers);

#endif
