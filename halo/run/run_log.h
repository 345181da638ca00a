// What a training run tells: a line a step, or on a terminal a live line (status.h) with a step's line now and then; and in --log DIR
// the same as JSON (log.jsonl), as TensorBoard's events, and as a picture (loss.svg). --log FILE.jsonl is the JSON alone. Only rank 0 logs.
//
// Whatever of --log cannot be written any more is said once, and the run goes on without it.
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
    char *picture, *title;  // loss.svg's path (NULL: none), and its title
    RunCurves curves;
    double pictured_at, picture_seconds;   // when the picture was last drawn, and how long that took
    int steps, first_step;      // of the whole run, and the first that this process makes
    double step_seconds;        // smoothed, with what lies between steps
    double step_ended_at, line_at, memory_at;   // seconds: the last step's end, the last step line, the last look at the memory
    double used_bytes;
    int timed;                  // steps in step_seconds
    double ceiling_tflops;      // of plain products; 0: not measured
    double recent[kRecentLosses];   // finite losses, the newest at losses % kRecentLosses
    int losses;
} StepLog;

// TFLOP/s of plain products, for the share of them that a live line shows; 0 where it shows none. To be called before the weights are
// loaded: it needs memory for a moment.
C_API double log_ceiling(const Session* s);
// A resumed run goes on with its log, after taking away what is there of the steps behind `steps_done`: they will be made again.
C_API StepLog log_open(const Session* s, int steps, int64_t steps_done, double ceiling_tflops);
C_API void log_close(StepLog* log);
C_API void log_step(StepLog* log, int step, double epoch, StepResult r, float lr, double seconds);
C_API void log_quant_stats(StepLog* log, const Trainer* t, int step);
C_API void log_evaluation(StepLog* log, const char* path, int step, Evaluation e);
C_API void log_verdict(StepLog* log, const char* metric, int step, Verdict v);

#endif
