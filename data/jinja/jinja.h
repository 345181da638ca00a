// Chat templates: an interpreter of the part of Jinja2 that they use, with the settings that Hugging Face transformers gives it
// (trim_blocks and lstrip_blocks on, loop controls, {% generation %}, raise_exception, tojson without ASCII escapes).
//
// A template is a stranger's program, and so bounded: in steps, output bytes, nesting and memory. It reads nothing but its context.
//
// Every byte of text that it handles carries one mark: whether it came out of the user's data. Marks pass through every operation
// (joining, slicing, filters, tojson), so that a tokenizer may recognise control tokens in what the template wrote and not
// in what the user wrote.
#ifndef DATA_JINJA_JINJA_H
#define DATA_JINJA_JINJA_H

#include <jansson.h>

#include "../../halo/base.h"

typedef struct Jinja Jinja;   // a compiled template

// What went wrong: `line` of the template (from 1; 0: nowhere in particular) and one line of text.
typedef struct {
    int line;
    char text[240];
} JinjaError;

// Compiles `bytes` bytes of UTF-8. NULL and *error if this is no template, or one of those that nest too deep.
C_API Jinja* jinja_compile(const char* source, size_t bytes, JinjaError* error);
C_API void jinja_free(Jinja* template_);
// Does the template contain the name anywhere, as a variable or attribute ("tools", "strftime_now")? So that a caller can tell a template
// that ignores what it is given. True for "generation" if it has {% generation %} blocks.
C_API bool jinja_mentions(const Jinja* template_, const char* name);

// Bytes [begin, end) of the output.
typedef struct {
    size_t begin, end;
} JinjaSpan;

// The rendered text, and from_data[i] = 1 where byte i came out of the user's data. `generation` are the {% generation %} blocks in
// output order. Starts as {0}; jinja_render reuses its memory.
typedef struct {
    char* text;                 // NUL-terminated
    unsigned char* from_data;   // (bytes)
    size_t bytes, capacity;
    JinjaSpan* generation;
    int generations, generation_capacity;
} JinjaOutput;
C_API void jinja_output_free(JinjaOutput* out);

// Renders with the members of the JSON object `context` as variables. The strings of context's `data` members (named in the NULL-terminated
// list data_names: "messages", "tools", ...) are the user's, except the strings of keys "role" directly in a message, which the template
// compares and prints as its own; all other members (bos_token, add_generation_prompt) are the template's side. `date` "YYYY-MM-DD" defines strftime_now for that
// day, NULL leaves it undefined. False and *error if the template raises, fails, or exceeds a bound. Safe from several threads with
// one Jinja.
C_API bool jinja_render(const Jinja* template_, const json_t* context, const char* const* data_names, const char* date,
                        JinjaOutput* out, JinjaError* error);

#endif
