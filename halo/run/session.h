// What every command sets up: backend, ranks, model, tokenizer, weights; and what the flags come to for model, shard and data.
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
    const char* tokenizer_path;   // what messages call the place of the tokenizer; NULL: the command line names none
    ModelFiles* files;        // config.json and the tokenizer's files as they were at the start: the output's come from here
    ChatFormat chat;
    Shard* shard;
    int remade;               // layers whose quantized weights are made again for each pass (--codes); print_start decides it
} Session;

static inline bool adapts(const Session* s) { return s->config.adapter.kind != ADAPTER_NONE; }
// Rank 0 prints and writes what all ranks have in common.
static inline bool leads(const Session* s) { return s->comm->rank == 0; }
// What ranks and backend have taken of the backend's memory for themselves before the first free_bytes; memory_plan counts it.
static inline size_t held_bytes(const Session* s) { return s->comm->staging_bytes + s->ops->workspace_bytes(); }
static inline double gib(size_t bytes) { return (double)bytes / (1 << 30); }

// Chooses the backend, joins the other ranks, checks the flags (options_check), reads the model's config.json and finds the recipe.
// `command`: its bit (options.h).
C_API Session session_open(Options o, int command);
C_API void session_close(Session* s);
C_API void open_tokenizer(Session* s);   // and the chat template
C_API void load_tokenizer(Session* s);   // the tokenizer alone, from the files of the session
C_API void open_chat(Session* s);        // the chat template alone, for the tokenizer that is open
// DATA_HELD_OUT: the records that --val-split keeps from training, and no others. Data to evaluate on have no steps: --pack auto fills their
// rows as --pack on does.
typedef enum { DATA_TO_TRAIN_ON, DATA_TO_EVALUATE, DATA_HELD_OUT } DataUse;
C_API Dataset* open_data(const Session* s, const char* path, DataUse use);
// Makes the shard and fills it; `train`: with gradients and optimizer state.
C_API void load_weights(Session* s, bool train);
// Ends the job if a rank was started with another model, other data or other flags than rank 0; all ranks call it together.
C_API void ranks_agree(const Session* s, const DataStats* data);

// The flags, as those who act on them want them.
C_API ModelOptions model_options(const Session* s, bool train);
C_API ShardOptions shard_options(const Session* s, bool train);
C_API DataOptions data_options(const Session* s);

C_API double seconds_now(void);   // from an arbitrary start

#endif
