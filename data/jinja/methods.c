// Methods of str, dict, list and tuple, and operations on text that filters use too. As in Jinja2's sandbox, methods that would change a
// value are not allowed: they are listed without a function.
#include "internal.h"

typedef enum { kCaseUpper, kCaseLower, kCaseTitle, kCaseCapitalize, kCaseSwap, kCaseFold } CaseChange;

static void add_upper(JBuilder* b, uint32_t c, unsigned char mark, bool title) {
    uint32_t upper[3];
    int count = title ? j_title_all(c, upper) : j_upper_all(c, upper);
    for (int i = 0; i < count; i++) j_add_char(b, upper[i], mark);
}

// Is the capital sigma at byte `at` the last letter of its word? Then its small letter has another form.
static bool final_sigma(const JText* t, size_t at, bool after_letter) {
    int length;
    if (!after_letter || at + 2 >= t->bytes) return after_letter;
    return !j_is_cased(j_decode(t->s + at + 2, t->bytes - at - 2, &length));
}

static JText* change_case(JRun* r, const JText* t, CaseChange change) {
    JBuilder b = j_builder(r);
    bool in_word = false;
    jinja_step(r, 4 * t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        unsigned char mark = j_mark_at(t, i);
        bool up = change == kCaseUpper || (change == kCaseTitle && !in_word) || (change == kCaseCapitalize && !i) ||
                  (change == kCaseSwap && j_is_lower(c));
        bool stays = change == kCaseSwap && !up && !j_is_upper(c);
        if (c < 0x80) j_add_char(&b, up ? j_upper(c) : stays ? c : j_lower(c), mark);
        else if (up) add_upper(&b, c, mark, change == kCaseTitle || change == kCaseCapitalize);
        else if (change == kCaseFold && c == 0xdf) j_add(&b, "ss", 2, mark);
        else if (c == 0x130 && !stays) j_add(&b, "i\xcc\x87", 3, mark);   // I with a dot: the small letter has two
        else if (change != kCaseFold && c == 0x3a3 && !stays && final_sigma(t, i, in_word)) j_add_char(&b, 0x3c2, mark);
        else j_add_char(&b, stays ? c : j_lower(c), mark);
        in_word = j_is_cased(c);
        i += (size_t)length;
    }
    JText* out = j_built(&b);
    out->safe = t->safe;
    return out;
}

JText* j_change_case(JRun* r, const JText* t, bool upper) { return change_case(r, t, upper ? kCaseUpper : kCaseLower); }

static bool char_in(const char* s, size_t bytes, const JText* set) {
    return set->bytes && memmem(set->s, set->bytes, s, bytes);
}

// chars: None or absent for white space.
JText* j_strip(JRun* r, const JText* t, JValue chars, bool left, bool right) {
    const JText* set = chars.kind == kJMissing || chars.kind == kJNone ? NULL : j_need_text(r, chars, "what to strip");
    size_t begin = 0, end = t->bytes;
    int length;
    jinja_step(r, t->bytes);
    while (left && begin < end) {
        uint32_t c = j_decode(t->s + begin, end - begin, &length);
        if (set ? !char_in(t->s + begin, (size_t)length, set) : !j_py_space(c)) break;
        begin += (size_t)length;
    }
    while (right && begin < end) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)t->s[at] & 0xc0) == 0x80) at--;
        uint32_t c = j_decode(t->s + at, end - at, &length);
        if (set ? !char_in(t->s + at, end - at, set) : !j_py_space(c)) break;
        end = at;
    }
    return j_part(r, t, begin, end);
}

static const char* find(const JText* t, size_t from, size_t to, const JText* what) {
    return what->bytes > to - from ? NULL : (const char*)memmem(t->s + from, to - from, what->s, what->bytes);
}

// count < 0: replaces all. An empty `old` matches before, between and behind all characters.
JText* j_replace(JRun* r, const JText* t, const JText* old, const JText* replacement, int64_t count) {
    JBuilder b = j_builder(r);
    size_t at = 0;
    jinja_step(r, t->bytes);
    while (count != 0) {
        const char* found = find(t, at, t->bytes, old);
        if (!found) break;
        size_t end = (size_t)(found - t->s);
        j_add_part(&b, t, at, end);
        j_add_text(&b, replacement);
        at = end + old->bytes;
        count--;
        if (old->bytes) continue;
        if (at >= t->bytes) break;
        int length;
        j_decode(t->s + at, t->bytes - at, &length);
        j_add_part(&b, t, at, at + (size_t)length);
        at += (size_t)length;
    }
    j_add_part(&b, t, at, t->bytes);
    JText* out = j_built(&b);
    out->safe = t->safe;
    return out;
}

static bool ends_line(uint32_t c) {
    return (c >= '\n' && c <= '\r') || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

JList* j_split_lines(JRun* r, const JText* t, bool keep) {
    JList* lines = j_list_new(r, 4);
    size_t begin = 0;
    jinja_step(r, t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        size_t end = i;
        i += (size_t)length;
        if (!ends_line(c)) continue;
        if (c == '\r' && i < t->bytes && t->s[i] == '\n') i++;
        jinja_step(r, 0);
        j_push(r, lines, j_text(j_part(r, t, begin, keep ? i : end)));
        begin = i;
    }
    if (begin < t->bytes) j_push(r, lines, j_text(j_part(r, t, begin, t->bytes)));
    return lines;
}

static JText* as_safe_as(JRun* r, JText* t, JValue self) {
    return t->safe == self.as.text->safe ? t : j_with_safe(r, t, self.as.text->safe);
}
static bool absent(JValue v) { return v.kind == kJMissing || v.kind == kJNone; }

// ---- str: cases and kinds
static JValue str_upper(JRun* r, JValue self, const JValue* a) { (void)a; return j_text(change_case(r, self.as.text, kCaseUpper)); }
static JValue str_lower(JRun* r, JValue self, const JValue* a) { (void)a; return j_text(change_case(r, self.as.text, kCaseLower)); }
static JValue str_title(JRun* r, JValue self, const JValue* a) { (void)a; return j_text(change_case(r, self.as.text, kCaseTitle)); }
static JValue str_swapcase(JRun* r, JValue self, const JValue* a) { (void)a; return j_text(change_case(r, self.as.text, kCaseSwap)); }
static JValue str_casefold(JRun* r, JValue self, const JValue* a) { (void)a; return j_text(change_case(r, self.as.text, kCaseFold)); }
static JValue str_capitalize(JRun* r, JValue self, const JValue* a) {
    (void)a;
    return j_text(change_case(r, self.as.text, kCaseCapitalize));
}

static bool is_alnum(uint32_t c) { return j_is_alpha(c) || j_is_numeric(c); }
static bool is_ascii(uint32_t c) { return c < 0x80; }

static bool all_are(JRun* r, const JText* t, bool (*is)(uint32_t), bool empty) {
    jinja_step(r, 4 * t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        if (!is(j_decode(t->s + i, t->bytes - i, &length))) return false;
        i += (size_t)length;
    }
    return t->bytes || empty;
}

// Is there a letter with a case, and none of the other?
static bool all_cased(JRun* r, const JText* t, bool upper) {
    bool any = false;
    jinja_step(r, 4 * t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        i += (size_t)length;
        if (!j_is_cased(c)) continue;
        if (!(upper ? j_is_upper(c) : j_is_lower(c))) return false;
        any = true;
    }
    return any;
}

static JValue str_isalpha(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, j_is_alpha, false)); }
static JValue str_isdecimal(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, j_is_decimal, false)); }
static JValue str_isdigit(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, j_is_digit, false)); }
static JValue str_isnumeric(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, j_is_numeric, false)); }
static JValue str_isalnum(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, is_alnum, false)); }
static JValue str_isspace(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, j_py_space, false)); }
static JValue str_isascii(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, is_ascii, true)); }
static JValue str_isprintable(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_are(r, s.as.text, j_is_printable, true)); }
static JValue str_islower(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_cased(r, s.as.text, false)); }
static JValue str_isupper(JRun* r, JValue s, const JValue* a) { (void)a; return j_bool(all_cased(r, s.as.text, true)); }

static JValue str_istitle(JRun* r, JValue self, const JValue* a) {
    const JText* t = self.as.text;
    bool any = false, in_word = false;
    (void)a;
    jinja_step(r, 4 * t->bytes);
    for (size_t i = 0; i < t->bytes;) {
        int length;
        uint32_t c = j_decode(t->s + i, t->bytes - i, &length);
        bool cased = j_is_cased(c);
        if (cased && in_word == !j_is_lower(c)) return j_bool(false);
        any = any || cased;
        in_word = cased;
        i += (size_t)length;
    }
    return j_bool(any);
}

// ---- str: searching. Indices are of characters, from the end if negative
static bool window(JRun* r, JText* t, JValue start, JValue stop, size_t* begin, size_t* end) {
    int64_t count = j_chars(t);
    int64_t from = absent(start) ? 0 : j_need_int(r, start, "the start"), to = absent(stop) ? count : j_need_int(r, stop, "the end");
    if (from < 0) from = from + count < 0 ? 0 : from + count;
    if (to < 0) to = to + count < 0 ? 0 : to + count;
    if (to > count) to = count;
    if (from > to) return false;
    *begin = j_offset(t, from);
    *end = j_offset(t, to);
    jinja_step(r, t->bytes);
    return true;
}

static int64_t chars_before(JRun* r, const JText* t, size_t byte) { return j_chars(j_part(r, t, 0, byte)); }

static int64_t position(JRun* r, JValue self, const JValue* args, bool last) {
    JText* t = self.as.text;
    const JText* what = j_need_text(r, args[0], "what to find");
    size_t begin, end;
    if (!window(r, t, args[1], args[2], &begin, &end) || what->bytes > end - begin) return -1;
    if (!last) {
        const char* found = find(t, begin, end, what);
        return found ? chars_before(r, t, (size_t)(found - t->s)) : -1;
    }
    for (size_t at = end - what->bytes + 1; at-- > begin;)
        if (!memcmp(t->s + at, what->s, what->bytes)) return chars_before(r, t, at);
    return -1;
}

static JValue found_index(JRun* r, int64_t at) {
    if (at < 0) jinja_fail(r, "index: the text is not there");
    return j_int(at);
}
static JValue str_find(JRun* r, JValue self, const JValue* args) { return j_int(position(r, self, args, false)); }
static JValue str_rfind(JRun* r, JValue self, const JValue* args) { return j_int(position(r, self, args, true)); }
static JValue str_index(JRun* r, JValue self, const JValue* args) { return found_index(r, position(r, self, args, false)); }
static JValue str_rindex(JRun* r, JValue self, const JValue* args) { return found_index(r, position(r, self, args, true)); }

static JValue str_count(JRun* r, JValue self, const JValue* args) {
    JText* t = self.as.text;
    const JText* what = j_need_text(r, args[0], "what to count");
    size_t begin, end;
    int64_t count = 0;
    if (!window(r, t, args[1], args[2], &begin, &end)) return j_int(0);
    if (!what->bytes) return j_int(j_chars(j_part(r, t, begin, end)) + 1);
    for (const char* found; (found = find(t, begin, end, what)); count++) begin = (size_t)(found - t->s) + what->bytes;
    return j_int(count);
}

static bool at_end(const JText* t, size_t begin, size_t end, const JText* what, bool last) {
    return what->bytes <= end - begin && !memcmp(last ? t->s + end - what->bytes : t->s + begin, what->s, what->bytes);
}

static JValue starts_or_ends(JRun* r, JValue self, const JValue* args, bool last) {
    size_t begin, end;
    bool inside = window(r, self.as.text, args[1], args[2], &begin, &end);
    if (args[0].kind != kJTuple) {
        const JText* what = j_need_text(r, args[0], "what to look for");
        return j_bool(inside && at_end(self.as.text, begin, end, what, last));
    }
    for (int64_t i = 0; i < args[0].as.list->count; i++) {
        const JText* what = j_need_text(r, args[0].as.list->items[i], "what to look for");
        if (inside && at_end(self.as.text, begin, end, what, last)) return j_bool(true);
    }
    return j_bool(false);
}
static JValue str_startswith(JRun* r, JValue self, const JValue* args) { return starts_or_ends(r, self, args, false); }
static JValue str_endswith(JRun* r, JValue self, const JValue* args) { return starts_or_ends(r, self, args, true); }

// ---- str: taking apart
static JValue str_strip(JRun* r, JValue self, const JValue* args) { return j_text(j_strip(r, self.as.text, args[0], true, true)); }
static JValue str_lstrip(JRun* r, JValue self, const JValue* args) { return j_text(j_strip(r, self.as.text, args[0], true, false)); }
static JValue str_rstrip(JRun* r, JValue self, const JValue* args) { return j_text(j_strip(r, self.as.text, args[0], false, true)); }

static JValue str_removeprefix(JRun* r, JValue self, const JValue* args) {
    const JText *t = self.as.text, *what = j_need_text(r, args[0], "the prefix");
    return at_end(t, 0, t->bytes, what, false) ? j_text(j_part(r, t, what->bytes, t->bytes)) : self;
}
static JValue str_removesuffix(JRun* r, JValue self, const JValue* args) {
    const JText *t = self.as.text, *what = j_need_text(r, args[0], "the suffix");
    return at_end(t, 0, t->bytes, what, true) ? j_text(j_part(r, t, 0, t->bytes - what->bytes)) : self;
}

static size_t skip_spaces(const JText* t, size_t at, bool spaces) {
    int length;
    while (at < t->bytes && j_py_space(j_decode(t->s + at, t->bytes - at, &length)) == spaces) at += (size_t)length;
    return at;
}
static size_t skip_spaces_back(const JText* t, size_t at, bool spaces) {
    while (at > 0) {
        size_t before = at - 1;
        int length;
        while (before > 0 && ((unsigned char)t->s[before] & 0xc0) == 0x80) before--;
        if (j_py_space(j_decode(t->s + before, at - before, &length)) != spaces) break;
        at = before;
    }
    return at;
}

// Splits off at most `most` words; the rest of the text stays whole, spaces included.
static void split_words(JRun* r, const JText* t, int64_t most, JList* out) {
    size_t at = skip_spaces(t, 0, true);
    while (at < t->bytes) {
        size_t end = most-- == 0 ? t->bytes : skip_spaces(t, at, false);
        j_push(r, out, j_text(j_part(r, t, at, end)));
        at = skip_spaces(t, end, true);
    }
}
static void split_words_back(JRun* r, const JText* t, int64_t most, JList* out) {
    size_t end = skip_spaces_back(t, t->bytes, true);
    while (end > 0) {
        size_t at = most-- == 0 ? 0 : skip_spaces_back(t, end, false);
        j_push(r, out, j_text(j_part(r, t, at, end)));
        end = skip_spaces_back(t, at, true);
    }
}

static size_t find_back(const JText* t, size_t end, const JText* what, bool* found) {
    for (size_t at = end < what->bytes ? 0 : end - what->bytes + 1; at-- > 0;)
        if (!memcmp(t->s + at, what->s, what->bytes)) { *found = true; return at; }
    *found = false;
    return 0;
}

static void split_at(JRun* r, const JText* t, const JText* separator, int64_t most, JList* out) {
    size_t begin = 0;
    for (const char* found; most != 0 && (found = find(t, begin, t->bytes, separator)); most--) {
        jinja_step(r, 0);
        j_push(r, out, j_text(j_part(r, t, begin, (size_t)(found - t->s))));
        begin = (size_t)(found - t->s) + separator->bytes;
    }
    j_push(r, out, j_text(j_part(r, t, begin, t->bytes)));
}
static void split_at_back(JRun* r, const JText* t, const JText* separator, int64_t most, JList* out) {
    size_t end = t->bytes;
    bool found = true;
    for (; most != 0; most--) {
        size_t at = find_back(t, end, separator, &found);
        if (!found) break;
        jinja_step(r, 0);
        j_push(r, out, j_text(j_part(r, t, at + separator->bytes, end)));
        end = at;
    }
    j_push(r, out, j_text(j_part(r, t, 0, end)));
}

static void turn_around(JList* l) {
    for (int64_t i = 0, j = l->count - 1; i < j; i++, j--) {
        JValue v = l->items[i];
        l->items[i] = l->items[j];
        l->items[j] = v;
    }
}

static JValue split(JRun* r, JValue self, const JValue* args, bool back) {
    JText* t = self.as.text;
    int64_t most = args[1].kind == kJMissing ? -1 : j_need_int(r, args[1], "the number of splits");
    JList* out = j_list_new(r, 4);
    jinja_step(r, t->bytes);
    if (absent(args[0])) {
        if (back) split_words_back(r, t, most, out); else split_words(r, t, most, out);
    } else {
        const JText* separator = j_need_text(r, args[0], "the separator");
        if (!separator->bytes) jinja_fail(r, "split: the separator is empty");
        if (back) split_at_back(r, t, separator, most, out); else split_at(r, t, separator, most, out);
    }
    if (back) turn_around(out);
    return j_list(kJList, out);
}
static JValue str_split(JRun* r, JValue self, const JValue* args) { return split(r, self, args, false); }
static JValue str_rsplit(JRun* r, JValue self, const JValue* args) { return split(r, self, args, true); }

static JValue str_splitlines(JRun* r, JValue self, const JValue* args) {
    return j_list(kJList, j_split_lines(r, self.as.text, args[0].kind != kJMissing && j_truth(r, args[0])));
}

static JValue partition(JRun* r, JValue self, JValue at_text, bool back) {
    const JText *t = self.as.text, *what = j_need_text(r, at_text, "the separator");
    if (!what->bytes) jinja_fail(r, "partition: the separator is empty");
    jinja_step(r, t->bytes);
    bool found;
    const char* first = back ? NULL : find(t, 0, t->bytes, what);
    size_t at = back ? find_back(t, t->bytes, what, &found) : first ? (size_t)(first - t->s) : 0;
    if (!back) found = first != NULL;
    JList* out = j_list_new(r, 3);
    JValue none = j_text(as_safe_as(r, j_literal(r, ""), self));
    j_push(r, out, found ? j_text(j_part(r, t, 0, at)) : back ? none : self);
    j_push(r, out, found ? j_text(as_safe_as(r, (JText*)what, self)) : none);
    j_push(r, out, found ? j_text(j_part(r, t, at + what->bytes, t->bytes)) : back ? self : none);
    return j_list(kJTuple, out);
}
static JValue str_partition(JRun* r, JValue self, const JValue* args) { return partition(r, self, args[0], false); }
static JValue str_rpartition(JRun* r, JValue self, const JValue* args) { return partition(r, self, args[0], true); }

// ---- str: putting together
static const JText* escaped_for(JRun* r, JValue self, JValue v, const char* what) {
    const JText* t = j_need_text(r, v, what);
    return self.as.text->safe ? j_escape(r, v) : t;
}

static JValue str_replace(JRun* r, JValue self, const JValue* args) {
    const JText* old = j_need_text(r, args[0], "what to replace");
    int64_t count = args[2].kind == kJMissing ? -1 : j_need_int(r, args[2], "the number of replacements");
    return j_text(j_replace(r, self.as.text, old, escaped_for(r, self, args[1], "the replacement"), count));
}

static JValue str_join(JRun* r, JValue self, const JValue* args) {
    JCursor c = j_cursor(r, args[0]);
    JBuilder b = j_builder(r);
    JValue item;
    for (bool first = true; j_next(r, &c, &item); first = false) {
        if (!first) j_add_text(&b, self.as.text);
        if (self.as.text->safe) j_add_text(&b, j_escape(r, item));
        else j_add_text(&b, j_need_text(r, item, "what is joined"));
    }
    return j_text(as_safe_as(r, j_built(&b), self));
}

static JText* padded(JRun* r, JText* t, int64_t left, int64_t right, const JText* fill) {
    JBuilder b = j_builder(r);
    for (; left > 0; left--) j_add_text(&b, fill);
    j_add_text(&b, t);
    for (; right > 0; right--) j_add_text(&b, fill);
    JText* out = j_built(&b);
    out->safe = t->safe;
    return out;
}

// where: -1 left, 1 right, 0 the middle.
static JValue justify(JRun* r, JValue self, const JValue* args, int where) {
    int64_t pad = j_need_int(r, args[0], "the width") - j_chars(self.as.text), width = j_chars(self.as.text) + pad;
    const JText* fill = args[1].kind == kJMissing ? j_literal(r, " ") : escaped_for(r, self, args[1], "the fill");
    if (j_chars((JText*)fill) != 1) jinja_fail(r, "the fill must be one character");
    if (pad <= 0) return self;
    int64_t left = where < 0 ? 0 : where > 0 ? pad : pad / 2 + (pad & width & 1);
    return j_text(padded(r, self.as.text, left, pad - left, fill));
}
static JValue str_ljust(JRun* r, JValue self, const JValue* args) { return justify(r, self, args, -1); }
static JValue str_rjust(JRun* r, JValue self, const JValue* args) { return justify(r, self, args, 1); }
static JValue str_center(JRun* r, JValue self, const JValue* args) { return justify(r, self, args, 0); }

static JValue str_zfill(JRun* r, JValue self, const JValue* args) {
    JText* t = self.as.text;
    int64_t pad = j_need_int(r, args[0], "the width") - j_chars(t);
    if (pad <= 0) return self;
    size_t sign = t->bytes && (*t->s == '+' || *t->s == '-');
    JText* digits = padded(r, j_part(r, t, sign, t->bytes), pad, 0, j_literal(r, "0"));
    return j_text(as_safe_as(r, j_join2(r, j_part(r, t, 0, sign), digits), self));
}

static JValue str_expandtabs(JRun* r, JValue self, const JValue* args) {
    const JText* t = self.as.text;
    int64_t size = args[0].kind == kJMissing ? 8 : j_need_int(r, args[0], "the size of tabs"), column = 0;
    JBuilder b = j_builder(r);
    for (size_t i = 0; i < t->bytes; i++) {
        char c = t->s[i];
        if (c == '\t') {
            int64_t spaces = size > 0 ? size - column % size : 0;
            column += spaces;
            for (; spaces > 0; spaces--, jinja_step(r, 0)) j_add(&b, " ", 1, j_mark_at(t, i));
            continue;
        }
        column = c == '\n' || c == '\r' ? 0 : column + (((unsigned char)c & 0xc0) != 0x80);
        j_add_part(&b, t, i, i + 1);
    }
    return j_text(as_safe_as(r, j_built(&b), self));
}

static JValue str_format(JRun* r, JValue self, const JArgs* args) { return j_text(j_format(r, self.as.text, args)); }

static JValue str_format_map(JRun* r, JValue self, const JValue* args) {
    if (args[0].kind != kJDict) jinja_fail(r, "format_map takes a dict");
    const JDict* d = args[0].as.dict;
    JArgs named;
    memset(&named, 0, sizeof named);
    named.names = (const JText**)jinja_take(r, (size_t)d->count * sizeof(JText*));
    named.named = (JValue*)jinja_take(r, (size_t)d->count * sizeof(JValue));
    for (int64_t i = 0; i < d->count; i++) {
        if (d->entries[i].key.kind != kJText) continue;
        named.names[named.named_count] = d->entries[i].key.as.text;
        named.named[named.named_count++] = d->entries[i].value;
    }
    return j_text(j_format(r, self.as.text, &named));
}

// ---- dict, list and tuple
static JValue dict_get(JRun* r, JValue self, const JValue* args) {
    JValue* found = j_find(r, self.as.dict, args[0]);
    return found ? *found : args[1].kind == kJMissing ? j_none() : args[1];
}

static JValue view_of(JRun* r, const JDict* d, const char* name, bool keys, bool values) {
    JList* l = j_list_new(r, d->count);
    l->view = name;
    for (int64_t i = 0; i < d->count; i++) {
        const JEntry* e = d->entries + i;
        jinja_step(r, 0);
        j_push(r, l, keys && values ? j_pair(r, e->key, e->value) : keys ? e->key : e->value);
    }
    return j_list(kJView, l);
}
static JValue dict_keys(JRun* r, JValue self, const JValue* a) { (void)a; return view_of(r, self.as.dict, "dict_keys", true, false); }
static JValue dict_values(JRun* r, JValue self, const JValue* a) { (void)a; return view_of(r, self.as.dict, "dict_values", false, true); }
static JValue dict_items(JRun* r, JValue self, const JValue* a) { (void)a; return view_of(r, self.as.dict, "dict_items", true, true); }

static JValue dict_copy(JRun* r, JValue self, const JValue* a) {
    JDict* d = j_dict_new(r, self.as.dict->count);
    (void)a;
    for (int64_t i = 0; i < self.as.dict->count; i++) j_put(r, d, self.as.dict->entries[i].key, self.as.dict->entries[i].value);
    return j_dict(d);
}

static JValue list_copy(JRun* r, JValue self, const JValue* a) { (void)a; return j_list(kJList, j_collect(r, self)); }

static JValue list_count(JRun* r, JValue self, const JValue* args) {
    int64_t count = 0;
    for (int64_t i = 0; i < self.as.list->count; i++) count += j_same(r, self.as.list->items[i], args[0]);
    return j_int(count);
}

static JValue list_index(JRun* r, JValue self, const JValue* args) {
    const JList* l = self.as.list;
    int64_t from = args[1].kind == kJMissing ? 0 : j_need_int(r, args[1], "the start");
    int64_t to = args[2].kind == kJMissing ? l->count : j_need_int(r, args[2], "the end");
    if (from < 0) from = from + l->count < 0 ? 0 : from + l->count;
    if (to < 0) to += l->count;
    for (int64_t i = from; i < to && i < l->count; i++)
        if (j_same(r, l->items[i], args[0])) return j_int(i);
    jinja_fail(r, "index: the element is not there");
}

static JValue cycler_next(JRun* r, JValue self, const JValue* a) {
    JCycler* c = self.as.cycler;
    (void)r, (void)a;
    JValue now = c->items->items[c->at];
    c->at = (c->at + 1) % c->items->count;
    return now;
}
static JValue cycler_reset(JRun* r, JValue self, const JValue* a) {
    (void)r, (void)a;
    self.as.cycler->at = 0;
    return j_none();
}

#define FIXED(name, params, required, function) {name, params, required, function, NULL}
#define BLOCKED(name) {name, "", 0, NULL, NULL}
static const JCallable str_methods[] = {
    FIXED("capitalize", "", 0, str_capitalize), FIXED("casefold", "", 0, str_casefold), FIXED("center", "/ width fill", 1, str_center),
    FIXED("count", "/ what start end", 1, str_count), FIXED("endswith", "/ what start end", 1, str_endswith),
    FIXED("expandtabs", "tabsize", 0, str_expandtabs), FIXED("find", "/ what start end", 1, str_find),
    {"format", NULL, 0, NULL, str_format}, FIXED("format_map", "/ mapping", 1, str_format_map),
    FIXED("index", "/ what start end", 1, str_index), FIXED("isalnum", "", 0, str_isalnum), FIXED("isalpha", "", 0, str_isalpha),
    FIXED("isascii", "", 0, str_isascii), FIXED("isdecimal", "", 0, str_isdecimal), FIXED("isdigit", "", 0, str_isdigit),
    FIXED("islower", "", 0, str_islower), FIXED("isnumeric", "", 0, str_isnumeric), FIXED("isprintable", "", 0, str_isprintable),
    FIXED("isspace", "", 0, str_isspace), FIXED("istitle", "", 0, str_istitle), FIXED("isupper", "", 0, str_isupper),
    FIXED("join", "/ items", 1, str_join), FIXED("ljust", "/ width fill", 1, str_ljust), FIXED("lower", "", 0, str_lower),
    FIXED("lstrip", "/ chars", 0, str_lstrip), FIXED("partition", "/ separator", 1, str_partition),
    FIXED("removeprefix", "/ prefix", 1, str_removeprefix), FIXED("removesuffix", "/ suffix", 1, str_removesuffix),
    FIXED("replace", "/ old new count", 2, str_replace), FIXED("rfind", "/ what start end", 1, str_rfind),
    FIXED("rindex", "/ what start end", 1, str_rindex), FIXED("rjust", "/ width fill", 1, str_rjust),
    FIXED("rpartition", "/ separator", 1, str_rpartition), FIXED("rsplit", "sep maxsplit", 0, str_rsplit),
    FIXED("rstrip", "/ chars", 0, str_rstrip), FIXED("split", "sep maxsplit", 0, str_split),
    FIXED("splitlines", "keepends", 0, str_splitlines), FIXED("startswith", "/ what start end", 1, str_startswith),
    FIXED("strip", "/ chars", 0, str_strip), FIXED("swapcase", "", 0, str_swapcase), FIXED("title", "", 0, str_title),
    FIXED("upper", "", 0, str_upper), FIXED("zfill", "/ width", 1, str_zfill), {NULL, NULL, 0, NULL, NULL}};
static const JCallable dict_methods[] = {
    FIXED("copy", "", 0, dict_copy), FIXED("get", "/ key default", 1, dict_get), FIXED("items", "", 0, dict_items),
    FIXED("keys", "", 0, dict_keys), FIXED("values", "", 0, dict_values), BLOCKED("clear"), BLOCKED("pop"), BLOCKED("popitem"),
    BLOCKED("setdefault"), BLOCKED("update"), {NULL, NULL, 0, NULL, NULL}};
static const JCallable list_methods[] = {
    FIXED("copy", "", 0, list_copy), FIXED("count", "/ value", 1, list_count), FIXED("index", "/ value start end", 1, list_index),
    BLOCKED("append"), BLOCKED("clear"), BLOCKED("extend"), BLOCKED("insert"), BLOCKED("pop"), BLOCKED("remove"), BLOCKED("reverse"),
    BLOCKED("sort"), {NULL, NULL, 0, NULL, NULL}};
static const JCallable tuple_methods[] = {
    FIXED("count", "/ value", 1, list_count), FIXED("index", "/ value start end", 1, list_index), {NULL, NULL, 0, NULL, NULL}};
static const JCallable cycler_methods[] = {
    FIXED("next", "", 0, cycler_next), FIXED("reset", "", 0, cycler_reset), {NULL, NULL, 0, NULL, NULL}};

const JCallable* j_find_method(JValue self, const JText* name) {
    const JCallable* table = self.kind == kJText ? str_methods : self.kind == kJDict ? dict_methods : self.kind == kJList ? list_methods
                           : self.kind == kJTuple ? tuple_methods : self.kind == kJCycler ? cycler_methods : NULL;
    for (; table && table->name; table++)
        if (j_is(name, table->name)) return table;
    return NULL;
}
