// Chat templates: a conversation -> its text and token ids, exactly as the model's own template writes the conversation and a server that
// runs the template feeds it to the model; and where in the text and the ids the trained answers lie.
//
//   auto         the model's own template (chat_template.jinja, else chat_template of tokenizer_config.json) is run (jinja.h)
//   FILE.jinja   the template in this file
//   llama3, chatml, none   this program's own templates, for base models (chat.c, kLlama3Body). `none` is plain concatenation.
//
// Each byte of the text is known to come from the user's data or from the template: control tokens are recognised in the template's
// bytes alone, so that nothing a user writes can close a turn (ChatOptions.specials can widen this).
//
// An answer is the text that the rendering of all messages up to the answer has, and the rendering of the prompt before it (with
// generation prompt) has not, up to its last control token. If a template has {% generation %} blocks, these are the answers. Each prompt
// is encoded as one text, which the answer continues.
#ifndef DATA_CHAT_H
#define DATA_CHAT_H

#include "jinja/jinja.h"
#include "model_files.h"
#include "tokenizer/tokenizer.h"

// Where special tokens are recognised in the user's own text.
typedef enum {
    SPECIALS_AUTO,       // not in conversations, but in plain texts, which the user has rendered
    SPECIALS_TEMPLATE,   // nowhere: only in what the template wrote
    SPECIALS_ANSWERS,    // in answers
    SPECIALS_ALL         // everywhere
} SpecialsPolicy;

typedef struct {
    const char* form;     // "auto" (or NULL, ""), "llama3", "chatml", "none", or the path of a template
    const char* date;     // "YYYY-MM-DD" for strftime_now, or NULL
    SpecialsPolicy specials;
} ChatOptions;

typedef struct {
    char* name;           // for messages: "llama3", or the file that the template came from
    char* source;         // the template's text, for a chat_template.jinja
    bool built_in;        // llama3 or chatml: a base model that is trained with it becomes a chat model
    bool plain;           // `none`: the template writes no BOS, so the tokenizer's is put before the text
    Jinja* jinja;
    Jinja* tool_jinja;    // the template for conversations with tools, or NULL: the same
    json_t* tokens;       // further variables of the template: bos_token, eos_token, ...
    char* date;           // or NULL
    SpecialsPolicy specials;
    int turn_end;         // the token that ends an answer, -1 if the template writes none
    int text_bos, text_eos;   // tokens before and behind a plain text; text_bos is -1 if there is none
    const char* note;     // a line for the user where versions of transformers differ about BOS, or NULL
} ChatFormat;

// The format of the model in DIR. A template that is missing, unreadable or broken, and a tokenizer that lacks a token of the built-in
// forms, are user_errors. `llama3` writes the two date lines of Llama 3.1 if the model's own template does.
C_API ChatFormat chat_open(const char* dir, const Tokenizer* tokenizer, const ChatOptions* options);
// As chat_open, from files in memory; `where` (their directory) begins the messages.
C_API ChatFormat chat_open_in(const ModelFiles* files, const char* where, const Tokenizer* tokenizer, const ChatOptions* options);
// The text of the model's own template, NULL if there is none; the caller frees it.
C_API char* chat_template_text(const ModelFiles* files, const char* where);
C_API void chat_free(ChatFormat* format);

typedef struct {
    json_t* messages;               // a list of objects with "role" and "content"
    json_t* tools;                  // a list, or NULL
    const unsigned char* trained;   // (messages) 1: an answer to train
    const char* joint;              // in `none`: text put behind the messages that are not the assistant's
} Conversation;

// Where an answer lies: bytes [begin, end) of the text, tokens [first, last).
typedef struct {
    int message;          // -1: a {% generation %} block that belongs to no one message
    bool trained;
    size_t begin, end;
    int first, last;
} ChatAnswer;

// A rendered and encoded conversation. Starts as {0}; the next conversation reuses its memory.
typedef struct {
    JinjaOutput text;
    TokenList tokens;
    ChatAnswer* answers;  // in order; the conversation's last answer is among them even where it is not trained
    int answer_count;
    int lost;             // trained answers that are not found in the whole rendering
    int parted;           // answers whose prompt is no beginning of the whole rendering: they start where the two begin to differ
    TokenList prompt_tokens;   // the prompt from which a server generates the last answer, if it is no beginning of `tokens`; else empty
    int kept;             // spellings of special tokens in the user's text that stayed text
    JinjaError error;     // where chat_encode returns false
    bool last_parted;           // scratch: `prompt`, the last one rendered, is no beginning of the text
    JinjaOutput prompt, part;   // scratch
} ChatTokens;

// Renders and encodes a conversation. False and out->error if the template fails.
C_API bool chat_encode(const ChatFormat* format, const Tokenizer* tokenizer, const Conversation* conversation, ChatTokens* out);
// As chat_encode, but the last answer has to end within `limit` tokens. A longer conversation is shortened from the prompt side: the oldest
// exchanges go first, then the front of the text before the last answer; the system turn and the last answer stay. *fits: the result is
// within the limit; *shortened: something was removed.
C_API bool chat_encode_within(const ChatFormat* format, const Tokenizer* tokenizer, const Conversation* conversation, int limit,
                              ChatTokens* out, bool* fits, bool* shortened);
// The prompt to generate the next answer of a conversation from; false and *error if the template fails. The list is appended to.
C_API bool chat_prompt_after(const ChatFormat* format, const Tokenizer* tokenizer, json_t* messages, TokenList* out, JinjaError* error);
// The prompt from which an answer to one user message `text` is generated. A template that fails is a user_error.
C_API void chat_prompt(const ChatFormat* format, const Tokenizer* tokenizer, const char* text, TokenList* out);
// The number of tokens up to the end of the last answer; tokens after it are not trained.
C_API int chat_used_tokens(const ChatTokens* chat);
C_API void chat_tokens_free(ChatTokens* chat);

#endif
