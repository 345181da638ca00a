// Filters and tests of templates, and the matching of arguments with parameters. Of Jinja2's filters pprint, random, striptags, urlize and
// wordwrap are missing: chat templates have no use for them.
#include <math.h>

#include "internal.h"

// ---- arguments
// The index of `name` among `params`, -1: none. *count: how many there are.
static int parameter(const char* params, const JText* name, int* count) {
    int index = 0, found = -1;
    while (*params) {
        size_t bytes = strcspn(params, " ");
        if (name && name->bytes == bytes && !memcmp(name->s, params, bytes)) found = index;
        index++;
        params += bytes;
        params += strspn(params, " ");
    }
    *count = index;
    return found;
}

JValue j_invoke(JRun* r, const JCallable* c, JValue self, const JArgs* args) {
    if (!c->params) return c->raw(r, self, args);
    JValue bound[kMaxParams];
    bool positional_only = *c->params == '/';
    const char* params = c->params + (positional_only ? 2 : 0);
    int count;
    parameter(params, NULL, &count);
    for (int i = 0; i < kMaxParams; i++) bound[i] = i < args->count && i < count ? args->values[i] : j_missing();
    if (args->count > count) jinja_fail(r, "%s takes %d arguments at most, not %d", c->name, count, args->count);
    for (int i = 0; i < args->named_count; i++) {
        int at = positional_only ? -1 : parameter(params, args->names[i], &count);
        if (at < 0) jinja_fail(r, "%s has no parameter '%s'", c->name, j_c_string(r, args->names[i]));
        if (bound[at].kind != kJMissing) jinja_fail(r, "%s is given '%s' twice", c->name, j_c_string(r, args->names[i]));
        bound[at] = args->named[i];
    }
    for (int i = 0; i < c->required; i++)
        if (bound[i].kind == kJMissing) jinja_fail(r, "%s takes %d arguments at least", c->name, c->required);
    return c->fixed(r, self, bound);
}

static bool absent(JValue v) { return v.kind == kJMissing || v.kind == kJNone; }
static bool flag(JRun* r, JValue v) { return v.kind != kJMissing && j_truth(r, v); }
static int64_t integer_or(JRun* r, JValue v, int64_t otherwise, const char* what) {
    return v.kind == kJMissing ? otherwise : j_need_int(r, v, what);
}
static JValue text_method(JRun* r, JText* t, const char* name, JValue argument) {
    JValue self = j_text(t), args[kMaxParams];
    for (int i = 0; i < kMaxParams; i++) args[i] = i ? j_missing() : argument;
    return j_find_method(self, j_literal(r, name))->fixed(r, self, args);
}

// ---- sorting
typedef struct {
    JRun* r;
    const JValue* keys;
    bool reverse;
} Order;

static void merge_sort(const Order* o, int64_t* at, int64_t* spare, int64_t count) {
    if (count < 2) return;
    int64_t half = count / 2, left = 0, right = half, out = 0;
    merge_sort(o, at, spare, half);
    merge_sort(o, at + half, spare, count - half);
    while (left < half && right < count) {
        JValue a = o->keys[at[left]], b = o->keys[at[right]];
        jinja_step(o->r, 0);
        bool right_first = o->reverse ? j_order(o->r, a, b, kOpLt) : j_order(o->r, b, a, kOpLt);
        spare[out++] = right_first ? at[right++] : at[left++];
    }
    while (left < half) spare[out++] = at[left++];
    memcpy(at, spare, (size_t)out * sizeof *at);
}

void j_sort(JRun* r, JValue* keys, JValue* items, int64_t count, bool reverse) {
    Order o = {r, keys, reverse};
    int64_t* at = (int64_t*)jinja_take(r, 2 * (size_t)count * sizeof *at);
    JValue* old = (JValue*)jinja_take(r, 2 * (size_t)count * sizeof *old);
    for (int64_t i = 0; i < count; i++) {
        at[i] = i;
        old[i] = keys[i];
        old[count + i] = items[i];
    }
    merge_sort(&o, at, at + count, count);
    for (int64_t i = 0; i < count; i++) {
        keys[i] = old[at[i]];
        items[i] = old[count + at[i]];
    }
}

// ---- attributes of elements: "a.b.0"
typedef struct {
    JList* parts;
    bool lower;            // text is compared in lower case
    JValue otherwise;      // replaces an undefined part, unless absent
} Getter;

static JValue part_of_path(JRun* r, const JText* t) {
    bool digits = t->bytes > 0 && t->bytes < 18;
    for (size_t i = 0; i < t->bytes; i++) digits = digits && t->s[i] >= '0' && t->s[i] <= '9';
    return digits ? j_parse_int(r, t, 10) : j_text(t);
}

static void add_parts(JRun* r, JList* parts, const JText* path, char separator) {
    size_t begin = 0;
    for (size_t i = 0; i <= path->bytes; i++) {
        if (i < path->bytes && path->s[i] != separator) continue;
        const JText* part = j_part(r, path, begin, i);
        j_push(r, parts, separator == '.' ? part_of_path(r, part) : j_text(part));
        begin = i + 1;
    }
}

static Getter getter(JRun* r, JValue attribute, bool lower, JValue otherwise) {
    Getter g = {j_list_new(r, 2), lower, otherwise};
    if (attribute.kind == kJText) add_parts(r, g.parts, attribute.as.text, '.');
    else if (!absent(attribute)) j_push(r, g.parts, attribute);
    return g;
}

static JValue get(JRun* r, const Getter* g, JValue item) {
    for (int64_t i = 0; i < g->parts->count; i++) {
        item = j_getitem(r, item, g->parts->items[i]);
        if (item.kind == kJUndefined && !absent(g->otherwise)) item = g->otherwise;
    }
    if (g->lower && item.kind == kJText) return j_text(j_change_case(r, item.as.text, false));
    return item;
}

static JValue filter_sort(JRun* r, JValue self, const JValue* args) {
    JList *items = j_collect(r, self), *paths = j_list_new(r, 1);
    JValue* keys = (JValue*)jinja_take(r, (size_t)items->count * sizeof(JValue));
    bool lower = !flag(r, args[1]);
    if (args[2].kind == kJText) add_parts(r, paths, args[2].as.text, ',');
    else j_push(r, paths, args[2]);
    for (int64_t i = 0; i < items->count; i++) keys[i] = j_list(kJList, j_list_new(r, paths->count));
    for (int64_t p = 0; p < paths->count; p++) {
        Getter g = getter(r, paths->items[p], lower, j_none());
        for (int64_t i = 0; i < items->count; i++) j_push(r, keys[i].as.list, get(r, &g, items->items[i]));
    }
    j_sort(r, keys, items->items, items->count, flag(r, args[0]));
    return j_list(kJList, items);
}

static JValue filter_dictsort(JRun* r, JValue self, const JValue* args) {
    if (self.kind == kJUndefined) j_fail_undefined(r, self);
    if (self.kind != kJDict) jinja_fail(r, "dictsort takes a dict, not a value of type %s", j_type_name(self));
    const JDict* d = self.as.dict;
    JList* items = j_list_new(r, d->count);
    JValue* keys = (JValue*)jinja_take(r, (size_t)d->count * sizeof(JValue));
    bool by_value = args[1].kind == kJText && j_is(args[1].as.text, "value");
    if (args[1].kind != kJMissing && !by_value && !(args[1].kind == kJText && j_is(args[1].as.text, "key")))
        jinja_fail(r, "dictsort sorts by \"key\" or \"value\"");
    Getter g = getter(r, j_none(), !flag(r, args[0]), j_none());
    for (int64_t i = 0; i < d->count; i++) {
        keys[i] = get(r, &g, by_value ? d->entries[i].value : d->entries[i].key);
        j_push(r, items, j_pair(r, d->entries[i].key, d->entries[i].value));
    }
    j_sort(r, keys, items->items, items->count, flag(r, args[2]));
    return j_list(kJList, items);
}

static JValue filter_groupby(JRun* r, JValue self, const JValue* args) {
    JList *items = j_collect(r, self), *groups = j_list_new(r, 4);
    JValue* keys = (JValue*)jinja_take(r, (size_t)items->count * sizeof(JValue));
    Getter g = getter(r, args[0], !flag(r, args[2]), args[1]), shown = g;
    shown.lower = false;
    for (int64_t i = 0; i < items->count; i++) keys[i] = get(r, &g, items->items[i]);
    j_sort(r, keys, items->items, items->count, false);
    for (int64_t i = 0; i < items->count; i++) {
        if (!i || !j_same(r, keys[i - 1], keys[i])) {
            JValue pair = j_pair(r, get(r, &shown, items->items[i]), j_list(kJList, j_list_new(r, 4)));
            pair.as.list->group = true;
            j_push(r, groups, pair);
        }
        j_push(r, groups->items[groups->count - 1].as.list->items[1].as.list, items->items[i]);
    }
    return j_list(kJList, groups);
}

static JValue extreme(JRun* r, JValue self, const JValue* args, JCompare op) {
    JCursor c = j_cursor(r, self);
    Getter g = getter(r, args[1], !flag(r, args[0]), j_none());
    JValue best, best_key = j_none(), item;
    if (!j_next(r, &c, &best)) return j_undefined(r, NULL, NULL, "there is no smallest or largest element: the sequence is empty");
    best_key = get(r, &g, best);
    while (j_next(r, &c, &item)) {
        JValue key = get(r, &g, item);
        if (!j_order(r, key, best_key, op)) continue;
        best = item;
        best_key = key;
    }
    return best;
}
static JValue filter_min(JRun* r, JValue self, const JValue* args) { return extreme(r, self, args, kOpLt); }
static JValue filter_max(JRun* r, JValue self, const JValue* args) { return extreme(r, self, args, kOpGt); }

static JValue filter_sum(JRun* r, JValue self, const JValue* args) {
    JCursor c = j_cursor(r, self);
    Getter g = getter(r, args[0], false, j_none());
    JValue sum = args[1].kind == kJMissing ? j_int(0) : args[1], item;
    if (sum.kind == kJText) jinja_fail(r, "sum adds no text: use join");
    while (j_next(r, &c, &item)) sum = j_arith(r, kOpAdd, sum, get(r, &g, item));
    return sum;
}

// ---- generators: they do nothing until their first element is asked for
typedef struct {
    JArgs args;              // of the filter or test, without the arguments that chose it
    const JText* name;       // of the filter or test; NULL: none
    JValue attribute;        // absent: the element itself
    JValue otherwise;
    bool by_attribute, wanted;
    Getter getter;
    const JCallable* callable;
    JDict* seen;
} Walk;

static void start_walk(JRun* r, JIterator* it, Walk* w) {
    it->started = true;
    it->source = j_cursor(r, it->source.of);
    w->getter = getter(r, w->attribute, w->getter.lower, w->otherwise);
}

static const JCallable* chosen(JRun* r, Walk* w, const JCallable* (*find)(const JText*), const char* kind) {
    if (!w->callable) w->callable = find(w->name);
    if (!w->callable) jinja_fail(r, "no %s is named '%s'", kind, j_c_string(r, w->name));
    return w->callable;
}

static bool next_mapped(JRun* r, JIterator* it, JValue* out) {
    Walk* w = (Walk*)it->state;
    if (!it->started) {
        if (!j_truth(r, it->source.of)) return false;
        if (!w->name && !w->by_attribute) jinja_fail(r, "map takes a filter's name or an attribute");
        start_walk(r, it, w);
    }
    if (!j_next(r, &it->source, out)) return false;
    *out = w->by_attribute ? get(r, &w->getter, *out) : j_invoke(r, chosen(r, w, j_find_filter, "filter"), *out, &w->args);
    return true;
}

static bool next_selected(JRun* r, JIterator* it, JValue* out) {
    Walk* w = (Walk*)it->state;
    if (!it->started) {
        if (!j_truth(r, it->source.of)) return false;
        if (w->by_attribute && w->attribute.kind == kJMissing) jinja_fail(r, "an attribute's name is missing");
        start_walk(r, it, w);
    }
    while (j_next(r, &it->source, out)) {
        JValue tested = get(r, &w->getter, *out);
        if (w->name) tested = j_invoke(r, chosen(r, w, j_find_test, "test"), tested, &w->args);
        if (j_truth(r, tested) == w->wanted) return true;
    }
    return false;
}

static bool next_unique(JRun* r, JIterator* it, JValue* out) {
    Walk* w = (Walk*)it->state;
    if (!it->started) start_walk(r, it, w);
    while (j_next(r, &it->source, out)) {
        JValue key = get(r, &w->getter, *out);
        if (j_find(r, w->seen, key)) continue;
        j_put(r, w->seen, key, j_none());
        return true;
    }
    return false;
}

static Walk* walk(JRun* r, const JArgs* args, int skipped) {
    Walk* w = (Walk*)jinja_take_zeroed(r, sizeof(Walk));
    w->attribute = w->otherwise = j_missing();
    w->args = *args;
    skipped = min_int(skipped, args->count);
    w->args.values += skipped;
    w->args.count -= skipped;
    if (!w->args.count) return w;
    w->name = j_need_text(r, *w->args.values++, "the name of a filter or test");
    w->args.count--;
    return w;
}

static JValue filter_map(JRun* r, JValue self, const JArgs* args) {
    Walk* w = walk(r, args, 0);
    for (int i = 0; i < args->named_count && !args->count; i++)
        if (j_is(args->names[i], "attribute")) w->by_attribute = true;
    for (int i = 0; i < args->named_count && w->by_attribute; i++) {
        if (j_is(args->names[i], "attribute")) w->attribute = args->named[i];
        else if (j_is(args->names[i], "default")) w->otherwise = args->named[i];
        else jinja_fail(r, "map has no parameter '%s'", j_c_string(r, args->names[i]));
    }
    return j_iterator(r, next_mapped, self, w, "map");
}

static JValue selection(JRun* r, JValue self, const JArgs* args, bool wanted, bool by_attribute, const char* name) {
    Walk* w = walk(r, args, by_attribute);
    w->wanted = wanted;
    w->by_attribute = by_attribute;
    if (by_attribute && args->count) w->attribute = args->values[0];
    return j_iterator(r, next_selected, self, w, name);
}
static JValue filter_select(JRun* r, JValue self, const JArgs* args) { return selection(r, self, args, true, false, "select"); }
static JValue filter_reject(JRun* r, JValue self, const JArgs* args) { return selection(r, self, args, false, false, "reject"); }
static JValue filter_selectattr(JRun* r, JValue self, const JArgs* args) { return selection(r, self, args, true, true, "selectattr"); }
static JValue filter_rejectattr(JRun* r, JValue self, const JArgs* args) { return selection(r, self, args, false, true, "rejectattr"); }

static JValue filter_unique(JRun* r, JValue self, const JValue* args) {
    Walk* w = (Walk*)jinja_take_zeroed(r, sizeof(Walk));
    w->attribute = args[1];
    w->otherwise = j_missing();
    w->getter.lower = !flag(r, args[0]);
    w->seen = j_dict_new(r, 4);
    return j_iterator(r, next_unique, self, w, "unique");
}

// Generators that make all their elements when the first one is asked for.
typedef struct {
    JList* (*make)(JRun* r, JValue of, const JValue* args);
    JValue args[2];
} Making;

static bool next_made(JRun* r, JIterator* it, JValue* out) {
    const Making* m = (const Making*)it->state;
    if (!it->started) {
        it->started = true;
        it->source = j_cursor(r, j_list(kJList, m->make(r, it->source.of, m->args)));
    }
    return j_next(r, &it->source, out);
}

static JValue made_later(JRun* r, JList* (*make)(JRun*, JValue, const JValue*), JValue of, const JValue* args, const char* name) {
    Making* m = (Making*)jinja_take(r, sizeof(Making));
    m->make = make;
    for (int i = 0; i < 2; i++) m->args[i] = args ? args[i] : j_missing();
    return j_iterator(r, next_made, of, m, name);
}

static JList* make_batches(JRun* r, JValue of, const JValue* args) {
    JCursor c = j_cursor(r, of);
    JList *batches = j_list_new(r, 4), *batch = j_list_new(r, 4);
    JValue item, size = args[0];
    while (j_next(r, &c, &item)) {
        if (j_same(r, j_int(batch->count), size)) {
            j_push(r, batches, j_list(kJList, batch));
            batch = j_list_new(r, 4);
        }
        j_push(r, batch, item);
    }
    if (!batch->count) return batches;
    if (!absent(args[1]) && j_order(r, j_int(batch->count), size, kOpLt)) {
        for (int64_t missing = j_need_int(r, size, "the size of batches") - batch->count; missing > 0; missing--) {
            jinja_step(r, 0);
            j_push(r, batch, args[1]);
        }
    }
    j_push(r, batches, j_list(kJList, batch));
    return batches;
}

static JList* make_slices(JRun* r, JValue of, const JValue* args) {
    const JList* all = j_collect(r, of);
    JList* slices = j_list_new(r, 4);
    int64_t count = j_need_int(r, args[0], "the number of slices"), at = 0;
    if (!count) jinja_fail(r, "slice: the number of slices is 0");
    for (int64_t s = 0; s < count; s++) {
        int64_t end = at + all->count / count + (s < all->count % count);
        JList* slice = j_list_new(r, end - at + 1);
        jinja_step(r, 0);
        for (; at < end; at++) j_push(r, slice, all->items[at]);
        if (!absent(args[1]) && s >= all->count % count) j_push(r, slice, args[1]);
        j_push(r, slices, j_list(kJList, slice));
    }
    return slices;
}

static JList* make_items(JRun* r, JValue of, const JValue* args) {
    (void)args;
    if (of.kind == kJUndefined) return j_list_new(r, 0);
    if (of.kind != kJDict) jinja_fail(r, "items takes a dict, not a value of type %s", j_type_name(of));
    JList* items = j_list_new(r, of.as.dict->count);
    for (int64_t i = 0; i < of.as.dict->count; i++) j_push(r, items, j_pair(r, of.as.dict->entries[i].key, of.as.dict->entries[i].value));
    return items;
}

static JList* make_reversed(JRun* r, JValue of, const JValue* args) {
    JList *all = j_collect(r, of), *out = j_list_new(r, all->count);
    (void)args;
    for (int64_t i = all->count - 1; i >= 0; i--) j_push(r, out, all->items[i]);
    return out;
}

static JValue filter_batch(JRun* r, JValue self, const JValue* args) { return made_later(r, make_batches, self, args, "batch"); }
static JValue filter_slice(JRun* r, JValue self, const JValue* args) { return made_later(r, make_slices, self, args, "slice"); }
static JValue filter_items(JRun* r, JValue self, const JValue* args) { (void)args; return made_later(r, make_items, self, NULL, "items"); }

static JValue filter_reverse(JRun* r, JValue self, const JValue* args) {
    (void)args;
    if (self.kind == kJText) {
        const JList* chars = make_reversed(r, self, NULL);
        JBuilder b = j_builder(r);
        for (int64_t i = 0; i < chars->count; i++) j_add_text(&b, chars->items[i].as.text);
        return j_text(j_with_safe(r, j_built(&b), self.as.text->safe));
    }
    if (!j_iterable(self)) jinja_fail(r, "reverse takes a sequence, not a value of type %s", j_type_name(self));
    if (self.kind == kJIterator) return j_list(kJList, make_reversed(r, self, NULL));
    return made_later(r, make_reversed, self, NULL, "reverse");
}

// ---- elements
static JValue filter_first(JRun* r, JValue self, const JValue* args) {
    JCursor c = j_cursor(r, self);
    JValue item;
    (void)args;
    return j_next(r, &c, &item) ? item : j_undefined(r, NULL, NULL, "there is no first element: the sequence is empty");
}

static JValue filter_last(JRun* r, JValue self, const JValue* args) {
    (void)args;
    if (self.kind == kJIterator) jinja_fail(r, "last takes a sequence: a generator has no end to start from");
    if (self.kind == kJText && self.as.text->bytes) return j_getitem(r, self, j_int(-1));
    const JList* all = j_collect(r, self);
    return all->count ? all->items[all->count - 1] : j_undefined(r, NULL, NULL, "there is no last element: the sequence is empty");
}

static JValue filter_length(JRun* r, JValue self, const JValue* args) {
    (void)args;
    int64_t length = j_length(r, self);
    if (length < 0) jinja_fail(r, "a value of type %s has no length", j_type_name(self));
    return j_int(length);
}

static JValue filter_list(JRun* r, JValue self, const JValue* args) { (void)args; return j_list(kJList, j_collect(r, self)); }

static JValue filter_default(JRun* r, JValue self, const JValue* args) {
    bool wanted = self.kind == kJUndefined || (flag(r, args[1]) && !j_truth(r, self));
    return !wanted ? self : args[0].kind == kJMissing ? j_text(j_literal(r, "")) : args[0];
}

static JValue filter_attr(JRun* r, JValue self, const JValue* args) {
    const JText* name = j_need_text(r, args[0], "the name of an attribute");
    if (self.kind == kJUndefined) j_fail_undefined(r, self);
    bool has = self.kind == kJLoop || self.kind == kJNamespace || (self.kind == kJTuple && self.as.list->group);
    if (has || j_find_method(self, name)) return j_getattr(r, self, name);
    return j_undefined(r, j_c_string(r, name), j_type_name(self), NULL);
}

static JValue filter_join(JRun* r, JValue self, const JValue* args) {
    JCursor c = j_cursor(r, self);
    Getter g = getter(r, args[1], false, j_none());
    JBuilder b = j_builder(r);
    JValue item;
    for (bool first = true; j_next(r, &c, &item); first = false) {
        if (!first && args[0].kind != kJMissing) j_add_str(&b, args[0]);
        j_add_str(&b, get(r, &g, item));
    }
    return j_text(j_built(&b));
}

// ---- numbers
static JValue filter_abs(JRun* r, JValue self, const JValue* args) {
    (void)args;
    if (!j_number(self)) jinja_fail(r, "abs takes a number, not a value of type %s", j_type_name(self));
    if (self.kind == kJFloat) return j_float(fabs(self.as.real));
    int64_t i = j_as_int(self);
    if (i == INT64_MIN) jinja_fail(r, "an integer beyond 64 bits");
    return j_int(i < 0 ? -i : i);
}

// A float without its decimals. *fits = false: nan and infinity have no integer.
static JValue truncated(JRun* r, double d, bool* fits) {
    *fits = d - d == 0;
    if (*fits && fabs(d) >= 9223372036854775808.0) jinja_fail(r, "an integer beyond 64 bits");
    return *fits ? j_int((int64_t)d) : j_none();
}

static JValue filter_int(JRun* r, JValue self, const JValue* args) {
    JValue otherwise = args[0].kind == kJMissing ? j_int(0) : args[0];
    bool fits;
    if (self.kind == kJUndefined) j_fail_undefined(r, self);
    if (j_integral(self)) return j_int(j_as_int(self));
    if (self.kind == kJFloat) {
        JValue whole = truncated(r, self.as.real, &fits);
        if (!fits && self.as.real == self.as.real) jinja_fail(r, "int: infinity is no integer");
        return fits ? whole : otherwise;
    }
    if (self.kind != kJText) return otherwise;
    JValue parsed = j_parse_int(r, self.as.text, integer_or(r, args[1], 10, "the base"));
    if (parsed.kind != kJMissing) return parsed;
    parsed = j_parse_float(self.as.text);
    if (parsed.kind == kJMissing) return otherwise;
    parsed = truncated(r, parsed.as.real, &fits);
    return fits ? parsed : otherwise;
}

static JValue filter_float(JRun* r, JValue self, const JValue* args) {
    if (self.kind == kJUndefined) j_fail_undefined(r, self);
    if (j_number(self)) return j_float(j_as_float(self));
    JValue parsed = self.kind == kJText ? j_parse_float(self.as.text) : j_missing();
    return parsed.kind != kJMissing ? parsed : args[0].kind == kJMissing ? j_float(0) : args[0];
}

// Half to even, as Python's round().
static JValue rounded(JRun* r, JValue v, int64_t digits) {
    if (v.kind == kJFloat) {
        if (v.as.real - v.as.real != 0 || digits > 340) return v;
        if (digits < -340) return j_float(0 * v.as.real);
        long double tens = powl(10, (long double)-digits);
        if (digits < 0) return j_float((double)(nearbyintl((long double)v.as.real / tens) * tens));
        char* text = (char*)jinja_take(r, 800);
        snprintf(text, 800, "%.*f", (int)digits, v.as.real);
        return j_float(strtod(text, NULL));
    }
    int64_t i = j_as_int(v), unit = 1;
    if (digits >= 0) return j_int(i);
    if (digits < -18) return j_int(0);
    for (; digits < 0; digits++) unit *= 10;
    int64_t down = i - ((i % unit) + unit) % unit, rest = i - down;
    return j_int(down + (rest > unit / 2 || (rest == unit / 2 && (down / unit) % 2) ? unit : 0));
}

static JValue filter_round(JRun* r, JValue self, const JValue* args) {
    int64_t digits = integer_or(r, args[0], 0, "the precision");
    const JText* method = args[1].kind == kJMissing ? j_literal(r, "common") : j_need_text(r, args[1], "the method");
    bool common = j_is(method, "common"), ceiling = j_is(method, "ceil");
    if (!common && !ceiling && !j_is(method, "floor")) jinja_fail(r, "round: the method is common, ceil or floor");
    if (!j_number(self)) jinja_fail(r, "round takes a number, not a value of type %s", j_type_name(self));
    if (common) return rounded(r, self, digits);
    double scale = pow(10, (double)digits), d = j_as_float(self) * scale;
    if (d - d != 0) jinja_fail(r, "round: this number is no integer");
    return j_float(((ceiling ? ceil(d) : floor(d)) + 0.0) / scale);   // + 0.0 turns -0 into 0
}

static JValue filter_filesizeformat(JRun* r, JValue self, const JValue* args) {
    static const char letters[] = "kMGTPEZY";
    bool binary = flag(r, args[0]);
    JValue size = self.kind == kJText ? j_parse_float(self.as.text) : self;
    if (!j_number(size)) jinja_fail(r, "filesizeformat takes a number, not a value of type %s", j_type_name(self));
    double bytes = j_as_float(size), base = binary ? 1024 : 1000, unit = base;
    char text[400];
    if (bytes != bytes || bytes - bytes != 0) jinja_fail(r, "filesizeformat: this number is no size");
    if (bytes == 1 || bytes < base) {
        snprintf(text, sizeof text, bytes == 1 ? "1 Byte" : "%.0f Bytes", trunc(bytes) + 0.0);
    } else {
        int i = 0;
        for (unit *= base; i < 7 && bytes >= unit; i++) unit *= base;
        char letter = binary && !i ? 'K' : letters[i];
        snprintf(text, sizeof text, "%.1f %c%sB", base * bytes / unit, letter, binary ? "i" : "");
    }
    JBuilder b = j_builder(r);
    j_add_c(&b, text);
    return j_text(j_built(&b));
}

// ---- text
static JValue filter_upper(JRun* r, JValue self, const JValue* args) { (void)args; return j_text(j_change_case(r, j_soft_str(r, self), true)); }
static JValue filter_lower(JRun* r, JValue self, const JValue* args) { (void)args; return j_text(j_change_case(r, j_soft_str(r, self), false)); }
static JValue filter_string(JRun* r, JValue self, const JValue* args) { (void)args; return j_text(j_soft_str(r, self)); }
static JValue filter_escape(JRun* r, JValue self, const JValue* args) { (void)args; return j_text(j_escape(r, self)); }
static JValue filter_forceescape(JRun* r, JValue self, const JValue* args) { (void)args; return j_text(j_escape(r, j_text(j_str(r, self)))); }
static JValue filter_safe(JRun* r, JValue self, const JValue* args) { (void)args; return j_text(j_with_safe(r, j_soft_str(r, self), true)); }
static JValue filter_trim(JRun* r, JValue self, const JValue* args) { return j_text(j_strip(r, j_soft_str(r, self), args[0], true, true)); }
static JValue filter_capitalize(JRun* r, JValue self, const JValue* args) {
    (void)args;
    return text_method(r, j_soft_str(r, self), "capitalize", j_missing());
}
static JValue filter_center(JRun* r, JValue self, const JValue* args) {
    return text_method(r, j_soft_str(r, self), "center", args[0].kind == kJMissing ? j_int(80) : args[0]);
}

static JValue filter_replace(JRun* r, JValue self, const JValue* args) {
    int64_t count = absent(args[2]) ? -1 : j_need_int(r, args[2], "the number of replacements");
    return j_text(j_replace(r, j_str(r, self), j_str(r, args[0]), j_str(r, args[1]), count));
}

// Adds bytes [begin, end) with the first letter in upper and the others in lower case.
static void add_titled(JBuilder* b, const JText* t, size_t begin, size_t end) {
    int length;
    if (begin == end) return;
    j_decode(t->s + begin, end - begin, &length);
    j_add_text(b, j_change_case(b->r, j_part(b->r, t, begin, begin + (size_t)length), true));
    j_add_text(b, j_change_case(b->r, j_part(b->r, t, begin + (size_t)length, end), false));
}

// Words begin behind white space, hyphens and opening brackets.
static JValue filter_title(JRun* r, JValue self, const JValue* args) {
    const JText* t = j_soft_str(r, self);
    JBuilder b = j_builder(r);
    size_t begin = 0;
    (void)args;
    jinja_step(r, 4 * t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        if (j_py_space(c) || (c && c < 0x80 && strchr("-({[<", (int)c))) {
            add_titled(&b, t, begin, i);
            begin = i + (size_t)length;
            j_add_part(&b, t, i, begin);
        }
        i += (size_t)length;
    }
    add_titled(&b, t, begin, t->bytes);
    return j_text(j_built(&b));
}

static JValue filter_wordcount(JRun* r, JValue self, const JValue* args) {
    const JText* t = j_soft_str(r, self);
    int64_t words = 0;
    bool inside = false;
    (void)args;
    jinja_step(r, 4 * t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        bool word = c == '_' || j_is_alpha(c) || j_is_numeric(c);
        words += word && !inside;
        inside = word;
        i += (size_t)length;
    }
    return j_int(words);
}

static JValue filter_indent(JRun* r, JValue self, const JValue* args) {
    const JText* t = j_need_text(r, self, "what is indented");
    bool first = flag(r, args[1]), blank = flag(r, args[2]);
    JBuilder spaces = j_builder(r), b = j_builder(r);
    if (args[0].kind == kJText) j_add_text(&spaces, args[0].as.text);
    else for (int64_t i = integer_or(r, args[0], 4, "the width"); i > 0; i--, jinja_step(r, 0)) j_add_c(&spaces, " ");
    const JText* indent = j_built(&spaces);
    const JList* lines = j_split_lines(r, j_join2(r, t, j_literal(r, "\n")), false);
    for (int64_t i = 0; i < lines->count; i++) {
        const JText* line = lines->items[i].as.text;
        if (i) j_add_c(&b, "\n");
        if (i ? blank || line->bytes : first) j_add_text(&b, indent);
        j_add_text(&b, line);
    }
    return j_text(j_with_safe(r, j_built(&b), t->safe));
}

static JValue filter_truncate(JRun* r, JValue self, const JValue* args) {
    JValue end = args[2].kind == kJMissing ? j_text(j_literal(r, "...")) : j_text(j_need_text(r, args[2], "the end"));
    int64_t length = integer_or(r, args[0], 255, "the length"), leeway = absent(args[3]) ? 5 : j_need_int(r, args[3], "the leeway");
    int64_t kept = length - j_chars(end.as.text);
    if (kept < 0 || leeway < 0) jinja_fail(r, "truncate: the end is longer than the length, or the leeway negative");
    if (filter_length(r, self, NULL).as.integer <= length + leeway) return self;
    JText* t = j_need_text(r, self, "what is truncated");
    t = j_part(r, t, 0, j_offset(t, kept));
    const char* space = flag(r, args[1]) || !t->bytes ? NULL : (const char*)memrchr(t->s, ' ', t->bytes);
    if (space) t = j_part(r, t, 0, (size_t)(space - t->s));
    return j_arith(r, kOpAdd, j_text(t), end);
}

static JValue filter_format(JRun* r, JValue self, const JArgs* args) {
    JText* pattern = j_soft_str(r, self);
    if (args->count && args->named_count) jinja_fail(r, "format takes arguments either with or without names");
    JList* values = j_list_new(r, args->count);
    for (int i = 0; i < args->count; i++) j_push(r, values, args->values[i]);
    if (!args->named_count) return j_percent(r, pattern, j_list(kJTuple, values));
    JDict* named = j_dict_new(r, args->named_count);
    for (int i = 0; i < args->named_count; i++) j_put(r, named, j_text(args->names[i]), args->named[i]);
    return j_percent(r, pattern, j_dict(named));
}

static JValue filter_tojson(JRun* r, JValue self, const JValue* args) {
    return j_text(j_tojson(r, self, args[1], args[2], flag(r, args[0]), flag(r, args[3])));
}

// Adds a value percent-encoded for a URL. in_query: as a key or value behind the question mark, where spaces become + and slashes are escaped.
static void add_quoted(JBuilder* b, JValue v, bool in_query) {
    const JText* t = j_soft_str(b->r, v);
    jinja_step(b->r, t->bytes);
    for (size_t i = 0; i < t->bytes; i++) {
        unsigned char c = (unsigned char)t->s[i];
        char escape[4];
        bool plain = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || (c && strchr("_.-~", c)) || (c == '/' && !in_query);
        if (plain) j_add_part(b, t, i, i + 1);
        else if (c == ' ' && in_query) j_add(b, "+", 1, j_mark_at(t, i));
        else j_add(b, escape, (size_t)snprintf(escape, sizeof escape, "%%%02X", c), j_mark_at(t, i));
    }
}

static JValue filter_urlencode(JRun* r, JValue self, const JValue* args) {
    JBuilder b = j_builder(r);
    (void)args;
    if (self.kind == kJText || !j_iterable(self)) {
        add_quoted(&b, self, false);
        return j_text(j_built(&b));
    }
    JCursor c = j_cursor(r, self.kind == kJDict ? j_list(kJList, make_items(r, self, NULL)) : self);
    JValue item;
    for (bool first = true; j_next(r, &c, &item); first = false) {
        const JList* pair = j_collect(r, item);
        if (pair->count != 2) jinja_fail(r, "urlencode takes pairs of a key and a value");
        if (!first) j_add_c(&b, "&");
        add_quoted(&b, pair->items[0], true);
        j_add_c(&b, "=");
        add_quoted(&b, pair->items[1], true);
    }
    return j_text(j_built(&b));
}

static JValue filter_xmlattr(JRun* r, JValue self, const JValue* args) {
    JBuilder b = j_builder(r);
    bool space = args[0].kind == kJMissing || j_truth(r, args[0]);
    if (self.kind == kJUndefined) j_fail_undefined(r, self);
    if (self.kind != kJDict) jinja_fail(r, "xmlattr takes a dict, not a value of type %s", j_type_name(self));
    for (int64_t i = 0; i < self.as.dict->count; i++) {
        const JEntry* e = self.as.dict->entries + i;
        if (e->value.kind == kJNone || e->value.kind == kJUndefined) continue;
        const JText* key = j_need_text(r, e->key, "the name of an attribute");
        for (size_t k = 0; k < key->bytes; k++)
            if (key->s[k] && strchr(" \t\n\r\f\v/>=", key->s[k])) jinja_fail(r, "xmlattr: a character that no name may have");
        if (b.bytes || space) j_add_c(&b, " ");
        j_add_text(&b, j_escape(r, e->key));
        j_add_c(&b, "=\"");
        j_add_text(&b, j_escape(r, e->value));
        j_add_c(&b, "\"");
    }
    return j_text(j_built(&b));
}

#define FIXED(name, params, required, function) {name, params, required, function, NULL}
#define RAW(name, function) {name, NULL, 0, NULL, function}
static const JCallable filters[] = {
    FIXED("abs", "", 0, filter_abs), FIXED("attr", "name", 1, filter_attr), FIXED("batch", "linecount fill_with", 1, filter_batch),
    FIXED("capitalize", "", 0, filter_capitalize), FIXED("center", "width", 0, filter_center), FIXED("count", "", 0, filter_length),
    FIXED("d", "default_value boolean", 0, filter_default), FIXED("default", "default_value boolean", 0, filter_default),
    FIXED("dictsort", "case_sensitive by reverse", 0, filter_dictsort), FIXED("e", "", 0, filter_escape),
    FIXED("escape", "", 0, filter_escape), FIXED("filesizeformat", "binary", 0, filter_filesizeformat),
    FIXED("first", "", 0, filter_first), FIXED("float", "default", 0, filter_float), FIXED("forceescape", "", 0, filter_forceescape),
    RAW("format", filter_format), FIXED("groupby", "attribute default case_sensitive", 1, filter_groupby),
    FIXED("indent", "width first blank", 0, filter_indent), FIXED("int", "default base", 0, filter_int),
    FIXED("items", "", 0, filter_items), FIXED("join", "d attribute", 0, filter_join), FIXED("last", "", 0, filter_last),
    FIXED("length", "", 0, filter_length), FIXED("list", "", 0, filter_list), FIXED("lower", "", 0, filter_lower),
    RAW("map", filter_map), FIXED("max", "case_sensitive attribute", 0, filter_max), FIXED("min", "case_sensitive attribute", 0, filter_min),
    RAW("reject", filter_reject), RAW("rejectattr", filter_rejectattr), FIXED("replace", "old new count", 2, filter_replace),
    FIXED("reverse", "", 0, filter_reverse), FIXED("round", "precision method", 0, filter_round), FIXED("safe", "", 0, filter_safe),
    RAW("select", filter_select), RAW("selectattr", filter_selectattr), FIXED("slice", "slices fill_with", 1, filter_slice),
    FIXED("sort", "reverse case_sensitive attribute", 0, filter_sort), FIXED("string", "", 0, filter_string),
    FIXED("sum", "attribute start", 0, filter_sum), FIXED("title", "", 0, filter_title),
    FIXED("tojson", "ensure_ascii indent separators sort_keys", 0, filter_tojson), FIXED("trim", "chars", 0, filter_trim),
    FIXED("truncate", "length killwords end leeway", 0, filter_truncate), FIXED("unique", "case_sensitive attribute", 0, filter_unique),
    FIXED("upper", "", 0, filter_upper), FIXED("urlencode", "", 0, filter_urlencode), FIXED("wordcount", "", 0, filter_wordcount),
    FIXED("xmlattr", "autospace", 0, filter_xmlattr)};

// ---- tests
static bool remainder_is(JRun* r, JValue v, JValue by, int64_t wanted) { return j_same(r, j_arith(r, kOpMod, v, by), j_int(wanted)); }
static bool is_kind(JValue v, JKind kind) { return v.kind == kind; }

#define TEST(test, condition) \
    static JValue test_##test(JRun* r, JValue v, const JValue* args) { (void)r, (void)args; return j_bool(condition); }
TEST(odd, remainder_is(r, v, j_int(2), 1))
TEST(even, remainder_is(r, v, j_int(2), 0))
TEST(divisibleby, remainder_is(r, v, args[0], 0))
TEST(defined, !is_kind(v, kJUndefined))
TEST(undefined, is_kind(v, kJUndefined))
TEST(none, is_kind(v, kJNone))
TEST(boolean, is_kind(v, kJBool))
TEST(false, is_kind(v, kJBool) && !v.as.boolean)
TEST(true, is_kind(v, kJBool) && v.as.boolean)
TEST(integer, is_kind(v, kJInt))
TEST(float, is_kind(v, kJFloat))
TEST(string, is_kind(v, kJText))
TEST(mapping, is_kind(v, kJDict))
TEST(number, j_number(v))
TEST(sequence, j_length(r, v) >= 0 && !is_kind(v, kJView))
TEST(iterable, j_iterable(v) || is_kind(v, kJLoop))
TEST(callable, is_kind(v, kJUndefined) || is_kind(v, kJMacro) || is_kind(v, kJFunction) || is_kind(v, kJMethod) || is_kind(v, kJLoop) ||
               is_kind(v, kJJoiner))
TEST(escaped, is_kind(v, kJText) && v.as.text->safe)
TEST(in, j_contains(r, v, args[0]))
TEST(eq, j_compare(r, kOpEq, v, args[0]))
TEST(ne, j_compare(r, kOpNe, v, args[0]))
TEST(gt, j_compare(r, kOpGt, v, args[0]))
TEST(ge, j_compare(r, kOpGe, v, args[0]))
TEST(lt, j_compare(r, kOpLt, v, args[0]))
TEST(le, j_compare(r, kOpLe, v, args[0]))

static JValue cased(JRun* r, JValue v, const char* method) { return text_method(r, j_str(r, v), method, j_missing()); }
static JValue test_lower(JRun* r, JValue v, const JValue* args) { (void)args; return cased(r, v, "islower"); }
static JValue test_upper(JRun* r, JValue v, const JValue* args) { (void)args; return cased(r, v, "isupper"); }

// Python's `is`: numbers and text are the same where they are equal, as its small numbers and a template's constants are.
static JValue test_sameas(JRun* r, JValue v, const JValue* args) {
    JValue other = args[0];
    if (v.kind != other.kind) return j_bool(false);
    if (v.kind == kJNone || v.kind == kJBool || v.kind == kJInt || v.kind == kJFloat || v.kind == kJText) return j_bool(j_same(r, v, other));
    return j_bool(v.as.list == other.as.list);
}

static JValue named(JRun* r, JValue v, const JCallable* (*find)(const JText*)) {
    if (v.kind == kJList || v.kind == kJDict) jinja_fail(r, "a %s is no name", j_type_name(v));
    return j_bool(v.kind == kJText && find(v.as.text));
}
static JValue test_filter(JRun* r, JValue v, const JValue* args) { (void)args; return named(r, v, j_find_filter); }
static JValue test_test(JRun* r, JValue v, const JValue* args) { (void)args; return named(r, v, j_find_test); }

static const JCallable tests[] = {
    FIXED("odd", "", 0, test_odd), FIXED("even", "", 0, test_even), FIXED("divisibleby", "num", 1, test_divisibleby),
    FIXED("defined", "", 0, test_defined), FIXED("undefined", "", 0, test_undefined), FIXED("filter", "", 0, test_filter),
    FIXED("test", "", 0, test_test), FIXED("none", "", 0, test_none), FIXED("boolean", "", 0, test_boolean),
    FIXED("false", "", 0, test_false), FIXED("true", "", 0, test_true), FIXED("integer", "", 0, test_integer),
    FIXED("float", "", 0, test_float), FIXED("lower", "", 0, test_lower), FIXED("upper", "", 0, test_upper),
    FIXED("string", "", 0, test_string), FIXED("mapping", "", 0, test_mapping), FIXED("number", "", 0, test_number),
    FIXED("sequence", "", 0, test_sequence), FIXED("iterable", "", 0, test_iterable), FIXED("callable", "", 0, test_callable),
    FIXED("sameas", "other", 1, test_sameas), FIXED("escaped", "", 0, test_escaped), FIXED("in", "seq", 1, test_in),
    FIXED("==", "/ other", 1, test_eq), FIXED("eq", "/ other", 1, test_eq), FIXED("equalto", "/ other", 1, test_eq),
    FIXED("!=", "/ other", 1, test_ne), FIXED("ne", "/ other", 1, test_ne), FIXED(">", "/ other", 1, test_gt),
    FIXED("gt", "/ other", 1, test_gt), FIXED("greaterthan", "/ other", 1, test_gt), FIXED(">=", "/ other", 1, test_ge),
    FIXED("ge", "/ other", 1, test_ge), FIXED("<", "/ other", 1, test_lt), FIXED("lt", "/ other", 1, test_lt),
    FIXED("lessthan", "/ other", 1, test_lt), FIXED("<=", "/ other", 1, test_le), FIXED("le", "/ other", 1, test_le)};

static const JCallable* entry(const JCallable* table, size_t count, const JText* name) {
    for (size_t i = 0; i < count; i++)
        if (j_is(name, table[i].name)) return table + i;
    return NULL;
}
const JCallable* j_find_filter(const JText* name) { return entry(filters, sizeof filters / sizeof *filters, name); }
const JCallable* j_find_test(const JText* name) { return entry(tests, sizeof tests / sizeof *tests, name); }
