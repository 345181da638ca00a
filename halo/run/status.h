// The live line at the bottom of a terminal: how far a run is, and what it is busy with.
//
// While it stands, stdout and stderr are streams of this file (fopencookie): what anybody prints erases the line first, and the line
// comes back behind it. A thread draws it anew, as wide as the terminal is then. There is none where stdout is no terminal (of a job's
// launcher, where that holds the ranks' streams), where TERM is unset or "dumb", and on other ranks than 0.
#ifndef HALO_RUN_STATUS_H
#define HALO_RUN_STATUS_H

#include "../progress.h"

// A run after a step. What is not known is 0; a loss that is not known yet NaN.
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

// The line's text for a terminal of `columns`: what is less important is left out where it does not fit, and the text is shorter than the
// terminal is wide. `work` counts before the numbers where its `what` is not NULL; `place` adds what a step is at.
typedef struct {
    int columns;
    bool unicode, color;
} StatusLook;
enum { kStatusBytes = 1024 };
C_API void status_text(const StatusNumbers* numbers, ProgressWork work, ProgressPlace place, StatusLook look, char text[kStatusBytes]);
// 90 -> "1m30s", in text.
C_API void duration_text(double seconds, char text[32]);

#endif
