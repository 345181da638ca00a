// The Llama-3 model: its configuration and the ONE list of its parameters. Forward, backward and update follow in
// llama3.c, written once for every backend.
#ifndef HALO_LLAMA3_H
#define HALO_LLAMA3_H

#include "recipe.h"

typedef enum { ROPE_DEFAULT, ROPE_LLAMA3 } RopeType;

typedef struct {
    int V, C, L, NH, NKV, HD, F;
    int max_T;            // max_position_embeddings
    float norm_eps;
    double rope_theta;
    RopeType rope_type;   // llama3: the four numbers below (Hugging Face rope_scaling / rope_parameters)
    double rope_factor, rope_low_freq, rope_high_freq;
    int rope_original_T;
    bool tied;            // lm_head is the embedding
    int bos, eos;         // -1 if config.json names none
} Config;

typedef struct {
    const char* name;     // Hugging Face name; a per-layer name has one %d
    int rows, cols;       // (1, C) for norms
    bool per_layer;       // one in each of the L layers
    bool linear;          // a linear's weight: prepared by the recipe
    bool decay;           // weight decay applies
} ParamSpec;

enum { kMaxParamSpecs = 12 };

// The list, in storage order: embedding, the layer's tensors, final norm, head (left out when tied). Returns the count.
C_API int param_specs(const Config* config, ParamSpec specs[kMaxParamSpecs]);
// Sizes that contradict each other are a user_error that names the key of config.json.
C_API void config_check(const Config* config, const char* where);
// "llama3.2-1b", "llama3.2-3b", "llama3-8b", ...; false if there is no such preset.
C_API bool config_preset(Config* config, const char* name);

#endif
