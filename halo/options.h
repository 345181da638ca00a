// The command line: ONE table of flags makes the parser, --help, the start-up print, and what a resumed run has to share.
#ifndef HALO_OPTIONS_H
#define HALO_OPTIONS_H

#include "base.h"

typedef struct {
    const char *model, *preset, *from_scratch, *tokenizer, *data, *val, *chat, *long_policy;
    const char *level, *dtype, *recipe, *head_dtype, *backend, *recompute, *master, *grad_dtype, *state_dtype;
    const char *schedule, *out, *log, *prompt, *metric;
    int layers, batch, seq, accum, steps, warmup, logits_mb, token_block, zero, prefetch, save_every, keep, eval_every, quant_stats, max_tokens, seed, timeout;
    double lr, epochs, weight_decay, clip, beta1, beta2, eps, shard_gb, temperature, top_p;
    bool pack, train_on_prompt, qfsdp, resume, profile, help;
} Options;

enum { TRAIN = 1, EVAL = 2, GENERATE = 4, BENCH = 8, EXPORT = 16, kAll = 31 };

enum { kAuto = -1 };   // a whole number that was left at "auto"

// The flags that define a training run, with their values ("" for an unset one): what every run that goes on from its checkpoints
// has to share; or all of training's, which its ranks share. Returns how many; `flags` must not move, since values may point into it.
enum { kMaxRunFlags = 64 };
typedef struct {
    const char *name, *value;
    char text[64];
} RunFlag;
C_API int options_flags(const Options* o, RunFlag flags[kMaxRunFlags], bool all);

// The options and the command's bit. Anything wrong is a user_error; --help prints and exits.
C_API Options options_parse(int argc, char** argv, int* command);
// The values of a command's flags, for the start of a run.
C_API void options_print(const Options* o, int command);

#endif
