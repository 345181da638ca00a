// What a training run reports: a line a step on the terminal, and the same as JSON in --log DIR/log.jsonl. Only rank 0 logs.
#ifndef HALO_RUN_LOG_H
#define HALO_RUN_LOG_H

#include "answer.h"
#include "eval.h"
#include "train_step.h"

enum { kRecentLosses = 32 };

typedef struct {
    FILE* file;   // log.jsonl, or NULL
    int steps;
    double mean_step_seconds;   // smoothed
    double recent[kRecentLosses];   // the latest finite losses: the n-th is at n % kRecentLosses
    int losses;                     // how many there were
} StepLog;

// A resumed run appends to its log, after removing the lines of steps after `steps_done`, which will be done again.
C_API StepLog log_open(const Session* s, int steps, int64_t steps_done);
C_API void log_close(StepLog* log);
C_API void log_step(StepLog* log, int step, double epoch, StepResult r, float lr, double seconds);
C_API void log_quant_stats(StepLog* log, const Trainer* t, int step);
C_API void log_evaluation(StepLog* log, const char* path, int step, Evaluation e);
C_API void log_verdict(StepLog* log, const char* metric, int step, Verdict v);

#endif
