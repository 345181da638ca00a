// Where the inputs are that the command line does not give as paths: the demo beside the program, and models of the Hugging Face cache.
#ifndef HALO_RUN_LOCATE_H
#define HALO_RUN_LOCATE_H

#include "../options.h"

// Fills in what the flags of a command leave to be found; what it finds are paths that last as long as the process.
// - The demo (o->demo): its model, data and tests in data/demo of the source tree that the program was built in, in the program's own folder,
//   or in PREFIX/share/train_llama3/demo of a program in PREFIX/bin. A user_error names the folders where it was looked for.
// - --model, --from-scratch, --tokenizer and --adapter-dir as org/name, where there is no such folder: the snapshot that the Hugging Face
//   cache's refs/main names (HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME/huggingface/hub, ~/.cache/huggingface/hub:
//   the first that is set). Nothing is downloaded: a name that is not there is a user_error with the command that downloads it.
C_API void locate_inputs(Options* o, int command);
// The name on the hub, org/name, for which locate_inputs found `path` in the cache: what means the same model on other machines. Of any other
// path: the path itself.
C_API const char* name_as_given(const char* path);

#endif
