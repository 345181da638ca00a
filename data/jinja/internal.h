// Inside the interpreter of chat templates: values, the syntax tree, and what a compilation or a rendering carries along.
//
// lex.c and parse.c turn the source into JNodes; scope.c gives every variable a slot, as Jinja2's compiler gives it a Python local;
// eval.c runs the tree; operators.c, functions.c, filters.c, methods.c, format.c and tojson.c hold the operations on values; value.c
// and text.c the values themselves; jinja.c the functions that callers see.
//
// All memory comes from the run's arena, which is freed as a whole. Every failure is a jump out of the run (jinja_fail), so that functions
// return only results. Text is never changed once it is made, so that slices share their source's bytes.
#ifndef DATA_JINJA_INTERNAL_H
#define DATA_JINJA_INTERNAL_H

#include <setjmp.h>

#include "../utf8.h"
#include "jinja.h"

enum {
    kMaxSyntaxDepth = 250,       // nesting of expressions and statements
    kMaxRunDepth = 2500,         // nesting of evaluations, calls of macros included: below 2 MiB of stack
    kMaxSteps = 10000000,        // a step: an evaluation, a turn of a loop or filter, or 64 bytes of text
    kMaxRange = 100000,          // elements of range(), as in Jinja2's sandbox
};
#define JINJA_MAX_MEMORY ((size_t)256 << 20)
#define JINJA_MAX_OUTPUT ((size_t)64 << 20)

// ---- values
typedef enum {
    kJMissing,   // no value at all: an unset variable, an argument that was not given. Never seen by a template
    kJUndefined, kJNone, kJBool, kJInt, kJFloat, kJText, kJList, kJTuple, kJDict,
    kJView,      // what a dict's keys(), values() and items() return
    kJRange, kJIterator, kJNamespace, kJMacro, kJFunction, kJMethod, kJLoop, kJCycler, kJJoiner, kJSlice
} JKind;

typedef struct JRun JRun;
typedef struct JNode JNode;
typedef struct JFrame JFrame;
typedef struct JDict JDict;
typedef struct JIterator JIterator;
typedef struct JMacro JMacro;
typedef struct JLoop JLoop;
typedef struct JMethod JMethod;

typedef enum { kMarkTemplate, kMarkData, kMarkMixed } JMark;   // kMarkMixed: marks[] has a 0 or 1 for each byte

typedef struct {
    const char* s;                // UTF-8, not NUL-terminated
    const unsigned char* marks;   // NULL unless mark == kMarkMixed
    size_t bytes;
    int64_t chars;                // code points, -1: not counted yet
    JMark mark;
    bool safe;                    // markupsafe's Markup: text that is added to it is escaped for HTML
} JText;

typedef struct {
    int64_t start, stop, step, count;
} JRange;

typedef struct {
    const char* name;    // of the variable or attribute; NULL: `hint` is the whole message
    const char* owner;   // type of the object that has no such attribute, or NULL
    const char* hint;
} JUndefined;

typedef struct {
    const char* name;
    int id;
} JFunction;

typedef struct JList JList;
typedef struct JCycler JCycler;
typedef struct JJoiner JJoiner;
typedef struct JSlice JSlice;

typedef struct {
    JKind kind;
    union {
        bool boolean;
        int64_t integer;
        double real;
        JText* text;
        JList* list;                  // kJList, kJTuple, kJView
        JDict* dict;                  // kJDict, kJNamespace
        const JRange* range;
        const JUndefined* undefined;
        JIterator* iterator;
        JMacro* macro;
        const JFunction* function;
        const JMethod* method;
        JLoop* loop;
        JCycler* cycler;
        JJoiner* joiner;
        const JSlice* slice;
    } as;
} JValue;

struct JList {
    JValue* items;
    int64_t count, capacity;
    const char* view;   // "dict_items", ... of a kJView
    bool group;         // a pair made by groupby, whose elements have the names grouper and list
};

struct JCycler {
    JList* items;
    int64_t at;
};

struct JJoiner {
    JValue separator;
    bool used;
};

struct JSlice {
    JValue start, stop, step;
};

typedef struct {
    JValue key, value;
    uint64_t hash;
} JEntry;

// In insertion order. Up to kJLinear entries are searched one by one; from there on `index` is an open hash table of entries + 1.
enum { kJLinear = 8 };
struct JDict {
    JEntry* entries;
    int64_t count, capacity;
    uint32_t* index;
    uint32_t index_mask;
};

// A position in a sequence that is being iterated over.
typedef struct {
    JValue of;
    int64_t at;
} JCursor;

// A generator: makes its elements on demand, and only once.
struct JIterator {
    bool (*next)(JRun* r, JIterator* it, JValue* out);
    JCursor source;
    const void* state;
    JFrame* frame;
    const char* name;
    bool started, done;
};

typedef struct {
    JValue* values;             // positional
    int count;
    const JText** names;        // keyword
    JValue* named;
    int named_count;
} JArgs;

// A function with fixed parameters: an entry in the tables of filters, tests and methods. `params`: names, separated by spaces; with "/"
// before them they are positional only; NULL: `raw` takes the arguments unsorted. Absent arguments are kJMissing.
enum { kMaxParams = 6 };
typedef JValue (*JFixed)(JRun* r, JValue self, const JValue* args);
typedef JValue (*JRaw)(JRun* r, JValue self, const JArgs* args);
typedef struct {
    const char* name;
    const char* params;
    int required;
    JFixed fixed;
    JRaw raw;
} JCallable;

struct JMethod {
    JValue self;
    const JCallable* callable;
};

// ---- the syntax tree
typedef enum {
    kNConst, kNName, kNNsRef, kNTuple, kNList, kNDict, kNGetattr, kNGetitem, kNSlice, kNCall, kNFilter, kNTest, kNUnary, kNBinary, kNConcat,
    kNCompare, kNAnd, kNOr, kNNot, kNCond,
    kNOutput, kNSet, kNSetBlock, kNIf, kNFor, kNMacro, kNCallBlock, kNFilterBlock, kNWith, kNGeneration, kNBreak, kNContinue
} JNodeType;

typedef enum { kOpAdd, kOpSub, kOpMul, kOpDiv, kOpFloorDiv, kOpMod, kOpPow } JArith;
typedef enum { kOpEq, kOpNe, kOpLt, kOpLe, kOpGt, kOpGe, kOpIn, kOpNotIn } JCompare;

typedef struct JFunc {   // a part of a template with slots of its own, where Jinja2's compiler writes a Python function
    struct JFunc* parent;
    int slots;
    struct JVar* vars;
} JFunc;

typedef struct JVar {    // one Python local: l_<level>_<name>
    JFunc* func;
    const JText* name;
    int level, slot;
    struct JVar* next;
} JVar;

typedef enum { kLoadNothing, kLoadParameter, kLoadResolve, kLoadAlias, kLoadUndefined } JLoadKind;
typedef struct {
    JVar* var;
    JLoadKind kind;
    int hops, slot;    // kLoadAlias: of the outer variable that is copied
    int global;        // kLoadResolve: index into the template's names
} JLoad;

typedef struct {       // how a block sets its variables when it is entered
    JLoad* loads;
    int count;
} JScopeLoads;

typedef struct {
    JNode** args;
    int count;
    const JText** names;
    JNode** named;
    int named_count;
    JNode *dyn_args, *dyn_kwargs;
} JCallArgs;

typedef struct {
    JNode** items;
    int count;
} JNodes;

struct JNode {
    JNodeType type;
    int line, depth, op;
    JNode *a, *b, *c;
    JNodes items, other;          // elements; a loop's or an if's body, and its else
    const int* ops;               // kNCompare
    JCallArgs* call;
    const JText* name;
    const JCallable* callable;    // filters and tests; NULL: unknown, an error if it is reached
    JValue value;
    int hops, slot;               // of a name's variable; kNMacro, kNCallBlock: of the variable that the node sets
    bool recursive, extended, catches_kwargs, catches_varargs, uses_caller, caller_given;
    int loop_slot, caller_slot, kwargs_slot, varargs_slot;
    JFunc *func, *test_func;      // the JFunc of the body, and of a loop's `if`
    JScopeLoads scope, other_scope, test_scope;
};

struct Jinja {
    struct JRun* memory;          // owns the tree
    JNodes body;
    JFunc* func;
    JScopeLoads scope;
    const JText** globals;        // names that are looked up in the context
    int global_count;
    const JText** mentioned;      // every name in the source, sorted
    int mentioned_count;
};

// ---- a run: a compilation or a rendering
struct JFrame {   // the locals of one call
    JFrame* parent;
    JValue* slots;
};

typedef struct JChunk {
    struct JChunk* next;
    size_t bytes;
} JChunk;

struct JRun {
    jmp_buf out;
    JinjaError* error;
    int line, depth;
    int64_t steps;
    char* free_at;
    size_t free_bytes, taken;
    JChunk* chunks;
    // rendering
    const Jinja* template_;
    const json_t* context;
    const char* const* data_names;
    const char* date;
    JValue* globals;              // [global_count]; resolved[i]: globals[i] is looked up
    bool* resolved;
    JinjaOutput* output;
    int captures;                 // how many set blocks, macros, ... are collecting output now
    size_t outer_bytes;           // bytes of output before the outermost of these
    bool leaving_break;           // a loop is being left: by break, else by continue
};

__attribute__((noreturn, format(printf, 2, 3))) void jinja_fail(JRun* r, const char* format, ...);
void* jinja_take(JRun* r, size_t bytes);                       // 16-byte aligned, not zeroed
void* jinja_take_zeroed(JRun* r, size_t bytes);
void jinja_release(JRun* r);
void jinja_step(JRun* r, size_t bytes);                        // counts one step, and one more for every 64 bytes of work
void jinja_enter(JRun* r);                                     // one evaluation deeper; jinja_leave ends it
static inline void jinja_leave(JRun* r) { r->depth--; }

// ---- value.c
static inline JValue j_of(JKind kind) { JValue v; memset(&v, 0, sizeof v); v.kind = kind; return v; }
static inline JValue j_none(void) { return j_of(kJNone); }
static inline JValue j_missing(void) { return j_of(kJMissing); }
static inline JValue j_bool(bool b) { JValue v = j_of(kJBool); v.as.boolean = b; return v; }
static inline JValue j_int(int64_t i) { JValue v = j_of(kJInt); v.as.integer = i; return v; }
static inline JValue j_float(double d) { JValue v = j_of(kJFloat); v.as.real = d; return v; }
static inline JValue j_text(const JText* t) { JValue v = j_of(kJText); v.as.text = (JText*)t; return v; }
static inline JValue j_list(JKind kind, JList* l) { JValue v = j_of(kind); v.as.list = l; return v; }
static inline JValue j_dict(JDict* d) { JValue v = j_of(kJDict); v.as.dict = d; return v; }
static inline bool j_integral(JValue v) { return v.kind == kJInt || v.kind == kJBool; }
static inline bool j_number(JValue v) { return j_integral(v) || v.kind == kJFloat; }
static inline int64_t j_as_int(JValue v) { return v.kind == kJBool ? v.as.boolean : v.as.integer; }
static inline double j_as_float(JValue v) { return v.kind == kJFloat ? v.as.real : (double)j_as_int(v); }

JValue j_undefined(JRun* r, const char* name, const char* owner, const char* hint);
__attribute__((noreturn)) void j_fail_undefined(JRun* r, JValue v);
const char* j_type_name(JValue v);
bool j_truth(JRun* r, JValue v);
bool j_same(JRun* r, JValue a, JValue b);                     // Python's ==
int j_order(JRun* r, JValue a, JValue b, JCompare op);        // Python's <, <=, >, >=: the truth of `a op b`
bool j_contains(JRun* r, JValue item, JValue in);
int64_t j_length(JRun* r, JValue v);                          // -1: has none
bool j_iterable(JValue v);
JCursor j_cursor(JRun* r, JValue v);                          // fails if v is not iterable
bool j_next(JRun* r, JCursor* cursor, JValue* out);
JValue j_iterator(JRun* r, bool (*next)(JRun*, JIterator*, JValue*), JValue source, const void* state, const char* name);

JList* j_list_new(JRun* r, int64_t capacity);
void j_push(JRun* r, JList* list, JValue v);
JList* j_collect(JRun* r, JValue v);                          // list(v)
JDict* j_dict_new(JRun* r, int64_t capacity);
JValue* j_find(JRun* r, const JDict* d, JValue key);          // NULL: no such key
JValue* j_find_name(JRun* r, const JDict* d, const JText* name);
void j_put(JRun* r, JDict* d, JValue key, JValue value);
JValue j_pair(JRun* r, JValue a, JValue b);

JValue j_getattr(JRun* r, JValue v, const JText* name);
JValue j_getitem(JRun* r, JValue v, JValue key);

// ---- text.c
typedef struct {
    JRun* r;
    char* s;
    unsigned char* marks;
    size_t bytes, capacity;
    bool any_data, any_template;
} JBuilder;

JText* j_text_new(JRun* r, const char* s, size_t bytes, JMark mark);   // shares s
JText* j_literal(JRun* r, const char* s);                              // shares s: the template's own
JText* j_part(JRun* r, const JText* t, size_t begin, size_t end);      // bytes
JText* j_join2(JRun* r, const JText* a, const JText* b);
JText* j_with_safe(JRun* r, const JText* t, bool safe);
int64_t j_chars(JText* t);
size_t j_offset(JText* t, int64_t character);                          // byte of a character, 0 <= character <= chars
static inline unsigned char j_mark_at(const JText* t, size_t i) { return t->mark == kMarkMixed ? t->marks[i] : (unsigned char)t->mark; }
bool j_text_equal(const JText* a, const JText* b);
bool j_is(const JText* t, const char* word);
const char* j_c_string(JRun* r, const JText* t);                       // NUL-terminated copy

JBuilder j_builder(JRun* r);
void j_add(JBuilder* b, const char* s, size_t bytes, unsigned char mark);
void j_add_part(JBuilder* b, const JText* t, size_t begin, size_t end);
static inline void j_add_text(JBuilder* b, const JText* t) { j_add_part(b, t, 0, t->bytes); }
static inline void j_add_c(JBuilder* b, const char* s) { j_add(b, s, strlen(s), 0); }
void j_add_char(JBuilder* b, uint32_t c, unsigned char mark);
JText* j_built(JBuilder* b);

JText* j_str(JRun* r, JValue v);                                       // Python's str()
JText* j_soft_str(JRun* r, JValue v);                                  // leaves text as it is, marked safe or not
void j_add_repr(JBuilder* b, JValue v);
void j_add_str(JBuilder* b, JValue v);
void j_add_float(JBuilder* b, double d);
JText* j_escape(JRun* r, JValue v);                                    // for HTML
bool j_py_space(uint32_t c);

static inline uint32_t j_decode(const char* s, size_t bytes, int* length) {   // of well-formed text, bytes > 0
    *length = (unsigned char)*s < 0x80 ? 1 : utf8_char_bytes(s, bytes);
    if (*length < 1) *length = 1;
    return utf8_code_point(s, *length);
}

// ---- unicode.c
uint32_t j_upper(uint32_t c);
uint32_t j_lower(uint32_t c);
bool j_is_alpha(uint32_t c);
bool j_is_decimal(uint32_t c);
bool j_is_digit(uint32_t c);                    // decimals, superscripts and the like
bool j_is_numeric(uint32_t c);
bool j_is_printable(uint32_t c);
bool j_is_cased(uint32_t c);
bool j_is_lower(uint32_t c);
bool j_is_upper(uint32_t c);
int j_upper_all(uint32_t c, uint32_t out[3]);   // upper case of up to three characters: how many
int j_title_all(uint32_t c, uint32_t out[3]);   // the same as the first letter of a word

// ---- operators.c
JValue j_arith(JRun* r, JArith op, JValue a, JValue b);
JValue j_negate(JRun* r, JValue v, bool minus);
bool j_compare(JRun* r, JCompare op, JValue a, JValue b);
JValue j_slice(JRun* r, JValue v, const JSlice* slice, bool* has);     // *has = false: v has no such slices
int64_t j_need_int(JRun* r, JValue v, const char* what);
JText* j_need_text(JRun* r, JValue v, const char* what);

// ---- the tables
const JCallable* j_find_filter(const JText* name);
const JCallable* j_find_test(const JText* name);
const JCallable* j_find_method(JValue self, const JText* name);
JValue j_invoke(JRun* r, const JCallable* c, JValue self, const JArgs* args);
void jinja_run(JRun* r);                                               // eval.c: writes the whole template's output
JValue j_call(JRun* r, JValue callee, const JArgs* args);              // eval.c
JValue j_function(JRun* r, const char* name);                          // a global function; kJMissing: no such
JValue j_call_function(JRun* r, const JFunction* f, const JArgs* args);
JValue j_loop_attribute(JRun* r, JLoop* loop, const JText* name);      // kJMissing: has none
JValue j_cycler_attribute(JRun* r, JCycler* cycler, const JText* name);   // kJMissing: has none
void j_sort(JRun* r, JValue* keys, JValue* items, int64_t count, bool reverse);   // stable, by keys

// ---- format.c, tojson.c, methods.c
JValue j_percent(JRun* r, JText* format, JValue args);                 // format % args
JText* j_format(JRun* r, const JText* format, const JArgs* args);      // format.format(...)
JValue j_parse_int(JRun* r, const JText* t, int64_t base);             // kJMissing: no number
JValue j_parse_float(const JText* t);
JText* j_tojson(JRun* r, JValue v, JValue indent, JValue separators, bool ascii, bool sort_keys);
JValue j_from_json(JRun* r, const json_t* json, bool is_data, bool is_messages);
JText* j_change_case(JRun* r, const JText* t, bool upper);
JText* j_strip(JRun* r, const JText* t, JValue chars, bool left, bool right);
JText* j_replace(JRun* r, const JText* t, const JText* old, const JText* replacement, int64_t count);
JList* j_split_lines(JRun* r, const JText* t, bool keep);

// ---- the compiler
typedef enum {
    kTEnd, kTData, kTBlockBegin, kTBlockEnd, kTVariableBegin, kTVariableEnd, kTName, kTString, kTInt, kTFloat,
    kTAdd, kTSub, kTMul, kTDiv, kTFloorDiv, kTMod, kTPow, kTTilde, kTLBracket, kTRBracket, kTLParen, kTRParen, kTLBrace, kTRBrace,
    kTEq, kTNe, kTGt, kTGe, kTLt, kTLe, kTAssign, kTDot, kTColon, kTPipe, kTComma, kTSemicolon
} JTokenType;
typedef struct {
    JTokenType type;
    int line;
    JValue value;     // text of names, strings and data; numbers
} JToken;

JToken* jinja_lex(JRun* r, const char* source, size_t bytes, int* count);
JNodes jinja_parse(JRun* r, JToken* tokens, int count);
void jinja_resolve(JRun* r, Jinja* t);

#endif
