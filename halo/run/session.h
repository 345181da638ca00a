// What every command sets up: backend, ranks, model, tokenizer, weights; and what the flags come to for model, shard and data.
#ifndef HALO_RUN_SESSION_H
#define HALO_RUN_SESSION_H

#include "../../data/dataset.h"
#include "../../data/hf_read.h"
#include "../../data/hf_write.h"
#include "../options.h"

typedef struct {
    Options o;
    const Comm* comm;
    const Ops* ops;
    const Recipe* recipe;     // of the blocks' linears
    Config config;
    HfModel* source;          // NULL: random weights
    const char* source_dir;   // of config.json; NULL for a preset
    Tokenizer* tokenizer;     // NULL if the command needs none
    const char* tokenizer_dir;
    ChatFormat chat;
    Shard* shard;
} Session;

// Rank 0 prints and writes what all ranks have in common.
static inline bool leads(const Session* s) { return s->comm->rank == 0; }
static inline double gib(size_t bytes) { return (double)bytes / (1 << 30); }

// Chooses the backend, joins the other ranks, checks the flags (options_check), reads the model's config.json and finds the recipe.
// `command`: its bit (options.h).
C_API Session session_open(Options o, int command);
C_API void session_close(Session* s);
C_API void open_tokenizer(Session* s);   // and the chat template
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
