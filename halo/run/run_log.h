// What a training run reports: a line a step on the terminal, or beside a live line (status.h) only some of these; and in --log DIR the
// same as JSON (log.jsonl), as TensorBoard's events and as a picture (loss.svg). --log FILE.jsonl writes the JSON alone. Only rank 0 logs.
//
// A file of the log that cannot be written is reported once, and the run goes on without that file.
#ifndef HALO_RUN_LOG_H
#define HALO_RUN_LOG_H

#include "../../data/tfevents.h"
#include "answer.h"
#include "eval.h"
#include "run_chart.h"
#include "train_step.h"

enum { kRecentLosses = 32 };

typedef struct {
    const Session* s;
    FILE* file;             // log.jsonl, or NULL
    EventFile events;       // fd -1: none
    char *picture, *title;  // the path of loss.svg (NULL: none), and the title in it
    RunCurves curves;
    double pictured_at, picture_seconds;   // when loss.svg was last drawn, and how long the drawing took
    int steps, first_step;      // of the whole run; the first step that this process does
    double step_seconds;        // mean time from step to step, smoothed
    double step_ended_at, line_at, memory_at;   // seconds_now of the last step's end, step line, and look at the used memory
    double used_bytes;
    int timed;                  // steps that step_seconds has seen
    double ceiling_tflops;      // of plain products (log_ceiling); 0: not measured
    double recent[kRecentLosses];   // the latest finite losses: the n-th is at n % kRecentLosses
    int losses;                     // how many there were
} StepLog;

// TFLOP/s of plain products, against which the live line shows a step's; 0 where no live line shows it. Call it before the weights are
// loaded, since it needs memory for a moment.
C_API double log_ceiling(const Session* s);
// A resumed run appends to its log, after removing what the log has of steps after `steps_done`, which will be done again.
C_API StepLog log_open(const Session* s, int steps, int64_t steps_done, double ceiling_tflops);
C_API void log_close(StepLog* log);
C_API void log_step(StepLog* log, int step, double epoch, StepResult r, float lr, double seconds);
C_API void log_quant_stats(StepLog* log, const Trainer* t, int step);
C_API void log_evaluation(StepLog* log, const char* path, int step, Evaluation e);
C_API void log_verdict(StepLog* log, const char* metric, int step, Verdict v);

#endif
