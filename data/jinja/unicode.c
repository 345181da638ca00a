// The kind of a character, and its other case: as in Python's str, independent of the locale.
#include "internal.h"
#include "unicode_tables.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

// Is c in the set? A set is the edges of its runs of characters, rising: c is in it if an odd number of edges are <= c.
static bool in_set(const uint32_t* edges, size_t count, uint32_t c) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (edges[middle] <= c) low = middle + 1; else high = middle;
    }
    return low % 2;
}

static uint32_t changed(const CaseRun* runs, size_t count, uint32_t c) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (runs[middle].last < c) low = middle + 1; else high = middle;
    }
    if (low == count || c < runs[low].first || (c - runs[low].first) % (uint32_t)runs[low].stride) return c;
    return (uint32_t)((int64_t)c + runs[low].by);
}

uint32_t j_upper(uint32_t c) { return changed(to_upper, COUNT(to_upper), c); }
uint32_t j_lower(uint32_t c) { return changed(to_lower, COUNT(to_lower), c); }
bool j_is_alpha(uint32_t c) { return in_set(alpha_edges, COUNT(alpha_edges), c); }
bool j_is_decimal(uint32_t c) { return in_set(decimal_edges, COUNT(decimal_edges), c); }
bool j_is_digit(uint32_t c) { return in_set(digit_edges, COUNT(digit_edges), c); }
bool j_is_numeric(uint32_t c) { return in_set(numeric_edges, COUNT(numeric_edges), c); }
bool j_is_printable(uint32_t c) { return in_set(printable_edges, COUNT(printable_edges), c); }
bool j_is_lower(uint32_t c) { return in_set(lower_edges, COUNT(lower_edges), c); }
bool j_is_upper(uint32_t c) { return in_set(upper_edges, COUNT(upper_edges), c); }

// Letters with a case of their own for titles (U+01C5, the Greek ones with a iota beside) have both other cases.
bool j_is_cased(uint32_t c) { return j_is_lower(c) || j_is_upper(c) || j_lower(c) != c; }

static int expanded(const CaseExpansion* table, size_t count, uint32_t c, uint32_t out[3]) {
    for (size_t i = 0; c >= 0xdf && i < count; i++) {
        if (table[i].from != c) continue;
        memcpy(out, table[i].to, sizeof table[i].to);
        return out[2] ? 3 : 2;
    }
    return 1;
}

int j_upper_all(uint32_t c, uint32_t out[3]) {
    out[0] = j_upper(c);
    return expanded(upper_expansions, COUNT(upper_expansions), c, out);
}

int j_title_all(uint32_t c, uint32_t out[3]) {
    out[0] = changed(to_title, COUNT(to_title), c);
    return expanded(title_expansions, COUNT(title_expansions), c, out);
}
