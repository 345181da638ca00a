// Data files -> records: what one example says, before any tokenizer or chat template. The form is recognised from the
// file's ending and the keys of its first record, and all of a file's records have the same form:
//
//   .csv       ViGGO: columns mr,ref or meaning_representation,target; the task is sentence -> meaning representation
//   otherwise  JSON Lines, one object a line:
//              {"messages": [{"role": "system"|"user"|"assistant", "content": "..."}, ...]}   the last is the assistant's
//              {"prompt", "completion"}
//              {"instruction", "output"} and maybe "input"     (Alpaca)
//              {"question", "answer"}                          (GSM8K)
//              {"text"}                                        plain text
//
// Keys that are missing, unknown or mixed, and values that are no strings, are user_errors that name file, line and column.
#ifndef DATA_RECORD_H
#define DATA_RECORD_H

#include "chat.h"

typedef struct {
    Turn* turns;         // a conversation that ends with the assistant's turn; of a plain text, one turn of no role
    int count;
    bool plain;
    const char* joint;   // what stands between turns where the chat format has no header (see chat_encode)
} Record;

typedef struct {
    Record* records;
    int count;
} RecordList;

C_API RecordList records_read(const char* path);
C_API void records_free(RecordList* list);

#endif
