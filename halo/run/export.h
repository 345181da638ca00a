// The command export, and the end of a training run: a model as a Hugging Face directory or a GGUF file.
#ifndef HALO_RUN_EXPORT_H
#define HALO_RUN_EXPORT_H

#include "session.h"

// All ranks call it together; rank 0 writes.
C_API void write_model(Session* s, const char* dir);
// With --resume and the flags of a run, its newest checkpoint; without, --model in the format of this backend. --out gets a Hugging Face
// directory, --gguf a file for llama.cpp.
C_API int command_export(Options o);

#endif
