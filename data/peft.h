// Adapters as PEFT lays them out: a directory with adapter_config.json and adapter_model.safetensors. LoRA's are read and written, HUT's
// written as PEFT's HiRA (from 0.20 on; Huang et al. 2025): y = (W (.) (1 + B A)) x, which is HUT with the scale in B.
//
// Reading is strict: a configuration that means anything else than y = W x + scale B A x on the same matrices in each layer (DoRA,
// biases, whole modules, several ranks, initialisations that change the base) is a user_error, and so is a tensor that is missing,
// superfluous or of another shape. A written configuration has the keys that PEFT's LoraConfig and vLLM know, and no others.
// Source: https://huggingface.co/docs/peft (checkpoint format, LoraConfig).
#ifndef DATA_PEFT_H
#define DATA_PEFT_H

#include "hf_write.h"

typedef struct Peft Peft;

// Opens the adapter of DIR for a model of these sizes, and fills config->adapter but for its seed and dropout, which are the caller's.
C_API Peft* peft_open(const char* dir, Config* config);
C_API void peft_close(Peft* peft);
// What its configuration calls the base model: a folder or a name on the hub. NULL: it does not say.
C_API const char* peft_base(const Peft* peft);
// Rows of parameter `spec` (an index into adapter_specs) of a layer as floats.
C_API void peft_rows(const Peft* peft, int spec, int layer, int first_row, int rows, float* dst);

typedef struct {
    const char* dir;             // made if absent; NULL: call `rows` as rank 0 does, write nothing
    const char* base;            // base_model_name_or_path
    const ModelFiles* files;     // of the base: the tokenizer's, chat templates and generation_config.json are written beside the adapter
    Fmt fmt;                     // of the stored factors: F32 or BF16
} PeftOutput;

// Writes config's adapter. `rows` delivers rows of adapter_specs in the output's format; of HUT B times the scale. Whole or not at all,
// as hf_write.h says of models; other files of the folder stay.
C_API void peft_write(const PeftOutput* output, const Config* config, HfRows rows, void* context);

#endif
