// What the program says about itself: `help`, `--version`, the manual page.
#ifndef HALO_RUN_HELP_H
#define HALO_RUN_HELP_H

#include "../options.h"

// Answers a command line that asks for help, and returns whether this one does:
//   help                 what the program is and its three most common commands, in ten lines
//   help COMMAND         as COMMAND --help
//   help man             the manual page (troff), from the tables of commands and flags
//   help check ARGS...   parses ARGS and asks the rules between flags, without doing anything: what is wrong is a user_error
//   --version
C_API bool help_asked(int argc, char** argv, const Command* commands, int command_count);

#endif
