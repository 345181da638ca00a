// Gives every variable its slot, as Jinja2's compiler does: a block that stores a name gets a variable of its own, which starts
// as a copy of the outer variable, as the context's value, or unset.
#include "internal.h"

typedef struct {
    JVar* var;
    JLoadKind kind;
    JVar* alias;
} JBinding;

typedef struct JScope {
    struct JScope* parent;
    JFunc* func;
    int level, count, capacity;
    JBinding* bindings;
    bool* stored;
} JScope;

typedef struct {
    JRun* r;
    Jinja* t;
    int global_capacity;
} JResolver;

static void nodes(JResolver* v, JScope* s, JNodes list, bool soft);
static void visit(JResolver* v, JScope* s, JNode* n, bool soft);

static JBinding* own(JScope* s, const JText* name) {
    for (int i = 0; i < s->count; i++)
        if (j_text_equal(s->bindings[i].var->name, name)) return s->bindings + i;
    return NULL;
}

static JBinding* find(JScope* s, const JText* name) {
    for (; s; s = s->parent) {
        JBinding* b = own(s, name);
        if (b) return b;
    }
    return NULL;
}

static JVar* variable(JResolver* v, JScope* s, const JText* name) {
    for (JVar* var = s->func->vars; var; var = var->next)
        if (var->level == s->level && j_text_equal(var->name, name)) return var;
    JVar* var = (JVar*)jinja_take_zeroed(v->r, sizeof(JVar));
    var->func = s->func;
    var->name = name;
    var->level = s->level;
    var->slot = s->func->slots++;
    var->next = s->func->vars;
    s->func->vars = var;
    return var;
}

static JBinding* bind(JResolver* v, JScope* s, const JText* name, JLoadKind kind, JVar* alias) {
    JBinding* b = own(s, name);
    if (!b) {
        if (s->count == s->capacity) {
            int capacity = 2 * s->capacity + 8;
            JBinding* more = (JBinding*)jinja_take(v->r, (size_t)capacity * sizeof(JBinding));
            bool* stored = (bool*)jinja_take_zeroed(v->r, (size_t)capacity);
            if (s->count) {
                memcpy(more, s->bindings, (size_t)s->count * sizeof(JBinding));
                memcpy(stored, s->stored, (size_t)s->count);
            }
            s->bindings = more;
            s->stored = stored;
            s->capacity = capacity;
        }
        b = s->bindings + s->count++;
        b->var = variable(v, s, name);
    }
    b->kind = kind;
    b->alias = alias;
    return b;
}

static JScope* inner(JResolver* v, JScope* parent, JFunc* func) {
    JScope* s = (JScope*)jinja_take_zeroed(v->r, sizeof(JScope));
    s->parent = parent;
    s->func = func;
    s->level = parent ? parent->level + 1 : 0;
    return s;
}

static JFunc* function(JResolver* v, JFunc* parent) {
    JFunc* f = (JFunc*)jinja_take_zeroed(v->r, sizeof(JFunc));
    f->parent = parent;
    return f;
}

static void parameter(JResolver* v, JScope* s, const JText* name) {
    JBinding* b = bind(v, s, name, kLoadParameter, NULL);
    s->stored[b - s->bindings] = true;
}

static void load(JResolver* v, JScope* s, const JText* name) {
    if (!find(s, name)) bind(v, s, name, kLoadResolve, NULL);
}

static void store(JResolver* v, JScope* s, const JText* name) {
    JBinding* b = own(s, name);
    if (!b) {
        JBinding* outer = s->parent ? find(s->parent, name) : NULL;
        b = bind(v, s, name, outer ? kLoadAlias : kLoadUndefined, outer ? outer->var : NULL);
    }
    s->stored[b - s->bindings] = true;
}

// ---- first pass: which names a block loads and stores
static void declare(JResolver* v, JScope* s, JNode* n);
static void declare_all(JResolver* v, JScope* s, JNodes list) {
    for (int i = 0; i < list.count; i++) declare(v, s, list.items[i]);
}

static void declare_target(JResolver* v, JScope* s, JNode* n, bool as_parameter) {
    if (n->type == kNTuple) {
        for (int i = 0; i < n->items.count; i++) declare_target(v, s, n->items.items[i], as_parameter);
    } else if (n->type == kNNsRef) load(v, s, n->name);
    else if (as_parameter) parameter(v, s, n->name);
    else store(v, s, n->name);
}

static JScope* branch(JResolver* v, JScope* s) {
    JScope* copy = (JScope*)jinja_take(v->r, sizeof(JScope));
    *copy = *s;
    copy->capacity = s->count;
    if (s->count) {
        copy->bindings = (JBinding*)memcpy(jinja_take(v->r, (size_t)s->count * sizeof(JBinding)), s->bindings, (size_t)s->count * sizeof(JBinding));
        copy->stored = (bool*)memcpy(jinja_take(v->r, (size_t)s->count), s->stored, (size_t)s->count);
    }
    return copy;
}

// Merges the branches of an if: a name that only some branches store keeps its outer value in the others.
static void merge(JResolver* v, JScope* s, JScope** branches, int count) {
    JScope* before = branch(v, s);
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < branches[i]->count; k++) {
            JBinding* from = branches[i]->bindings + k;
            JBinding* to = bind(v, s, from->var->name, from->kind, from->alias);
            if (branches[i]->stored[k]) s->stored[to - s->bindings] = true;
        }
    }
    for (int k = 0; k < s->count; k++) {
        JBinding* was = own(before, s->bindings[k].var->name);
        if (!s->stored[k] || (was && before->stored[was - before->bindings])) continue;
        JBinding* outer = s->parent ? find(s->parent, s->bindings[k].var->name) : NULL;
        s->bindings[k].kind = outer ? kLoadAlias : kLoadResolve;
        s->bindings[k].alias = outer ? outer->var : NULL;
    }
}

static void declare_if(JResolver* v, JScope* s, JNode* n) {
    declare(v, s, n->a);
    JScope* all[3] = {branch(v, s), branch(v, s), branch(v, s)};
    declare_all(v, all[0], n->items);
    for (int i = 0; i + 1 < n->other.count; i++) declare_if(v, all[1], n->other.items[i]);
    if (n->other.count) declare_all(v, all[2], n->other.items[n->other.count - 1]->items);
    merge(v, s, all, 3);
}

static void declare_parts(JResolver* v, JScope* s, JNode* n) {
    if (n->a) declare(v, s, n->a);
    if (n->b) declare(v, s, n->b);
    if (n->c) declare(v, s, n->c);
    declare_all(v, s, n->items);
    if (!n->call) return;
    for (int i = 0; i < n->call->count; i++) declare(v, s, n->call->args[i]);
    for (int i = 0; i < n->call->named_count; i++) declare(v, s, n->call->named[i]);
    if (n->call->dyn_args) declare(v, s, n->call->dyn_args);
    if (n->call->dyn_kwargs) declare(v, s, n->call->dyn_kwargs);
}

static void declare(JResolver* v, JScope* s, JNode* n) {
    switch (n->type) {
    case kNName: load(v, s, n->name); break;
    case kNSet: declare(v, s, n->b); declare_target(v, s, n->a, false); break;
    case kNSetBlock: declare_target(v, s, n->a, false); break;
    case kNIf: declare_if(v, s, n); break;
    case kNFor: declare(v, s, n->b); break;
    case kNMacro: store(v, s, n->name); break;
    case kNCallBlock: case kNFilterBlock: declare(v, s, n->a); break;
    case kNWith:
        for (int i = 1; i < n->other.count; i += 2) declare(v, s, n->other.items[i]);
        break;
    case kNGeneration: break;
    default: declare_parts(v, s, n);
    }
}

// ---- second pass: references
static int hops(const JFunc* from, const JFunc* to) {
    int n = 0;
    for (; from != to; from = from->parent) n++;
    return n;
}

static int global(JResolver* v, const JText* name) {
    for (int i = 0; i < v->t->global_count; i++)
        if (j_text_equal(v->t->globals[i], name)) return i;
    if (v->t->global_count == v->global_capacity) {
        v->global_capacity = 2 * v->global_capacity + 16;
        const JText** more = (const JText**)jinja_take(v->r, (size_t)v->global_capacity * sizeof(JText*));
        if (v->t->global_count) memcpy(more, v->t->globals, (size_t)v->t->global_count * sizeof(JText*));
        v->t->globals = more;
    }
    v->t->globals[v->t->global_count] = name;
    return v->t->global_count++;
}

static JScopeLoads loads_of(JResolver* v, JScope* s) {
    JScopeLoads out = {(JLoad*)jinja_take_zeroed(v->r, (size_t)s->count * sizeof(JLoad)), s->count};
    for (int i = 0; i < s->count; i++) {
        JBinding* b = s->bindings + i;
        out.loads[i].var = b->var;
        out.loads[i].kind = b->kind;
        if (b->kind == kLoadResolve) out.loads[i].global = global(v, b->var->name);
        if (b->kind == kLoadAlias) {
            out.loads[i].hops = hops(s->func, b->alias->func);
            out.loads[i].slot = b->alias->slot;
        }
    }
    return out;
}

static void refer(JResolver* v, JScope* s, JNode* n) {
    JBinding* b = find(s, n->name);
    if (!b) b = bind(v, s, n->name, kLoadResolve, NULL);
    n->hops = hops(s->func, b->var->func);
    n->slot = b->var->slot;
}

// Does the name occur as a variable that is read below these nodes?
static bool reads(const JNode* n, const char* name);
static bool any_reads(JNodes list, const char* name) {
    for (int i = 0; i < list.count; i++)
        if (reads(list.items[i], name)) return true;
    return false;
}
static bool reads(const JNode* n, const char* name) {
    if (!n) return false;
    if (n->type == kNName) return j_is(n->name, name);
    bool target = n->type == kNSet || n->type == kNSetBlock || n->type == kNFor || n->type == kNMacro;
    if ((!target && reads(n->a, name)) || reads(n->b, name) || reads(n->c, name) || any_reads(n->items, name)) return true;
    if (any_reads(n->other, name)) return true;
    const JCallArgs* c = n->call;
    bool is_function = n->type == kNMacro || n->type == kNCallBlock;
    for (int i = 0; c && !is_function && i < c->count; i++)
        if (reads(c->args[i], name)) return true;
    for (int i = 0; c && i < c->named_count; i++)
        if (reads(c->named[i], name)) return true;
    return c && (reads(c->dyn_args, name) || reads(c->dyn_kwargs, name));
}

static int special(JResolver* v, JScope* s, const char* name) {
    JText* text = j_literal(v->r, name);
    parameter(v, s, text);
    return own(s, text)->var->slot;
}

static void visit_for(JResolver* v, JScope* s, JNode* n, bool soft) {
    visit(v, s, n->b, soft);
    n->func = n->recursive ? function(v, s->func) : NULL;
    JFunc* func = n->func ? n->func : s->func;
    n->extended = n->recursive || any_reads(n->items, "loop");
    if (n->c) {
        n->test_func = function(v, func);
        JScope* t = inner(v, s, n->test_func);
        declare_target(v, t, n->a, true);
        declare(v, t, n->c);
        visit(v, t, n->c, false);
        n->test_scope = loads_of(v, t);
    }
    JScope* body = inner(v, s, func);
    if (n->extended) n->loop_slot = special(v, body, "loop");
    declare_target(v, body, n->a, true);
    declare_all(v, body, n->items);
    visit(v, body, n->a, false);
    nodes(v, body, n->items, false);
    n->scope = loads_of(v, body);
    JScope* other = inner(v, s, func);
    declare_all(v, other, n->other);
    nodes(v, other, n->other, false);
    n->other_scope = loads_of(v, other);
}

static void visit_function(JResolver* v, JScope* s, JNode* n) {
    n->func = function(v, s->func);
    JScope* f = inner(v, s, n->func);
    JCallArgs* c = n->call;
    bool own_caller = false, own_kwargs = false, own_varargs = false;
    for (int i = 0; i < c->count; i++) {
        parameter(v, f, c->args[i]->name);
        own_caller = own_caller || j_is(c->args[i]->name, "caller");
        own_kwargs = own_kwargs || j_is(c->args[i]->name, "kwargs");
        own_varargs = own_varargs || j_is(c->args[i]->name, "varargs");
    }
    n->uses_caller = any_reads(n->items, "caller");
    n->caller_given = own_caller;
    if (n->uses_caller && !own_caller) n->caller_slot = special(v, f, "caller");
    if (!own_kwargs && (n->catches_kwargs = any_reads(n->items, "kwargs"))) n->kwargs_slot = special(v, f, "kwargs");
    if (!own_varargs && (n->catches_varargs = any_reads(n->items, "varargs"))) n->varargs_slot = special(v, f, "varargs");
    for (int i = 0; i < c->named_count; i++) declare(v, f, c->named[i]);
    declare_all(v, f, n->items);
    for (int i = 0; i < c->count; i++) refer(v, f, c->args[i]);
    for (int i = 0; i < c->named_count; i++) visit(v, f, c->named[i], false);
    nodes(v, f, n->items, false);
    n->scope = loads_of(v, f);
}

static void visit_block(JResolver* v, JScope* s, JNode* n) {
    JScope* b = inner(v, s, s->func);
    if (n->type == kNWith)
        for (int i = 0; i < n->other.count; i += 2) declare_target(v, b, n->other.items[i], true);
    declare_all(v, b, n->items);
    if (n->type == kNFilterBlock) declare(v, b, n->a);
    for (int i = 0; n->type == kNWith && i < n->other.count; i += 2) {
        visit(v, b, n->other.items[i], false);
        visit(v, s, n->other.items[i + 1], false);
    }
    nodes(v, b, n->items, false);
    if (n->type == kNFilterBlock) visit(v, b, n->a, false);
    if (n->type == kNSetBlock && n->b) visit(v, b, n->b, false);
    n->scope = loads_of(v, b);
}

static void visit(JResolver* v, JScope* s, JNode* n, bool soft) {
    if (!n) return;
    v->r->line = n->line;
    if ((n->type == kNFilter || n->type == kNTest) && !n->callable && !soft)
        jinja_fail(v->r, "no %s is named %s", n->type == kNFilter ? "filter" : "test", j_c_string(v->r, n->name));
    switch (n->type) {
    case kNName: case kNNsRef: refer(v, s, n); return;
    case kNFor: visit_for(v, s, n, soft); return;
    case kNMacro: visit_function(v, s, n); refer(v, s, n); return;
    case kNCallBlock: visit_function(v, s, n); visit(v, s, n->a, soft); return;
    case kNSetBlock: visit_block(v, s, n); visit(v, s, n->a, soft); return;
    case kNFilterBlock: case kNWith: case kNGeneration: visit_block(v, s, n); return;
    case kNIf: case kNCond: soft = true; break;
    default: break;
    }
    visit(v, s, n->a, soft);
    visit(v, s, n->b, soft);
    visit(v, s, n->c, soft);
    nodes(v, s, n->items, soft);
    nodes(v, s, n->other, soft);
    if (!n->call) return;
    for (int i = 0; i < n->call->count; i++) visit(v, s, n->call->args[i], soft);
    for (int i = 0; i < n->call->named_count; i++) visit(v, s, n->call->named[i], soft);
    visit(v, s, n->call->dyn_args, soft);
    visit(v, s, n->call->dyn_kwargs, soft);
}

static void nodes(JResolver* v, JScope* s, JNodes list, bool soft) {
    for (int i = 0; i < list.count; i++) visit(v, s, list.items[i], soft);
}

void jinja_resolve(JRun* r, Jinja* t) {
    JResolver v = {r, t, 0};
    t->func = function(&v, NULL);
    JScope* root = inner(&v, NULL, t->func);
    declare_all(&v, root, t->body);
    nodes(&v, root, t->body, false);
    t->scope = loads_of(&v, root);
}
