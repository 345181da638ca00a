// What reading and writing a Hugging Face model directory agree on: the weights' file names and the shapes parameters are
// stored in.
#ifndef DATA_HF_LAYOUT_H
#define DATA_HF_LAYOUT_H

#include "../halo/llama3.h"
#include "safetensors.h"

enum { kParamNameBytes = 128 };
#define HF_SINGLE_NAME "model.safetensors"
#define HF_INDEX_NAME "model.safetensors.index.json"
#define HF_ADAPTER_NAME "adapter_model.safetensors"
#define HF_ADAPTER_CONFIG_NAME "adapter_config.json"
#define HF_CHECKSUMS_NAME "checksums.json"   // of the weights' files, beside them: {"model.safetensors": XXH3-128}

static inline int spec_layers(const ParamSpec* spec, int layers) { return spec->per_layer ? layers : 1; }

// The shape a parameter is stored in: norms as vectors, everything else as matrices.
static inline void set_shape(Tensor* tensor, const ParamSpec* spec) {
    tensor->rank = 0;
    if (spec->rows > 1) tensor->shape[tensor->rank++] = (size_t)spec->rows;
    tensor->shape[tensor->rank++] = (size_t)spec->cols;
}

#endif
