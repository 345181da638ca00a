// Time; see clock.h.
#include "clock.h"

#include <math.h>
#include <time.h>

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void duration_text(double seconds, char text[32]) {
    double t = floor(fmin(fmax(seconds, 0), 1e9) + 0.5), hours = floor(t / 3600);
    int minutes = (int)(t / 60) % 60;
    if (hours >= 48) snprintf(text, 32, "%.0fd%02.0fh", floor(hours / 24), fmod(hours, 24));
    else if (hours >= 1) snprintf(text, 32, "%.0fh%02dm", hours, minutes);
    else if (t >= 60) snprintf(text, 32, "%dm%02ds", minutes, (int)t % 60);
    else snprintf(text, 32, "%.0fs", t);
}
