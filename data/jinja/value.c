// Values: truth, equality, length, iteration, lists and dicts, attributes and elements.
#include "internal.h"

JValue j_undefined(JRun* r, const char* name, const char* owner, const char* hint) {
    JUndefined* u = (JUndefined*)jinja_take(r, sizeof(JUndefined));
    u->name = name;
    u->owner = owner;
    u->hint = hint;
    JValue v = j_of(kJUndefined);
    v.as.undefined = u;
    return v;
}

void j_fail_undefined(JRun* r, JValue v) {
    const JUndefined* u = v.as.undefined;
    if (u->hint) jinja_fail(r, "%s", u->hint);
    if (u->owner) jinja_fail(r, "%s has no attribute or element '%s'", u->owner, u->name);
    jinja_fail(r, "'%s' is undefined", u->name);
}

const char* j_type_name(JValue v) {
    static const char* const names[] = {"missing", "Undefined", "None", "bool", "int", "float", "str", "list", "tuple", "dict", "dict view", "range",
                                        "generator", "Namespace", "Macro", "function", "method", "LoopContext", "Cycler", "Joiner", "slice"};
    return names[v.kind];
}

int64_t j_length(JRun* r, JValue v) {
    (void)r;
    switch (v.kind) {
    case kJUndefined: return 0;
    case kJText: return j_chars(v.as.text);
    case kJList: case kJTuple: case kJView: return v.as.list->count;
    case kJDict: return v.as.dict->count;
    case kJRange: return v.as.range->count;
    default: return -1;
    }
}

bool j_truth(JRun* r, JValue v) {
    switch (v.kind) {
    case kJMissing: case kJUndefined: case kJNone: return false;
    case kJBool: return v.as.boolean;
    case kJInt: return v.as.integer != 0;
    case kJFloat: return v.as.real != 0;
    case kJText: return v.as.text->bytes != 0;
    default: return j_length(r, v) != 0;
    }
}

static bool same_lists(JRun* r, const JList* a, const JList* b) {
    if (a->count != b->count) return false;
    for (int64_t i = 0; i < a->count; i++)
        if (!j_same(r, a->items[i], b->items[i])) return false;
    return true;
}

static bool same_dicts(JRun* r, const JDict* a, const JDict* b) {
    if (a->count != b->count) return false;
    for (int64_t i = 0; i < a->count; i++) {
        JValue* other = j_find(r, b, a->entries[i].key);
        if (!other || !j_same(r, a->entries[i].value, *other)) return false;
    }
    return true;
}

bool j_same(JRun* r, JValue a, JValue b) {
    jinja_step(r, 0);
    if (j_number(a) && j_number(b)) {
        if (a.kind != kJFloat && b.kind != kJFloat) return j_as_int(a) == j_as_int(b);
        return j_as_float(a) == j_as_float(b);
    }
    if (a.kind != b.kind) return false;
    bool same;
    switch (a.kind) {
    case kJUndefined: case kJNone: return true;
    case kJText: jinja_step(r, a.as.text->bytes); return j_text_equal(a.as.text, b.as.text);
    case kJList: case kJTuple: case kJDict:
        jinja_enter(r);
        same = a.kind == kJDict ? same_dicts(r, a.as.dict, b.as.dict) : same_lists(r, a.as.list, b.as.list);
        jinja_leave(r);
        return same;
    default: return a.as.list == b.as.list;
    }
}

bool j_iterable(JValue v) {
    return v.kind == kJUndefined || (v.kind >= kJText && v.kind <= kJIterator);
}

JCursor j_cursor(JRun* r, JValue v) {
    if (!j_iterable(v)) jinja_fail(r, "a value of type %s can't be iterated", j_type_name(v));
    JCursor c = {v, 0};
    return c;
}

bool j_next(JRun* r, JCursor* c, JValue* out) {
    jinja_step(r, 0);
    switch (c->of.kind) {
    case kJList: case kJTuple: case kJView:
        if (c->at >= c->of.as.list->count) return false;
        *out = c->of.as.list->items[c->at++];
        return true;
    case kJDict:
        if (c->at >= c->of.as.dict->count) return false;
        *out = c->of.as.dict->entries[c->at++].key;
        return true;
    case kJRange:
        if (c->at >= c->of.as.range->count) return false;
        *out = j_int(c->of.as.range->start + c->at++ * c->of.as.range->step);
        return true;
    case kJText: {
        const JText* t = c->of.as.text;
        int length;
        if ((size_t)c->at >= t->bytes) return false;
        j_decode(t->s + c->at, t->bytes - (size_t)c->at, &length);
        *out = j_text(j_part(r, t, (size_t)c->at, (size_t)c->at + (size_t)length));
        out->as.text->safe = false;
        c->at += length;
        return true;
    }
    case kJIterator:
        if (c->of.as.iterator->done) return false;
        jinja_enter(r);   // counts the depth of generators over generators
        c->of.as.iterator->done = !c->of.as.iterator->next(r, c->of.as.iterator, out);
        jinja_leave(r);
        return !c->of.as.iterator->done;
    default: return false;
    }
}

JValue j_iterator(JRun* r, bool (*next)(JRun*, JIterator*, JValue*), JValue source, const void* state, const char* name) {
    JIterator* it = (JIterator*)jinja_take_zeroed(r, sizeof(JIterator));
    it->next = next;
    it->source.of = source;
    it->state = state;
    it->name = name;
    JValue v = j_of(kJIterator);
    v.as.iterator = it;
    return v;
}

// ---- lists and dicts
JList* j_list_new(JRun* r, int64_t capacity) {
    JList* l = (JList*)jinja_take_zeroed(r, sizeof(JList));
    l->capacity = capacity;
    l->items = (JValue*)jinja_take(r, (size_t)capacity * sizeof(JValue));
    return l;
}

void j_push(JRun* r, JList* l, JValue v) {
    if (l->count == l->capacity) {
        l->capacity = 2 * l->capacity + 4;
        JValue* items = (JValue*)jinja_take(r, (size_t)l->capacity * sizeof(JValue));
        if (l->count) memcpy(items, l->items, (size_t)l->count * sizeof(JValue));
        l->items = items;
    }
    l->items[l->count++] = v;
}

JList* j_collect(JRun* r, JValue v) {
    JCursor c = j_cursor(r, v);
    int64_t length = j_length(r, v);
    JList* l = j_list_new(r, length > 0 ? length : 4);
    JValue item;
    while (j_next(r, &c, &item)) j_push(r, l, item);
    return l;
}

JValue j_pair(JRun* r, JValue a, JValue b) {
    JList* l = j_list_new(r, 2);
    j_push(r, l, a);
    j_push(r, l, b);
    return j_list(kJTuple, l);
}

JDict* j_dict_new(JRun* r, int64_t capacity) {
    JDict* d = (JDict*)jinja_take_zeroed(r, sizeof(JDict));
    d->capacity = capacity;
    d->entries = (JEntry*)jinja_take(r, (size_t)capacity * sizeof(JEntry));
    return d;
}

static uint64_t mix(uint64_t h) { return (h ^ h >> 29) * 0xbf58476d1ce4e5b9ull; }

static uint64_t hash_of(JRun* r, JValue key) {
    uint64_t h = (uint64_t)key.kind * 0x9e3779b97f4a7c15ull;
    switch (key.kind) {
    case kJBool: case kJInt: return mix((uint64_t)j_as_int(key));
    case kJFloat:
        if (key.as.real == (double)(int64_t)key.as.real) return mix((uint64_t)(int64_t)key.as.real);
        memcpy(&h, &key.as.real, sizeof h);
        return mix(h);
    case kJText:
        jinja_step(r, 4 * key.as.text->bytes);   // byte by byte
        for (size_t i = 0; i < key.as.text->bytes; i++) h = (h ^ (unsigned char)key.as.text->s[i]) * 0x100000001b3ull;
        return mix(h);
    case kJTuple:
        jinja_enter(r);
        jinja_step(r, (size_t)key.as.list->count);
        for (int64_t i = 0; i < key.as.list->count; i++) h = mix(h + hash_of(r, key.as.list->items[i]));
        jinja_leave(r);
        return h;
    case kJUndefined: case kJNone: return mix(h);
    case kJList: case kJDict: jinja_fail(r, "a %s can't be the key of a dict", j_type_name(key));
    default: return mix(h + (uint64_t)(uintptr_t)key.as.list);
    }
}

static void index_entries(JRun* r, JDict* d) {
    uint32_t size = 32;
    while (size < 3 * d->capacity) size *= 2;
    d->index = (uint32_t*)jinja_take_zeroed(r, size * sizeof(uint32_t));
    d->index_mask = size - 1;
    for (int64_t i = 0; i < d->count; i++) {
        uint32_t at = (uint32_t)d->entries[i].hash & d->index_mask;
        while (d->index[at]) at = (at + 1) & d->index_mask;
        d->index[at] = (uint32_t)i + 1;
    }
}

static JEntry* find_entry(JRun* r, const JDict* d, JValue key, uint64_t hash) {
    if (!d->index) {
        for (int64_t i = 0; i < d->count; i++)
            if (d->entries[i].hash == hash && j_same(r, d->entries[i].key, key)) return d->entries + i;
        return NULL;
    }
    for (uint32_t at = (uint32_t)hash & d->index_mask; d->index[at]; at = (at + 1) & d->index_mask) {
        JEntry* e = d->entries + d->index[at] - 1;
        if (e->hash == hash && j_same(r, e->key, key)) return e;
    }
    return NULL;
}

JValue* j_find(JRun* r, const JDict* d, JValue key) {
    JEntry* e = find_entry(r, d, key, hash_of(r, key));
    return e ? &e->value : NULL;
}

JValue* j_find_name(JRun* r, const JDict* d, const JText* name) { return j_find(r, d, j_text(name)); }

void j_put(JRun* r, JDict* d, JValue key, JValue value) {
    uint64_t hash = hash_of(r, key);
    JEntry* e = find_entry(r, d, key, hash);
    if (e) {
        e->value = value;
        return;
    }
    if (d->count == d->capacity) {
        d->capacity = 2 * d->capacity + 4;
        JEntry* entries = (JEntry*)jinja_take(r, (size_t)d->capacity * sizeof(JEntry));
        if (d->count) memcpy(entries, d->entries, (size_t)d->count * sizeof(JEntry));
        d->entries = entries;
        d->index = NULL;
    }
    JEntry* added = d->entries + d->count++;
    added->key = key;
    added->value = value;
    added->hash = hash;
    if (d->count <= kJLinear) return;
    if (!d->index) {
        index_entries(r, d);
        return;
    }
    uint32_t at = (uint32_t)hash & d->index_mask;
    while (d->index[at]) at = (at + 1) & d->index_mask;
    d->index[at] = (uint32_t)d->count;
}

// ---- attributes and elements
static JValue attribute(JRun* r, JValue v, const JText* name) {
    if (v.kind == kJUndefined) j_fail_undefined(r, v);
    if (v.kind == kJLoop) return j_loop_attribute(r, v.as.loop, name);
    if (v.kind == kJCycler) return j_cycler_attribute(r, v.as.cycler, name);
    if (v.kind == kJNamespace) {
        JValue* found = j_find_name(r, v.as.dict, name);
        return found ? *found : j_missing();
    }
    if (v.kind == kJTuple && v.as.list->group && (j_is(name, "grouper") || j_is(name, "list"))) return v.as.list->items[j_is(name, "list")];
    const JCallable* callable = j_find_method(v, name);
    if (!callable) return j_missing();
    if (!callable->fixed && !callable->raw) return j_undefined(r, NULL, NULL, "the method would change a value: access to it is unsafe");
    JMethod* m = (JMethod*)jinja_take(r, sizeof(JMethod));
    m->self = v;
    m->callable = callable;
    JValue out = j_of(kJMethod);
    out.as.method = m;
    return out;
}

static JValue element(JRun* r, JValue v, JValue key) {
    if (v.kind == kJUndefined) j_fail_undefined(r, v);
    if (v.kind == kJDict) {
        if (key.kind == kJList || key.kind == kJDict) return j_missing();
        JValue* found = j_find(r, v.as.dict, key);
        return found ? *found : j_missing();
    }
    if (key.kind == kJSlice) {
        bool has;
        JValue part = j_slice(r, v, key.as.slice, &has);
        return has ? part : j_missing();
    }
    bool indexed = v.kind == kJText || v.kind == kJList || v.kind == kJTuple || v.kind == kJRange;
    if (!indexed || !j_integral(key)) return j_missing();
    int64_t i = j_as_int(key), count = j_length(r, v);
    if (i < 0) i += count;
    if (i < 0 || i >= count) return j_missing();
    if (v.kind == kJRange) return j_int(v.as.range->start + i * v.as.range->step);
    if (v.kind != kJText) return v.as.list->items[i];
    if (count != (int64_t)v.as.text->bytes) jinja_step(r, 2 * v.as.text->bytes);
    return j_text(j_part(r, v.as.text, j_offset(v.as.text, i), j_offset(v.as.text, i + 1)));
}

static JValue nothing(JRun* r, JValue v, const char* name) { return j_undefined(r, name, j_type_name(v), NULL); }

JValue j_getattr(JRun* r, JValue v, const JText* name) {
    JValue found = attribute(r, v, name);
    if (found.kind == kJMissing) found = element(r, v, j_text(name));
    return found.kind == kJMissing ? nothing(r, v, j_c_string(r, name)) : found;
}

JValue j_getitem(JRun* r, JValue v, JValue key) {
    JValue found = element(r, v, key);
    if (found.kind == kJMissing && key.kind == kJText) found = attribute(r, v, key.as.text);
    if (found.kind != kJMissing) return found;
    return nothing(r, v, key.kind == kJText ? j_c_string(r, key.as.text) : "(of this key)");
}
