// The command line: ONE table of flags makes the parser, --help, the start-up print, and what a resumed run has to share.
#ifndef HALO_OPTIONS_H
#define HALO_OPTIONS_H

#include "llama3.h"
#include "optim.h"

// Choices, in the order of their words in the table of flags. Those that the model and the optimizer know have their own types:
// Recompute (llama3.h), Schedule (optim.h), Fmt for a choice of "fp32" or "bf16".
typedef enum { BACKEND_AUTO, BACKEND_CUDA, BACKEND_CPU, BACKEND_CPU_F32 } BackendChoice;
typedef enum { GRAPHS_AUTO, GRAPHS_OFF } GraphsChoice;
typedef enum { HEAD_BF16, HEAD_FP8 } HeadChoice;
typedef enum { MASTER_FP32, MASTER_BF16_SR } MasterChoice;
typedef enum { ON_NAN_STOP, ON_NAN_SKIP } NanChoice;
typedef enum { ADAPT_NONE, ADAPT_LORA, ADAPT_HUT } AdaptChoice;
typedef enum { LONG_ROWS_TRUNCATE, LONG_ROWS_SKIP } LongChoice;
typedef enum { PACK_ROWS_AUTO, PACK_ROWS_ON, PACK_ROWS_OFF } PackChoice;
typedef enum { SPECIAL_TOKENS_AUTO, SPECIAL_TOKENS_TEMPLATE, SPECIAL_TOKENS_ANSWERS, SPECIAL_TOKENS_ALL } SpecialTokensChoice;
typedef enum { CODES_AUTO, CODES_KEEP, CODES_REMAKE } CodesChoice;
typedef enum { GGUF_BF16, GGUF_F16, GGUF_Q8_0 } GgufChoice;

typedef struct {
    const char *model, *preset, *from_scratch, *tokenizer, *data, *val, *chat, *date, *prompt_file;
    const char *level, *dtype, *recipe;   // recipe.h knows their words
    const char *out, *log, *prompt, *metric, *val_metric, *answers, *score, *gguf, *resume_from;
    const char *target, *adapter_dir, *config;
    BackendChoice backend;
    GraphsChoice graphs;
    HeadChoice head_dtype;
    MasterChoice master;
    AdaptChoice adapter;
    LongChoice long_policy;
    PackChoice pack;
    SpecialTokensChoice special_tokens;
    GgufChoice gguf_type;
    CodesChoice codes;
    NanChoice on_nan;
    Recompute recompute;
    Schedule schedule;
    Fmt grad_dtype, state_dtype;
    int layers, batch, seq, accum, steps, warmup, logits_mb, token_block, zero, prefetch, save_every, keep, eval_every, quant_stats, max_tokens, seed, timeout, limit, examples, rank;
    int slots, generate, gpus;
    double lr, epochs, weight_decay, clip, beta1, beta2, eps, shard_gb, temperature, top_p, val_split, alpha, dropout, gpu_gb;
    bool demo;         // train without a model and data: the demo is meant, with flags of its own where none are given
    bool share_batch;  // of the demo: --batch is what all ranks have together
    bool train_on_prompt, qfsdp, resume, keep_best, overwrite, profile, rslora, merge, json, print_config, help;
} Options;

enum { TRAIN = 1, EVAL = 2, GENERATE = 4, BENCH = 8, EXPORT = 16, INSPECT = 32, VERIFY = 64, PLAN = 128, DOCTOR = 256, kAll = 31 };   // kAll: those that compute

enum { kAuto = -1 };   // a whole number (warmup, zero, slots) that was left at "auto"
enum { kEvalRows = 8, kMostSlots = 1024 };   // rows of eval's batches unless --batch says otherwise; answers side by side, at most

// A row of the program's table of commands. To add a command: give it a bit above, and fill a row in train_llama3.cu.
typedef struct {
    const char* name;
    int bit;
    const char* help;
    int (*run)(Options o);   // the exit code
} Command;

// The flags of training with their values ("" for an unset one). all: every one, which the ranks of a run must have in common; else those
// that a run resumed from its checkpoints must keep. Returns how many; `flags` must not move, since values may point into it.
enum { kMaxRunFlags = 128 };
typedef struct {
    const char *name, *value;
    char text[64];
} RunFlag;
C_API int options_flags(const Options* o, RunFlag flags[kMaxRunFlags], bool all);

// The table of flags, a row at a time; false: there is no such row.
typedef struct {
    const char *name, *values, *fallback, *help;   // values: "a|b|c", what the value is, or NULL for a switch; fallback: or NULL
    int commands;                                  // that take it
} FlagInfo;
C_API bool options_flag_info(int row, FlagInfo* info);

// Sets a flag of a command by its name. A switch takes "yes" or "no". Returns false if the command has no such flag; a value that the flag
// cannot have is a user_error that names the flag as the command line does.
C_API bool options_set(Options* o, int command, const char* name, const char* value);

// A flag's value from a file (--config). The key is the flag's name without dashes.
typedef enum { SETTING_STRING, SETTING_INTEGER, SETTING_FLOAT, SETTING_BOOLEAN, SETTING_STRINGS } SettingType;
typedef struct {
    const char *key, *value;   // of a boolean "true" or "false", of an array its strings separated by commas
    SettingType type;
    const char* where;         // "run.toml:3"
} Setting;
// Reads the file and calls take(self, ...) for each of its settings, in their order.
typedef void (*ReadSettings)(const char* path, void (*take)(void* self, const Setting* setting), void* self);

// The rules between flags, asked before anything is loaded; a contradiction is a user_error. `ranks`: of the job.
C_API void options_check(const Options* o, int command, int ranks);
// The recipe that --recipe, or --level and --dtype, name.
C_API const Recipe* options_recipe(const Options* o);

// The adapter that the flags describe, ADAPTER_NONE without --adapter. --target is a comma-separated list of matrices, or all-linear.
C_API Adapter options_adapter(const Options* o);
// Gives the flags of an adapter the values of the one in --adapter-dir, which count. A flag that has been set to another value is a
// user_error.
C_API void options_take_adapter(Options* o, const Adapter* own);

// The options, and the command that the first argument names (without one: the first of the table): the defaults, then the file that --config
// names, read by `read`, then the command line, each over what came before. Anything wrong is a user_error; --help and --print-config
// print and exit.
C_API Options options_parse(int argc, char** argv, const Command* commands, int command_count, ReadSettings read, const Command** command);
// All values of a command's flags as the lines of a file for --config, which reads back to the same options.
C_API void options_write(FILE* out, const Options* o, int command);
// The flags of training that are not at their default, as a shell takes them: "--preset llama3-8b --batch 4"; to be freed.
C_API char* options_line(const Options* o);
// Writes a word as a shell reads it: within quotes where it holds characters that a shell gives a meaning.
C_API void print_shell_word(FILE* out, const char* word);

#endif
