// Generation: the answers to many prompts, side by side in the slots of a model's KV cache.
//
// A step of the model takes a token of every answer under way and, as room allows, the tokens of prompts that have just been given a
// slot. An answer ends at one of the stop tokens, after `max_tokens`, or when its slot is full, and the next prompt gets the slot. Which
// prompts run side by side does not change an answer: on the CPU no bit of its logits depends on other answers, and the random number for
// a sampled token is named by the prompt's number and the token's index alone.
#ifndef HALO_GENERATE_H
#define HALO_GENERATE_H

#include <signal.h>

#include "llama3.h"
#include "sampler.h"

// The most rows (tokens) that a model for generation takes in one step: enough for products at full speed.
enum { kPromptRows = 4096 };

// A model that generates: `slots` sequences of up to `positions` tokens side by side.
C_API ModelOptions generation_options(int slots, int positions);

typedef struct {
    const int* tokens;   // (count), 1 <= count < positions
    int count;
} Prompt;

typedef struct {
    int slots, positions;          // of the model's cache
    int max_tokens;                // of an answer, its stop token not counted
    const int* stop;               // (stop_count) tokens that end an answer
    int stop_count;
    Sampler sampler;
    // Called with each token of an answer as it comes (stop tokens are left out), and at the end of each answer. Answers that run side by
    // side take turns. `prompt` is the number of the answered prompt.
    void (*token)(void* context, int prompt, int token);
    void (*end)(void* context, int prompt);
    void* context;
    // NULL, or a flag that a signal handler may set: then the answers under way end where they are, and no other is begun
    const volatile sig_atomic_t* interrupted;
    // Prompt n is number first_number + n * number_step among all ranks' (0 and 0: n itself), which names its draws.
    int first_number, number_step;
    // NULL, or, where ranks answer prompts of their own over weights that they gather together: called by all before each step, with whether
    // this rank has a prompt left; whether any rank has one.
    bool (*meet)(void* context, bool working);
    void* meet_context;
    // NULL, or replaces a step's chosen tokens (count) by rank 0's, so that ranks that answer the same prompts agree
    void (*share)(void* context, int* tokens, int count);
    void* share_context;
} Decoding;

// Answers all prompts (with `meet` there may be none); an answer's draws are those of the sampler's seed and of its number.
C_API void generate_answers(Model* model, const Config* config, const Decoding* decoding, const Prompt* prompts, int count);

#endif
