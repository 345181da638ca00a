// The global functions, which every template can call.
#include "internal.h"

#include <time.h>

typedef enum { kRangeOf, kDictOf, kNamespaceOf, kCyclerOf, kJoinerOf, kRaise, kStrftimeNow } JFunctionId;
static const JFunction functions[] = {{"range", kRangeOf}, {"dict", kDictOf}, {"namespace", kNamespaceOf}, {"cycler", kCyclerOf},
                                      {"joiner", kJoinerOf}, {"raise_exception", kRaise}, {"strftime_now", kStrftimeNow}};

JValue j_function(JRun* r, const char* name) {
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        if (strcmp(functions[i].name, name) || (functions[i].id == kStrftimeNow && !r->date)) continue;
        JValue v = j_of(kJFunction);
        v.as.function = functions + i;
        return v;
    }
    return j_missing();
}

// The values of at most `count` parameters, into values[]; kJMissing where absent. A keyword has to be one of the names.
static void parameters(JRun* r, const JFunction* f, const JArgs* a, const char* const* names, int required, int count, JValue* values) {
    if (a->count > count) jinja_fail(r, "%s takes no more than %d arguments", f->name, count);
    for (int i = 0; i < count; i++) values[i] = i < a->count ? a->values[i] : j_missing();
    for (int k = 0; k < a->named_count; k++) {
        int i = 0;
        while (i < count && !(names[i] && j_is(a->names[k], names[i]))) i++;
        if (i == count || values[i].kind != kJMissing) jinja_fail(r, "%s can't take the keyword %s", f->name, j_c_string(r, a->names[k]));
        values[i] = a->named[k];
    }
    for (int i = 0; i < required; i++)
        if (values[i].kind == kJMissing) jinja_fail(r, "%s takes at least %d argument%s", f->name, required, required == 1 ? "" : "s");
}

static JValue range_of(JRun* r, const JFunction* f, const JArgs* a) {
    static const char* const names[3] = {NULL, NULL, NULL};
    JValue v[3];
    parameters(r, f, a, names, 1, 3, v);
    JRange* range = (JRange*)jinja_take(r, sizeof(JRange));
    bool bounded = v[1].kind != kJMissing;
    range->start = bounded ? j_need_int(r, v[0], "range's start") : 0;
    range->stop = j_need_int(r, v[bounded], "range's stop");
    range->step = v[2].kind != kJMissing ? j_need_int(r, v[2], "range's step") : 1;
    if (!range->step) jinja_fail(r, "range's step is zero");
    bool up = range->step > 0, any = up ? range->start < range->stop : range->start > range->stop;
    uint64_t span = up ? (uint64_t)range->stop - (uint64_t)range->start : (uint64_t)range->start - (uint64_t)range->stop;
    uint64_t step = up ? (uint64_t)range->step : 0 - (uint64_t)range->step;
    uint64_t count = any ? (span - 1) / step + 1 : 0;
    if (count > kMaxRange) jinja_fail(r, "range has more than %d elements", kMaxRange);
    range->count = (int64_t)count;
    JValue out = j_of(kJRange);
    out.as.range = range;
    return out;
}

// dict(): from a dict or from pairs, and then from keywords.
static JDict* dict_of(JRun* r, const JFunction* f, const JArgs* a) {
    JDict* d = j_dict_new(r, a->named_count);
    if (a->count > 1) jinja_fail(r, "%s takes no more than 1 argument", f->name);
    if (a->count && a->values[0].kind == kJUndefined) j_fail_undefined(r, a->values[0]);
    if (a->count && a->values[0].kind == kJDict) {
        const JDict* from = a->values[0].as.dict;
        for (int64_t i = 0; i < from->count; i++) j_put(r, d, from->entries[i].key, from->entries[i].value);
    } else if (a->count) {
        JCursor c = j_cursor(r, a->values[0]);
        JValue item;
        while (j_next(r, &c, &item)) {
            JList* pair = j_collect(r, item);
            if (pair->count != 2) jinja_fail(r, "%s takes pairs", f->name);
            j_put(r, d, pair->items[0], pair->items[1]);
        }
    }
    for (int i = 0; i < a->named_count; i++) j_put(r, d, j_text(a->names[i]), a->named[i]);
    return d;
}

// ---- cycler(...) and joiner(separator)
static JValue cycler_of(JRun* r, const JFunction* f, const JArgs* a) {
    if (!a->count || a->named_count) jinja_fail(r, "%s takes one or more values", f->name);
    JCycler* c = (JCycler*)jinja_take_zeroed(r, sizeof(JCycler));
    c->items = j_list_new(r, a->count);
    for (int i = 0; i < a->count; i++) j_push(r, c->items, a->values[i]);
    JValue v = j_of(kJCycler);
    v.as.cycler = c;
    return v;
}

static JValue cycler_next(JRun* r, JValue self, const JValue* args) {
    (void)r, (void)args;
    JCycler* c = self.as.cycler;
    JValue item = c->items->items[c->at];
    c->at = (c->at + 1) % c->items->count;
    return item;
}

static JValue cycler_reset(JRun* r, JValue self, const JValue* args) {
    (void)r, (void)args;
    self.as.cycler->at = 0;
    return j_none();
}

JValue j_cycler_attribute(JRun* r, JCycler* cycler, const JText* name) {
    static const JCallable methods[] = {{"next", "", 0, cycler_next, NULL}, {"reset", "", 0, cycler_reset, NULL}};
    if (j_is(name, "current")) return cycler->items->items[cycler->at];
    for (int i = 0; i < 2; i++) {
        if (!j_is(name, methods[i].name)) continue;
        JMethod* m = (JMethod*)jinja_take(r, sizeof(JMethod));
        m->self = j_of(kJCycler);
        m->self.as.cycler = cycler;
        m->callable = methods + i;
        JValue v = j_of(kJMethod);
        v.as.method = m;
        return v;
    }
    return j_missing();
}

static JValue joiner_of(JRun* r, const JFunction* f, const JArgs* a) {
    static const char* const names[1] = {"sep"};
    JValue separator;
    parameters(r, f, a, names, 0, 1, &separator);
    JValue v = j_of(kJJoiner);
    v.as.joiner = (JJoiner*)jinja_take_zeroed(r, sizeof(JJoiner));
    v.as.joiner->separator = separator.kind == kJMissing ? j_text(j_literal(r, ", ")) : separator;
    return v;
}

// ---- what transformers adds
static JValue raise_exception(JRun* r, const JFunction* f, const JArgs* a) {
    static const char* const names[1] = {"message"};
    JValue message;
    parameters(r, f, a, names, 1, 1, &message);
    const char* text = j_c_string(r, j_str(r, message));
    jinja_fail(r, "%s", *text ? text : "the template raised an exception");
}

// The date at midnight, written by C's strftime.
static JValue strftime_now(JRun* r, const JFunction* f, const JArgs* a) {
    static const char* const names[1] = {"format"};
    JValue v;
    parameters(r, f, a, names, 1, 1, &v);
    JText* format = j_need_text(r, v, "strftime_now's format");
    struct tm day;
    memset(&day, 0, sizeof day);
    if (sscanf(r->date, "%d-%d-%d", &day.tm_year, &day.tm_mon, &day.tm_mday) != 3) jinja_fail(r, "the date %s is not YYYY-MM-DD", r->date);
    day.tm_year -= 1900;
    day.tm_mon--;
    timegm(&day);
    JText* ended = j_join2(r, format, j_literal(r, "."));   // so that an empty result differs from a failure
    size_t capacity = 16 * format->bytes + 256;
    char* out = (char*)jinja_take(r, capacity);
    jinja_step(r, capacity);
    size_t bytes = strftime(out, capacity, j_c_string(r, ended), &day);
    if (!bytes) jinja_fail(r, "strftime_now's format gives too long a text");
    if (utf8_valid_bytes(out, bytes - 1) != bytes - 1) jinja_fail(r, "strftime_now's format gives no UTF-8");
    return j_text(j_text_new(r, out, bytes - 1, format->mark == kMarkTemplate ? kMarkTemplate : kMarkData));
}

JValue j_call_function(JRun* r, const JFunction* f, const JArgs* a) {
    JValue v;
    switch (f->id) {
    case kRangeOf: return range_of(r, f, a);
    case kDictOf: return j_dict(dict_of(r, f, a));
    case kNamespaceOf:
        v = j_of(kJNamespace);
        v.as.dict = dict_of(r, f, a);
        return v;
    case kCyclerOf: return cycler_of(r, f, a);
    case kJoinerOf: return joiner_of(r, f, a);
    case kRaise: return raise_exception(r, f, a);
    default: return strftime_now(r, f, a);
    }
}
