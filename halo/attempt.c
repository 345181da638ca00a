// Attempts; see attempt.h.
#include "attempt.h"

#include <setjmp.h>

static __thread jmp_buf way_back;
static __thread char* caught;   // where the message of the attempt under way goes; NULL: no attempt is under way

void user_error_caught(const char* message) {
    if (!caught) return;
    snprintf(caught, kAttemptBytes, "%s", message);
    longjmp(way_back, 1);
}

bool attempt(void (*work)(void* self), void* self, char* message) {
    check(!caught, "attempt: inside another");
    caught = message;
    if (setjmp(way_back)) {
        caught = NULL;
        return false;
    }
    work(self);
    caught = NULL;
    return true;
}
