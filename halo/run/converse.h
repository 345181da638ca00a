// `generate` on a terminal: a conversation.
#ifndef HALO_RUN_CONVERSE_H
#define HALO_RUN_CONVERSE_H

#include "answer.h"

// Reads lines from stdin until it ends or /quit, and answers each on stdout, character by character, with what was said before: under the
// model's chat template, or, where there is none, as a text that model and user write in turns. The tokenizer's files have to be there
// (session_open), tokenizer and weights are loaded here. Ctrl-C ends an answer, not the program.
C_API void converse(Session* s);

#endif
