// The command export, and the end of a training run: a model as a Hugging Face directory or a GGUF file.
#ifndef HALO_RUN_EXPORT_H
#define HALO_RUN_EXPORT_H

#include "session.h"

enum { kFaultBytes = 1024 };

// A base model that was trained with one of our chat forms is a chat model now: its template and the end of its turns go into the files
// that are written beside its weights.
C_API void become_chat_model(Session* s);

// Writes the model with `files` beside its weights. All ranks call it together; rank 0 writes. False: that failed, `fault` (kFaultBytes,
// on rank 0) says how, and what was in `dir` before is still there.
C_API bool write_model(Session* s, const char* dir, const ModelFiles* files, char* fault);
// With --resume and the flags of a run, its newest checkpoint; without, --model in the format of this backend.
// --out gets a Hugging Face directory, --gguf a file for llama.cpp.
C_API int command_export(Options o);
// The bytes that write_model's weights take.
C_API size_t written_bytes(const Session* s);

#endif
