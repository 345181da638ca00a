// The base of a compilation or a rendering: its arena, its bounds, and the jump out of it on failure.
#include "internal.h"

void jinja_fail(JRun* r, const char* format, ...) {
    va_list args;
    va_start(args, format);
    r->error->line = r->line;
    vsnprintf(r->error->text, sizeof r->error->text, format, args);
    va_end(args);
    size_t bytes = strlen(r->error->text);
    r->error->text[bytes - (size_t)utf8_cut_bytes(r->error->text, bytes)] = 0;
    for (char* c = r->error->text; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    longjmp(r->out, 1);
}

void* jinja_take(JRun* r, size_t bytes) {
    if (bytes > JINJA_MAX_MEMORY) jinja_fail(r, "the template takes more than %zu MiB of memory", JINJA_MAX_MEMORY >> 20);
    bytes = round_up(bytes ? bytes : 1, 16);
    if (bytes > r->free_bytes) {
        size_t chunk = r->chunks ? r->chunks->bytes * 2 : 16384;
        if (chunk > (size_t)4 << 20) chunk = (size_t)4 << 20;
        if (chunk < bytes) chunk = bytes;
        if (r->taken + chunk > JINJA_MAX_MEMORY) jinja_fail(r, "the template takes more than %zu MiB of memory", JINJA_MAX_MEMORY >> 20);
        size_t head = round_up(sizeof(JChunk), 16);
        JChunk* c = (JChunk*)malloc(head + chunk);
        check(c, "out of host memory: %zu bytes", head + chunk);
        c->next = r->chunks;
        c->bytes = chunk;
        r->chunks = c;
        r->taken += chunk;
        r->free_at = (char*)c + head;
        r->free_bytes = chunk;
    }
    void* p = r->free_at;
    r->free_at += bytes;
    r->free_bytes -= bytes;
    return p;
}

void* jinja_take_zeroed(JRun* r, size_t bytes) { return memset(jinja_take(r, bytes), 0, bytes); }

void jinja_release(JRun* r) {
    while (r->chunks) {
        JChunk* next = r->chunks->next;
        free(r->chunks);
        r->chunks = next;
    }
}

void jinja_step(JRun* r, size_t bytes) {
    r->steps += 1 + (int64_t)(bytes / 64);
    if (r->steps > kMaxSteps) jinja_fail(r, "the template runs for more than %d steps", kMaxSteps);
}

void jinja_enter(JRun* r) {
    if (++r->depth > kMaxRunDepth) jinja_fail(r, "the template's calls nest deeper than %d levels", kMaxRunDepth);
}
