// Hugging Face's config.json: read into a Config, written for a model that has none, and copied with another dtype.
//
// Both spellings are read: rope_theta + rope_scaling + torch_dtype (transformers 4) and rope_parameters + dtype
// (transformers 5). A setting that asks for another function than this program's model computes (biases, another activation,
// another kind of RoPE scaling) is a user_error that names the key.
#ifndef DATA_HF_CONFIG_H
#define DATA_HF_CONFIG_H

#include "../halo/llama3.h"
#include "model_files.h"

// Reads DIR/config.json; what it holds has passed config_check. Config.eos is the first of a list of ids.
C_API void hf_config_read(const char* dir, Config* config);
// As hf_config_read, from DIR's files as they have been read.
C_API void hf_config_of_files(const ModelFiles* files, const char* dir, Config* config);
// As hf_config_read, from the text of a config.json; `where` begins the messages.
C_API void hf_config_parse(const char* text, size_t bytes, const char* where, Config* config);

// Every id that ends a generated text: those of config.json, then further ones of generation_config.json; either file may be absent.
// Returns how many. `where` (their directory) begins the messages.
enum { kMaxEos = 16 };
C_API int hf_config_eos(const ModelFiles* files, const char* where, int ids[kMaxEos]);

// The text of a config.json; the caller frees it.
C_API char* hf_config_text(const Config* config, Fmt dtype);              // made from the configuration
C_API char* hf_config_copy(const char* dir, Fmt dtype);                   // DIR's, byte for byte but for the dtype's value

#endif
