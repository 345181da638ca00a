// The live line at the bottom of a terminal: how far a run is, and what it is busy with.
//
// Between status_open and status_close, stdout and stderr are streams of this file (fopencookie): a text that is printed first erases the line,
// and the line is drawn again below the text. A thread redraws the line four times a second, asking for the terminal's width each time.
// status_open does nothing where stdout is no terminal or TERM is unset or "dumb". Under mpirun, whose ranks print into pipes, the
// terminal of mpirun itself counts. Only rank 0 calls status_open.
#ifndef HALO_RUN_STATUS_H
#define HALO_RUN_STATUS_H

#include "../progress.h"

// A run after a step. Unknown numbers are 0, an unknown loss is NaN.
typedef struct {
    int step, steps;
    double loss, lr, tokens_per_second, eta_seconds;
    double ceiling_share;              // of the rate of plain products (ceilings.h)
    double used_bytes, memory_bytes;   // of the backend's memory
} StatusNumbers;

C_API void status_open(void);
C_API bool status_live(void);
C_API void status_set(const StatusNumbers* numbers);
C_API void status_close(void);   // the line goes; fine if there was none

// The line's text for a terminal of `columns`, shorter than the terminal is wide: less important parts are left out where not all fit. The text
// shows `work` if there is any (its `what` is not NULL), else the numbers and `place`, what the current step is doing.
typedef struct {
    int columns;
    bool unicode, color;
} StatusLook;
enum { kStatusBytes = 1024 };
C_API void status_text(const StatusNumbers* numbers, ProgressWork work, ProgressPlace place, StatusLook look, char text[kStatusBytes]);

#endif
