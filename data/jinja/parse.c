// The syntax tree of a template: a recursive descent in Jinja2's grammar, with Python's precedence.
#include "internal.h"

typedef struct {
    JRun* r;
    JToken* tokens;
    int at, count;
    int depth, loops;    // nesting of the parser; loops around this place that break and continue can leave
} JParser;

typedef struct {
    JNode** items;
    int count, capacity;
} JGrowing;

static JNode* expression(JParser* p, bool with_condition);
static JNode* unary(JParser* p, bool with_filter);
static JNode* primary(JParser* p, bool with_namespace);
static JNode* tuple(JParser* p, bool simple, bool with_condition, const char* end_word, bool in_parentheses, bool with_namespace);
static JNodes statements(JParser* p, const char* const* ends);

static JToken* now(JParser* p) {
    JToken* t = p->tokens + p->at;
    p->r->line = t->line;
    return t;
}
static JToken* ahead(JParser* p) { return p->tokens + (p->at + 1 < p->count ? p->at + 1 : p->at); }
static JToken* take(JParser* p) {
    JToken* t = now(p);
    if (p->at + 1 < p->count) p->at++;
    return t;
}
static bool is_word(const JToken* t, const char* word) { return t->type == kTName && j_is(t->value.as.text, word); }
static bool take_word(JParser* p, const char* word) {
    if (!is_word(now(p), word)) return false;
    take(p);
    return true;
}
static bool take_if(JParser* p, JTokenType type) {
    if (now(p)->type != type) return false;
    take(p);
    return true;
}

static const char* token_name(JParser* p, const JToken* t) {
    static const char* const names[] = {"the end of the template", "text", "{%", "%}", "{{", "}}", "a name", "a string", "a number", "a number",
                                        "+", "-", "*", "/", "//", "%", "**", "~", "[", "]", "(", ")", "{", "}", "==", "!=", ">", ">=", "<", "<=",
                                        "=", ".", ":", "|", ",", ";"};
    return t->type == kTName ? j_c_string(p->r, t->value.as.text) : names[t->type];
}

static JToken* expect(JParser* p, JTokenType type) {
    JToken* t = now(p);
    if (t->type != type) {
        JToken wanted = *t;
        wanted.type = type;
        jinja_fail(p->r, "expected %s, found %s", type == kTName ? "a name" : token_name(p, &wanted), token_name(p, t));
    }
    return take(p);
}
static void expect_word(JParser* p, const char* word) {
    if (!take_word(p, word)) jinja_fail(p->r, "expected %s, found %s", word, token_name(p, now(p)));
}

static JNode* node(JParser* p, JNodeType type, int line) {
    JNode* n = (JNode*)jinja_take_zeroed(p->r, sizeof(JNode));
    n->type = type;
    n->line = line;
    n->loop_slot = n->caller_slot = n->kwargs_slot = n->varargs_slot = -1;
    n->value = j_missing();
    return n;
}

// Sets n's depth from that of its parts: a chain of operators makes a deep tree without nesting the parser.
static JNode* deepened(JParser* p, JNode* n) {
    int deepest = 0;
    JNode* parts[] = {n->a, n->b, n->c};
    for (int i = 0; i < 3; i++)
        if (parts[i]) deepest = max_int(deepest, parts[i]->depth);
    for (int i = 0; i < n->items.count; i++) deepest = max_int(deepest, n->items.items[i]->depth);
    for (int i = 0; n->call && i < n->call->count; i++) deepest = max_int(deepest, n->call->args[i]->depth);
    n->depth = deepest + 1;
    if (n->depth > kMaxSyntaxDepth) jinja_fail(p->r, "the template nests deeper than %d levels", kMaxSyntaxDepth);
    return n;
}

static void deeper(JParser* p) {
    if (++p->depth > kMaxSyntaxDepth) jinja_fail(p->r, "the template nests deeper than %d levels", kMaxSyntaxDepth);
}

static void grow(JParser* p, JGrowing* g, JNode* n) {
    if (g->count == g->capacity) {
        int capacity = g->capacity ? 2 * g->capacity : 4;
        JNode** items = (JNode**)jinja_take(p->r, (size_t)capacity * sizeof(JNode*));
        if (g->count) memcpy(items, g->items, (size_t)g->count * sizeof(JNode*));
        g->items = items;
        g->capacity = capacity;
    }
    g->items[g->count++] = n;
}
static JNodes grown(const JGrowing* g) {
    JNodes n = {g->items, g->count};
    return n;
}

// ---- expressions
static void call_keyword(JParser* p, JCallArgs* c, int* capacity) {
    if (c->named_count == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 4;
        const JText** names = (const JText**)jinja_take(p->r, (size_t)*capacity * sizeof(JText*));
        JNode** named = (JNode**)jinja_take(p->r, (size_t)*capacity * sizeof(JNode*));
        if (c->named_count) {
            memcpy(names, c->names, (size_t)c->named_count * sizeof(JText*));
            memcpy(named, c->named, (size_t)c->named_count * sizeof(JNode*));
        }
        c->names = names;
        c->named = named;
    }
    const JText* name = take(p)->value.as.text;
    for (int i = 0; i < c->named_count; i++)
        if (j_text_equal(c->names[i], name)) jinja_fail(p->r, "keyword argument given twice: %s", j_c_string(p->r, name));
    take(p);
    c->names[c->named_count] = name;
    c->named[c->named_count++] = expression(p, true);
}

static JCallArgs* call_args(JParser* p) {
    JCallArgs* c = (JCallArgs*)jinja_take_zeroed(p->r, sizeof(JCallArgs));
    JGrowing args = {NULL, 0, 0};
    int capacity = 0;
    bool more = false, ordered = true;
    expect(p, kTLParen);
    while (now(p)->type != kTRParen) {
        if (more) {
            expect(p, kTComma);
            if (now(p)->type == kTRParen) break;
        }
        if (take_if(p, kTMul)) {
            ordered = ordered && !c->dyn_args && !c->dyn_kwargs;
            c->dyn_args = expression(p, true);
        } else if (take_if(p, kTPow)) {
            ordered = ordered && !c->dyn_kwargs;
            c->dyn_kwargs = expression(p, true);
        } else if (now(p)->type == kTName && ahead(p)->type == kTAssign) {
            ordered = ordered && !c->dyn_kwargs;
            call_keyword(p, c, &capacity);
        } else {
            ordered = ordered && !c->dyn_args && !c->dyn_kwargs && !c->named_count;
            grow(p, &args, expression(p, true));
        }
        if (!ordered) jinja_fail(p->r, "arguments of a call stand in the wrong order");
        more = true;
    }
    expect(p, kTRParen);
    c->args = args.items;
    c->count = args.count;
    return c;
}

static JNode* subscribed(JParser* p) {
    JNode* parts[3] = {NULL, NULL, NULL};
    int line = now(p)->line;
    if (now(p)->type != kTColon) {
        parts[0] = expression(p, true);
        if (now(p)->type != kTColon) return parts[0];
    }
    take(p);
    if (now(p)->type != kTColon && now(p)->type != kTRBracket && now(p)->type != kTComma) parts[1] = expression(p, true);
    if (take_if(p, kTColon) && now(p)->type != kTRBracket && now(p)->type != kTComma) parts[2] = expression(p, true);
    JNode* n = node(p, kNSlice, line);
    n->a = parts[0];
    n->b = parts[1];
    n->c = parts[2];
    return deepened(p, n);
}

static JNode* subscript(JParser* p, JNode* of) {
    JToken* t = take(p);
    if (t->type == kTDot) {
        JToken* attribute = take(p);
        if (attribute->type != kTName && attribute->type != kTInt) jinja_fail(p->r, "expected a name or number behind '.'");
        JNode* n = node(p, attribute->type == kTName ? kNGetattr : kNGetitem, t->line);
        n->a = of;
        if (attribute->type == kTName) n->name = attribute->value.as.text;
        else n->b = node(p, kNConst, t->line), n->b->value = attribute->value;
        return deepened(p, n);
    }
    JGrowing args = {NULL, 0, 0};
    while (now(p)->type != kTRBracket) {
        if (args.count) expect(p, kTComma);
        grow(p, &args, subscribed(p));
    }
    expect(p, kTRBracket);
    JNode* n = node(p, kNGetitem, t->line);
    n->a = of;
    if (args.count == 1) n->b = args.items[0];
    else {
        n->b = node(p, kNTuple, t->line);
        n->b->items = grown(&args);
        deepened(p, n->b);
    }
    return deepened(p, n);
}

static JNode* call(JParser* p, JNode* callee) {
    JNode* n = node(p, kNCall, now(p)->line);
    n->a = callee;
    n->call = call_args(p);
    return deepened(p, n);
}

static JNode* postfix(JParser* p, JNode* n) {
    for (;;) {
        JTokenType type = now(p)->type;
        if (type == kTDot || type == kTLBracket) n = subscript(p, n);
        else if (type == kTLParen) n = call(p, n);
        else return n;
    }
}

static const JText* dotted_name(JParser* p) {
    JText* name = expect(p, kTName)->value.as.text;
    while (take_if(p, kTDot)) name = j_join2(p->r, j_join2(p->r, name, j_literal(p->r, ".")), expect(p, kTName)->value.as.text);
    return name;
}

static JNode* filters(JParser* p, JNode* of, bool inline_) {
    while (inline_ || now(p)->type == kTPipe) {
        if (!inline_) take(p);
        inline_ = false;
        JNode* n = node(p, kNFilter, now(p)->line);
        n->a = of;
        n->name = dotted_name(p);
        n->callable = j_find_filter(n->name);
        n->call = now(p)->type == kTLParen ? call_args(p) : (JCallArgs*)jinja_take_zeroed(p->r, sizeof(JCallArgs));
        of = deepened(p, n);
    }
    return of;
}

static JNode* test(JParser* p, JNode* of) {
    JNode* n = node(p, kNTest, take(p)->line);
    bool negated = take_word(p, "not");
    n->a = of;
    n->name = dotted_name(p);
    n->callable = j_find_test(n->name);
    JToken* t = now(p);
    bool argument = t->type == kTName || t->type == kTString || t->type == kTInt || t->type == kTFloat || t->type == kTLBracket ||
                    t->type == kTLBrace;
    if (t->type == kTLParen) {
        n->call = call_args(p);
    } else {
        n->call = (JCallArgs*)jinja_take_zeroed(p->r, sizeof(JCallArgs));
        if (argument && !is_word(t, "else") && !is_word(t, "or") && !is_word(t, "and")) {
            if (is_word(t, "is")) jinja_fail(p->r, "tests with is can't be chained");
            n->call->args = (JNode**)jinja_take(p->r, sizeof(JNode*));
            n->call->args[0] = postfix(p, primary(p, false));
            n->call->count = 1;
        }
    }
    deepened(p, n);
    if (!negated) return n;
    JNode* not_ = node(p, kNNot, n->line);
    not_->a = n;
    return deepened(p, not_);
}

static JNode* filters_and_tests(JParser* p, JNode* n) {
    for (;;) {
        JToken* t = now(p);
        if (t->type == kTPipe) n = filters(p, n, false);
        else if (is_word(t, "is")) n = test(p, n);
        else if (t->type == kTLParen) n = call(p, n);
        else return n;
    }
}

static JNode* list_or_dict(JParser* p) {
    JToken* t = take(p);
    bool dict = t->type == kTLBrace;
    JTokenType end = dict ? kTRBrace : kTRBracket;
    JGrowing items = {NULL, 0, 0};
    while (now(p)->type != end) {
        if (items.count) expect(p, kTComma);
        if (now(p)->type == end) break;
        grow(p, &items, expression(p, true));
        if (dict) {
            expect(p, kTColon);
            grow(p, &items, expression(p, true));
        }
    }
    expect(p, end);
    JNode* n = node(p, dict ? kNDict : kNList, t->line);
    n->items = grown(&items);
    return deepened(p, n);
}

static JNode* constant(JParser* p, JValue value, int line) {
    JNode* n = node(p, kNConst, line);
    n->value = value;
    return n;
}

static JNode* named(JParser* p, bool with_namespace) {
    JToken* t = take(p);
    const JText* name = t->value.as.text;
    if (j_is(name, "true") || j_is(name, "True")) return constant(p, j_bool(true), t->line);
    if (j_is(name, "false") || j_is(name, "False")) return constant(p, j_bool(false), t->line);
    if (j_is(name, "none") || j_is(name, "None")) return constant(p, j_none(), t->line);
    JNode* n = node(p, kNName, t->line);
    n->name = name;
    if (with_namespace && take_if(p, kTDot)) {
        n->type = kNNsRef;
        n->value = j_text(expect(p, kTName)->value.as.text);
    }
    return n;
}

static JNode* primary(JParser* p, bool with_namespace) {
    JToken* t = now(p);
    JNode* n;
    deeper(p);
    if (t->type == kTName) n = named(p, with_namespace);
    else if (t->type == kTString) {
        JText* text = take(p)->value.as.text;
        while (now(p)->type == kTString) text = j_join2(p->r, text, take(p)->value.as.text);
        n = constant(p, j_text(text), t->line);
    } else if (t->type == kTInt || t->type == kTFloat) n = constant(p, take(p)->value, t->line);
    else if (t->type == kTLParen) {
        take(p);
        n = tuple(p, false, true, NULL, true, false);
        expect(p, kTRParen);
    } else if (t->type == kTLBracket || t->type == kTLBrace) n = list_or_dict(p);
    else jinja_fail(p->r, "unexpected %s", token_name(p, t));
    p->depth--;
    return n;
}

static JNode* binary(JParser* p, JNodeType type, int op, JNode* a, JNode* b, int line) {
    JNode* n = node(p, type, line);
    n->op = op;
    n->a = a;
    n->b = b;
    return deepened(p, n);
}

static JNode* unary(JParser* p, bool with_filter) {
    JToken* t = now(p);
    JNode* n;
    if (t->type == kTSub || t->type == kTAdd) {
        deeper(p);
        take(p);
        n = binary(p, kNUnary, t->type == kTSub, unary(p, false), NULL, t->line);
        p->depth--;
    } else n = primary(p, false);
    n = postfix(p, n);
    return with_filter ? filters_and_tests(p, n) : n;
}

static bool is_minus(const JNode* n) { return n->type == kNUnary && n->op && n->a->type == kNConst; }

// Jinja2 hands negative constants to Python as it prints them: (-2) ** n is -(2 ** n), except where n is a constant too.
static JNode* raised(JParser* p, JNode* a, JNode* exponent, int line) {
    JValue v = is_minus(a) ? a->a->value : j_missing();
    bool negative = v.kind == kJFloat || (j_integral(v) && j_as_int(v) > 0);
    if (!negative || exponent->type == kNConst || is_minus(exponent)) return binary(p, kNBinary, kOpPow, a, exponent, line);
    return binary(p, kNUnary, true, binary(p, kNBinary, kOpPow, a->a, exponent, line), NULL, line);
}

static JNode* power(JParser* p) {
    int line = now(p)->line;
    JNode* left = unary(p, true);
    while (take_if(p, kTPow)) left = raised(p, left, unary(p, true), line);
    return left;
}

static JNode* product(JParser* p) {
    int line = now(p)->line;
    JNode* left = power(p);
    for (;;) {
        JTokenType type = now(p)->type;
        int op = type == kTMul ? kOpMul : type == kTDiv ? kOpDiv : type == kTFloorDiv ? kOpFloorDiv : type == kTMod ? kOpMod : -1;
        if (op < 0) return left;
        take(p);
        left = binary(p, kNBinary, op, left, power(p), line);
    }
}

static JNode* concatenation(JParser* p) {
    int line = now(p)->line;
    JNode* first = product(p);
    if (now(p)->type != kTTilde) return first;
    JGrowing parts = {NULL, 0, 0};
    grow(p, &parts, first);
    while (take_if(p, kTTilde)) grow(p, &parts, product(p));
    JNode* n = node(p, kNConcat, line);
    n->items = grown(&parts);
    return deepened(p, n);
}

static JNode* sum(JParser* p) {
    int line = now(p)->line;
    JNode* left = concatenation(p);
    while (now(p)->type == kTAdd || now(p)->type == kTSub) {
        int op = take(p)->type == kTAdd ? kOpAdd : kOpSub;
        left = binary(p, kNBinary, op, left, concatenation(p), line);
    }
    return left;
}

static int comparison_operator(JParser* p) {
    JToken* t = now(p);
    if (t->type >= kTEq && t->type <= kTLe) {
        static const int ops[] = {kOpEq, kOpNe, kOpGt, kOpGe, kOpLt, kOpLe};
        take(p);
        return ops[t->type - kTEq];
    }
    if (take_word(p, "in")) return kOpIn;
    if (!is_word(t, "not") || !is_word(ahead(p), "in")) return -1;
    take(p);
    take(p);
    return kOpNotIn;
}

static JNode* comparison(JParser* p) {
    int line = now(p)->line, op, ops_count = 0, capacity = 0, *ops = NULL;
    JNode* first = sum(p);
    JGrowing parts = {NULL, 0, 0};
    while ((op = comparison_operator(p)) >= 0) {
        if (!parts.count) grow(p, &parts, first);
        if (ops_count == capacity) {
            int* more = (int*)jinja_take(p->r, (size_t)(capacity = 2 * capacity + 2) * sizeof(int));
            if (ops_count) memcpy(more, ops, (size_t)ops_count * sizeof(int));
            ops = more;
        }
        ops[ops_count++] = op;
        grow(p, &parts, sum(p));
    }
    if (!parts.count) return first;
    JNode* n = node(p, kNCompare, line);
    n->items = grown(&parts);
    n->ops = ops;
    return deepened(p, n);
}

static JNode* negation(JParser* p) {
    int line = now(p)->line;
    if (!take_word(p, "not")) return comparison(p);
    deeper(p);
    JNode* n = binary(p, kNNot, 0, negation(p), NULL, line);
    p->depth--;
    return n;
}

static JNode* conjunction(JParser* p) {
    int line = now(p)->line;
    JNode* left = negation(p);
    while (take_word(p, "and")) left = binary(p, kNAnd, 0, left, negation(p), line);
    return left;
}

static JNode* disjunction(JParser* p) {
    int line = now(p)->line;
    JNode* left = conjunction(p);
    while (take_word(p, "or")) left = binary(p, kNOr, 0, left, conjunction(p), line);
    return left;
}

static JNode* expression(JParser* p, bool with_condition) {
    int line = now(p)->line;
    deeper(p);
    JNode* n = disjunction(p);
    while (with_condition && take_word(p, "if")) {
        JNode* cond = node(p, kNCond, line);
        cond->a = disjunction(p);
        cond->b = n;
        if (take_word(p, "else")) cond->c = expression(p, true);
        n = deepened(p, cond);
    }
    p->depth--;
    return n;
}

static JNode* tuple(JParser* p, bool simple, bool with_condition, const char* end_word, bool in_parentheses, bool with_namespace) {
    int line = now(p)->line;
    JGrowing items = {NULL, 0, 0};
    bool is_tuple = false;
    deeper(p);
    for (;;) {
        if (items.count) expect(p, kTComma);
        JToken* t = now(p);
        if (t->type == kTVariableEnd || t->type == kTBlockEnd || t->type == kTRParen || (end_word && is_word(t, end_word))) break;
        grow(p, &items, simple ? primary(p, with_namespace) : expression(p, with_condition));
        if (now(p)->type != kTComma) break;
        is_tuple = true;
    }
    p->depth--;
    if (!is_tuple && items.count) return items.items[0];
    if (!is_tuple && !in_parentheses) jinja_fail(p->r, "expected an expression, found %s", token_name(p, now(p)));
    JNode* n = node(p, kNTuple, line);
    n->items = grown(&items);
    return deepened(p, n);
}

// ---- statements
static void check_target(JParser* p, const JNode* target) {
    if (target->type == kNTuple) {
        for (int i = 0; i < target->items.count; i++) check_target(p, target->items.items[i]);
    } else if (target->type != kNName && target->type != kNNsRef) {
        jinja_fail(p->r, "can't assign to what stands here");
    }
}

static JNode* target(JParser* p, const char* end_word, bool with_namespace) {
    JNode* n = tuple(p, true, true, end_word, false, with_namespace);
    check_target(p, n);
    return n;
}

static JNode* name_target(JParser* p) {
    expect(p, kTName);
    p->at--;
    JNode* n = named(p, false);
    check_target(p, n);
    return n;
}

static const char* const kEndSet[] = {"endset", NULL};
static const char* const kEndFor[] = {"endfor", NULL};
static const char* const kEndForElse[] = {"endfor", "else", NULL};
static const char* const kEndIf[] = {"endif", NULL};
static const char* const kEndIfElse[] = {"elif", "else", "endif", NULL};
static const char* const kEndMacro[] = {"endmacro", NULL};
static const char* const kEndCall[] = {"endcall", NULL};
static const char* const kEndFilter[] = {"endfilter", NULL};
static const char* const kEndWith[] = {"endwith", NULL};
static const char* const kEndGeneration[] = {"endgeneration", NULL};

static JNode* set_statement(JParser* p, int line) {
    JNode* where = target(p, NULL, true);
    JNode* n = node(p, kNSet, line);
    n->a = where;
    if (take_if(p, kTAssign)) {
        n->b = tuple(p, false, true, NULL, false, false);
        return n;
    }
    n->type = kNSetBlock;
    n->b = filters(p, NULL, false);
    n->items = statements(p, kEndSet);
    take(p);
    return n;
}

static JNode* for_statement(JParser* p, int line) {
    JNode* n = node(p, kNFor, line);
    n->a = target(p, "in", false);
    expect_word(p, "in");
    n->b = tuple(p, false, false, "recursive", false, false);
    if (take_word(p, "if")) n->c = expression(p, true);
    n->recursive = take_word(p, "recursive");
    p->loops++;
    n->items = statements(p, kEndForElse);
    p->loops--;
    if (is_word(take(p), "endfor")) return n;
    int loops = p->loops;
    if (n->recursive) p->loops = 0;   // a recursive loop's `else` is part of its JFunc: it cannot leave the loops around
    n->other = statements(p, kEndFor);
    p->loops = loops;
    take(p);
    return n;
}

// An if with its elifs: `items` is the body, `other` the next elif, or the body of else.
static JNode* if_statement(JParser* p, int line) {
    JNode *first = node(p, kNIf, line), *n = first;
    JGrowing branches = {NULL, 0, 0};
    for (;;) {
        n->a = tuple(p, false, false, NULL, false, false);
        n->items = statements(p, kEndIfElse);
        JToken* t = take(p);
        if (is_word(t, "elif")) {
            n = node(p, kNIf, t->line);
            grow(p, &branches, n);
            continue;
        }
        JNode* last = node(p, kNIf, t->line);
        if (is_word(t, "else")) {
            last->items = statements(p, kEndIf);
            take(p);
        }
        grow(p, &branches, last);
        first->other = grown(&branches);
        return first;
    }
}

// Parameters of a macro or call block: items are the names, other the defaults of the last of them.
static void signature(JParser* p, JNode* n) {
    JGrowing names = {NULL, 0, 0}, defaults = {NULL, 0, 0};
    expect(p, kTLParen);
    while (now(p)->type != kTRParen) {
        if (names.count) expect(p, kTComma);
        JNode* name = name_target(p);
        for (int i = 0; i < names.count; i++)
            if (j_text_equal(names.items[i]->name, name->name)) jinja_fail(p->r, "a macro has two parameters of one name");
        grow(p, &names, name);
        if (take_if(p, kTAssign)) grow(p, &defaults, expression(p, true));
        else if (defaults.count) jinja_fail(p->r, "a parameter without a default follows one with a default");
    }
    expect(p, kTRParen);
    n->call = (JCallArgs*)jinja_take_zeroed(p->r, sizeof(JCallArgs));
    n->call->args = names.items;
    n->call->count = names.count;
    n->call->named = defaults.items;
    n->call->named_count = defaults.count;
}

static JNodes function_body(JParser* p, const char* const* ends) {
    int loops = p->loops;
    p->loops = 0;
    JNodes body = statements(p, ends);
    p->loops = loops;
    take(p);
    return body;
}

static JNode* macro_statement(JParser* p, int line) {
    JNode* n = node(p, kNMacro, line);
    n->a = name_target(p);
    n->name = n->a->name;
    signature(p, n);
    n->items = function_body(p, kEndMacro);
    return n;
}

static JNode* call_statement(JParser* p, int line) {
    JNode* n = node(p, kNCallBlock, line);
    if (now(p)->type == kTLParen) signature(p, n);
    else n->call = (JCallArgs*)jinja_take_zeroed(p->r, sizeof(JCallArgs));
    n->a = expression(p, true);
    if (n->a->type != kNCall) jinja_fail(p->r, "{%% call %%} wants a call");
    n->items = function_body(p, kEndCall);
    return n;
}

static JNode* with_statement(JParser* p, int line) {
    JNode* n = node(p, kNWith, line);
    JGrowing pairs = {NULL, 0, 0};
    while (now(p)->type != kTBlockEnd) {
        if (pairs.count) expect(p, kTComma);
        grow(p, &pairs, target(p, NULL, false));
        expect(p, kTAssign);
        grow(p, &pairs, expression(p, true));
    }
    n->other = grown(&pairs);
    n->items = statements(p, kEndWith);
    take(p);
    return n;
}

static JNode* print_statement(JParser* p, int line) {
    JNode* n = node(p, kNOutput, line);
    JGrowing items = {NULL, 0, 0};
    while (now(p)->type != kTBlockEnd) {
        if (items.count) expect(p, kTComma);
        grow(p, &items, expression(p, true));
    }
    n->items = grown(&items);
    return n;
}

static JNode* statement(JParser* p) {
    JToken* t = expect(p, kTName);
    const JText* tag = t->value.as.text;
    JNode* n;
    if (j_is(tag, "set")) return set_statement(p, t->line);
    if (j_is(tag, "if")) return if_statement(p, t->line);
    if (j_is(tag, "for")) return for_statement(p, t->line);
    if (j_is(tag, "macro")) return macro_statement(p, t->line);
    if (j_is(tag, "call")) return call_statement(p, t->line);
    if (j_is(tag, "with")) return with_statement(p, t->line);
    if (j_is(tag, "print")) return print_statement(p, t->line);
    if (j_is(tag, "filter")) {
        n = node(p, kNFilterBlock, t->line);
        n->a = filters(p, NULL, true);
        n->items = statements(p, kEndFilter);
        take(p);
        return n;
    }
    if (j_is(tag, "generation")) {
        n = node(p, kNGeneration, t->line);
        n->items = function_body(p, kEndGeneration);
        return n;
    }
    if (j_is(tag, "break") || j_is(tag, "continue")) {
        if (!p->loops) jinja_fail(p->r, "{%% %s %%} stands outside of a loop", j_c_string(p->r, tag));
        return node(p, j_is(tag, "break") ? kNBreak : kNContinue, t->line);
    }
    jinja_fail(p->r, "the tag {%% %s %%} is unknown here", j_c_string(p->r, tag));
}

// Text and statements until one of the end words, which stays unread; at the top (ends == NULL) until the end of the template.
static JNodes body(JParser* p, const char* const* ends) {
    JGrowing nodes = {NULL, 0, 0}, data = {NULL, 0, 0};
    int data_line = 0;
    deeper(p);
    for (;;) {
        JToken* t = now(p);
        if (t->type == kTData || t->type == kTVariableBegin) {
            if (!data.count) data_line = t->line;
            take(p);
            if (t->type == kTData) grow(p, &data, constant(p, t->value, t->line));
            else {
                grow(p, &data, tuple(p, false, true, NULL, false, false));
                expect(p, kTVariableEnd);
            }
            continue;
        }
        if (data.count) {
            JNode* n = node(p, kNOutput, data_line);
            n->items = grown(&data);
            grow(p, &nodes, n);
            memset(&data, 0, sizeof data);
        }
        if (t->type == kTEnd) {
            if (ends) jinja_fail(p->r, "the template ends before {%% %s %%}", ends[0]);
            break;
        }
        expect(p, kTBlockBegin);
        bool done = false;
        for (const char* const* end = ends; end && *end; end++) done = done || is_word(now(p), *end);
        if (done) break;
        grow(p, &nodes, statement(p));
        expect(p, kTBlockEnd);
    }
    p->depth--;
    return grown(&nodes);
}

static JNodes statements(JParser* p, const char* const* ends) {
    take_if(p, kTColon);
    expect(p, kTBlockEnd);
    return body(p, ends);
}

JNodes jinja_parse(JRun* r, JToken* tokens, int count) {
    JParser p = {r, tokens, 0, count, 0, 0};
    return body(&p, NULL);
}
