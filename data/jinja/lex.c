// Tokens of a template, as Jinja2's lexer cuts them with trim_blocks and lstrip_blocks on and keep_trailing_newline off.
#include "internal.h"

typedef struct {
    JRun* r;
    const char* s;           // the source with \n as its only line break
    size_t bytes, at;
    JToken* tokens;
    int count, capacity, line;
    bool line_starting;      // the last token ended in a line break
    char* open;              // brackets that wait to be closed
    int open_count, open_capacity;
} JLexer;

static bool starts(const JLexer* l, size_t at, const char* word) {
    size_t n = strlen(word);
    return l->bytes - at >= n && !memcmp(l->s + at, word, n);
}

static size_t skip_space(const JLexer* l, size_t at) {
    while (at < l->bytes) {
        int length;
        if (!j_py_space(j_decode(l->s + at, l->bytes - at, &length))) break;
        at += (size_t)length;
    }
    return at;
}

static JToken* token(JLexer* l, JTokenType type) {
    if (l->count == l->capacity) {
        int capacity = l->capacity ? 2 * l->capacity : 256;
        JToken* grown = (JToken*)jinja_take(l->r, (size_t)capacity * sizeof(JToken));
        if (l->count) memcpy(grown, l->tokens, (size_t)l->count * sizeof(JToken));
        l->tokens = grown;
        l->capacity = capacity;
    }
    JToken* t = l->tokens + l->count++;
    t->type = type;
    t->line = l->line;
    t->value = j_missing();
    return t;
}

// Moves on to `end`, counting lines.
static void advance(JLexer* l, size_t end) {
    for (size_t i = l->at; i < end; i++) l->line += l->s[i] == '\n';
    if (end > l->at) l->line_starting = l->s[end - 1] == '\n';
    l->at = end;
    l->r->line = l->line;
}

static void data_token(JLexer* l, size_t begin, size_t end) {
    if (end > begin) token(l, kTData)->value = j_text(j_text_new(l->r, l->s + begin, end - begin, kMarkTemplate));
}

// The end of the text before a tag: the tag's sign, or lstrip_blocks, may remove white space from the end of that text.
static size_t text_end(const JLexer* l, size_t begin, size_t end, char sign, bool is_variable) {
    if (sign == '-') {
        size_t last = begin;
        for (size_t at = begin; at < end;) {
            int length;
            bool space = j_py_space(j_decode(l->s + at, end - at, &length));
            at += (size_t)length;
            if (!space) last = at;
        }
        return last;
    }
    if (sign == '+' || is_variable) return end;
    size_t line = end;
    while (line > begin && l->s[line - 1] != '\n') line--;
    if (line == begin && !l->line_starting) return end;
    for (size_t at = line; at < end;) {
        int length;
        if (!j_py_space(j_decode(l->s + at, end - at, &length))) return end;
        at += (size_t)length;
    }
    return line;
}

// The end of a closing mark ("%}", "#}") at `at`: +%}, -%} with the space behind it, or %} with one line break; 0: there is none.
static size_t closing(const JLexer* l, size_t at, const char* mark) {
    if (l->s[at] == '+' && starts(l, at + 1, mark)) return at + 3;
    if (l->s[at] == '-' && starts(l, at + 1, mark)) return skip_space(l, at + 3);
    if (!starts(l, at, mark)) return 0;
    at += 2;
    return at < l->bytes && l->s[at] == '\n' ? at + 1 : at;
}

// The end of `{%- raw %}` at `at`; 0 if there is no such tag.
static size_t raw_begin(const JLexer* l, size_t at) {
    at += 2;
    if (at < l->bytes && (l->s[at] == '-' || l->s[at] == '+')) at++;
    at = skip_space(l, at);
    if (!starts(l, at, "raw")) return 0;
    at = skip_space(l, at + 3);
    if (starts(l, at, "-%}")) return skip_space(l, at + 3);
    return starts(l, at, "%}") ? at + 2 : 0;
}

static void raw_block(JLexer* l) {
    for (size_t at = l->at; at < l->bytes; at++) {
        if (!starts(l, at, "{%")) continue;
        size_t word = at + 2;
        char sign = word < l->bytes && (l->s[word] == '-' || l->s[word] == '+') ? l->s[word] : 0;
        word = skip_space(l, word + (sign != 0));
        if (!starts(l, word, "endraw")) continue;
        word = skip_space(l, word + 6);
        size_t end = word < l->bytes ? closing(l, word, "%}") : 0;
        if (!end) continue;
        data_token(l, l->at, text_end(l, l->at, at, sign, false));
        advance(l, end);
        return;
    }
    jinja_fail(l->r, "a {%% raw %%} has no end");
}

static void comment(JLexer* l) {
    for (size_t at = l->at; at < l->bytes; at++) {
        size_t end = closing(l, at, "#}");
        if (!end) continue;
        advance(l, end);
        return;
    }
    jinja_fail(l->r, "a comment {# has no end");
}

// The end of the digits at `at`, where single _ may stand between digits; `at` if there are no digits.
static size_t digits(const JLexer* l, size_t at, const char* allowed) {
    size_t end = at;
    while (end < l->bytes) {
        size_t next = end > at && l->s[end] == '_' ? end + 1 : end;
        if (next == l->bytes || !l->s[next] || !strchr(allowed, l->s[next])) break;
        end = next + 1;
    }
    return end;
}

static size_t float_end(const JLexer* l) {
    static const char ten[] = "0123456789";
    size_t at = digits(l, l->at, ten), point = at;
    if (at == l->at || (l->at && l->s[l->at - 1] == '.')) return 0;
    if (at < l->bytes && l->s[at] == '.') {
        size_t end = digits(l, at + 1, ten);
        if (end > at + 1) point = end;
    }
    if (point < l->bytes && (l->s[point] | 32) == 'e') {
        size_t exponent = point + 1;
        if (exponent < l->bytes && (l->s[exponent] == '+' || l->s[exponent] == '-')) exponent++;
        size_t end = digits(l, exponent, ten);
        if (end > exponent) return end;
    }
    return point > at ? point : 0;
}

static void number(JLexer* l) {
    char text[400];
    size_t end = float_end(l), n = 0, begin = l->at;
    bool is_float = end != 0;
    int base = 10;
    if (!is_float) {
        char mark = l->s[l->at] == '0' && l->at + 1 < l->bytes ? (char)(l->s[l->at + 1] | 32) : 0;
        const char* allowed = mark == 'b' ? "01" : mark == 'o' ? "01234567" : mark == 'x' ? "0123456789abcdefABCDEF" : NULL;
        if (allowed) {
            size_t from = l->at + 2;
            if (from < l->bytes && l->s[from] == '_') from++;
            end = digits(l, from, allowed);
            if (end > from) {
                base = mark == 'b' ? 2 : mark == 'o' ? 8 : 16;
                begin = from;
            } else end = 0;
        }
        if (!end) end = digits(l, l->at, l->s[l->at] == '0' ? "0" : "0123456789");
    }
    for (size_t i = begin; i < end && n < sizeof text - 1; i++)
        if (l->s[i] != '_') text[n++] = l->s[i];
    text[n] = 0;
    JToken* t = token(l, is_float ? kTFloat : kTInt);
    if (is_float) {
        t->value = j_float(strtod(text, NULL));
    } else {
        t->value = j_parse_int(l->r, j_text_new(l->r, text, n, kMarkTemplate), base);
        if (t->value.kind != kJInt) jinja_fail(l->r, "the number %.40s is out of range", text);
    }
    advance(l, end);
}

// The character that \x, \u, \U or up to three octal digits at l->s[at] stand for; *end: behind them.
static uint32_t numbered_escape(JLexer* l, size_t at, size_t* end) {
    char kind = l->s[at];
    int want = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    uint32_t c = 0;
    if (!want) {
        for (*end = at; *end < at + 3 && l->s[*end] >= '0' && l->s[*end] <= '7'; (*end)++) c = c * 8 + (uint32_t)(l->s[*end] - '0');
        return c;
    }
    *end = at + 1;
    for (int i = 0; i < want; i++, (*end)++) {
        char h = l->s[*end];
        int digit = h >= '0' && h <= '9' ? h - '0' : (h | 32) >= 'a' && (h | 32) <= 'f' ? (h | 32) - 'a' + 10 : -1;
        if (digit < 0) jinja_fail(l->r, "\\%c in a string wants %d hexadecimal digits", kind, want);
        c = c * 16 + (uint32_t)digit;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) jinja_fail(l->r, "\\%c in a string is no character", kind);
    return c;
}

static void string(JLexer* l) {
    char quote = l->s[l->at];
    size_t end = l->at + 1;
    while (end < l->bytes && l->s[end] != quote) end += l->s[end] == '\\' ? 2 : 1;
    if (end >= l->bytes) jinja_fail(l->r, "a string has no end");
    JToken* t = token(l, kTString);
    if (!memchr(l->s + l->at, '\\', end - l->at)) {
        t->value = j_text(j_text_new(l->r, l->s + l->at + 1, end - l->at - 1, kMarkTemplate));
        advance(l, end + 1);
        return;
    }
    JBuilder b = j_builder(l->r);
    for (size_t at = l->at + 1; at < end;) {
        if (l->s[at] != '\\') {
            j_add(&b, l->s + at++, 1, 0);
            continue;
        }
        char c = l->s[++at];
        const char* plain = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
        const char* found = NULL;
        for (const char* p = plain; *p; p += 2)
            if (*p == c) found = p;
        if (found) j_add(&b, found + 1, 1, 0), at++;
        else if (c == '\n') at++;
        else if (c == 'x' || c == 'u' || c == 'U' || (c >= '0' && c <= '7')) j_add_char(&b, numbered_escape(l, at, &at), 0);
        else if (c == 'N') jinja_fail(l->r, "\\N in a string is not supported");
        else j_add(&b, "\\", 1, 0);
    }
    JText* text = j_built(&b);
    l->tokens[l->count - 1].value = j_text(text);
    advance(l, end + 1);
}

static void bracket(JLexer* l, char c) {
    if (c == '(' || c == '[' || c == '{') {
        if (l->open_count == l->open_capacity) {
            char* grown = (char*)jinja_take(l->r, (size_t)(l->open_capacity = 2 * l->open_capacity + 64));
            if (l->open_count) memcpy(grown, l->open, (size_t)l->open_count);
            l->open = grown;
        }
        l->open[l->open_count++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (!l->open_count) jinja_fail(l->r, "unexpected '%c'", c);
        char want = l->open[--l->open_count];
        if (want != c) jinja_fail(l->r, "unexpected '%c', expected '%c'", c, want);
    }
}

static bool name_byte(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (c & 0x80); }

static void operator_(JLexer* l) {
    static const struct { const char* text; JTokenType type; } all[] = {
        {"//", kTFloorDiv}, {"**", kTPow}, {"==", kTEq}, {"!=", kTNe}, {">=", kTGe}, {"<=", kTLe}, {"+", kTAdd}, {"-", kTSub}, {"/", kTDiv},
        {"*", kTMul}, {"%", kTMod}, {"~", kTTilde}, {"[", kTLBracket}, {"]", kTRBracket}, {"(", kTLParen}, {")", kTRParen}, {"{", kTLBrace},
        {"}", kTRBrace}, {">", kTGt}, {"<", kTLt}, {"=", kTAssign}, {".", kTDot}, {":", kTColon}, {"|", kTPipe}, {",", kTComma}, {";", kTSemicolon}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!starts(l, l->at, all[i].text)) continue;
        bracket(l, l->s[l->at]);
        token(l, all[i].type);
        advance(l, l->at + strlen(all[i].text));
        return;
    }
    jinja_fail(l->r, "unexpected character '%.1s'", l->s + l->at);
}

// Reads the tokens between {% and %}, or {{ and }}.
static void inside(JLexer* l, bool is_block) {
    while (l->at < l->bytes) {
        size_t end = 0;
        if (!l->open_count) {
            if (is_block) end = closing(l, l->at, "%}");
            else if (starts(l, l->at, "-}}")) end = skip_space(l, l->at + 3);
            else if (starts(l, l->at, "}}")) end = l->at + 2;
        }
        if (end) {
            token(l, is_block ? kTBlockEnd : kTVariableEnd);
            advance(l, end);
            return;
        }
        size_t behind = skip_space(l, l->at);
        char c = l->s[l->at];
        if (behind > l->at) advance(l, behind);
        else if (c >= '0' && c <= '9') number(l);
        else if (name_byte(c)) {
            for (behind = l->at; behind < l->bytes && name_byte(l->s[behind]);) behind++;
            token(l, kTName)->value = j_text(j_text_new(l->r, l->s + l->at, behind - l->at, kMarkTemplate));
            advance(l, behind);
        } else if (c == '\'' || c == '"') string(l);
        else operator_(l);
    }
}

static void root(JLexer* l) {
    while (l->at < l->bytes) {
        size_t at = l->at;
        const char* brace;
        for (;; at++) {
            brace = (const char*)memchr(l->s + at, '{', l->bytes - at);
            if (!brace || (size_t)(brace - l->s) + 1 >= l->bytes) {
                data_token(l, l->at, l->bytes);
                advance(l, l->bytes);
                return;
            }
            at = (size_t)(brace - l->s);
            if (brace[1] == '%' || brace[1] == '{' || brace[1] == '#') break;
        }
        char kind = brace[1], sign = at + 2 < l->bytes ? l->s[at + 2] : 0;
        if (sign != '-' && sign != '+') sign = 0;
        size_t raw = kind == '%' ? raw_begin(l, at) : 0;
        data_token(l, l->at, text_end(l, l->at, at, sign, kind == '{'));
        if (raw) {
            advance(l, raw);
            raw_block(l);
            continue;
        }
        advance(l, at + 2 + (sign != 0));
        if (kind == '#') {
            comment(l);
            continue;
        }
        token(l, kind == '%' ? kTBlockBegin : kTVariableBegin);
        inside(l, kind == '%');
    }
}

JToken* jinja_lex(JRun* r, const char* source, size_t bytes, int* count) {
    JLexer l;
    memset(&l, 0, sizeof l);
    l.r = r;
    l.line = r->line = 1;
    l.line_starting = true;
    size_t valid = utf8_valid_bytes(source, bytes);
    if (valid < bytes) jinja_fail(r, "byte %zu of the template is no UTF-8", valid);
    char* s = (char*)jinja_take(r, bytes + 8);
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\r' && i + 1 < bytes && source[i + 1] == '\n') continue;
        s[l.bytes++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (l.bytes && s[l.bytes - 1] == '\n') l.bytes--;
    memset(s + l.bytes, 0, 8);
    l.s = s;
    root(&l);
    token(&l, kTEnd);
    *count = l.count;
    return l.tokens;
}
