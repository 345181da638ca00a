#!/usr/bin/env python3
"""Writes data/jinja/unicode_tables.h from Python's own tables: dev/unicode_tables.py >data/jinja/unicode_tables.h"""
import sys
import unicodedata

CHARS = [chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000]


def rows(numbers, width=136):
    line = "   "
    for n in numbers:
        if len(line) + len(n) + 2 > width:
            yield line
            line = "   "
        line += " " + n + ","
    yield line


def table(kind, name, numbers):
    print(f"static const {kind} {name}[] = {{")
    print("\n".join(rows(numbers)))
    print("};")


def edges(belongs):
    """First characters of runs that belong and of runs that don't, in turns."""
    inside, found = False, []
    for c in CHARS:
        if belongs(c) != inside:
            found.append(f"0x{ord(c):x}")
            inside = not inside
    return found


def mappings(change):
    """(first, last, stride, difference) of characters that change by the same difference."""
    runs = []
    for c in CHARS:
        other = change(c)
        if len(other) != 1 or other == c:
            continue
        at, by = ord(c), ord(other) - ord(c)
        if runs and runs[-1][3] == by:
            first, last, stride, _ = runs[-1]
            if at - last == (stride or at - last) and at - last <= 2:
                runs[-1] = (first, at, at - last, by)
                continue
        runs.append((at, at, 0, by))
    return [f"{{0x{first:x}, 0x{last:x}, {stride or 1}, {by}}}" for first, last, stride, by in runs]


def expansions(change):
    return ["{0x%x, {%s}}" % (ord(c), ", ".join(f"0x{ord(d):x}" for d in change(c))) for c in CHARS if len(change(c)) > 1]


print(f"// Made by dev/unicode_tables.py from Unicode {unicodedata.unidata_version}. Sets are the edges of their runs.")
print("#ifndef DATA_JINJA_UNICODE_TABLES_H\n#define DATA_JINJA_UNICODE_TABLES_H\n\n#include <stdint.h>\n")
print("typedef struct {\n    uint32_t first, last;\n    int stride, by;\n} CaseRun;")
print("typedef struct {\n    uint32_t from, to[3];\n} CaseExpansion;\n")
table("uint32_t", "alpha_edges", edges(str.isalpha))
table("uint32_t", "decimal_edges", edges(str.isdecimal))
table("uint32_t", "digit_edges", edges(str.isdigit))
table("uint32_t", "numeric_edges", edges(str.isnumeric))
table("uint32_t", "printable_edges", edges(str.isprintable))
table("uint32_t", "lower_edges", edges(str.islower))
table("uint32_t", "upper_edges", edges(str.isupper))
table("CaseRun", "to_upper", mappings(str.upper))
table("CaseRun", "to_lower", mappings(str.lower))
table("CaseRun", "to_title", mappings(str.title))
table("CaseExpansion", "upper_expansions", expansions(str.upper))
table("CaseExpansion", "title_expansions", expansions(str.title))
print("\n#endif")
sys.stdout.flush()
