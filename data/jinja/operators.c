// The operators of expressions: Python's arithmetic (64-bit integers instead of unbounded ones), comparisons, `in` and slices.
#include "internal.h"

#include <math.h>

int64_t j_need_int(JRun* r, JValue v, const char* what) {
    if (v.kind == kJUndefined) j_fail_undefined(r, v);
    if (!j_integral(v)) jinja_fail(r, "%s must be an int, not %s", what, j_type_name(v));
    return j_as_int(v);
}

JText* j_need_text(JRun* r, JValue v, const char* what) {
    if (v.kind == kJUndefined) j_fail_undefined(r, v);
    if (v.kind != kJText) jinja_fail(r, "%s must be a str, not %s", what, j_type_name(v));
    return v.as.text;
}

// ---- arithmetic
__attribute__((noreturn)) static void no_such(JRun* r, const char* op, JValue a, JValue b) {
    if (a.kind == kJUndefined) j_fail_undefined(r, a);
    if (b.kind == kJUndefined) j_fail_undefined(r, b);
    jinja_fail(r, "'%s' is not possible between %s and %s", op, j_type_name(a), j_type_name(b));
}

static const char* arith_name(JArith op) {
    static const char* const names[] = {"+", "-", "*", "/", "//", "%", "**"};
    return names[op];
}

static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}

static JValue integer_power(JRun* r, int64_t a, int64_t b) {
    if (b < 0) {
        if (!a) jinja_fail(r, "0 has no negative powers");
        return j_float(pow((double)a, (double)b));
    }
    int64_t power = 1;
    for (bool over = false; b; b >>= 1) {
        if (b & 1) over = __builtin_mul_overflow(power, a, &power) || over;
        if (b > 1) over = __builtin_mul_overflow(a, a, &a) || over;
        if (over) jinja_fail(r, "the result of ** is beyond 64 bits");
    }
    return j_int(power);
}

static JValue integer_arith(JRun* r, JArith op, int64_t a, int64_t b) {
    int64_t out = 0;
    bool over = false;
    if (op >= kOpDiv && op <= kOpMod && !b) jinja_fail(r, "division by zero");
    switch (op) {
    case kOpAdd: over = __builtin_add_overflow(a, b, &out); break;
    case kOpSub: over = __builtin_sub_overflow(a, b, &out); break;
    case kOpMul: over = __builtin_mul_overflow(a, b, &out); break;
    case kOpDiv: return j_float((double)((long double)a / (long double)b));
    case kOpPow: return integer_power(r, a, b);
    default:
        over = a == INT64_MIN && b == -1;
        if (op == kOpMod) return j_int(over ? 0 : a - b * floor_div(a, b));
        if (!over) out = floor_div(a, b);
    }
    if (over) jinja_fail(r, "the result of %s is beyond 64 bits", arith_name(op));
    return j_int(out);
}

static JValue float_arith(JRun* r, JArith op, double a, double b) {
    if (op >= kOpDiv && op <= kOpMod && b == 0) jinja_fail(r, "division by zero");
    double rest;
    switch (op) {
    case kOpAdd: return j_float(a + b);
    case kOpSub: return j_float(a - b);
    case kOpMul: return j_float(a * b);
    case kOpDiv: return j_float(a / b);
    case kOpPow:
        rest = pow(a, b);
        if (isfinite(a) && isfinite(b) && !isfinite(rest)) jinja_fail(r, "** has no finite result");
        return j_float(rest);
    default:
        rest = fmod(a, b);
        if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
        if (op == kOpMod) return j_float(rest != 0 ? rest : copysign(0, b));
        double quotient = (a - rest) / b, whole = floor(quotient);
        if (quotient == 0) return j_float(copysign(0, a / b));
        return j_float(quotient - whole > 0.5 ? whole + 1 : whole);
    }
}

static JValue repeat(JRun* r, JValue v, int64_t times) {
    if (times < 0) times = 0;
    if (v.kind != kJText) {
        JList* l = j_list_new(r, 0);
        for (int64_t i = 0; i < times && v.as.list->count; i++)
            for (int64_t k = 0; k < v.as.list->count; k++) {
                jinja_step(r, 0);
                j_push(r, l, v.as.list->items[k]);
            }
        return j_list(v.kind, l);
    }
    JBuilder b = j_builder(r);
    for (int64_t i = 0; i < times && v.as.text->bytes; i++) j_add_text(&b, v.as.text);
    JText* t = j_built(&b);
    t->safe = v.as.text->safe;
    return j_text(t);
}

// A safe text and a plain one give a safe text, the plain one escaped.
static JValue add_texts(JRun* r, JText* a, JText* b) {
    if (a->safe == b->safe) return j_text(j_with_safe(r, j_join2(r, a, b), a->safe));
    return j_text(j_with_safe(r, j_join2(r, a->safe ? a : j_escape(r, j_text(a)), b->safe ? b : j_escape(r, j_text(b))), true));
}

static JValue add_lists(JRun* r, JValue a, JValue b) {
    JList* l = j_list_new(r, a.as.list->count + b.as.list->count);
    jinja_step(r, (size_t)l->capacity * sizeof(JValue));
    if (a.as.list->count) memcpy(l->items, a.as.list->items, (size_t)a.as.list->count * sizeof(JValue));
    if (b.as.list->count) memcpy(l->items + a.as.list->count, b.as.list->items, (size_t)b.as.list->count * sizeof(JValue));
    l->count = l->capacity;
    return j_list(a.kind, l);
}

static bool is_sequence(JValue v) { return v.kind == kJText || v.kind == kJList || v.kind == kJTuple; }

JValue j_arith(JRun* r, JArith op, JValue a, JValue b) {
    if (j_integral(a) && j_integral(b)) return integer_arith(r, op, j_as_int(a), j_as_int(b));
    if (j_number(a) && j_number(b)) return float_arith(r, op, j_as_float(a), j_as_float(b));
    if (op == kOpAdd && a.kind == b.kind && is_sequence(a)) return a.kind == kJText ? add_texts(r, a.as.text, b.as.text) : add_lists(r, a, b);
    if (op == kOpMul && is_sequence(a) && j_integral(b)) return repeat(r, a, j_as_int(b));
    if (op == kOpMul && is_sequence(b) && j_integral(a)) return repeat(r, b, j_as_int(a));
    if (op == kOpMod && a.kind == kJText) return j_percent(r, a.as.text, b);
    no_such(r, arith_name(op), a, b);
}

JValue j_negate(JRun* r, JValue v, bool minus) {
    if (v.kind == kJFloat) return j_float(minus ? -v.as.real : v.as.real);
    if (v.kind == kJUndefined) j_fail_undefined(r, v);
    if (!j_integral(v)) jinja_fail(r, "a value of type %s has no sign", j_type_name(v));
    int64_t i = j_as_int(v);
    if (minus && i == INT64_MIN) jinja_fail(r, "the result of - is beyond 64 bits");
    return j_int(minus ? -i : i);
}

// ---- comparison
static bool ordered(JCompare op, int sign) {
    return op == kOpLt ? sign < 0 : op == kOpLe ? sign <= 0 : op == kOpGt ? sign > 0 : sign >= 0;
}

static bool order_lists(JRun* r, const JList* a, const JList* b, JCompare op) {
    int64_t i = 0;
    while (i < a->count && i < b->count && j_same(r, a->items[i], b->items[i])) i++;
    if (i == a->count || i == b->count) return ordered(op, (a->count > b->count) - (a->count < b->count));
    jinja_enter(r);
    bool truth = j_order(r, a->items[i], b->items[i], op);
    jinja_leave(r);
    return truth;
}

int j_order(JRun* r, JValue a, JValue b, JCompare op) {
    static const char* const names[] = {"==", "!=", "<", "<=", ">", ">="};
    jinja_step(r, 0);
    if (j_integral(a) && j_integral(b)) return ordered(op, (j_as_int(a) > j_as_int(b)) - (j_as_int(a) < j_as_int(b)));
    if (j_number(a) && j_number(b)) {
        double x = j_as_float(a), y = j_as_float(b);
        return x == x && y == y && ordered(op, (x > y) - (x < y));
    }
    if (a.kind == kJText && b.kind == kJText) {   // bytes of UTF-8 are in the order of their code points
        size_t bytes = a.as.text->bytes < b.as.text->bytes ? a.as.text->bytes : b.as.text->bytes;
        jinja_step(r, bytes);
        int sign = bytes ? memcmp(a.as.text->s, b.as.text->s, bytes) : 0;
        return ordered(op, sign ? sign : (a.as.text->bytes > b.as.text->bytes) - (a.as.text->bytes < b.as.text->bytes));
    }
    if (a.kind == b.kind && (a.kind == kJList || a.kind == kJTuple)) return order_lists(r, a.as.list, b.as.list, op);
    no_such(r, names[op], a, b);
}

static bool has_part(const JText* t, const JText* part) {
    return !part->bytes || (t->bytes >= part->bytes && memmem(t->s, t->bytes, part->s, part->bytes));
}

bool j_contains(JRun* r, JValue item, JValue in) {
    if (in.kind == kJText) {
        const JText* part = j_need_text(r, item, "what is looked for in a str");
        jinja_step(r, in.as.text->bytes);
        return has_part(in.as.text, part);
    }
    if (in.kind == kJDict) return j_find(r, in.as.dict, item) != NULL;
    if (in.kind == kJView && !strcmp(in.as.list->view, "dict_keys") && (item.kind == kJList || item.kind == kJDict))
        jinja_fail(r, "a %s can't be the key of a dict", j_type_name(item));
    JCursor c = j_cursor(r, in);
    JValue element;
    while (j_next(r, &c, &element))
        if (j_same(r, element, item)) return true;
    return false;
}

bool j_compare(JRun* r, JCompare op, JValue a, JValue b) {
    switch (op) {
    case kOpEq: return j_same(r, a, b);
    case kOpNe: return !j_same(r, a, b);
    case kOpIn: return j_contains(r, a, b);
    case kOpNotIn: return !j_contains(r, a, b);
    default: return j_order(r, a, b, op);
    }
}

// ---- slices
// One end of a slice, bounded as in Python: a negative one counts from the sequence's end, one beyond the sequence becomes its end.
static int64_t slice_end(JValue v, int64_t absent, int64_t count, int64_t low, int64_t high) {
    if (v.kind == kJNone) return absent;
    int64_t i = j_as_int(v);
    if (i < 0) i += count;
    return i < low ? low : i > high ? high : i;
}

static JText* slice_text(JRun* r, JText* t, JRange s) {
    if (s.step == 1) {
        size_t begin = j_offset(t, s.start), end = s.count ? j_offset(t, s.start + s.count) : begin;
        return j_part(r, t, begin, end);
    }
    JBuilder b = j_builder(r);
    bool ascii = j_chars(t) == (int64_t)t->bytes;
    for (int64_t i = 0, at = s.start; i < s.count; i++, at += s.step) {
        if (!ascii) jinja_step(r, 2 * t->bytes);
        j_add_part(&b, t, j_offset(t, at), j_offset(t, at + 1));
    }
    JText* out = j_built(&b);
    out->safe = t->safe;
    return out;
}

JValue j_slice(JRun* r, JValue v, const JSlice* slice, bool* has) {
    const JValue parts[3] = {slice->start, slice->stop, slice->step};
    *has = is_sequence(v) || v.kind == kJRange;
    for (int i = 0; i < 3; i++) *has = *has && (parts[i].kind == kJNone || j_integral(parts[i]));
    if (!*has) return j_missing();
    JRange s;
    int64_t count = j_length(r, v);
    s.step = slice->step.kind == kJNone ? 1 : j_as_int(slice->step);
    if (!s.step) jinja_fail(r, "the step of a slice is zero");
    if (s.step > count) s.step = count + 1;
    if (s.step < -count) s.step = -count - 1;
    bool back = s.step < 0;
    s.start = slice_end(slice->start, back ? count - 1 : 0, count, back ? -1 : 0, back ? count - 1 : count);
    s.stop = slice_end(slice->stop, back ? -1 : count, count, back ? -1 : 0, back ? count - 1 : count);
    int64_t span = back ? s.start - s.stop : s.stop - s.start;
    s.count = span <= 0 ? 0 : (span - 1) / (back ? -s.step : s.step) + 1;
    if (v.kind == kJText) {
        jinja_step(r, (count == (int64_t)v.as.text->bytes ? 1 : 4) * v.as.text->bytes);   // finding characters takes a walk from the start
        return j_text(slice_text(r, v.as.text, s));
    }
    if (v.kind == kJRange) {
        JRange* part = (JRange*)jinja_take(r, sizeof(JRange));
        part->start = v.as.range->start + s.start * v.as.range->step;
        part->stop = v.as.range->start + s.stop * v.as.range->step;
        part->step = v.as.range->step * s.step;
        part->count = s.count;
        JValue out = j_of(kJRange);
        out.as.range = part;
        return out;
    }
    JList* l = j_list_new(r, s.count);
    jinja_step(r, (size_t)s.count * sizeof(JValue));
    for (int64_t i = 0; i < s.count; i++) j_push(r, l, v.as.list->items[s.start + i * s.step]);
    return j_list(v.kind, l);
}
