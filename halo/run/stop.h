// Stopping a run from outside: signals, a reader of the output that has gone, and streams that were closed before the start.
#ifndef HALO_RUN_STOP_H
#define HALO_RUN_STOP_H

#include "../base.h"

// Standard input, output and error that are closed are opened on /dev/null, so that no file of the program takes their numbers. The
// first thing a program does.
C_API void open_standard_streams(void);

// From now on Ctrl-C (INT), TERM, HUP and USR1 ask for a stop; the same again within a second counts once, a later one ends the program at
// once. With several ranks TERM is how a launcher ends the others after one has died: it ends this one, with a word about where it was.
// A signal that was ignored at the start (nohup) stays ignored. Writing into a closed pipe (PIPE) or beyond a file size limit (XFSZ) is
// an error of that write instead of a signal.
C_API void catch_signals(int ranks);
C_API bool stop_asked(void);
// Asks for a stop if what was printed has not arrived: `| head -1` has gone, or a limit on the size of files is reached.
C_API void stop_if_unheard(void);

#endif
