// Values formatted by a pattern, Python's `%` and str.format; and numbers parsed from text.
//
// Both ways of formatting turn the part behind the % or the colon into a Spec, and share the rest.
#include <ctype.h>
#include <math.h>

#include "internal.h"

enum { kMaxPrecision = 100000 };

typedef struct {
    uint32_t fill;
    char align, sign, grouping, type;   // 0: not given
    bool alternate, zero;
    int64_t width, precision;           // precision -1: not given
} Spec;

static void add_fill(JBuilder* b, uint32_t fill, int64_t count) {
    for (; count > 0; count--) {
        jinja_step(b->r, 0);
        j_add_char(b, fill, 0);
    }
}

// Adds t in s->width characters. Alignment '=' pads behind the first `head` bytes.
static void add_aligned(JBuilder* b, const Spec* s, JText* t, size_t head, char usual) {
    char align = s->align ? s->align : usual;
    int64_t pad = s->width - j_chars(t);
    if (pad < 0) pad = 0;
    int64_t before = align == '>' ? pad : align == '^' ? pad / 2 : 0;
    if (align != '=') head = 0;
    j_add_part(b, t, 0, head);
    add_fill(b, s->fill, align == '=' ? pad : before);
    j_add_part(b, t, head, t->bytes);
    add_fill(b, s->fill, align == '=' ? 0 : pad - before);
}

static void add_formatted_text(JBuilder* b, const Spec* s, JText* t, char usual) {
    if (s->precision >= 0 && s->precision < j_chars(t)) t = j_part(b->r, t, 0, j_offset(t, s->precision));
    add_aligned(b, s, t, 0, usual);
}

// The digits of the integer part in groups, at least `width` characters with zeros in front.
static void add_grouped(JBuilder* b, const char* digits, int64_t count, char separator, int every, int64_t width) {
    int64_t zeros = 0;
    while (count + zeros + (count + zeros - 1) / every < width) zeros++;
    for (int64_t i = 0; i < count + zeros; i++) {
        if (i && (count + zeros - i) % every == 0) j_add(b, &separator, 1, 0);
        j_add(b, i < zeros ? "0" : digits + i - zeros, 1, 0);
    }
}

// digits: of a number without its sign, with point, exponent and percent sign.
static void add_number(JBuilder* b, const Spec* s, bool negative, const char* prefix, const char* digits, int every) {
    JBuilder number = j_builder(b->r);
    j_add_c(&number, negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "");
    j_add_c(&number, prefix);
    size_t head = number.bytes;
    int64_t whole = 0;
    while (isxdigit((unsigned char)digits[whole]) && (every == 4 || isdigit((unsigned char)digits[whole]))) whole++;
    if (s->grouping && whole) {
        bool zeros = s->fill == '0' && (s->align == '=' || !s->align);
        add_grouped(&number, digits, whole, s->grouping, every,
                    zeros ? s->width - (int64_t)head - (int64_t)strlen(digits + whole) : 0);
        digits += whole;
    }
    j_add_c(&number, digits);
    add_aligned(b, s, j_built(&number), head, '>');
}

// `buffer` takes 65 digits and a NUL; returns where they start.
static const char* digits_of(uint64_t n, unsigned base, bool upper, char buffer[66]) {
    char* at = buffer + 65;
    *at = 0;
    do *--at = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[n % base];
    while (n /= base);
    return at;
}

static uint64_t magnitude(int64_t i) { return i < 0 ? 0 - (uint64_t)i : (uint64_t)i; }

static void add_code_point(JBuilder* b, const Spec* s, int64_t c, char usual) {
    if (c < 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) jinja_fail(b->r, "format: %lld is no character", (long long)c);
    JBuilder text = j_builder(b->r);
    j_add_char(&text, (uint32_t)c, 0);
    add_aligned(b, s, j_built(&text), 0, usual);
}

static void check_precision(JRun* r, int64_t precision) {
    if (precision > kMaxPrecision) jinja_fail(r, "format: a precision above %d", kMaxPrecision);
}

static void add_whole(JBuilder* b, const Spec* s, int64_t i) {
    char buffer[66];
    char type = s->type == 'i' || s->type == 'u' || s->type == 'n' || !s->type ? 'd' : s->type;
    unsigned base = type == 'd' ? 10 : type == 'b' ? 2 : type == 'o' ? 8 : 16;
    const char* digits = digits_of(magnitude(i), base, type == 'X', buffer);
    const char* prefix = !s->alternate || type == 'd' ? "" : type == 'b' ? "0b" : type == 'o' ? "0o" : type == 'x' ? "0x" : "0X";
    int64_t missing = s->precision - (int64_t)strlen(digits);
    if (missing > 0) {
        check_precision(b->r, s->precision);
        char* longer = (char*)jinja_take(b->r, (size_t)s->precision + 1);
        memset(longer, '0', (size_t)missing);
        strcpy(longer + missing, digits);
        digits = longer;
    }
    add_number(b, s, i < 0, prefix, digits, base == 10 ? 3 : 4);
}

// format() without a type: like %g, but with an exponent from one digit earlier on, and else always with a point.
static void short_float(char* out, size_t size, double d, int precision) {
    snprintf(out, size, "%.*e", precision - 1, d);
    char* e = strchr(out, 'e');
    int exponent = atoi(e + 1);
    if (exponent < -4 || exponent + 1 > precision - 1) {
        char* last = e;
        while (last[-1] == '0' && memchr(out, '.', (size_t)(last - out))) last--;
        if (last[-1] == '.') last--;
        memmove(last, e, strlen(e) + 1);
        return;
    }
    int decimals = precision - 1 - exponent;
    snprintf(out, size, "%.*f", decimals, d);
    char* last = out + strlen(out);
    while (last[-1] == '0' && last[-2] != '.' && strchr(out, '.')) *--last = 0;
}

static void add_real(JBuilder* b, const Spec* s, double d) {
    JRun* r = b->r;
    char type = s->type == 'n' ? 'g' : s->type;
    int precision = s->precision < 0 ? 6 : (int)s->precision;
    check_precision(r, s->precision);
    size_t size = (size_t)precision + 400;
    char* out = (char*)jinja_take(r, size);
    bool negative = signbit(d) && d == d;
    d = fabs(d);
    if (type == '%') d *= 100;
    if (d - d != 0) {
        snprintf(out, size, d != d ? "nan" : "inf");
        for (char* c = out; *c && (type == 'E' || type == 'F' || type == 'G'); c++) *c = (char)toupper(*c);
    } else if (!type && s->precision < 0) {
        JBuilder plain = j_builder(r);
        j_add_float(&plain, d);
        snprintf(out, size, "%.*s", (int)plain.bytes, plain.s);
    } else if (!type) {
        short_float(out, size, d, precision ? precision : 1);
    } else {
        char pattern[8];
        snprintf(pattern, sizeof pattern, "%%%s.*%c", s->alternate ? "#" : "", type == '%' ? 'f' : type);
        snprintf(out, size, pattern, precision, d);
    }
    if (type == '%') strcat(out, "%");
    add_number(b, s, negative, "", out, 3);
}

// repr() with \x, \u and \U for everything beyond ASCII.
static JText* ascii_repr(JRun* r, JValue v) {
    JBuilder plain = j_builder(r), out = j_builder(r);
    j_add_repr(&plain, v);
    const JText* t = j_built(&plain);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        char escape[12];
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        if (c < 0x80) j_add_part(&out, t, i, i + 1);
        else {
            const char* pattern = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
            j_add(&out, escape, (size_t)snprintf(escape, sizeof escape, pattern, (unsigned)c), j_mark_at(t, i));
        }
        i += (size_t)length;
    }
    return j_built(&out);
}

static JText* converted(JRun* r, JValue v, char conversion) {
    if (conversion == 's') return j_str(r, v);
    if (conversion == 'a') return ascii_repr(r, v);
    JBuilder b = j_builder(r);
    j_add_repr(&b, v);
    return j_built(&b);
}

// ---- format % args
typedef struct {
    JRun* r;
    JText* format;
    size_t at;
    JValue args;
    JValue mapping;      // kJMissing: args have no names
    int64_t next;        // the next element of a tuple of arguments; a single value counts as a tuple of one
    JBuilder out;
} Percent;

static JValue next_argument(Percent* p) {
    bool tuple = p->args.kind == kJTuple;
    if (p->next >= (tuple ? p->args.as.list->count : 1)) jinja_fail(p->r, "%%: too few arguments for the format");
    return tuple ? p->args.as.list->items[p->next++] : (p->next++, p->args);
}

static char peek(const Percent* p) { return p->at < p->format->bytes ? p->format->s[p->at] : 0; }

static JValue named_argument(Percent* p) {
    size_t begin = ++p->at;
    int depth = 1;
    while (p->at < p->format->bytes && depth > 0) {
        depth += peek(p) == '(' ? 1 : peek(p) == ')' ? -1 : 0;
        p->at++;
    }
    if (depth) jinja_fail(p->r, "%%: a parenthesis is not closed");
    if (p->mapping.kind == kJMissing) jinja_fail(p->r, "%%: the format asks for names, the argument is no dict");
    JValue key = j_text(j_part(p->r, p->format, begin, p->at - 1));
    if (p->mapping.kind == kJUndefined) j_fail_undefined(p->r, p->mapping);
    JValue* found = p->mapping.kind == kJDict ? j_find(p->r, p->mapping.as.dict, key) : NULL;
    if (!found) jinja_fail(p->r, "%%: no argument is named '%s'", j_c_string(p->r, key.as.text));
    return *found;
}

static int64_t size_of_field(Percent* p) {
    int64_t n = 0;
    if (peek(p) == '*') {
        p->at++;
        JValue v = next_argument(p);
        if (!j_integral(v)) jinja_fail(p->r, "%%: * takes an integer");
        return j_as_int(v);
    }
    for (; isdigit((unsigned char)peek(p)); p->at++)
        if ((n = 10 * n + peek(p) - '0') > INT32_MAX) jinja_fail(p->r, "%%: a width or precision too large");
    return n;
}

static void percent_flags(Percent* p, Spec* s) {
    bool left = false, zero = false;
    for (; peek(p) && strchr("-+ #0", peek(p)); p->at++) {
        char c = peek(p);
        if (c == '-') left = true;
        else if (c == '0') zero = true;
        else if (c == '#') s->alternate = true;
        else if (s->sign != '+') s->sign = c;
    }
    s->width = size_of_field(p);
    if (s->width < 0) {
        left = true;
        s->width = -s->width;
    }
    if (peek(p) == '.') {
        p->at++;
        s->precision = size_of_field(p);
        if (s->precision < 0) s->precision = 0;
    }
    if (peek(p) && strchr("hlL", peek(p))) p->at++;
    s->zero = zero && !left;
    s->align = left ? '<' : '>';
}

static void percent_integer(Percent* p, Spec* s, JValue v) {
    if (v.kind != kJFloat) {
        add_whole(&p->out, s, j_as_int(v));
        return;
    }
    double d = trunc(v.as.real);
    if (d - d != 0) jinja_fail(p->r, "%%: this number is no integer");
    if (fabs(d) < 9e18) {
        add_whole(&p->out, s, (int64_t)d);
        return;
    }
    s->precision = 0;
    s->type = 'f';
    add_real(&p->out, s, d);
}

static void percent_value(Percent* p, Spec* s, JValue v) {
    char type = s->type;
    if (type == 's' || type == 'r' || type == 'a') {
        JText* t = converted(p->r, v, type);
        if (p->format->safe) t = type == 's' ? j_escape(p->r, v) : j_escape(p->r, j_text(t));
        add_formatted_text(&p->out, s, t, '>');
        return;
    }
    if (type == 'c') {
        if (v.kind == kJText && j_chars(v.as.text) == 1) add_aligned(&p->out, s, v.as.text, 0, '>');
        else if (j_integral(v)) add_code_point(&p->out, s, j_as_int(v), '>');
        else jinja_fail(p->r, "%%c takes a number or one character");
        return;
    }
    bool integer = strchr("diu", type), hex = strchr("oxX", type);
    if (!(hex ? j_integral(v) : j_number(v))) jinja_fail(p->r, "%%%c takes a number, not a value of type %s", type, j_type_name(v));
    if (s->zero) {
        s->fill = '0';
        s->align = '=';
    }
    if (integer || hex) percent_integer(p, s, v);
    else add_real(&p->out, s, j_as_float(v));
}

static void percent_field(Percent* p) {
    Spec s = {' ', 0, 0, 0, 0, false, false, 0, -1};
    JValue named = j_missing();
    p->at++;
    if (peek(p) == '(') named = named_argument(p);
    Percent saved = *p;
    if (named.kind != kJMissing) {
        p->args = named.kind == kJTuple ? j_pair(p->r, named, named) : named;
        if (named.kind == kJTuple) p->args.as.list->count = 1;
        p->next = 0;
    }
    percent_flags(p, &s);
    s.type = peek(p);
    if (!s.type) jinja_fail(p->r, "%%: the format ends inside a field");
    p->at++;
    if (s.type == '%') {
        j_add_c(&p->out, "%");
    } else {
        JValue v = next_argument(p);
        if (!strchr("sracdiuoxXeEfFgG", s.type)) jinja_fail(p->r, "%%: there is no conversion '%c'", s.type);
        percent_value(p, &s, v);
    }
    if (named.kind == kJMissing) return;
    p->args = saved.args;
    p->next = 1;
}

JValue j_percent(JRun* r, JText* format, JValue args) {
    Percent p;
    memset(&p, 0, sizeof p);
    p.r = r;
    p.format = format;
    p.args = args;
    bool mapping = args.kind == kJDict || args.kind == kJList || args.kind == kJRange || args.kind == kJUndefined;
    p.mapping = mapping ? args : j_missing();
    p.out = j_builder(r);
    while (p.at < format->bytes) {
        const char* field = (const char*)memchr(format->s + p.at, '%', format->bytes - p.at);
        size_t end = field ? (size_t)(field - format->s) : format->bytes;
        j_add_part(&p.out, format, p.at, end);
        p.at = end;
        if (field) percent_field(&p);
    }
    if (!mapping && p.next < (args.kind == kJTuple ? args.as.list->count : 1)) jinja_fail(r, "%%: too many arguments for the format");
    JText* t = j_built(&p.out);
    t->safe = format->safe;
    return j_text(t);
}

// ---- format(value, spec)
static bool is_align(uint32_t c) { return c == '<' || c == '>' || c == '=' || c == '^'; }

static int64_t spec_number(JRun* r, const char* s, size_t bytes, size_t* at) {
    int64_t n = 0;
    for (; *at < bytes && isdigit((unsigned char)s[*at]); (*at)++)
        if ((n = 10 * n + s[*at] - '0') > INT32_MAX) jinja_fail(r, "format: a width or precision too large");
    return n;
}

// usual: the default alignment of values of this type. If it is '>', a zero before the width means padding behind the sign.
static Spec parse_spec(JRun* r, const JText* t, char usual) {
    Spec s = {' ', 0, 0, 0, 0, false, false, 0, -1};
    size_t at = 0;
    int length = 0;
    uint32_t first = t->bytes ? j_decode(t->s, t->bytes, &length) : 0;
    bool filled = t->bytes > (size_t)length && length && is_align((unsigned char)t->s[length]);
    if (filled) {
        s.fill = first;
        s.align = t->s[length];
        at = (size_t)length + 1;
    } else if (t->bytes && is_align(first)) {
        s.align = t->s[at++];
    }
#define NEXT (at < t->bytes ? t->s[at] : 0)
    if (NEXT == '+' || NEXT == '-' || NEXT == ' ') s.sign = t->s[at++];
    if (NEXT == 'z') jinja_fail(r, "format: the option z is not supported");
    if (NEXT == '#') {
        s.alternate = true;
        at++;
    }
    if (NEXT == '0' && !filled) {
        s.zero = true;
        s.fill = '0';
        if (!s.align && usual == '>') s.align = '=';
        at++;
    }
    s.width = spec_number(r, t->s, t->bytes, &at);
    if (NEXT == ',' || NEXT == '_') s.grouping = t->s[at++];
    if (NEXT == '.') {
        at++;
        if (!isdigit((unsigned char)NEXT)) jinja_fail(r, "format: a precision is missing");
        s.precision = spec_number(r, t->s, t->bytes, &at);
    }
    if (at < t->bytes) s.type = t->s[at++];
#undef NEXT
    if (at < t->bytes) jinja_fail(r, "format: '%s' is no format", j_c_string(r, t));
    if (s.grouping && (s.type ? !strchr(s.grouping == ',' ? "deEfFgG%" : "deEfFgG%boxX", s.type) : usual != '>'))
        jinja_fail(r, "format: this type takes no '%c'", s.grouping);
    return s;
}

static void format_number(JBuilder* b, JValue v, Spec s) {
    if (v.kind != kJFloat && (!s.type || strchr("bcdoxXn", s.type))) {
        if (s.precision >= 0) jinja_fail(b->r, "format: integers take no precision");
        if (s.type == 'c' && (s.sign || s.alternate)) jinja_fail(b->r, "format: characters take no sign");
        if (s.type == 'c') add_code_point(b, &s, j_as_int(v), '<');
        else add_whole(b, &s, j_as_int(v));
        return;
    }
    if (s.type && !strchr("eEfFgGn%", s.type)) jinja_fail(b->r, "format: numbers have no format '%c'", s.type);
    add_real(b, &s, j_as_float(v));
}

static JText* formatted(JRun* r, JValue v, const JText* spec) {
    if (!spec->bytes) return j_str(r, v);
    JBuilder b = j_builder(r);
    if (v.kind == kJText) {
        Spec s = parse_spec(r, spec, '<');
        if ((s.type && s.type != 's') || s.sign || s.alternate || s.align == '=') jinja_fail(r, "format: this is no format for text");
        add_formatted_text(&b, &s, v.as.text, '<');
    } else if (j_number(v)) {
        format_number(&b, v, parse_spec(r, spec, '>'));
    } else {
        jinja_fail(r, "format: a value of type %s takes no format", j_type_name(v));
    }
    return j_built(&b);
}

// ---- pattern.format(...)
typedef struct {
    JRun* r;
    const JArgs* args;
    int next;          // the next automatic field number; -1: the fields have explicit numbers
    bool escape;       // the pattern is safe text
} Formatter;

static void format_pattern(Formatter* f, JBuilder* out, const JText* t, int depth);

static JValue argument(Formatter* f, const JText* name) {
    bool number = name->bytes > 0;
    int64_t index = 0;
    for (size_t i = 0; i < name->bytes; i++) {
        number = number && isdigit((unsigned char)name->s[i]);
        if (number && index < INT32_MAX) index = 10 * index + name->s[i] - '0';
    }
    if (number && index >= f->args->count) jinja_fail(f->r, "format: there is no argument %lld", (long long)index);
    if (number) return f->args->values[index];
    for (int i = 0; i < f->args->named_count; i++)
        if (j_text_equal(f->args->names[i], name)) return f->args->named[i];
    jinja_fail(f->r, "format: no argument is named '%s'", j_c_string(f->r, name));
}

static JValue key_of(JRun* r, const JText* t) {
    bool digits = t->bytes > 0 && t->bytes < 18;
    for (size_t i = 0; i < t->bytes; i++) digits = digits && isdigit((unsigned char)t->s[i]);
    return digits ? j_parse_int(r, t, 10) : j_text(t);
}

static JValue field_value(Formatter* f, const JText* name) {
    size_t at = strcspn(j_c_string(f->r, name), ".[");
    const JText* first = j_part(f->r, name, 0, at);
    if (!name->bytes) {
        if (f->next < 0) jinja_fail(f->r, "format: fields with and without numbers");
        JBuilder number = j_builder(f->r);
        j_add_repr(&number, j_int(f->next++));
        first = j_built(&number);
    } else if (name->bytes == at && key_of(f->r, name).kind == kJInt) {
        if (f->next > 0) jinja_fail(f->r, "format: fields with and without numbers");
        f->next = -1;
    }
    JValue v = argument(f, first);
    while (at < name->bytes) {
        bool attribute = name->s[at++] == '.';
        size_t end = at;
        while (end < name->bytes && (attribute ? name->s[end] != '.' && name->s[end] != '[' : name->s[end] != ']')) end++;
        if (end == at || (!attribute && end == name->bytes)) jinja_fail(f->r, "format: an empty name or an open bracket in a field");
        JText* part = j_part(f->r, name, at, end);
        v = attribute ? j_getattr(f->r, v, part) : j_getitem(f->r, v, key_of(f->r, part));
        at = end + !attribute;
        if (at < name->bytes && name->s[at] != '.' && name->s[at] != '[') jinja_fail(f->r, "format: a field goes on behind its bracket");
    }
    return v;
}

static void add_field(Formatter* f, JBuilder* out, JText* name, char conversion, JText* spec, int depth) {
    JValue v = field_value(f, name);
    JBuilder inner = j_builder(f->r);
    if (conversion && !strchr("rsa", conversion)) jinja_fail(f->r, "format: there is no conversion '%c'", conversion);
    if (conversion) v = j_text(converted(f->r, v, conversion));
    format_pattern(f, &inner, spec, depth + 1);
    JText* inner_spec = j_built(&inner);
    if (f->escape && v.kind == kJText && v.as.text->safe) {
        if (inner_spec->bytes) jinja_fail(f->r, "format: safe text takes no format");
        j_add_text(out, v.as.text);
        return;
    }
    JText* t = formatted(f->r, v, inner_spec);
    j_add_text(out, f->escape ? j_escape(f->r, j_text(t)) : t);
}

// The field whose inside starts at byte `at`; returns the byte behind its closing brace.
static size_t format_field(Formatter* f, JBuilder* out, const JText* t, size_t at, int depth) {
    JRun* r = f->r;
    size_t begin = at, name_end;
    char conversion = 0;
    bool bracket = false;
    for (; at < t->bytes && (bracket || !strchr("}:!", t->s[at])); at++) {
        if (t->s[at] == '{') jinja_fail(r, "format: an opening brace in a field's name");
        bracket = bracket ? t->s[at] != ']' : t->s[at] == '[';
    }
    name_end = at;
    if (at < t->bytes && t->s[at] == '!') {
        conversion = at + 1 < t->bytes ? t->s[at + 1] : 0;
        at += 2;
        if (!conversion || at >= t->bytes || (t->s[at] != ':' && t->s[at] != '}')) jinja_fail(r, "format: a conversion is one letter");
    }
    if (at >= t->bytes) jinja_fail(r, "format: a field is not closed");
    size_t spec = at + (t->s[at] == ':'), end = spec;
    for (int open = 1; t->s[at] == ':'; end++) {
        if (end >= t->bytes) jinja_fail(r, "format: a field is not closed");
        open += t->s[end] == '{' ? 1 : t->s[end] == '}' ? -1 : 0;
        if (!open) break;
    }
    add_field(f, out, j_part(r, t, begin, name_end), conversion, j_part(r, t, spec, end), depth);
    return end + 1;
}

static void format_pattern(Formatter* f, JBuilder* out, const JText* t, int depth) {
    if (depth > 2) jinja_fail(f->r, "format: fields in fields in fields");
    size_t begin = 0, at = 0;
    while (at < t->bytes) {
        char c = t->s[at];
        if (c != '{' && c != '}') {
            at++;
            continue;
        }
        bool twice = at + 1 < t->bytes && t->s[at + 1] == c;
        j_add_part(out, t, begin, at + twice);
        if (!twice && c == '}') jinja_fail(f->r, "format: a single closing brace");
        at = twice ? at + 2 : format_field(f, out, t, at + 1, depth);
        begin = at;
    }
    j_add_part(out, t, begin, t->bytes);
}

JText* j_format(JRun* r, const JText* format, const JArgs* args) {
    Formatter f = {r, args, 0, format->safe};
    JBuilder out = j_builder(r);
    format_pattern(&f, &out, format, 0);
    JText* t = j_built(&out);
    t->safe = format->safe;
    return t;
}

// ---- numbers out of text
static int digit_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'z' ? c - 'a' + 10 : 99;
}

// The base of the prefix 0b, 0o or 0x; 0: s has no such prefix.
static int prefix_base(const char* s) {
    int c = *s == '0' ? s[1] | 0x20 : 0;
    return c == 'b' ? 2 : c == 'o' ? 8 : c == 'x' ? 16 : 0;
}

JValue j_parse_int(JRun* r, const JText* t, int64_t base) {
    const char* s = j_c_string(r, j_strip(r, t, j_none(), true, true));
    bool negative = *s == '-', zeros = true;
    uint64_t n = 0;
    if ((base != 0 && base < 2) || base > 36) return j_missing();
    s += *s == '-' || *s == '+';
    int prefix = prefix_base(s);
    if (prefix && (base == 0 || base == prefix)) {
        s += 2 + (s[2] == '_');
        base = prefix;
    }
    bool plain = base == 0;
    if (plain) base = 10;
    const char* begin = s;
    for (; *s; s++) {
        if (*s == '_' && s > begin && s[-1] != '_' && s[1]) continue;
        int digit = digit_value(*s);
        if (digit >= base) return j_missing();
        zeros = zeros && !digit;
        if (n > ((uint64_t)INT64_MAX - (uint64_t)digit) / (uint64_t)base) jinja_fail(r, "an integer beyond 64 bits");
        n = n * (uint64_t)base + (uint64_t)digit;
    }
    if (s == begin || (plain && *begin == '0' && !zeros)) return j_missing();
    return j_int(negative ? -(int64_t)n : (int64_t)n);
}

// Is s[0..bytes) a number as float() takes it? `out` gets its characters without underscores.
static bool float_grammar(const char* s, char* out) {
    bool digits = false, point = false, exponent = false;
    const char* begin = s;
    if (*s == '+' || *s == '-') *out++ = *s++;
    if (!strcasecmp(s, "inf") || !strcasecmp(s, "infinity") || !strcasecmp(s, "nan")) {
        strcpy(out, s);
        return true;
    }
    for (; *s; s++) {
        if (*s == '_') {
            if (s == begin || !isdigit((unsigned char)s[-1]) || !isdigit((unsigned char)s[1])) return false;
            continue;
        }
        if (isdigit((unsigned char)*s)) digits = true;
        else if (*s == '.' && !point && !exponent) point = true;
        else if ((*s | 0x20) == 'e' && digits && !exponent) {
            exponent = true;
            digits = false;
            if (s[1] == '+' || s[1] == '-') *out++ = *s++;
        } else return false;
        *out++ = *s;
    }
    *out = 0;
    return digits;
}

JValue j_parse_float(const JText* t) {
    char* copy = (char*)host_alloc(2 * t->bytes + 2);
    char *s = copy + t->bytes + 1, *end = s + t->bytes;
    memcpy(s, t->s, t->bytes);
    int length;
    while (s < end && j_py_space(j_decode(s, (size_t)(end - s), &length))) s += length;
    while (end > s && j_py_space((unsigned char)end[-1]) && (unsigned char)end[-1] < 0x80) *--end = 0;
    JValue v = strlen(s) == (size_t)(end - s) && float_grammar(s, copy) ? j_float(strtod(copy, NULL)) : j_missing();
    free(copy);
    return v;
}
