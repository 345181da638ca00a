// Writes the demo's data: three small tasks to fine-tune on, and a text corpus to pre-train on.
//
//   generate tasks DIR        DIR/train.jsonl and DIR/test.jsonl: {"messages": [user, assistant]}, one chat per line
//   generate corpus FILE      {"text": ...}, one document per line
//   generate worded FILE      the same, with many more word problems, said in many ways: the last pre-training pass
//
// Each task is a grammar that makes a meaning (a word problem with its steps, a query over a table, a statement about a
// board game) and has two renderings of the meaning. The task rendering is a prompt and the one right answer, in the shape of
// GSM8K, of text-to-SQL and of ViGGO. The corpus rendering says the same in prose: from the corpus a model learns the words, the
// sums, what a query means and which slots a sentence fills, but it never sees a chat, a CREATE TABLE, a <<7+5=12>>, a #### or an
// act(slot[value]).
//
// All is integer arithmetic on the program's own PRNG with fixed seeds: the same bytes on every machine. A random pick is always
// a statement of its own, since C does not fix the order in which arguments are evaluated.
#include "../../halo/base.h"

enum {
    kTestPerTask = 50,
    kTrainPerTask = 2000,
    kCorpusDocuments = 160000,
    kWordedDocuments = 56000,
};

// ---- random numbers and text

typedef struct {
    uint64_t state;
} Random;

// splitmix64 (Steele, Lea, Flood 2014)
static uint64_t random_next(Random* random) {
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// A number from low to high, both included.
static int between(Random* random, int low, int high) {
    return low + (int)(random_next(random) % (uint64_t)(high - low + 1));
}

static bool coin(Random* random) { return between(random, 0, 1) == 1; }

#define PICK(random, words) (words)[between(random, 0, (int)(sizeof(words) / sizeof((words)[0])) - 1)]

typedef struct {
    char data[1536];
    int bytes;
} Line;

__attribute__((format(printf, 2, 0)))
static void add_list(Line* line, const char* format, va_list args) {
    int room = (int)sizeof line->data - line->bytes;
    int wrote = vsnprintf(line->data + line->bytes, (size_t)room, format, args);
    check(wrote >= 0 && wrote < room, "a line of the demo's data is longer than %zu bytes", sizeof line->data);
    line->bytes += wrote;
}

__attribute__((format(printf, 2, 3)))
static void add(Line* line, const char* format, ...) {
    va_list args;
    va_start(args, format);
    add_list(line, format, args);
    va_end(args);
}

// ---- word problems: one or two sums, each with the words around it

typedef struct {
    const char* label;   // of the result: "Bought"
    int left, right, result;
    char op;
} Reckoning;

typedef struct {
    Line story, question;
    Reckoning steps[2];
    int step_count;
} Problem;

static const char* const kPeople[] = {"Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo",
                                      "Ivy", "Jon", "Kira", "Leo"};
static const char* const kThings[] = {"apples", "shells", "coins", "stamps", "books", "pears", "marbles", "cards",
                                      "beads", "cups", "eggs", "nuts"};
static const char* const kContainers[] = {"boxes", "bags", "trays", "jars"};
static const char* const kDays[] = {"Monday", "Tuesday", "Friday", "Sunday"};

enum { kLargestTerm = 9, kLargestFactor = 5 };

static int compute(int left, char op, int right) { return op == '+' ? left + right : op == '-' ? left - right : left * right; }

static void solve(Problem* p, int left, char op, int right, const char* label) {
    Reckoning step = {label, left, right, compute(left, op, right), op};
    p->steps[p->step_count++] = step;
}

static void make_problem(Random* random, Problem* p) {
    memset(p, 0, sizeof *p);
    const char* who = PICK(random, kPeople);
    const char* other = PICK(random, kPeople);
    while (other == who) other = PICK(random, kPeople);
    const char* things = PICK(random, kThings);
    const char* containers = PICK(random, kContainers);
    const char* day = PICK(random, kDays);
    int a = between(random, 2, kLargestTerm), b = between(random, 2, kLargestTerm);
    int rows = between(random, 2, kLargestFactor), each = between(random, 2, kLargestFactor);
    int sum = a + b, product = rows * each;
    switch (between(random, 0, 6)) {
    case 0:
        add(&p->story, "%s has %d %s. %s gives %s %d more %s.", who, a, things, other, who, b, things);
        add(&p->question, "How many %s does %s have now?", things, who);
        solve(p, a, '+', b, "Now");
        break;
    case 1:
        add(&p->story, "%s has %d %s. %s loses %d %s on %s.", who, sum, things, who, b, things, day);
        add(&p->question, "How many %s are left?", things);
        solve(p, sum, '-', b, "Left");
        break;
    case 2:
        add(&p->story, "%s fills %d %s with %d %s each.", who, rows, containers, each, things);
        add(&p->question, "How many %s does %s pack?", things, who);
        solve(p, rows, '*', each, "Packed");
        break;
    case 3: {
        int given = between(random, 2, min_int(sum - 1, kLargestTerm));
        add(&p->story, "%s finds %d %s on %s and %d %s later.", who, a, things, day, b, things);
        add(&p->story, " %s gives %d %s to %s.", who, given, things, other);
        add(&p->question, "How many %s does %s keep?", things, who);
        solve(p, a, '+', b, "Found");
        solve(p, sum, '-', given, "Kept");
        break;
    }
    case 4:
        add(&p->story, "%s buys %d %s of %d %s and has %d %s at home.", who, rows, containers, each, things, a, things);
        add(&p->question, "How many %s does %s have in all?", things, who);
        solve(p, rows, '*', each, "Bought");
        solve(p, product, '+', a, "In all");
        break;
    case 5: {
        int taken = between(random, 2, min_int(product - 1, kLargestTerm));
        add(&p->story, "%s fills %d %s with %d %s each.", who, rows, containers, each, things);
        add(&p->story, " %s takes %d %s.", other, taken, things);
        add(&p->question, "How many %s are left?", things);
        solve(p, rows, '*', each, "Packed");
        solve(p, product, '-', taken, "Left");
        break;
    }
    default:
        add(&p->story, "%s has %d %s. %s has %d more %s than %s.", who, a, things, other, b, things, who);
        add(&p->question, "How many %s do %s and %s have together?", things, who, other);
        solve(p, a, '+', b, "The other");
        solve(p, sum, '+', a, "Together");
        break;
    }
}

static void problem_task(Random* random, Line* user, Line* assistant) {
    Problem p;
    make_problem(random, &p);
    add(user, "%s %s", p.story.data, p.question.data);
    for (int i = 0; i < p.step_count; i++) {
        const Reckoning* s = &p.steps[i];
        add(assistant, "%s: %d %c %d = <<%d%c%d=%d>>%d\n", s->label, s->left, s->op, s->right, s->left, s->op, s->right, s->result, s->result);
    }
    add(assistant, "#### %d", p.steps[p.step_count - 1].result);
}

static void problem_prose(Random* random, Line* text) {
    Problem p;
    make_problem(random, &p);
    add(text, "%s", p.story.data);
    for (int i = 0; i < p.step_count; i++) {
        const Reckoning* s = &p.steps[i];
        add(text, " %s %d %c %d = %d.", s->label, s->left, s->op, s->right, s->result);
    }
}

// A problem with its question or without, its steps on lines of their own or not, with colons or without, each sum said once or
// twice. From the plain prose alone a model finds a step's number only if the words between story and step are the usual ones.
static void worded_problem_prose(Random* random, Line* text) {
    Problem p;
    make_problem(random, &p);
    bool asks = between(random, 0, 3) > 0;
    bool lines = between(random, 0, 2) > 0;
    bool colons = between(random, 0, 2) > 0;
    bool twice = between(random, 0, 2) > 0;
    bool dots = coin(random) || !lines;
    add(text, "%s", p.story.data);
    if (asks) add(text, " %s", p.question.data);
    for (int i = 0; i < p.step_count; i++) {
        const Reckoning* s = &p.steps[i];
        add(text, "%s%s%s %d %c %d =", lines ? "\n" : " ", s->label, colons ? ":" : "", s->left, s->op, s->right);
        if (twice) add(text, " (%d%c%d=%d)", s->left, s->op, s->right, s->result);
        add(text, "%s%d%s", twice ? "" : " ", s->result, dots ? "." : "");
    }
}

// Bare sums, so that the corpus shows every one that a problem can need many times.
static void sums_prose(Random* random, Line* text) {
    bool tight = coin(random);
    for (int i = 0; i < 8; i++) {
        int kind = between(random, 0, 5);
        int factor = between(random, 2, kLargestFactor), factor2 = between(random, 2, kLargestFactor);
        int number = between(random, 2, kLargestFactor * kLargestFactor), term = between(random, 2, kLargestTerm);
        char op = kind == 0 ? '*' : kind < 3 && number > term ? '-' : '+';
        int left = op == '*' ? factor : number, right = op == '*' ? factor2 : term;
        add(text, tight ? "%s%d%c%d=%d" : "%s%d %c %d = %d", i ? ", " : "", left, op, right, compute(left, op, right));
    }
    add(text, ".");
}

// ---- queries over one table of four columns

typedef struct {
    const char* table;        // singular; the plural takes an s
    const char* columns[4];
    const char* text_column;
    const char* numbers[2];
} Schema;

typedef struct {
    const char* column;
    const char* values[6];
} TextColumn;

static const char* const kTables[] = {"boat", "farm", "lamp", "train", "horse", "bridge", "garden", "school",
                                      "market", "tower", "pilot", "robot"};
static const TextColumn kTextColumns[] = {
    {"city", {"Oslo", "Lima", "Cairo", "Porto", "Delhi", "Quito"}},
    {"color", {"red", "blue", "green", "black", "white", "gold"}},
    {"owner", {"Ada", "Ben", "Cleo", "Dan", "Eva", "Finn"}},
    {"material", {"wood", "steel", "glass", "stone", "paper", "clay"}},
};
static const char* const kNumberColumns[] = {"age", "price", "weight", "speed", "score", "height"};

typedef struct {
    Schema schema;
    Line question, sql;
} Query;

static void make_schema(Random* random, Schema* s, const TextColumn** text) {
    s->table = PICK(random, kTables);
    *text = &PICK(random, kTextColumns);
    s->text_column = (*text)->column;
    s->numbers[0] = PICK(random, kNumberColumns);
    s->numbers[1] = PICK(random, kNumberColumns);
    while (s->numbers[1] == s->numbers[0]) s->numbers[1] = PICK(random, kNumberColumns);
    s->columns[0] = "name";
    bool text_last = coin(random);
    s->columns[text_last ? 3 : 1] = s->text_column;
    s->columns[text_last ? 1 : 2] = s->numbers[0];
    s->columns[text_last ? 2 : 3] = s->numbers[1];
}

// Half of the time adds a condition to the query: a WHERE clause in SQL, and its words in English.
static void add_condition(Random* random, Query* q, const TextColumn* text) {
    if (coin(random)) return;
    const char* number = q->schema.numbers[between(random, 0, 1)];
    const char* value = PICK(random, text->values);
    int bound = between(random, 2, 40);
    switch (between(random, 0, 2)) {
    case 0:
        add(&q->question, " whose %s is above %d", number, bound);
        add(&q->sql, " WHERE %s > %d", number, bound);
        break;
    case 1:
        add(&q->question, " whose %s is below %d", number, bound);
        add(&q->sql, " WHERE %s < %d", number, bound);
        break;
    default:
        add(&q->question, " whose %s is %s", text->column, value);
        add(&q->sql, " WHERE %s = '%s'", text->column, value);
        break;
    }
}

static void make_query(Random* random, Query* q) {
    static const struct {
        const char* word;
        const char* function;
    } kAggregates[] = {{"highest", "MAX"}, {"lowest", "MIN"}, {"average", "AVG"}, {"total", "SUM"}};
    memset(q, 0, sizeof *q);
    const TextColumn* text;
    make_schema(random, &q->schema, &text);
    const char* table = q->schema.table;
    const char* number = q->schema.numbers[between(random, 0, 1)];
    int first = between(random, 0, 3);
    int second = (first + between(random, 1, 3)) % 4;
    const char* column = q->schema.columns[first];
    const char* column2 = q->schema.columns[second];
    int aggregate = between(random, 0, 3);
    int limit = between(random, 2, 9);
    switch (between(random, 0, 5)) {
    case 0:
        add(&q->question, "Show the %s of every %s", column, table);
        add(&q->sql, "SELECT %s FROM %s", column, table);
        add_condition(random, q, text);
        add(&q->question, ".");
        break;
    case 1:
        add(&q->question, "Show the %s and the %s of every %s", column, column2, table);
        add(&q->sql, "SELECT %s, %s FROM %s", column, column2, table);
        add_condition(random, q, text);
        add(&q->question, ".");
        break;
    case 2:
        add(&q->question, "How many %ss are there", table);
        add(&q->sql, "SELECT COUNT(*) FROM %s", table);
        add_condition(random, q, text);
        add(&q->question, "?");
        break;
    case 3:
        add(&q->question, "What is the %s %s of the %ss", kAggregates[aggregate].word, number, table);
        add(&q->sql, "SELECT %s(%s) FROM %s", kAggregates[aggregate].function, number, table);
        add_condition(random, q, text);
        add(&q->question, "?");
        break;
    case 4: {
        bool highest = coin(random);
        add(&q->question, "Show the %s of the %d %ss with the %s %s.", column, limit, table, highest ? "highest" : "lowest", number);
        add(&q->sql, "SELECT %s FROM %s ORDER BY %s %s LIMIT %d", column, table, number, highest ? "DESC" : "ASC", limit);
        break;
    }
    default:
        add(&q->question, "How many %ss are there for each %s?", table, text->column);
        add(&q->sql, "SELECT %s, COUNT(*) FROM %s GROUP BY %s", text->column, table, text->column);
        break;
    }
}

static void query_task(Random* random, Line* user, Line* assistant) {
    Query q;
    make_query(random, &q);
    add(user, "CREATE TABLE %s (", q.schema.table);
    for (int i = 0; i < 4; i++) {
        const char* column = q.schema.columns[i];
        bool number = column == q.schema.numbers[0] || column == q.schema.numbers[1];
        add(user, "%s%s %s", i ? ", " : "", column, number ? "INTEGER" : "TEXT");
    }
    add(user, ")\n%s", q.question.data);
    add(assistant, "%s", q.sql.data);
}

static void query_prose(Random* random, Line* text) {
    Query q;
    make_query(random, &q);
    const char* const* c = q.schema.columns;
    add(text, "The table %s has the columns %s, %s, %s and %s. ", q.schema.table, c[0], c[1], c[2], c[3]);
    if (coin(random)) add(text, "%s Ask with %s;", q.question.data, q.sql.data);
    else add(text, "With %s; we ask: %s", q.sql.data, q.question.data);
}

// ---- statements about board games: an act and its slots

typedef struct {
    const char* key;
    char value[32];   // empty if the act asks for the value
} StatedSlot;

typedef struct {
    const char* act;
    StatedSlot slots[5];
    int slot_count;
    Line sentence;
} Statement;

static const char* const kNameFirst[] = {"Iron", "Silent", "Golden", "Hidden", "Little", "Frozen",
                                         "Lost", "Paper", "Seven", "Royal", "Wild", "Salt"};
static const char* const kNameSecond[] = {"Garden", "Harbor", "Crown", "Valley", "Lantern", "Castle",
                                          "River", "Fox", "Island", "Mill", "Comet", "Kite"};
static const char* const kThemes[] = {"trade", "space", "pirates", "farming", "magic", "bees"};
static const char* const kMakers[] = {"Lumo", "Tarnbox", "Pikka", "Oakfield", "Zebro", "Quill"};
static const char* const kRatings[] = {"great", "good", "dull", "poor"};
static const char* const kLevels[] = {"easy", "fair", "hard", "tricky"};

__attribute__((format(printf, 3, 4)))
static void add_slot(Statement* s, const char* key, const char* format, ...) {
    StatedSlot* slot = &s->slots[s->slot_count++];
    slot->key = key;
    va_list args;
    va_start(args, format);
    int wrote = vsnprintf(slot->value, sizeof slot->value, format, args);
    va_end(args);
    check(wrote >= 0 && wrote < (int)sizeof slot->value, "a value of slot %s is too long", key);
}

static void make_statement(Random* random, Statement* s) {
    static const struct {
        const char* key;
        const char* before;
        const char* after;
    } kAsked[] = {{"maker", "Do you know who made", ""},
                  {"year", "Do you know when", " came out"},
                  {"players", "How many players can play", ""},
                  {"theme", "Can you tell me what", " is about"},
                  {"level", "Is it hard to learn", ""}};
    memset(s, 0, sizeof *s);
    const char* first = PICK(random, kNameFirst);
    const char* second = PICK(random, kNameSecond);
    const char* theme = PICK(random, kThemes);
    const char* maker = PICK(random, kMakers);
    const char* rating = PICK(random, kRatings);
    const char* level = PICK(random, kLevels);
    int players = between(random, 2, 8), year = between(random, 1980, 2019);
    bool tell_maker = coin(random), tell_players = coin(random), tell_year = coin(random), tell_theme = coin(random);
    Line name = {{0}, 0};
    add(&name, "%s %s", first, second);
    add_slot(s, "name", "%s", name.data);
    switch (between(random, 0, 4)) {
    case 0:
        s->act = "inform";
        add(&s->sentence, "%s is a game about %s", name.data, theme);
        add_slot(s, "theme", "%s", theme);
        if (tell_players) {
            add(&s->sentence, " for %d players", players);
            add_slot(s, "players", "%d", players);
        }
        if (tell_maker) {
            add(&s->sentence, " by %s", maker);
            add_slot(s, "maker", "%s", maker);
        }
        if (tell_year) {
            add(&s->sentence, " from %d", year);
            add_slot(s, "year", "%d", year);
        }
        add(&s->sentence, ".");
        break;
    case 1:
        s->act = "advise";
        add(&s->sentence, "If you like games about %s, try %s", theme, name.data);
        add_slot(s, "theme", "%s", theme);
        if (tell_maker) {
            add(&s->sentence, " by %s", maker);
            add_slot(s, "maker", "%s", maker);
        }
        add(&s->sentence, ".");
        break;
    case 2:
        s->act = "check";
        add(&s->sentence, "Did you say that %s", name.data);
        if (tell_players) {
            add(&s->sentence, " is for %d players?", players);
            add_slot(s, "players", "%d", players);
        } else {
            add(&s->sentence, " came out in %d?", year);
            add_slot(s, "year", "%d", year);
        }
        break;
    case 3:
        s->act = "judge";
        add(&s->sentence, "I find %s %s", name.data, rating);
        add_slot(s, "rating", "%s", rating);
        add(&s->sentence, ", and the rules are %s", level);
        add_slot(s, "level", "%s", level);
        if (tell_theme) {
            add(&s->sentence, " for a game about %s", theme);
            add_slot(s, "theme", "%s", theme);
        }
        add(&s->sentence, ".");
        break;
    default: {
        int asked = between(random, 0, 4);
        s->act = "ask";
        add(&s->sentence, "%s %s%s?", kAsked[asked].before, name.data, kAsked[asked].after);
        add_slot(s, kAsked[asked].key, "%s", "");
        break;
    }
    }
}

static void add_slots(Line* line, const Statement* s) {
    for (int i = 0; i < s->slot_count; i++) add(line, "%s%s[%s]", i ? ", " : "", s->slots[i].key, s->slots[i].value);
}

static void statement_task(Random* random, Line* user, Line* assistant) {
    Statement s;
    make_statement(random, &s);
    add(user, "Meaning: %s", s.sentence.data);
    add(assistant, "%s(", s.act);
    add_slots(assistant, &s);
    add(assistant, ")");
}

static void statement_prose(Random* random, Line* text) {
    Statement s;
    make_statement(random, &s);
    bool sentence_first = between(random, 0, 3) > 0;
    if (sentence_first) add(text, "%s ", s.sentence.data);
    add(text, "Card: ");
    add_slots(text, &s);
    add(text, ".");
    if (!sentence_first) add(text, " %s", s.sentence.data);
}

// ---- lists said two or three times, from which a small model learns to copy: all three tasks are mostly copying. A model learns
// to copy one word before it learns to copy eight, so there are lists of every length.

static void recall_prose(Random* random, Line* text) {
    const char* words[8];
    int count = between(random, 1, 8), passes = between(random, 2, 3);
    for (int i = 0; i < count; i++) {
        switch (between(random, 0, 7)) {
        case 0: words[i] = PICK(random, kPeople); break;
        case 1: words[i] = PICK(random, kThings); break;
        case 2: words[i] = PICK(random, kTables); break;
        case 3: words[i] = PICK(random, kNumberColumns); break;
        case 4: words[i] = PICK(random, kNameFirst); break;
        case 5: words[i] = PICK(random, kNameSecond); break;
        case 6: words[i] = PICK(random, kMakers); break;
        default: {
            const TextColumn* column = &PICK(random, kTextColumns);
            words[i] = PICK(random, column->values);
            break;
        }
        }
    }
    for (int pass = 0; pass < passes; pass++) {
        add(text, pass ? " Again:" : "List:");
        for (int i = 0; i < count; i++) add(text, " %s", words[i]);
        add(text, ".");
    }
}

// ---- files

static FILE* open_for_writing(const char* path) {
    FILE* file = fopen(path, "wb");
    if (!file) user_error("%s: cannot be written; does its folder exist?", path);
    return file;
}

static void close_written(FILE* file, const char* path) {
    bool failed = ferror(file) != 0;
    if (fclose(file) || failed) user_error("%s: writing failed; is the disk full?", path);
}

// The text is ASCII: only newlines, quotes and backslashes need an escape.
static void write_json_string(FILE* file, const char* text) {
    fputc('"', file);
    for (; *text; text++) {
        if (*text == '\n') {
            fputs("\\n", file);
        } else {
            if (*text == '"' || *text == '\\') fputc('\\', file);
            fputc(*text, file);
        }
    }
    fputc('"', file);
}

static void write_chat(FILE* file, const Line* user, const Line* assistant) {
    fputs("{\"messages\": [{\"role\": \"user\", \"content\": ", file);
    write_json_string(file, user->data);
    fputs("}, {\"role\": \"assistant\", \"content\": ", file);
    write_json_string(file, assistant->data);
    fputs("}]}\n", file);
}

typedef void (*TaskFn)(Random* random, Line* user, Line* assistant);
static const TaskFn kTasks[] = {problem_task, query_task, statement_task};
enum { kTaskCount = 3, kPromptsMax = kTaskCount * (kTestPerTask + kTrainPerTask) };

// The 64-bit FNV-1a hashes of all prompts written so far: no prompt is written twice, so test and train share none.
typedef struct {
    uint64_t hashes[kPromptsMax];
    int count;
} Prompts;

static bool is_new_prompt(Prompts* prompts, const char* prompt) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *prompt; prompt++) hash = (hash ^ (unsigned char)*prompt) * 0x100000001b3u;
    for (int i = 0; i < prompts->count; i++)
        if (prompts->hashes[i] == hash) return false;
    prompts->hashes[prompts->count++] = hash;
    return true;
}

static void write_new_chat(FILE* file, Random* random, Prompts* prompts, TaskFn task) {
    Line user, assistant;
    do {
        user.bytes = assistant.bytes = 0;
        task(random, &user, &assistant);
    } while (!is_new_prompt(prompts, user.data));
    write_chat(file, &user, &assistant);
}

// The test file has three equal parts, one for each task, in the order of kTasks; the training file takes the tasks in turn.
static void write_tasks(const char* dir) {
    Random random = {1};
    Prompts* prompts = (Prompts*)host_alloc(sizeof(Prompts));
    char path[1024];
    snprintf(path, sizeof path, "%s/test.jsonl", dir);
    FILE* file = open_for_writing(path);
    for (int t = 0; t < kTaskCount; t++)
        for (int i = 0; i < kTestPerTask; i++) write_new_chat(file, &random, prompts, kTasks[t]);
    close_written(file, path);
    snprintf(path, sizeof path, "%s/train.jsonl", dir);
    file = open_for_writing(path);
    for (int i = 0; i < kTrainPerTask; i++)
        for (int t = 0; t < kTaskCount; t++) write_new_chat(file, &random, prompts, kTasks[t]);
    close_written(file, path);
    free(prompts);
}

typedef void (*ProseFn)(Random* random, Line* text);
// The kinds of prose, picked at random: a kind that is listed three times comes three times as often.
static const ProseFn kProse[] = {problem_prose, problem_prose,   problem_prose,   sums_prose,   query_prose,  query_prose,
                                 query_prose,   statement_prose, statement_prose, recall_prose, recall_prose, recall_prose};
enum { kKinds = sizeof kProse / sizeof kProse[0] };

static const ProseFn kWordedProse[] = {worded_problem_prose, worded_problem_prose, worded_problem_prose, worded_problem_prose,
                                       worded_problem_prose, query_prose,          statement_prose,      recall_prose};
enum { kWordedKinds = sizeof kWordedProse / sizeof kWordedProse[0] };

static void write_corpus(const char* path, uint64_t seed, int documents, const ProseFn* kinds, int kind_count) {
    Random random = {seed};
    FILE* file = open_for_writing(path);
    for (int d = 0; d < documents; d++) {
        Line text = {{0}, 0};
        int items = between(&random, 1, 2);
        for (int i = 0; i < items; i++) {
            int kind = between(&random, 0, kind_count - 1);
            if (i) add(&text, "\n");
            kinds[kind](&random, &text);
        }
        fputs("{\"text\": ", file);
        write_json_string(file, text.data);
        fputs("}\n", file);
    }
    close_written(file, path);
}

int main(int argc, char** argv) {
    if (argc == 3 && !strcmp(argv[1], "tasks")) write_tasks(argv[2]);
    else if (argc == 3 && !strcmp(argv[1], "corpus")) write_corpus(argv[2], 2, kCorpusDocuments, kProse, kKinds);
    else if (argc == 3 && !strcmp(argv[1], "worded")) write_corpus(argv[2], 3, kWordedDocuments, kWordedProse, kWordedKinds);
    else user_error("usage: generate tasks DIR | generate corpus FILE | generate worded FILE");
    return 0;
}
