// Chat templates: a conversation -> its text and token ids, exactly as the model's own template writes it and as a server that runs the
// template will feed it; and where in them the answers lie that are trained.
//
//   auto         the model's own template (chat_template.jinja, else chat_template of tokenizer_config.json) is run (jinja.h)
//   FILE.jinja   another one
//   llama3, chatml, none   templates of ours, for base models: see kLlama3Body and its neighbours. `none` is plain concatenation.
//
// What came out of the user's data is told from what the template wrote, byte by byte: control tokens are recognised in the template's
// bytes alone, so that nothing a user writes can close a turn (ChatOptions.specials widens that).
//
// An answer is what rendering the messages up to it adds to rendering the prompt before it (with generation prompt), without what stands
// behind its last control token; where a template has {% generation %} blocks, they are the answers. Each prompt is encoded as one text,
// and the answer continues it.
#ifndef DATA_CHAT_H
#define DATA_CHAT_H

#include "jinja/jinja.h"
#include "model_files.h"
#include "tokenizer/tokenizer.h"

// Where special tokens are recognised in the user's own text.
typedef enum {
    SPECIALS_AUTO,       // not in conversations; in plain texts, which the user rendered
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
    char* source;         // the template, as chat_template.jinja has to hold it
    bool built_in;        // one of ours: a base model that is trained with it becomes a chat model (not `none`)
    bool plain;           // `none`: the text has no BOS of its own, the tokenizer's is put before it
    Jinja* jinja;
    Jinja* tool_jinja;    // the template for conversations with tools, or NULL: the same
    json_t* tokens;       // what else a template may name: bos_token, eos_token, ...
    char* date;           // or NULL
    SpecialsPolicy specials;
    int turn_end;         // the token that ends an answer, -1 if the template writes none
    int text_bos, text_eos;   // around a plain text; text_bos is -1 if there is none
    const char* note;     // a line for the user where versions of transformers differ about BOS, or NULL
} ChatFormat;

// The format of the model in DIR. A template that is missing, unreadable or broken, and a tokenizer that lacks a token of the built-in
// forms, are user_errors. `llama3` still follows the model's own template about the two date lines of Llama 3.1.
C_API ChatFormat chat_open(const char* dir, const Tokenizer* tokenizer, const ChatOptions* options);
// The same from the files themselves; `where` (their directory) begins the messages.
C_API ChatFormat chat_open_in(const ModelFiles* files, const char* where, const Tokenizer* tokenizer, const ChatOptions* options);
// The text of the model's own template, NULL if there is none; the caller frees it.
C_API char* chat_template_text(const ModelFiles* files, const char* where);
C_API void chat_free(ChatFormat* format);

typedef struct {
    json_t* messages;               // a list of objects with "role" and "content"
    json_t* tools;                  // a list, or NULL
    const unsigned char* trained;   // (messages) 1: an answer to train
    const char* joint;              // what stands behind the other roles' texts in `none`
} Conversation;

// Where an answer lies: bytes [begin, end) of the text, tokens [first, last).
typedef struct {
    int message;          // -1: a {% generation %} block that belongs to no one message
    bool trained;
    size_t begin, end;
    int first, last;
} ChatAnswer;

// Starts as {0}; its memory serves the next conversation.
typedef struct {
    JinjaOutput text;
    TokenList tokens;
    ChatAnswer* answers;  // in order; the conversation's last answer is among them even where it is not trained
    int answer_count;
    int lost;             // trained answers that the whole rendering does not show
    int parted;           // answers whose prompt is no beginning of the whole rendering: they start where the two part
    TokenList prompt_tokens;   // what a server generates the last answer from, where that is no beginning of `tokens`; else empty
    int kept;             // spellings of special tokens in the user's text that stayed text
    JinjaError error;     // where chat_encode returns false
    bool last_parted;           // scratch: whether prompt, the last one rendered, is no beginning of the text
    JinjaOutput prompt, part;   // scratch
} ChatTokens;

// Renders and encodes a conversation. False and out->error if the template fails.
C_API bool chat_encode(const ChatFormat* format, const Tokenizer* tokenizer, const Conversation* conversation, ChatTokens* out);
// The same for a conversation that has to end its last answer within `limit` tokens, shortened from the prompt side: the oldest
// exchanges go first, then the front of the text before the last answer; the system turn and the last answer stay. *fits: whether
// that was enough; *shortened: whether anything went.
C_API bool chat_encode_within(const ChatFormat* format, const Tokenizer* tokenizer, const Conversation* conversation, int limit,
                              ChatTokens* out, bool* fits, bool* shortened);
// The prompt to generate the next answer of a conversation from; false and *error if the template fails. The list is appended to.
C_API bool chat_prompt_after(const ChatFormat* format, const Tokenizer* tokenizer, json_t* messages, TokenList* out, JinjaError* error);
// The prompt to generate an answer to one user's text from. A template that fails is a user_error.
C_API void chat_prompt(const ChatFormat* format, const Tokenizer* tokenizer, const char* text, TokenList* out);
// Tokens up to the end of the last answer: what stands behind it teaches nothing.
C_API int chat_used_tokens(const ChatTokens* chat);
C_API void chat_tokens_free(ChatTokens* chat);

#endif
