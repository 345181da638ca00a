// Time: a clock to measure with, and how a length of time is shown.
#ifndef HALO_RUN_CLOCK_H
#define HALO_RUN_CLOCK_H

#include "../base.h"

C_API double seconds_now(void);   // from an arbitrary start; callable in a signal handler
// 12.3 -> "12s", 90 -> "1m30s", 5400 -> "1h30m", 200000 -> "2d07h", in text. Below 0 counts as 0.
C_API void duration_text(double seconds, char text[32]);

#endif
