// Data files -> records: what one example says, before any tokenizer or chat template.
//
// A file is CSV (its name ends in .csv; the first line names the columns) or JSON: one object a line, or an array of objects, also
// pretty-printed; either may be packed with gzip. Its form is told from the keys of the first record:
//
//   {"messages": [{"role", "content", ...}, ...]} and maybe "tools"     the last message is the assistant's
//   {"conversations": [{"from", "value"}, ...]} and maybe "system", "tools"      (ShareGPT)
//   {"prompt", "completion"} or {"prompt", "chosen"}      each a text or a list of messages
//   {"instruction", "output"} and maybe "input"           (Alpaca)
//   {"instruction", "response"} and maybe "context"       (Dolly)
//   {"question", "answer"}                                (GSM8K)
//   {"ref", "mr"} or {"target", "meaning_representation"} (ViGGO: sentence -> meaning representation)
//   {"text"}                                              plain text
//
// All records of a file have its form; other keys are ignored and named once. Keys that are missing and values of the wrong type are
// user_errors that name file, line and column (in bytes from 1).
#ifndef DATA_RECORD_H
#define DATA_RECORD_H

#include "chat.h"

typedef struct {
    json_t* messages;          // a conversation with an answer in it; NULL for a plain text
    json_t* tools;             // or NULL
    unsigned char* trained;    // (messages) 1: the assistant's, and not of weight 0
    char* text;                // the plain text, NUL-terminated; may hold NULs of its own
    size_t bytes;
    const char* joint;         // what stands between turns where the chat format has no header (Conversation.joint)
    const char* path;          // where it came from; lives as long as the list
    int line;
} Record;

typedef struct {
    Record* records;
    int count;
    int selected;              // the first so many are used (all of them when read)
    Text notes;                // lines for the user: what each file was taken for, and what was ignored
    char** paths;
    int path_count;
} RecordList;

// Reads one file, or several with commas between them. FILE:0.3 takes that share of a file's records, chosen by their hashes, so that
// the same are taken on every run. prompt_file (NULL or "": none): the prompt of records that have one is that file's text, in which
// {name} stands for a column or key.
C_API RecordList records_read(const char* paths, const char* prompt_file);
C_API void records_free(RecordList* list);
// XXH3 of what the record says: the same wherever it stands.
C_API uint64_t record_hash(const Record* record);
// The content of the last assistant's message if it is a string, else "".
C_API const char* record_reference(const Record* record);

#endif
