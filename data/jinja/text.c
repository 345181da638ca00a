// Text with marks: slices that share bytes, joints, and a builder.
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

JText* j_join2(JRun* r, const JText* a, const JText* b) {
    JBuilder joint = j_builder(r);
    make_room(&joint, a->bytes + b->bytes);
    j_add_text(&joint, a);
    j_add_text(&joint, b);
    return j_built(&joint);
}
