// The command generate: answers one prompt, or every prompt of a data file, or talks to whoever sits at the terminal.
#ifndef HALO_RUN_GENERATE_H
#define HALO_RUN_GENERATE_H

#include "session.h"

// Returns the exit code.
C_API int command_generate(Options o);

#endif
