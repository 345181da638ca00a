// Text with marks: slices that share bytes, joints, a builder, and how values are written.
#include "internal.h"

JText* j_text_new(JRun* r, const char* s, size_t bytes, JMark mark) {
    JText* t = (JText*)jinja_take_zeroed(r, sizeof(JText));
    t->s = s;
    t->bytes = bytes;
    t->chars = -1;
    t->mark = mark;
    return t;
}

JText* j_literal(JRun* r, const char* s) { return j_text_new(r, s, strlen(s), kMarkTemplate); }

JText* j_part(JRun* r, const JText* t, size_t begin, size_t end) {
    JText* part = j_text_new(r, t->s + begin, end - begin, t->mark);
    part->marks = t->marks ? t->marks + begin : NULL;
    part->safe = t->safe;
    return part;
}

JText* j_with_safe(JRun* r, const JText* t, bool safe) {
    JText* copy = (JText*)jinja_take(r, sizeof(JText));
    *copy = *t;
    copy->safe = safe;
    return copy;
}

bool j_text_equal(const JText* a, const JText* b) { return a->bytes == b->bytes && (a->s == b->s || !memcmp(a->s, b->s, a->bytes)); }

bool j_is(const JText* t, const char* word) { return t->bytes == strlen(word) && !memcmp(t->s, word, t->bytes); }

const char* j_c_string(JRun* r, const JText* t) {
    char* s = (char*)jinja_take(r, t->bytes + 1);
    memcpy(s, t->s, t->bytes);
    s[t->bytes] = 0;
    return s;
}

bool j_py_space(uint32_t c) { return utf8_is_space(c) || (c >= 0x1c && c <= 0x1f); }

JBuilder j_builder(JRun* r) {
    JBuilder b;
    memset(&b, 0, sizeof b);
    b.r = r;
    return b;
}

static void make_room(JBuilder* b, size_t more) {
    if (b->capacity - b->bytes >= more) return;
    size_t capacity = 2 * b->capacity + more + 32;
    char* s = (char*)jinja_take(b->r, capacity);
    unsigned char* marks = (unsigned char*)jinja_take(b->r, capacity);
    if (b->bytes) {
        memcpy(s, b->s, b->bytes);
        memcpy(marks, b->marks, b->bytes);
    }
    b->s = s;
    b->marks = marks;
    b->capacity = capacity;
}

void j_add(JBuilder* b, const char* s, size_t bytes, unsigned char mark) {
    if (!bytes) return;
    make_room(b, bytes);
    memcpy(b->s + b->bytes, s, bytes);
    memset(b->marks + b->bytes, mark, bytes);
    b->bytes += bytes;
    if (mark) b->any_data = true; else b->any_template = true;
}

void j_add_part(JBuilder* b, const JText* t, size_t begin, size_t end) {
    jinja_step(b->r, end - begin);
    j_add(b, t->s + begin, end - begin, (unsigned char)(t->mark == kMarkData));
    if (t->mark != kMarkMixed || begin == end) return;
    memcpy(b->marks + b->bytes - (end - begin), t->marks + begin, end - begin);
    b->any_data = b->any_template = true;
}

void j_add_char(JBuilder* b, uint32_t c, unsigned char mark) {
    char s[4];
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6) s[i] = (char)(0x80 | (c & 0x3f));
    s[0] = (char)(n == 1 ? c : (0xf00u >> n & 0xff) | c);
    j_add(b, s, (size_t)n, mark);
}

JText* j_built(JBuilder* b) {
    JText* t = j_text_new(b->r, b->s ? b->s : "", b->bytes, !b->any_data ? kMarkTemplate : b->any_template ? kMarkMixed : kMarkData);
    if (t->mark == kMarkMixed) t->marks = b->marks;
    return t;
}

static JText* join_alike(JRun* r, const JText* a, const JText* b) {
    size_t bytes = a->bytes + b->bytes;
    char* s = (char*)jinja_take(r, bytes);
    jinja_step(r, bytes);
    if (a->bytes) memcpy(s, a->s, a->bytes);
    if (b->bytes) memcpy(s + a->bytes, b->s, b->bytes);
    return j_text_new(r, s, bytes, a->mark);
}

JText* j_join2(JRun* r, const JText* a, const JText* b) {
    if (a->mark == b->mark && a->mark != kMarkMixed) return join_alike(r, a, b);
    JBuilder joint = j_builder(r);
    make_room(&joint, a->bytes + b->bytes);
    j_add_text(&joint, a);
    j_add_text(&joint, b);
    return j_built(&joint);
}

// ---- characters
static int64_t count_chars(const JText* t) {
    int64_t n = 0;
    for (size_t i = 0; i < t->bytes; i++) n += ((unsigned char)t->s[i] & 0xc0) != 0x80;
    return n;
}

// The count is remembered in the text. Threads that render one template share its constants, and all of them write the same number.
int64_t j_chars(JText* t) {
    int64_t n = __atomic_load_n(&t->chars, __ATOMIC_RELAXED);
    if (n >= 0) return n;
    n = count_chars(t);
    __atomic_store_n(&t->chars, n, __ATOMIC_RELAXED);
    return n;
}

size_t j_offset(JText* t, int64_t character) {
    if (j_chars(t) == (int64_t)t->bytes) return (size_t)character;
    size_t at = 0;
    while (at < t->bytes && (((unsigned char)t->s[at] & 0xc0) == 0x80 || character-- > 0)) at++;
    return at;
}

// ---- str() and repr()
// The fewest digits that give d back, in Python's layout: an exponent below 1e-4 and from 1e16 on.
void j_add_float(JBuilder* b, double d) {
    char scientific[40], digits[24];
    if (d != d || d - d != 0) {
        j_add_c(b, d != d ? "nan" : d > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 0, count = 0;
    do snprintf(scientific, sizeof scientific, "%.*e", precision, d);
    while (strtod(scientific, NULL) != d && ++precision < 17);
    const char* e = strchr(scientific, 'e');
    int exponent = atoi(e + 1);
    if (*scientific == '-') j_add_c(b, "-");
    for (const char* c = scientific; c < e; c++)
        if (*c >= '0' && *c <= '9') digits[count++] = *c;
    if (exponent < -4 || exponent >= 16) {
        j_add(b, digits, 1, 0);
        if (count > 1) j_add_c(b, ".");
        j_add(b, digits + 1, (size_t)count - 1, 0);
        snprintf(scientific, sizeof scientific, "e%c%02d", exponent < 0 ? '-' : '+', exponent < 0 ? -exponent : exponent);
        j_add_c(b, scientific);
        return;
    }
    if (exponent < 0) j_add_c(b, "0.");
    for (int i = -1; i > exponent; i--) j_add_c(b, "0");
    for (int i = 0; i < count || i <= exponent; i++) {
        j_add(b, i < count ? digits + i : "0", 1, 0);
        if (i == exponent) j_add_c(b, ".");
    }
    if (exponent >= 0 && count <= exponent + 1) j_add_c(b, "0");
}

static void add_text_repr(JBuilder* b, const JText* t) {
    bool single = t->bytes && memchr(t->s, '\'', t->bytes);
    char quote = single && !memchr(t->s, '"', t->bytes) ? '"' : '\'';
    jinja_step(b->r, t->bytes);
    if (t->safe) j_add_c(b, "Markup(");
    j_add(b, &quote, 1, 0);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        unsigned char mark = j_mark_at(t, i);
        char escape[12] = "";
        if (c == '\\' || c == (uint32_t)quote) snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t') snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (c < 0x20 || c == 0x7f || (c >= 0x80 && !j_is_printable(c)))
            snprintf(escape, sizeof escape, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        if (*escape) j_add(b, escape, strlen(escape), mark);
        else j_add_part(b, t, i, i + (size_t)length);
        i += (size_t)length;
    }
    j_add(b, &quote, 1, 0);
    if (t->safe) j_add_c(b, ")");
}

static void add_list_repr(JBuilder* b, JValue v) {
    const JList* l = v.as.list;
    bool tuple = v.kind == kJTuple;
    if (v.kind == kJView) {
        j_add_c(b, l->view);
        j_add_c(b, "(");
    }
    j_add_c(b, tuple ? "(" : "[");
    for (int64_t i = 0; i < l->count; i++) {
        if (i) j_add_c(b, ", ");
        j_add_repr(b, l->items[i]);
    }
    j_add_c(b, tuple ? (l->count == 1 ? ",)" : ")") : "]");
    if (v.kind == kJView) j_add_c(b, ")");
}

static void add_dict_repr(JBuilder* b, JValue v) {
    bool space = v.kind == kJNamespace;
    j_add_c(b, space ? "<Namespace {" : "{");
    for (int64_t i = 0; i < v.as.dict->count; i++) {
        if (i) j_add_c(b, ", ");
        j_add_repr(b, v.as.dict->entries[i].key);
        j_add_c(b, ": ");
        j_add_repr(b, v.as.dict->entries[i].value);
    }
    j_add_c(b, space ? "}>" : "}");
}

static void add_range_repr(JBuilder* b, const JRange* range) {
    char text[80];
    int n = snprintf(text, sizeof text, "range(%lld, %lld", (long long)range->start, (long long)range->stop);
    if (range->step != 1) n += snprintf(text + n, sizeof text - (size_t)n, ", %lld", (long long)range->step);
    j_add(b, text, (size_t)n, 0);
    j_add_c(b, ")");
}

void j_add_repr(JBuilder* b, JValue v) {
    char number[24];
    jinja_enter(b->r);
    jinja_step(b->r, 0);
    switch (v.kind) {
    case kJUndefined: j_add_c(b, "Undefined"); break;
    case kJNone: j_add_c(b, "None"); break;
    case kJBool: j_add_c(b, v.as.boolean ? "True" : "False"); break;
    case kJInt:
        snprintf(number, sizeof number, "%lld", (long long)v.as.integer);
        j_add_c(b, number);
        break;
    case kJFloat: j_add_float(b, v.as.real); break;
    case kJText: add_text_repr(b, v.as.text); break;
    case kJList: case kJTuple: case kJView: add_list_repr(b, v); break;
    case kJDict: case kJNamespace: add_dict_repr(b, v); break;
    case kJRange: add_range_repr(b, v.as.range); break;
    default:
        j_add_c(b, "<");
        j_add_c(b, j_type_name(v));
        j_add_c(b, ">");
    }
    jinja_leave(b->r);
}

void j_add_str(JBuilder* b, JValue v) {
    if (v.kind == kJText) j_add_text(b, v.as.text);
    else if (v.kind != kJUndefined) j_add_repr(b, v);
}

JText* j_soft_str(JRun* r, JValue v) {
    if (v.kind == kJText) return v.as.text;
    JBuilder b = j_builder(r);
    j_add_str(&b, v);
    return j_built(&b);
}

JText* j_str(JRun* r, JValue v) {
    JText* t = j_soft_str(r, v);
    return t->safe ? j_with_safe(r, t, false) : t;
}

JText* j_escape(JRun* r, JValue v) {
    JText* t = j_soft_str(r, v);
    if (t->safe) return t;
    JBuilder b = j_builder(r);
    size_t begin = 0;
    for (size_t i = 0; i < t->bytes; i++) {
        char c = t->s[i];
        const char* entity = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '\'' ? "&#39;" : c == '"' ? "&#34;" : NULL;
        if (!entity) continue;
        j_add_part(&b, t, begin, i);
        j_add(&b, entity, strlen(entity), j_mark_at(t, i));
        begin = i + 1;
    }
    j_add_part(&b, t, begin, t->bytes);
    JText* out = j_built(&b);
    out->safe = true;
    return out;
}
