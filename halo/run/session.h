// What every command sets up: backend, ranks, model, tokenizer, weights; and the options of model, shard and data that follow from the flags.
#ifndef HALO_RUN_SESSION_H
#define HALO_RUN_SESSION_H

#include "../../data/dataset.h"
#include "../../data/hf_write.h"
#include "../../data/model_source.h"
#include "../../data/peft.h"
#include "../options.h"

typedef struct {
    Options o;
    const Comm* comm;
    const Ops* ops;
    const Recipe* recipe;     // of the blocks' linears
    Config config;
    ModelSource* source;      // NULL: random weights
    const char* source_path;  // of --model or --from-scratch; NULL for a preset
    Peft* peft;               // of --adapter-dir; NULL: none, or a new adapter
    Tokenizer* tokenizer;     // NULL if the command needs none
    const char* tokenizer_path;   // where the tokenizer is, for messages; NULL: the command line names no place
    ModelFiles* files;        // config.json and the tokenizer's files as they were at the start; written beside the output's weights
    ChatFormat chat;
    Shard* shard;
    int remade;               // layers whose quantized weights are made again for each pass (--codes); print_start decides it
} Session;

static inline bool adapts(const Session* s) { return s->config.adapter.kind != ADAPTER_NONE; }
// Is this rank 0, which prints and writes for all ranks?
static inline bool leads(const Session* s) { return s->comm->rank == 0; }
// The backend's memory that comm and backend took for themselves before the first free_bytes; memory_plan counts it as staging.
static inline size_t held_bytes(const Session* s) { return s->comm->staging_bytes + s->ops->workspace_bytes(); }
static inline double gib(size_t bytes) { return (double)bytes / (1 << 30); }

// Chooses the backend, joins the other ranks, checks the flags (options_check), reads the model's config.json and finds the recipe.
// `command`: its bit (options.h).
C_API Session session_open(Options o, int command);
C_API Session session_on(Options o, int command, const Ops* ops, const Comm* comm);   // on a backend and ranks that the caller chose
C_API void session_close(Session* s);
C_API void open_tokenizer(Session* s);   // the tokenizer and the chat template
C_API void load_tokenizer(Session* s);   // the tokenizer alone, from the files of the session
C_API void open_chat(Session* s);        // the chat template alone, for the tokenizer that is open
// DATA_HELD_OUT: only the records that --val-split keeps from training. Data to evaluate on are not cut into steps, so that --pack auto
// fills their rows as --pack on does.
typedef enum { DATA_TO_TRAIN_ON, DATA_TO_EVALUATE, DATA_HELD_OUT } DataUse;
C_API Dataset* open_data(const Session* s, const char* path, DataUse use);
C_API double count_steps(const Options* o, Dataset* d);   // optimizer steps of the whole run; leaves epoch 0 planned
// Makes the shard and fills it; `train`: with gradients and optimizer state.
C_API void load_weights(Session* s, bool train);
// Ends the job if a rank was started with another model, other data or other flags than rank 0; all ranks call it together.
C_API void ranks_agree(const Session* s, const DataStats* data);

// The options that follow from the flags.
C_API ModelOptions model_options(const Session* s, bool train);
C_API ShardOptions shard_options(const Session* s, bool train);
C_API DataOptions data_options(const Session* s);

#endif
