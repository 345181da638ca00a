// Writing JSON, as Python's json.dumps does, and reading JSON into values, with marks for the origin of its strings.
#include "internal.h"

typedef struct {
    JBuilder out;
    JText *indent, *between_items, *after_key;   // indent NULL: all on one line
    bool ascii, sort_keys;
    int depth;
} JsonWriter;

static void write_value(JsonWriter* w, JValue v);

static void write_unit(JsonWriter* w, uint32_t unit, unsigned char mark) {
    char escape[12];
    snprintf(escape, sizeof escape, "\\u%04x", (unsigned)unit);
    j_add(&w->out, escape, 6, mark);
}

static void write_escaped(JsonWriter* w, uint32_t c, unsigned char mark) {
    static const char letters[] = "\"\"\\\\\bb\ff\nn\rr\tt";   // pairs: a character, and its letter behind a backslash
    for (const char* l = letters; *l; l += 2) {
        if (c != (unsigned char)*l) continue;
        char escape[2] = {'\\', l[1]};
        j_add(&w->out, escape, 2, mark);
        return;
    }
    if (c < 0x10000) {
        write_unit(w, c, mark);
        return;
    }
    write_unit(w, 0xd800 + ((c - 0x10000) >> 10), mark);
    write_unit(w, 0xdc00 + ((c - 0x10000) & 0x3ff), mark);
}

static void write_text(JsonWriter* w, const JText* t) {
    size_t begin = 0;
    j_add_c(&w->out, "\"");
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        size_t at = i;
        i += (size_t)length;
        if (c >= 0x20 && c != '"' && c != '\\' && (c < 0x7f || !w->ascii)) continue;
        j_add_part(&w->out, t, begin, at);
        write_escaped(w, c, j_mark_at(t, at));
        begin = i;
    }
    j_add_part(&w->out, t, begin, t->bytes);
    j_add_c(&w->out, "\"");
}

static void write_float(JsonWriter* w, double d) {
    if (d != d) j_add_c(&w->out, "NaN");
    else if (d - d != 0) j_add_c(&w->out, d > 0 ? "Infinity" : "-Infinity");
    else j_add_float(&w->out, d);
}

static void new_line(JsonWriter* w) {
    if (!w->indent) return;
    j_add_c(&w->out, "\n");
    for (int i = 0; i < w->depth; i++) j_add_text(&w->out, w->indent);
}

static void write_list(JsonWriter* w, const JList* l) {
    j_add_c(&w->out, "[");
    w->depth++;
    for (int64_t i = 0; i < l->count; i++) {
        if (i) j_add_text(&w->out, w->between_items);
        new_line(w);
        write_value(w, l->items[i]);
    }
    w->depth--;
    if (l->count) new_line(w);
    j_add_c(&w->out, "]");
}

static void write_key(JsonWriter* w, JValue key) {
    if (key.kind == kJText) {
        write_text(w, key.as.text);
        return;
    }
    if (key.kind != kJNone && !j_number(key)) jinja_fail(w->out.r, "tojson: a %s can't be a key", j_type_name(key));
    j_add_c(&w->out, "\"");
    write_value(w, key);
    j_add_c(&w->out, "\"");
}

static void write_dict(JsonWriter* w, const JDict* d) {
    JRun* r = w->out.r;
    size_t bytes = (size_t)d->count * sizeof(JValue);
    JValue *keys = (JValue*)jinja_take(r, bytes), *values = (JValue*)jinja_take(r, bytes);
    for (int64_t i = 0; i < d->count; i++) {
        keys[i] = d->entries[i].key;
        values[i] = j_pair(r, keys[i], d->entries[i].value);
    }
    if (w->sort_keys) j_sort(r, keys, values, d->count, false);
    j_add_c(&w->out, "{");
    w->depth++;
    for (int64_t i = 0; i < d->count; i++) {
        if (i) j_add_text(&w->out, w->between_items);
        new_line(w);
        write_key(w, values[i].as.list->items[0]);
        j_add_text(&w->out, w->after_key);
        write_value(w, values[i].as.list->items[1]);
    }
    w->depth--;
    if (d->count) new_line(w);
    j_add_c(&w->out, "}");
}

static void write_value(JsonWriter* w, JValue v) {
    JRun* r = w->out.r;
    jinja_enter(r);
    jinja_step(r, 0);
    switch (v.kind) {
    case kJNone: j_add_c(&w->out, "null"); break;
    case kJBool: j_add_c(&w->out, v.as.boolean ? "true" : "false"); break;
    case kJInt: j_add_repr(&w->out, v); break;
    case kJFloat: write_float(w, v.as.real); break;
    case kJText: write_text(w, v.as.text); break;
    case kJList: case kJTuple: write_list(w, v.as.list); break;
    case kJDict: write_dict(w, v.as.dict); break;
    default: jinja_fail(r, "tojson: a value of type %s can't be written as JSON", j_type_name(v));
    }
    jinja_leave(r);
}

// indent: None or absent, a number of spaces, or text; separators: None or absent, or two texts.
JText* j_tojson(JRun* r, JValue v, JValue indent, JValue separators, bool ascii, bool sort_keys) {
    JsonWriter w;
    memset(&w, 0, sizeof w);
    w.out = j_builder(r);
    w.ascii = ascii;
    w.sort_keys = sort_keys;
    if (indent.kind == kJText) {
        w.indent = indent.as.text;
    } else if (indent.kind != kJMissing && indent.kind != kJNone) {
        JBuilder spaces = j_builder(r);
        for (int64_t i = j_need_int(r, indent, "the indent"); i > 0; i--, jinja_step(r, 0)) j_add_c(&spaces, " ");
        w.indent = j_built(&spaces);
    }
    w.between_items = j_literal(r, w.indent ? "," : ", ");
    w.after_key = j_literal(r, ": ");
    if (separators.kind != kJMissing && separators.kind != kJNone) {
        const JList* two = j_collect(r, separators);
        if (two->count != 2) jinja_fail(r, "tojson: there are two separators");
        w.between_items = j_need_text(r, two->items[0], "the separator of items");
        w.after_key = j_need_text(r, two->items[1], "the separator behind keys");
    }
    write_value(&w, v);
    return j_built(&w.out);
}

// ---- in
static JValue text_of(JRun* r, const char* s, size_t bytes, bool is_data) {
    return j_text(j_text_new(r, s, bytes, is_data ? kMarkData : kMarkTemplate));
}

static JValue dict_of(JRun* r, const json_t* json, bool is_data, bool is_message) {
    JDict* d = j_dict_new(r, (int64_t)json_object_size(json));
    for (void* at = json_object_iter((json_t*)json); at; at = json_object_iter_next((json_t*)json, at)) {
        const char* key = json_object_iter_key(at);
        bool own = is_message && !strcmp(key, "role") && json_is_string(json_object_iter_value(at));
        j_put(r, d, text_of(r, key, strlen(key), is_data), j_from_json(r, json_object_iter_value(at), is_data && !own, false));
    }
    return j_dict(d);
}

// Strings keep jansson's bytes. is_messages: the elements of this list are messages, whose roles are the template's side.
JValue j_from_json(JRun* r, const json_t* json, bool is_data, bool is_messages) {
    JValue v = j_none();
    jinja_enter(r);
    jinja_step(r, 0);
    switch (json_typeof(json)) {
    case JSON_NULL: break;
    case JSON_TRUE: case JSON_FALSE: v = j_bool(json_is_true(json)); break;
    case JSON_INTEGER: v = j_int(json_integer_value(json)); break;
    case JSON_REAL: v = j_float(json_real_value(json)); break;
    case JSON_STRING: v = text_of(r, json_string_value(json), json_string_length(json), is_data); break;
    case JSON_OBJECT: v = dict_of(r, json, is_data, false); break;
    case JSON_ARRAY:
        v = j_list(kJList, j_list_new(r, (int64_t)json_array_size(json)));
        for (size_t i = 0; i < json_array_size(json); i++) {
            const json_t* item = json_array_get(json, i);
            j_push(r, v.as.list, is_messages && json_is_object(item) ? dict_of(r, item, is_data, true) : j_from_json(r, item, is_data, false));
        }
    }
    jinja_leave(r);
    return v;
}
