// The command inspect: a data file as the model will see it. Needs a tokenizer and a chat template, no weights.
#ifndef HALO_RUN_INSPECT_H
#define HALO_RUN_INSPECT_H

#include "../options.h"

C_API int command_inspect(Options o);   // the exit code

#endif
