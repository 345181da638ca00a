// Walks the syntax tree: expressions give values, statements write to the output or leave a loop.
//
// Set blocks, macros and the like collect what their body writes: the body writes to the end of the output, and its text is taken
// from there when the body ends.
#include "internal.h"

struct JMacro {
    const JNode* node;
    JFrame* frame;       // where the macro was defined
    const JText* name;   // NULL: the `caller` that {% call %} gives to a macro
};

struct JLoop {
    const JNode* node;
    JFrame* frame;       // around a recursive loop
    JValue iterable, before, current, after;   // elements; kJMissing: none
    JCursor cursor;
    int64_t index0, length;                    // -1: not known yet
    int64_t depth0;
    JList* changed;      // the arguments of the last call of loop.changed
};

static JValue eval(JRun* r, JFrame* f, const JNode* n);
static bool execute_all(JRun* r, JFrame* f, JNodes nodes);

// ---- variables
static JFrame* frame_new(JRun* r, JFrame* parent, int slots) {
    JFrame* f = (JFrame*)jinja_take(r, sizeof(JFrame));
    f->parent = parent;
    f->slots = (JValue*)jinja_take_zeroed(r, (size_t)slots * sizeof(JValue));   // kJMissing is 0
    return f;
}

static JValue* slot_of(JFrame* f, int hops, int slot) {
    while (hops-- > 0) f = f->parent;
    return f->slots + slot;
}

// The value of global name number `global`: the context's variable, or else the global function.
static JValue resolve(JRun* r, int global) {
    if (r->resolved[global]) return r->globals[global];
    const char* name = j_c_string(r, r->template_->globals[global]);
    const json_t* json = json_object_get(r->context, name);
    bool is_data = false;
    for (const char* const* data = r->data_names; data && *data; data++) is_data = is_data || !strcmp(*data, name);
    r->globals[global] = json ? j_from_json(r, json, is_data, !strcmp(name, "messages")) : j_function(r, name);
    r->resolved[global] = true;
    return r->globals[global];
}

static void scope_enter(JRun* r, JFrame* f, const JScopeLoads* scope) {
    for (int i = 0; i < scope->count; i++) {
        const JLoad* load = scope->loads + i;
        JValue* to = f->slots + load->var->slot;
        if (load->kind == kLoadResolve) *to = resolve(r, load->global);
        else if (load->kind == kLoadAlias) *to = *slot_of(f, load->hops, load->slot);
        else if (load->kind == kLoadUndefined) *to = j_missing();
    }
}

static void scope_leave(JFrame* f, const JScopeLoads* scope) {
    for (int i = 0; i < scope->count; i++) f->slots[scope->loads[i].var->slot] = j_missing();
}

static JList* unpacked(JRun* r, JValue v, int count) {
    JList* items = v.kind == kJList || v.kind == kJTuple ? v.as.list : j_collect(r, v);
    if (items->count != count) jinja_fail(r, "%d values were expected here, not %lld", count, (long long)items->count);
    return items;
}

static void assign(JRun* r, JFrame* f, const JNode* target, JValue v) {
    if (target->type == kNTuple) {
        JList* items = unpacked(r, v, target->items.count);
        for (int i = 0; i < target->items.count; i++) assign(r, f, target->items.items[i], items->items[i]);
        return;
    }
    JValue* variable = slot_of(f, target->hops, target->slot);
    if (target->type == kNName) {
        *variable = v;
        return;
    }
    if (variable->kind != kJNamespace) jinja_fail(r, "only a namespace lets its attributes be set");
    j_put(r, variable->as.dict, target->value, v);
}

// ---- output
static void reserve(JRun* r, size_t more) {
    JinjaOutput* o = r->output;
    if (more > JINJA_MAX_OUTPUT || o->bytes + more > JINJA_MAX_OUTPUT)
        jinja_fail(r, "the template writes more than %zu MiB", JINJA_MAX_OUTPUT >> 20);
    if (o->bytes + more < o->capacity) return;
    o->capacity = 2 * (o->bytes + more) + 1024;
    o->text = (char*)realloc(o->text, o->capacity);
    o->from_data = (unsigned char*)realloc(o->from_data, o->capacity);
    check(o->text && o->from_data, "out of host memory: %zu bytes", 2 * o->capacity);
}

static void write_text(JRun* r, const JText* t) {
    JinjaOutput* o = r->output;
    if (!t->bytes) return;
    jinja_step(r, t->bytes);
    reserve(r, t->bytes);
    memcpy(o->text + o->bytes, t->s, t->bytes);
    if (t->mark == kMarkMixed) memcpy(o->from_data + o->bytes, t->marks, t->bytes);
    else memset(o->from_data + o->bytes, t->mark == kMarkData, t->bytes);
    o->bytes += t->bytes;
}

static size_t capture_begin(JRun* r) {
    if (r->captures++ == 0) r->outer_bytes = r->output->bytes;
    return r->output->bytes;
}

static JText* capture_end(JRun* r, size_t begin) {
    JinjaOutput* o = r->output;
    JBuilder b = j_builder(r);
    for (size_t at = begin; at < o->bytes;) {
        unsigned char mark = o->from_data[at];
        const void* other = memchr(o->from_data + at, !mark, o->bytes - at);
        size_t end = other ? (size_t)((const unsigned char*)other - o->from_data) : o->bytes;
        j_add(&b, o->text + at, end - at, mark);
        at = end;
    }
    jinja_step(r, o->bytes - begin);
    o->bytes = begin;
    r->captures--;
    return j_built(&b);
}

// ---- calls
static void spread(JRun* r, JFrame* f, const JCallArgs* c, JArgs* a) {
    if (c->dyn_args) {
        JList* more = j_collect(r, eval(r, f, c->dyn_args));
        JValue* all = (JValue*)jinja_take(r, (size_t)(a->count + more->count) * sizeof(JValue));
        if (a->count) memcpy(all, a->values, (size_t)a->count * sizeof(JValue));
        if (more->count) memcpy(all + a->count, more->items, (size_t)more->count * sizeof(JValue));
        a->values = all;
        a->count += (int)more->count;
    }
    if (!c->dyn_kwargs) return;
    JValue named = eval(r, f, c->dyn_kwargs);
    if (named.kind != kJDict) jinja_fail(r, "what follows ** must be a dict, not %s", j_type_name(named));
    int count = a->named_count + (int)named.as.dict->count;
    const JText** names = (const JText**)jinja_take(r, (size_t)count * sizeof(JText*));
    JValue* values = (JValue*)jinja_take(r, (size_t)count * sizeof(JValue));
    for (int i = 0; i < count; i++) {
        JEntry* e = i < a->named_count ? NULL : named.as.dict->entries + (i - a->named_count);
        names[i] = e ? j_need_text(r, e->key, "a keyword") : a->names[i];
        values[i] = e ? e->value : a->named[i];
        for (int k = 0; e && k < a->named_count; k++)
            if (j_text_equal(names[k], names[i])) jinja_fail(r, "keyword argument given twice: %s", j_c_string(r, names[i]));
    }
    a->names = names;
    a->named = values;
    a->named_count = count;
}

// The arguments of a call; `caller`, unless NULL, is added as a keyword.
static JArgs arguments(JRun* r, JFrame* f, const JCallArgs* c, const JValue* caller) {
    JArgs a = {NULL, c->count, c->names, NULL, c->named_count};
    a.values = (JValue*)jinja_take(r, (size_t)c->count * sizeof(JValue));
    for (int i = 0; i < c->count; i++) a.values[i] = eval(r, f, c->args[i]);
    if (c->named_count || caller) a.named = (JValue*)jinja_take(r, (size_t)(c->named_count + 1) * sizeof(JValue));
    for (int i = 0; i < c->named_count; i++) a.named[i] = eval(r, f, c->named[i]);
    if (c->dyn_args || c->dyn_kwargs) spread(r, f, c, &a);
    if (!caller) return a;
    const JText** names = (const JText**)jinja_take(r, (size_t)(a.named_count + 1) * sizeof(JText*));
    JValue* named = (JValue*)jinja_take(r, (size_t)(a.named_count + 1) * sizeof(JValue));
    if (a.named_count) memcpy(names, a.names, (size_t)a.named_count * sizeof(JText*));
    if (a.named_count) memcpy(named, a.named, (size_t)a.named_count * sizeof(JValue));
    names[a.named_count] = j_literal(r, "caller");
    named[a.named_count++] = *caller;
    a.names = names;
    a.named = named;
    return a;
}

static JValue take_keyword(const JArgs* a, bool* used, const JText* name) {
    for (int i = 0; i < a->named_count; i++) {
        if (used[i] || !j_text_equal(a->names[i], name)) continue;
        used[i] = true;
        return a->named[i];
    }
    return j_missing();
}

static const char* macro_name(JRun* r, const JMacro* m) { return m->name ? j_c_string(r, m->name) : "caller"; }

// Takes arguments beyond the parameters into the macro's kwargs and varargs; an error if the macro uses neither.
static void take_rest(JRun* r, const JMacro* m, JFrame* f, const JArgs* a, const bool* used) {
    const JNode* n = m->node;
    JDict* kwargs = n->catches_kwargs ? j_dict_new(r, a->named_count) : NULL;
    for (int i = 0; i < a->named_count; i++) {
        if (used[i]) continue;
        if (!kwargs) jinja_fail(r, "macro %s takes no keyword argument %s", macro_name(r, m), j_c_string(r, a->names[i]));
        j_put(r, kwargs, j_text(a->names[i]), a->named[i]);
    }
    if (kwargs) f->slots[n->kwargs_slot] = j_dict(kwargs);
    int rest = a->count - n->call->count;
    if (!n->catches_varargs) {
        if (rest > 0) jinja_fail(r, "macro %s takes no more than %d arguments", macro_name(r, m), n->call->count);
        return;
    }
    JList* varargs = j_list_new(r, rest > 0 ? rest : 0);
    for (int i = 0; i < rest; i++) j_push(r, varargs, a->values[n->call->count + i]);
    f->slots[n->varargs_slot] = j_list(kJTuple, varargs);
}

static void take_parameters(JRun* r, const JMacro* m, JFrame* f, const JArgs* a) {
    const JNode* n = m->node;
    const JCallArgs* c = n->call;
    bool* used = (bool*)jinja_take_zeroed(r, (size_t)a->named_count);
    for (int i = 0; i < c->count; i++) f->slots[c->args[i]->slot] = i < a->count ? a->values[i] : take_keyword(a, used, c->args[i]->name);
    if (n->caller_slot >= 0) {
        JValue caller = take_keyword(a, used, j_literal(r, "caller"));
        if (caller.kind == kJMissing || caller.kind == kJNone) {
            caller = j_undefined(r, "caller", NULL, "the macro wants a caller: call it by {% call %}");
        }
        f->slots[n->caller_slot] = caller;
    }
    take_rest(r, m, f, a, used);
    scope_enter(r, f, &n->scope);
    for (int i = 0; i < c->count; i++) {
        JValue* v = f->slots + c->args[i]->slot;
        int given = i - (c->count - c->named_count);
        if (v->kind != kJMissing) continue;
        *v = given >= 0 ? eval(r, f, c->named[given]) : j_undefined(r, j_c_string(r, c->args[i]->name), NULL, NULL);
    }
}

static JValue call_macro(JRun* r, const JMacro* m, const JArgs* a) {
    int line = r->line;
    jinja_enter(r);
    JFrame* f = frame_new(r, m->frame, m->node->func->slots);
    take_parameters(r, m, f, a);
    size_t begin = capture_begin(r);
    execute_all(r, f, m->node->items);
    JText* text = capture_end(r, begin);
    jinja_leave(r);
    r->line = line;
    return j_text(text);
}

static JValue macro_value(JRun* r, JFrame* f, const JNode* n) {
    JMacro* m = (JMacro*)jinja_take(r, sizeof(JMacro));
    m->node = n;
    m->frame = f;
    m->name = n->name;
    JValue v = j_of(kJMacro);
    v.as.macro = m;
    return v;
}

static JValue call_loop(JRun* r, const JLoop* loop, const JArgs* args);

JValue j_call(JRun* r, JValue callee, const JArgs* args) {
    jinja_step(r, 0);
    switch (callee.kind) {
    case kJUndefined: j_fail_undefined(r, callee);
    case kJMacro: return call_macro(r, callee.as.macro, args);
    case kJFunction: return j_call_function(r, callee.as.function, args);
    case kJMethod: return j_invoke(r, callee.as.method->callable, callee.as.method->self, args);
    case kJLoop: return call_loop(r, callee.as.loop, args);
    case kJJoiner:
        if (args->count || args->named_count) jinja_fail(r, "a joiner takes no arguments");
        if (callee.as.joiner->used) return callee.as.joiner->separator;
        callee.as.joiner->used = true;
        return j_text(j_literal(r, ""));
    default: jinja_fail(r, "a value of type %s can't be called", j_type_name(callee));
    }
}

// ---- expressions
static JValue eval_call(JRun* r, JFrame* f, const JNode* n, const JValue* caller) {
    JValue callee = eval(r, f, n->a);
    JArgs args = arguments(r, f, n->call, caller);
    r->line = n->line;
    return j_call(r, callee, &args);
}

// A chain of filters; `input` goes into the first one if no expression stands before the chain, as in {% filter %}.
static JValue eval_filter(JRun* r, JFrame* f, const JNode* n, JValue input) {
    JValue self = !n->a ? input : n->a->type == kNFilter ? eval_filter(r, f, n->a, input) : eval(r, f, n->a);
    r->line = n->line;
    if (!n->callable) jinja_fail(r, "no filter is named %s", j_c_string(r, n->name));
    JArgs args = arguments(r, f, n->call, NULL);
    return j_invoke(r, n->callable, self, &args);
}

static JValue eval_test(JRun* r, JFrame* f, const JNode* n) {
    JValue self = eval(r, f, n->a);
    if (!n->callable) jinja_fail(r, "no test is named %s", j_c_string(r, n->name));
    JArgs args = arguments(r, f, n->call, NULL);
    return j_invoke(r, n->callable, self, &args);
}

static JValue eval_compare(JRun* r, JFrame* f, const JNode* n) {
    JValue left = eval(r, f, n->items.items[0]);
    for (int i = 1; i < n->items.count; i++) {
        JValue right = eval(r, f, n->items.items[i]);
        if (!j_compare(r, (JCompare)n->ops[i - 1], left, right)) return j_bool(false);
        left = right;
    }
    return j_bool(true);
}

static JValue eval_slice(JRun* r, JFrame* f, const JNode* n) {
    JSlice* s = (JSlice*)jinja_take(r, sizeof(JSlice));
    s->start = n->a ? eval(r, f, n->a) : j_none();
    s->stop = n->b ? eval(r, f, n->b) : j_none();
    s->step = n->c ? eval(r, f, n->c) : j_none();
    JValue v = j_of(kJSlice);
    v.as.slice = s;
    return v;
}

static bool is_literal(const JNode* n) { return !n || n->type == kNConst || (n->type == kNUnary && n->a->type == kNConst); }

// Is it a slice of literals only? Jinja2's compiler evaluates such a slice, and makes it undefined if that fails; other slices fail at run
// time.
static bool is_literal_slice(const JNode* n) { return is_literal(n->a) && is_literal(n->b->a) && is_literal(n->b->b) && is_literal(n->b->c); }

static JValue eval_item(JRun* r, JFrame* f, const JNode* n) {
    JValue of = eval(r, f, n->a), key = eval(r, f, n->b);
    if (key.kind != kJSlice) return j_getitem(r, of, key);
    bool has;
    if (of.kind == kJUndefined) j_fail_undefined(r, of);
    JValue part = j_slice(r, of, key.as.slice, &has);
    if (!has && is_literal_slice(n)) return j_undefined(r, "(of this slice)", j_type_name(of), NULL);
    if (!has) jinja_fail(r, "a value of type %s has no such slice", j_type_name(of));
    return part;
}

static JValue eval_items(JRun* r, JFrame* f, const JNode* n) {
    JList* l = j_list_new(r, n->items.count);
    for (int i = 0; i < n->items.count; i++) j_push(r, l, eval(r, f, n->items.items[i]));
    return j_list(n->type == kNList ? kJList : kJTuple, l);
}

static JValue eval_dict(JRun* r, JFrame* f, const JNode* n) {
    JDict* d = j_dict_new(r, n->items.count / 2);
    for (int i = 0; i < n->items.count; i += 2) {
        JValue key = eval(r, f, n->items.items[i]);
        j_put(r, d, key, eval(r, f, n->items.items[i + 1]));
    }
    return j_dict(d);
}

static JValue eval_concat(JRun* r, JFrame* f, const JNode* n) {
    JBuilder b = j_builder(r);
    for (int i = 0; i < n->items.count; i++) j_add_str(&b, eval(r, f, n->items.items[i]));
    return j_text(j_built(&b));
}

static JValue eval_condition(JRun* r, JFrame* f, const JNode* n) {
    if (j_truth(r, eval(r, f, n->a))) return eval(r, f, n->b);
    if (n->c) return eval(r, f, n->c);
    return j_undefined(r, NULL, NULL, "an if expression without an else was false");
}

static JValue eval_compound(JRun* r, JFrame* f, const JNode* n) {
    JValue v;
    switch (n->type) {
    case kNTuple: case kNList: return eval_items(r, f, n);
    case kNDict: return eval_dict(r, f, n);
    case kNGetattr: return j_getattr(r, eval(r, f, n->a), n->name);
    case kNGetitem: return eval_item(r, f, n);
    case kNSlice: return eval_slice(r, f, n);
    case kNCall: return eval_call(r, f, n, NULL);
    case kNFilter: return eval_filter(r, f, n, j_missing());
    case kNTest: return eval_test(r, f, n);
    case kNUnary: return j_negate(r, eval(r, f, n->a), n->op);
    case kNBinary:
        v = eval(r, f, n->a);
        return j_arith(r, (JArith)n->op, v, eval(r, f, n->b));
    case kNConcat: return eval_concat(r, f, n);
    case kNCompare: return eval_compare(r, f, n);
    case kNAnd:
        v = eval(r, f, n->a);
        return j_truth(r, v) ? eval(r, f, n->b) : v;
    case kNOr:
        v = eval(r, f, n->a);
        return j_truth(r, v) ? v : eval(r, f, n->b);
    case kNNot: return j_bool(!j_truth(r, eval(r, f, n->a)));
    case kNCond: return eval_condition(r, f, n);
    default: die("a template's node of type %d is no expression", (int)n->type);
    }
}

static JValue eval(JRun* r, JFrame* f, const JNode* n) {
    if (n->type == kNConst) return n->value;
    if (n->type == kNName) {
        JValue v = *slot_of(f, n->hops, n->slot);
        return v.kind == kJMissing ? j_undefined(r, j_c_string(r, n->name), NULL, NULL) : v;
    }
    jinja_enter(r);
    jinja_step(r, 0);
    r->line = n->line;
    JValue v = eval_compound(r, f, n);
    jinja_leave(r);
    return v;
}

// ---- loops
static bool loop_advance(JRun* r, JLoop* loop, JValue* item) {
    if (loop->after.kind != kJMissing) {
        *item = loop->after;
        loop->after = j_missing();
    } else if (!j_next(r, &loop->cursor, item)) {
        return false;
    }
    loop->index0++;
    loop->before = loop->current;
    loop->current = *item;
    return true;
}

static JValue loop_peek(JRun* r, JLoop* loop) {
    if (loop->after.kind == kJMissing && !j_next(r, &loop->cursor, &loop->after)) loop->after = j_missing();
    return loop->after;
}

// How many turns the loop makes; for this a generator has to be run to its end.
static int64_t loop_length(JRun* r, JLoop* loop) {
    if (loop->length >= 0) return loop->length;
    loop->length = j_length(r, loop->iterable);
    if (loop->length >= 0) return loop->length;
    JList* rest = j_collect(r, loop->cursor.of);
    loop->cursor.of = j_list(kJList, rest);
    loop->cursor.at = 0;
    loop->length = rest->count + loop->index0 + 1 + (loop->after.kind != kJMissing);
    return loop->length;
}

static JValue loop_cycle(JRun* r, JValue self, const JArgs* args) {
    if (!args->count || args->named_count) jinja_fail(r, "loop.cycle takes one or more values");
    return args->values[self.as.loop->index0 % args->count];
}

static JValue loop_changed(JRun* r, JValue self, const JArgs* args) {
    JLoop* loop = self.as.loop;
    JList* now = j_list_new(r, args->count);
    for (int i = 0; i < args->count; i++) j_push(r, now, args->values[i]);
    bool same = loop->changed && j_same(r, j_list(kJTuple, loop->changed), j_list(kJTuple, now));
    if (!same) loop->changed = now;
    return j_bool(!same);
}

JValue j_loop_attribute(JRun* r, JLoop* loop, const JText* name) {
    static const JCallable methods[] = {{"cycle", NULL, 0, NULL, loop_cycle}, {"changed", NULL, 0, NULL, loop_changed}};
    if (j_is(name, "index")) return j_int(loop->index0 + 1);
    if (j_is(name, "index0")) return j_int(loop->index0);
    if (j_is(name, "first")) return j_bool(!loop->index0);
    if (j_is(name, "last")) return j_bool(loop_peek(r, loop).kind == kJMissing);
    if (j_is(name, "length")) return j_int(loop_length(r, loop));
    if (j_is(name, "revindex")) return j_int(loop_length(r, loop) - loop->index0);
    if (j_is(name, "revindex0")) return j_int(loop_length(r, loop) - loop->index0 - 1);
    if (j_is(name, "depth")) return j_int(loop->depth0 + 1);
    if (j_is(name, "depth0")) return j_int(loop->depth0);
    if (j_is(name, "previtem")) return loop->before.kind != kJMissing ? loop->before : j_undefined(r, NULL, NULL, "there is no previous item");
    if (j_is(name, "nextitem")) {
        JValue next = loop_peek(r, loop);
        return next.kind != kJMissing ? next : j_undefined(r, NULL, NULL, "there is no next item");
    }
    for (int i = 0; i < 2; i++) {
        if (!j_is(name, methods[i].name)) continue;
        JMethod* m = (JMethod*)jinja_take(r, sizeof(JMethod));
        m->self = j_of(kJLoop);
        m->self.as.loop = loop;
        m->callable = methods + i;
        JValue v = j_of(kJMethod);
        v.as.method = m;
        return v;
    }
    return j_missing();
}

// Assigns an element to the targets of a loop in the loop's `if`, which is a JFunc of its own with the targets as parameters. Returns the
// element, as a tuple if it was unpacked.
static JValue assign_parameters(JRun* r, JFrame* f, const JNode* loop, const JNode* target, JValue v) {
    if (target->type == kNTuple) {
        JList* items = unpacked(r, v, target->items.count);
        JList* again = j_list_new(r, items->count);
        for (int i = 0; i < target->items.count; i++) j_push(r, again, assign_parameters(r, f, loop, target->items.items[i], items->items[i]));
        return j_list(kJTuple, again);
    }
    for (int i = 0; i < loop->test_scope.count; i++) {
        const JLoad* load = loop->test_scope.loads + i;
        if (load->kind == kLoadParameter && j_text_equal(load->var->name, target->name)) f->slots[load->var->slot] = v;
    }
    return v;
}

static bool next_passing(JRun* r, JIterator* it, JValue* out) {
    const JNode* n = (const JNode*)it->state;
    JValue item;
    while (j_next(r, &it->source, &item)) {
        *out = assign_parameters(r, it->frame, n, n->a, item);
        if (j_truth(r, eval(r, it->frame, n->c))) return true;
    }
    return false;
}

static JValue passing(JRun* r, JFrame* f, const JNode* n, JValue iterable) {
    JValue v = j_iterator(r, next_passing, j_cursor(r, iterable).of, n, "generator");
    v.as.iterator->frame = frame_new(r, f, n->test_func->slots);
    scope_enter(r, v.as.iterator->frame, &n->test_scope);
    return v;
}

// Runs the turns of a loop; *finished becomes true if one of them comes to the end of the body.
static void turn(JRun* r, JFrame* f, const JNode* n, JLoop* loop, JCursor* cursor, bool* finished) {
    JValue item;
    while (loop ? loop_advance(r, loop, &item) : j_next(r, cursor, &item)) {
        assign(r, f, n->a, item);
        scope_enter(r, f, &n->scope);
        if (!execute_all(r, f, n->items)) *finished = true;
        else if (r->leaving_break) return;
    }
}

// Runs a loop in the frame of its body. As in Jinja2, else is run when no turn came to the end of the body: there were no turns, or
// each was left by a break or continue.
static bool run_loop(JRun* r, JFrame* f, const JNode* n, JValue iterable, int64_t depth0) {
    JCursor cursor = j_cursor(r, n->c ? passing(r, f, n, iterable) : iterable);
    JLoop* loop = NULL;
    bool finished = false, leaving = false;
    if (n->extended) {
        loop = (JLoop*)jinja_take_zeroed(r, sizeof(JLoop));
        loop->node = n;
        loop->frame = f->parent;
        loop->iterable = cursor.of;
        loop->cursor = cursor;
        loop->index0 = loop->length = -1;
        loop->depth0 = depth0;
        f->slots[n->loop_slot] = j_of(kJLoop);
        f->slots[n->loop_slot].as.loop = loop;
    }
    turn(r, f, n, loop, &cursor, &finished);
    scope_leave(f, &n->scope);
    if (finished || !n->other.count) return false;
    scope_enter(r, f, &n->other_scope);
    leaving = execute_all(r, f, n->other);
    scope_leave(f, &n->other_scope);
    return leaving;
}

static JText* run_recursive(JRun* r, JFrame* outer, const JNode* n, JValue iterable, int64_t depth0) {
    JFrame* f = frame_new(r, outer, n->func->slots);
    size_t begin = capture_begin(r);
    run_loop(r, f, n, iterable, depth0);
    return capture_end(r, begin);
}

static JValue call_loop(JRun* r, const JLoop* loop, const JArgs* args) {
    if (!loop->node->recursive) jinja_fail(r, "only a loop marked recursive can be called");
    if (args->count != 1 || args->named_count) jinja_fail(r, "a loop is called with one value, what it runs over");
    int line = r->line;
    jinja_enter(r);
    JText* text = run_recursive(r, loop->frame, loop->node, args->values[0], loop->depth0 + 1);
    jinja_leave(r);
    r->line = line;
    return j_text(text);
}

// ---- statements. Each returns true while a break or continue is leaving a loop.
static bool execute_for(JRun* r, JFrame* f, const JNode* n) {
    JValue iterable = eval(r, f, n->b);
    if (!n->recursive) return run_loop(r, f, n, iterable, 0);
    write_text(r, run_recursive(r, f, n, iterable, 0));
    return false;
}

static bool execute_if(JRun* r, JFrame* f, const JNode* n) {
    if (j_truth(r, eval(r, f, n->a))) return execute_all(r, f, n->items);
    for (int i = 0; i + 1 < n->other.count; i++)
        if (j_truth(r, eval(r, f, n->other.items[i]->a))) return execute_all(r, f, n->other.items[i]->items);
    return n->other.count && execute_all(r, f, n->other.items[n->other.count - 1]->items);
}

static void execute_output(JRun* r, JFrame* f, const JNode* n) {
    for (int i = 0; i < n->items.count; i++) {
        JValue v = eval(r, f, n->items.items[i]);
        write_text(r, v.kind == kJText ? v.as.text : j_soft_str(r, v));
    }
}

// {% set %} with a body, and {% filter %}. A break out of the body drops what it has written.
static bool execute_captured(JRun* r, JFrame* f, const JNode* n) {
    scope_enter(r, f, &n->scope);
    size_t begin = capture_begin(r);
    bool leaving = execute_all(r, f, n->items), sets = n->type == kNSetBlock;
    JValue text = j_text(capture_end(r, begin));
    const JNode* chain = sets ? n->b : n->a;
    if (!leaving && chain) text = eval_filter(r, f, chain, text);
    if (!leaving && sets) assign(r, f, n->a, text);
    else if (!leaving) write_text(r, j_soft_str(r, text));
    scope_leave(f, &n->scope);
    return leaving;
}

static bool execute_with(JRun* r, JFrame* f, const JNode* n) {
    scope_enter(r, f, &n->scope);
    for (int i = 0; i < n->other.count; i += 2) assign(r, f, n->other.items[i], eval(r, f, n->other.items[i + 1]));
    bool leaving = execute_all(r, f, n->items);
    scope_leave(f, &n->scope);
    return leaving;
}

// Notes a {% generation %} block. Inside a macro or set block its position counts from where the outermost of these began to collect output,
// as in transformers.
static void execute_generation(JRun* r, JFrame* f, const JNode* n) {
    JinjaOutput* o = r->output;
    size_t begin = o->bytes;
    int index = o->generations++;
    if (index == o->generation_capacity) {
        o->generation_capacity = 2 * index + 8;
        o->generation = (JinjaSpan*)realloc(o->generation, (size_t)o->generation_capacity * sizeof(JinjaSpan));
        check(o->generation, "out of host memory: %d spans", o->generation_capacity);
    }
    o->generation[index].begin = r->captures ? r->outer_bytes : begin;
    scope_enter(r, f, &n->scope);
    execute_all(r, f, n->items);
    scope_leave(f, &n->scope);
    o->generation[index].end = o->generation[index].begin + (o->bytes - begin);
}

static bool execute(JRun* r, JFrame* f, const JNode* n) {
    JValue caller;
    switch (n->type) {
    case kNOutput: execute_output(r, f, n); return false;
    case kNSet: assign(r, f, n->a, eval(r, f, n->b)); return false;
    case kNSetBlock: case kNFilterBlock: return execute_captured(r, f, n);
    case kNIf: return execute_if(r, f, n);
    case kNFor: return execute_for(r, f, n);
    case kNMacro: *slot_of(f, n->hops, n->slot) = macro_value(r, f, n); return false;
    case kNCallBlock:
        caller = macro_value(r, f, n);
        write_text(r, j_soft_str(r, eval_call(r, f, n->a, &caller)));
        return false;
    case kNWith: return execute_with(r, f, n);
    case kNGeneration: execute_generation(r, f, n); return false;
    case kNBreak: case kNContinue: r->leaving_break = n->type == kNBreak; return true;
    default: die("a template's node of type %d is no statement", (int)n->type);
    }
}

static bool execute_all(JRun* r, JFrame* f, JNodes nodes) {
    bool leaving = false;
    jinja_enter(r);
    for (int i = 0; i < nodes.count && !leaving; i++) {
        jinja_step(r, 0);
        r->line = nodes.items[i]->line;
        leaving = execute(r, f, nodes.items[i]);
    }
    jinja_leave(r);
    return leaving;
}

void jinja_run(JRun* r) {
    JFrame* f = frame_new(r, NULL, r->template_->func->slots);
    scope_enter(r, f, &r->template_->scope);
    execute_all(r, f, r->template_->body);
}
