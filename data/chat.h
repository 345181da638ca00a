// Chat templates: turns of a conversation -> token ids, in the form that the model was tuned on.
//
//   llama3   <|begin_of_text|> then, per turn, <|start_header_id|>role<|end_header_id|>\n\ntext<|eot_id|>, text trimmed.
//            The template of Llama 3.1 and later opens every conversation with a system turn that begins with two dates.
//   chatml   per turn <|im_start|>role\ntext<|im_end|>, a newline between turns, text as it is
//   none     plain concatenation: BOS if the tokenizer adds one, the prompt, the completion, EOS
//
// A template is recognised by its markers, not executed; one without them is refused. Special tokens enter as ids and every
// text is encoded as plain text, so that nothing a user writes can close a turn.
#ifndef DATA_CHAT_H
#define DATA_CHAT_H

#include "model_files.h"
#include "tokenizer/tokenizer.h"

typedef enum { CHAT_LLAMA3, CHAT_CHATML, CHAT_NONE } ChatKind;
typedef enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT } Role;

typedef struct {
    ChatKind kind;
    bool date_block;              // llama3: the system turn opens with the two date lines
    char* default_system;         // chatml: the system text of conversations that bring none; NULL if there is none
    int bos;                      // before the first turn; -1 if there is none
    int turn_start, header_end;   // around the role (chatml has no header_end: -1; none has neither)
    int turn_end;                 // after each turn; `none`: after the assistant's, EOS
    int text_bos, text_eos;       // around a plain text; text_bos is -1 if there is none
} ChatFormat;

// The format of the model in DIR: `forced_name` "llama3", "chatml" or "none"; NULL or "" reads DIR/chat_template.jinja or
// the chat_template of DIR/tokenizer_config.json. A template that is missing or unknown, and a tokenizer that lacks one of
// the format's tokens, are user_errors. A forced llama3 still follows the template about the date lines.
C_API ChatFormat chat_detect(const char* dir, const Tokenizer* tokenizer, const char* forced_name);
// The same from the files themselves; `where` begins the messages.
C_API ChatFormat chat_detect_in(const ModelFiles* files, const char* where, const Tokenizer* tokenizer, const char* forced_name);
// The text of the model's template, NULL if there is none; the caller frees it.
C_API char* chat_template_text(const ModelFiles* files, const char* where);
C_API void chat_free(ChatFormat* format);
C_API const char* chat_name(ChatKind kind);

typedef struct {
    Role role;
    char* text;     // UTF-8, NUL-terminated; may hold NULs of its own
    size_t bytes;
} Turn;

// Where a turn lies among the tokens: header [start, content), text [content, content_end), ending [content_end, end).
typedef struct {
    Role role;
    int start, content, content_end, end;
} TurnSpan;

// Starts as {0}.
typedef struct {
    TokenList tokens;
    TurnSpan* turns;
    int turn_count;
} ChatTokens;

// Encodes a conversation; a system turn may only be the first. If the last turn is not the assistant's, the assistant's
// header follows as an empty turn: that is the prompt to generate from. In `none`, `joint` follows the other roles' texts.
C_API void chat_encode(const ChatFormat* format, const Tokenizer* tokenizer, const Turn* turns, int count,
                       const char* joint, ChatTokens* out);
// Shortens a conversation to `limit` tokens from the prompt side: first the oldest exchanges go as a whole, then the front
// of the text before the last answer. The system turn, the headers and the last answer stay. False if that is not enough.
C_API bool chat_truncate(ChatTokens* chat, int limit);
C_API void chat_tokens_free(ChatTokens* chat);

#endif
