// The folders a run writes to: --out and --log are claimed before any work, for this run alone.
#ifndef HALO_RUN_OUT_DIR_H
#define HALO_RUN_OUT_DIR_H

#include "../../data/checkpoint.h"
#include "session.h"

// To be called before anything is read or printed: where --out or --log holds another run's work already, nothing but this is said. Rank 0
// looks, and changes nothing.
C_API void refuse_taken_places(const Session* s);

// Called by rank 0 before any work, so that what would lose results later is a user_error now:
// - --out must be writable, and not claimed by another running process. The claim is a lock on the open folder, which ends with the
//   process, however the process ends. A file system without locks gets a warning, no error.
// - an interrupted move of a written model is finished, with a message (hf_write.h).
// - --out must hold no model (unless --overwrite) and no checkpoints (unless --resume), and --log no lines of another run.
C_API void claim_out(const Session* s);

C_API bool same_folder(const char* a, const char* b);   // NULL, or what is not there, is no folder

// The file that --log's lines go to: DIR/log.jsonl, with *folder true, or the file that `log` names where it ends in .jsonl. The caller frees
// the path.
C_API char* log_lines_path(const char* log, bool* folder);

// Does --out hold a model that was trained to the end with these `settings` (count)? Then a resumed run has nothing left to do. A model
// trained with other settings is a user_error. Rank 0 reads; all ranks call it.
C_API bool run_is_finished(const Session* s, const CheckpointSetting* settings, int count);
// Adds to `files`, which are written beside the model, the note that run_is_finished reads.
C_API void note_finished_run(ModelFiles* files, const CheckpointSetting* settings, int count);

// All ranks call it together: a user_error unless the disk of --out has room for --keep checkpoints of state_bytes on each rank, and beside
// them for one more that is being written, or for the model (model_bytes).
C_API void require_space(const Session* s, size_t state_bytes, size_t model_bytes);

#endif
