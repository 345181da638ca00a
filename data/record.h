// Data files -> records: the contents of one example each, before any tokenizer or chat template.
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
    unsigned char* trained;    // (messages) 1: an assistant's message whose weight is not 0
    char* text;                // the plain text, NUL-terminated; may hold NULs of its own
    size_t bytes;
    const char* joint;         // text between turns in a chat format without headers (Conversation.joint)
    const char* path;          // the record's file; lives as long as the list
    int line;
} Record;

typedef struct {
    Record* records;
    int count;
    int selected;              // how many, from the first on, are to be used (all of them when read)
    Text notes;                // lines for the user: the form that each file was taken for, and keys that were ignored
    char** paths;
    int path_count;
} RecordList;

// Reads one file, or several with commas between them. FILE:0.3 takes that share of a file's records, chosen by their hashes, so that
// every run takes the same ones. prompt_file (NULL or "": none): its text replaces the prompt of records that have one; {name} in it stands
// for a column or key.
C_API RecordList records_read(const char* paths, const char* prompt_file);
C_API void records_free(RecordList* list);

// Reads the files as records_read does, but goes on behind a line of JSON Lines that is no record: `to` gets a line for each of the first
// twenty of them. Returns how many there are.
C_API int records_faults(const char* paths, const char* prompt_file, FILE* to);
// XXH3 of the record's contents, independent of its file and line.
C_API uint64_t record_hash(const Record* record);
// The content of the last assistant's message if it is a string, else "".
C_API const char* record_reference(const Record* record);

#endif
