// The folders a run writes to: --out and --log are claimed before any work, for this run alone.
#ifndef HALO_RUN_OUT_DIR_H
#define HALO_RUN_OUT_DIR_H

#include "../../data/checkpoint.h"
#include "session.h"

// Rank 0, before any work; every way to lose something later is a user_error now:
// - --out can be written, and no other process that runs now has claimed it. The claim is a lock on the open folder: it ends with
//   the process, however that ends. File systems without locks are said, not refused.
// - an interrupted move of a written model is finished, and said (hf_write.h).
// - --out holds no model (--overwrite allows that) and no checkpoints (--resume goes on from them), --log no lines of another run.
C_API void claim_out(const Session* s);

// The file of a log's lines, in memory of its own: DIR/log.jsonl with *folder true, or `log` itself where that is a name that ends in .jsonl.
C_API char* log_lines_path(const char* log, bool* folder);

// Whether --out holds a model, and `settings` (count of them) are those it was trained with to the end: then a run that is told to
// resume has nothing left to do. Other settings are a user_error. False if there is no such model. Rank 0 reads; all ranks call it.
C_API bool run_is_finished(const Session* s, const CheckpointSetting* settings, int count);
// What run_is_finished will find beside the model: the caller puts it among the files that are written with it.
C_API void note_finished_run(ModelFiles* files, const CheckpointSetting* settings, int count);

// All ranks call it together: a user_error unless the disk of --out has room for `state_bytes` of every rank's checkpoint parts, as
// often as --keep asks for, beside the one that is being written or the model.
C_API void require_space(const Session* s, size_t state_bytes, size_t model_bytes);

#endif
