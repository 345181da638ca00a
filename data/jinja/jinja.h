// Chat templates: an interpreter of the part of Jinja2 that they use, with the settings that Hugging Face transformers gives it
// (trim_blocks and lstrip_blocks on, loop controls, {% generation %}, raise_exception, tojson without ASCII escapes).
//
// A template is a stranger's program, and so bounded: in steps, output bytes, nesting and memory. It reads nothing but its context.
//
// Every byte of text carries a mark: does the byte come from the user's data? Marks pass through every operation (joining, slicing,
// filters, tojson), so that a tokenizer can recognise control tokens in the template's bytes and not in the user's.
#ifndef DATA_JINJA_JINJA_H
#define DATA_JINJA_JINJA_H

#include <jansson.h>

#include "../../halo/base.h"

typedef struct Jinja Jinja;   // a compiled template

// What went wrong, in one line of text, and in which line of the template (from 1; 0: no particular line).
typedef struct {
    int line;
    char text[240];
} JinjaError;

// Compiles `bytes` bytes of UTF-8. NULL and *error if they are no valid template, or nest too deep.
C_API Jinja* jinja_compile(const char* source, size_t bytes, JinjaError* error);
C_API void jinja_free(Jinja* template_);
// Does the template contain the name anywhere, as a variable or attribute ("tools", "strftime_now")? With this a caller recognises a
// template that ignores some data. True for "generation" if the template has {% generation %} blocks.
C_API bool jinja_mentions(const Jinja* template_, const char* name);

// Bytes [begin, end) of the output.
typedef struct {
    size_t begin, end;
} JinjaSpan;

// The rendered text; from_data[i] is 1 if byte i comes from the user's data. `generation`: the {% generation %} blocks in output order.
// Starts as {0}; jinja_render reuses the memory.
typedef struct {
    char* text;                 // NUL-terminated
    unsigned char* from_data;   // (bytes)
    size_t bytes, capacity;
    JinjaSpan* generation;
    int generations, generation_capacity;
} JinjaOutput;
C_API void jinja_output_free(JinjaOutput* out);

// Renders with the members of the JSON object `context` as variables. The strings of the members named in the NULL-terminated list data_names
// ("messages", "tools", ...) are the user's data, except the "role" directly in a message, which the template compares and prints as its
// own; all other members (bos_token, add_generation_prompt) count as the template's. `date` "YYYY-MM-DD" defines strftime_now for that day,
// NULL leaves strftime_now undefined. False and *error if the template raises, fails, or exceeds a bound. Safe from several threads with one
// Jinja.
C_API bool jinja_render(const Jinja* template_, const json_t* context, const char* const* data_names, const char* date,
                        JinjaOutput* out, JinjaError* error);

#endif
