// Stopping a run from outside: signals, a reader of the output that has gone, and streams that were closed before the start.
#ifndef HALO_RUN_STOP_H
#define HALO_RUN_STOP_H

#include "../base.h"

// To be called first in main. Opens a closed standard input, output or error on /dev/null, so that no file of the program gets its number.
C_API void open_standard_streams(void);

// From now on Ctrl-C (INT), TERM, HUP and USR1 ask for a stop. Another one within a second is ignored, a later one ends the program at
// once. With several ranks TERM ends this rank at once, with a report of where it was, since a launcher sends TERM after a rank has died. A
// signal that was ignored at the start (nohup) stays ignored. Writing into a closed pipe (PIPE) or beyond a file size limit (XFSZ) is an
// error of that write instead of a signal.
C_API void catch_signals(int ranks);
C_API bool stop_asked(void);
// Asks for a stop if standard output can no longer be written: its reader has ended (`| head -1`), or a file size limit is reached.
C_API void stop_if_unheard(void);

#endif
