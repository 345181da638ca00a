// Files of flags: what --config reads, and what a run leaves beside its model.
#ifndef HALO_RUN_CONFIG_FILE_H
#define HALO_RUN_CONFIG_FILE_H

#include "../../data/model_files.h"
#include "../options.h"

// Hands over the settings of a TOML file (data/toml.h); the ReadSettings of options_parse.
C_API void read_config(const char* path, void (*take)(void* self, const Setting* setting), void* self);
// Puts train_llama3.toml, all flags of the run with their values, among the files that are written with the model.
C_API void note_config(ModelFiles* files, const Options* o);

#endif
