// The command export, and the end of a training run: a model as a Hugging Face directory or a GGUF file.
#ifndef HALO_RUN_EXPORT_H
#define HALO_RUN_EXPORT_H

#include "session.h"

enum { kFaultBytes = 1024 };

// A base model that was trained with one of the program's own chat forms is a chat model now: the form's template and its end of turn go
// into the files that are written beside the weights.
C_API void become_chat_model(Session* s);

// Writes the model with `files` beside its weights; of HUT also the factors, as PEFT's HiRA (peft.h), to the folder hira in it. All ranks call it
// together; rank 0 writes. False: writing failed, `fault` (kFaultBytes, on rank 0) says why, and the former contents of `dir` are still there.
C_API bool write_model(Session* s, const char* dir, const ModelFiles* files, char* fault);
// Exports a run's newest checkpoint (--resume and the flags of the run), or else --model in the format of this backend. --out gets a
// Hugging Face directory, --gguf a file for llama.cpp. Returns the exit code.
C_API int command_export(Options o);
// The bytes of the weights that write_model writes.
C_API size_t written_bytes(const Session* s);

#endif
