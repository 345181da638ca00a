#!/usr/bin/env python3
"""Random templates, rendered by Jinja2 as transformers sets it up and by test/jinja_driver: jinja_differential.py DRIVER CASES SEED

Equal means the same text, or a failure of both. Characters that only the user's data has must be marked as such, and none may be marked if the
template asks for no data. Left out are cases where Jinja2 prints functions or addresses, those beyond this interpreter's
bounds (integers of 64 bits), and slices of numbers, which Jinja2's constant folding sometimes finds undefined. The last line says "CASES cases, N differences"; the exit code is 1 if there are any.
"""
import json
import random
import re
import subprocess
import sys

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass_on"), [], [], body).set_lineno(line)

    def _pass_on(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


STRINGS = ["", "a", "Hello World", " padded \t", "line one\nline two\n\n  three", "<b>&'\"", "käse ÄÖ straße", "日本語 テキスト", "a,b,,c", "42",
           "-7", "3.5", "1e3", "x-y_z w", "user", "assistant", "system", "{'k': 1}", "{% raw %}", "tab\there", "\x01\x7f", "😀 ok", "0x1F", "_",
           "Ǆungla ﬁn", "ΑΣ Σ", "back\\slash", "true", "  ", "aXbXc", "<think>a</think>b", "\r\nq\rz", "1_000", "inf", "²x٣"]
USERS = "\u4e01\u4e03\u4e09"   # nobody else writes these
ROLES = ["user", "assistant", "system", "tool"]


class Maker:
    """Makes expressions by the kind of value that they should have; now and then of another kind."""

    def __init__(self, rng):
        self.rng = rng
        self.locals = []
        self.loops = 0

    def pick(self, *options):
        return self.rng.choice(options)

    # ---- contexts
    def user(self):
        s = self.rng.choice(STRINGS)
        at = self.rng.randrange(len(s) + 1)
        return s[:at] + self.pick("", "", *USERS) + s[at:]

    def value(self, depth=2):
        kind = self.rng.randrange(9 if depth else 6)
        if kind == 0:
            return self.rng.choice([0, 1, -1, 2, 3, 7, 10, 255, -12, 1000000])
        if kind == 1:
            return self.rng.choice([0.0, 1.0, -2.5, 3.14159, 1e20, 1e-7, 0.1, 123456.789, 2.675, -0.0])
        if kind == 2:
            return self.rng.choice([True, False])
        if kind == 3:
            return None
        if kind in (4, 5):
            return self.rng.choice(STRINGS)
        if kind == 6:
            return [self.value(depth - 1) for _ in range(self.rng.randrange(4))]
        return {self.rng.choice(["a", "b", "k", "name", "items", "ü", "x y"]): self.value(depth - 1) for _ in range(self.rng.randrange(4))}

    def message(self):
        m = {"role": self.rng.choice(ROLES), "content": self.user()}
        if self.rng.random() < 0.2:
            m["content"] = [{"type": "text", "text": self.user()} for _ in range(self.rng.randrange(3))]
        if self.rng.random() < 0.2:
            m["tool_calls"] = [{"type": "function", "function": {"name": "f", "arguments": self.value()}}]
            m["content"] = None
        return m

    def size(self):
        return self.pick(1, 1, 2, 2, 3, 3, 4, 5, 0)

    def context(self):
        return {"messages": [self.message() for _ in range(self.size())], "bos_token": "<s>", "add_generation_prompt": self.pick(True, False),
                "s": self.rng.choice(STRINGS), "t": self.rng.choice(STRINGS), "n": self.rng.randrange(-5, 12), "f": self.pick(0.5, 2.0, -1.25, 1e16),
                "l": [self.rng.randrange(9) for _ in range(self.size())], "w": [self.rng.choice(STRINGS) for _ in range(self.size())],
                "d": {k: self.value() for k in self.rng.sample(["a", "b", "k", "Z", "name"], self.rng.randrange(5))},
                "r": [{"k": self.rng.choice([1, 2, 3]), "v": self.rng.choice(STRINGS)} for _ in range(self.size())],
                "none_": None, "yes": True, "any": self.value(3), "tools": self.pick(None, [{"type": "function", "function": {"name": self.user(), "parameters": self.value(3)}}])}

    # ---- expressions
    def literal(self, s):
        s = s.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r").replace("{%", "{ %")
        return "'" + s + "'"

    def expression(self, kind, depth):
        if self.rng.random() < 0.02:
            kind = self.pick("text", "int", "float", "list", "words", "dict", "bool", "any", "rows")
        make = getattr(self, kind)
        made = make(depth - 1)
        # Mostly in parentheses: what stands behind a filter's arguments is seldom an expression's end.
        return f"({made})" if self.rng.random() < (0.75 if "|" in made or " " in made else 0.04) else made

    def text(self, depth):
        e = self.expression
        if depth <= 0:
            return self.pick("s", "t", "bos_token", "messages[0].content", "messages[-1]['role']", "r[0].v", *self.locals, self.literal(self.rng.choice(STRINGS)))
        x = e("text", depth)
        return self.rng.choice(TEXT)(self, x, depth)

    def int(self, depth):
        if depth <= 0:
            return self.pick("n", "0", "1", "2", "3", "-1", "7", "n", "l[0]", "1_0", "loop.index" if self.loops else "4")
        return self.rng.choice(INT)(self, depth)

    def float(self, depth):
        if depth <= 0:
            return self.pick("f", "0.5", "1.0", "2.5e3", "f")
        return self.rng.choice(FLOAT)(self, depth)

    def bool(self, depth):
        if depth <= 0:
            return self.pick("yes", "true", "false", "add_generation_prompt", "missing", "none_", "d.a", "s", "l", "not yes")
        return self.rng.choice(BOOL)(self, depth)

    def list(self, depth):
        if depth <= 0:
            return self.pick("l", "l", "[1, 2, 3]", "(3, 1, 2)", "range(4)", "[]", "range(n)")
        return self.rng.choice(LIST)(self, depth)

    def words(self, depth):
        if depth <= 0:
            return self.pick("w", "w", "['b', 'A', 'c']", "s.split()", "t.split(',')", "('x',)")
        return self.rng.choice(WORDS)(self, depth)

    def rows(self, depth):
        if depth <= 0:
            return self.pick("r", "r", "messages", "[{'k': 1, 'v': 'q'}, {'k': 0}]")
        return self.rng.choice(ROWS)(self, depth)

    def dict(self, depth):
        if depth <= 0:
            return self.pick("d", "d", "messages[0]", "r[0]", "{}", "{'a': 1, 'B': s}", "{1: n, 'x': none, 2.5: [s]}")
        e = self.expression
        return self.pick(f"dict(a={e('any', depth)}, b={e('int', depth)})", f"{{'k': {e('any', depth)}, {e('text', depth)}: 1}}",
                         f"dict({e('dict', depth)}, z={e('text', depth)})", f"{e('dict', depth)}.copy()")

    def any(self, depth):
        if depth <= 0:
            return self.pick("any", "d", "s", "n", "f", "l", "w", "none_", "yes", "missing", "d.k", "d['a']", "any.a", "any[0]", "tools", "messages",
                             "any.b.c", "d.Z", "none", "True")
        e = self.expression
        kind = self.pick("text", "int", "float", "bool", "list", "words", "dict", "rows", "item")
        if kind != "item":
            return e(kind, depth)
        return self.pick(f"{e('dict', depth)}.{self.pick('a', 'b', 'k', 'name', 'Z')}", f"{e('list', depth)}[{e('int', depth)}]",
                         f"{e('dict', depth)}.get({e('text', depth)}, {e('any', depth)})", f"{e('any', depth)}|default({e('any', depth)})",
                         f"{e('any', depth)} {self.pick('and', 'or')} {e('any', depth)}", f"({e('any', depth)} if {e('bool', depth)} else {e('any', depth)})",
                         f"({e('any', depth)} if {e('bool', depth)})", f"{e('list', depth)}|{self.pick('first', 'last', 'min', 'max', 'sum')}",
                         f"{e('any', depth)}|d({e('text', depth)}, true)", f"{e('rows', depth)}|sum(attribute='k')",
                         f"{e('words', depth)}|{self.pick('first', 'last', 'min', 'max')}", f"{e('rows', depth)}|map(attribute='v')|first")


# ---- what has which kind: (maker, depth) or (maker, an expression of text, depth)
def k(m, *names):
    return m.rng.choice(names)


TEXT = [
    lambda m, x, d: f"{x}|{k(m, 'upper', 'lower', 'title', 'capitalize', 'trim', 'string', 'reverse', 'e', 'safe', 'escape', 'forceescape', 'urlencode')}",
    lambda m, x, d: f"{x}.{k(m, 'upper', 'lower', 'title', 'capitalize', 'strip', 'lstrip', 'rstrip', 'swapcase', 'casefold', 'expandtabs')}()",
    lambda m, x, d: f"{x}.{k(m, 'strip', 'lstrip', 'rstrip', 'removeprefix', 'removesuffix')}({m.expression('text', d)})",
    lambda m, x, d: f"{x}|trim({m.expression('text', d)})",
    lambda m, x, d: f"{x} {k(m, '~', '+', '~', '~')} {m.expression('text', d)}",
    lambda m, x, d: f"{x} ~ {m.expression('any', d)}",
    lambda m, x, d: f"({x} * {m.expression('int', d)})",
    lambda m, x, d: f"{x}{k(m, '[1:]', '[:-1]', '[0]', '[-1]', '[::2]', '[::-1]', '[2:5]', '[-3:]', '[:n]', '[n]', '[n:1:-1]')}",
    lambda m, x, d: f"{x}|replace({m.expression('text', d)}, {m.expression('text', d)})",
    lambda m, x, d: f"{x}.replace({m.expression('text', d)}, {m.expression('text', d)}{k(m, '', '', ', 1', ', n')})",
    lambda m, x, d: f"{x}|{k(m, 'indent', 'indent(2)', 'indent(2, true)', 'indent(1, blank=true)', 'indent(first=true)', 'indent(width=s)')}",
    lambda m, x, d: f"{x}|{k(m, 'center(12)', 'center', 'truncate(8)', 'truncate(5, true)', 'truncate(6, end=s)', 'truncate(9, leeway=0)')}",
    lambda m, x, d: f"{x}.{k(m, 'center', 'ljust', 'rjust')}({m.expression('int', d)}{k(m, '', '', chr(44) + ' ' + chr(39) + '*' + chr(39))})",
    lambda m, x, d: f"{x}.zfill({m.expression('int', d)})",
    lambda m, x, d: f"{x}.join({m.expression('words', d)})",
    lambda m, x, d: f"{m.expression('words', d)}|join({x})",
    lambda m, x, d: f"{m.expression('list', d)}|join({x})",
    lambda m, x, d: f"{m.expression('rows', d)}|join({x}, attribute='v')",
    lambda m, x, d: f"{m.expression('any', d)}|tojson{k(m, '', '', '(indent=2)', '(true)', '(indent=4, sort_keys=true)', '(separators=(s, t))', '(indent=0)')}",
    lambda m, x, d: f"{m.expression('any', d)}|string",
    lambda m, x, d: f"('%s|%{k(m, '', '5', '-7', '.2', '.0', '6.3')}s' % ({x}, {m.expression('any', d)}))",
    lambda m, x, d: f"('{k(m, '%d', '%5d', '%-4d|', '%05d', '%+d', '%x', '%#x', '%X', '%o', '% d', '%.3d', '%i', '%r', '%c', '%5.1f', '%e', '%g')}' % {m.expression('int', d)})",
    lambda m, x, d: f"'{k(m, '%f', '%.2f', '%8.3f', '%-9.1f|', '%+.1e', '%g', '%.3g', '%G', '%08.2f', '%s', '%r', '%d', '%.0f', '%#.0f')}'|format({m.expression('float', d)})",
    lambda m, x, d: f"'%(a)s-%(b)r'|format(a={x}, b={m.expression('any', d)})",
    lambda m, x, d: f"'{{0}}{{1!r}}|{{2}}'.format({x}, {m.expression('any', d)}, n)",
    lambda m, x, d: f"'{{:{k(m, '', '10', '<6', '>6', '^7', '*^9', '.2', '05', 's', 'd', '-<8.3s')}}}|{{!r:>5}}'.format({x}, {m.expression('any', d)})",
    lambda m, x, d: f"'{{0[a]}} {{0.b}} {{x}}'.format({m.expression('dict', d)}, x={x})",
    lambda m, x, d: f"'{{:{k(m, ',', '05d', 'x', '#x', 'b', '+', ' d', '_', '_b', '>5', 'e', '.1f', '%', 'c', 'n', '08,', '^6')}}}'.format({m.expression('int', d)})",
    lambda m, x, d: f"'{{:{k(m, '.2f', ',.1f', 'e', '.3g', '.3', '8.1f', '%', '+.0f', '', '012,.2f', 'g', '10', '.1', '#.3g', 'n', 'F')}}}'.format({m.expression('float', d)})",
    lambda m, x, d: f"'{{:{{}}}}'.format({x}, {m.expression('int', d)})",
    lambda m, x, d: f"({x} if {m.expression('bool', d)} else {m.expression('text', d)})",
    lambda m, x, d: f"{x}|default({m.expression('text', d)}{k(m, '', ', true', ', boolean=true')})",
    lambda m, x, d: f"{m.expression('dict', d)}|{k(m, 'xmlattr', 'urlencode', 'xmlattr(false)')}",
    lambda m, x, d: f"{m.expression('int', d)}|filesizeformat{k(m, '', '(true)')}",
    lambda m, x, d: f"{x}.{k(m, 'partition', 'rpartition')}({m.expression('text', d)})[{k(m, '0', '1', '2', '-1')}]",
    lambda m, x, d: f"{x}.{k(m, 'split', 'rsplit')}({m.expression('text', d)}{k(m, '', ', 1', ', maxsplit=1')})[{k(m, '0', '-1')}]",
    lambda m, x, d: f"{x}|safe ~ {m.expression('text', d)}", lambda m, x, d: f"{x}|safe + {m.expression('text', d)}",
]
INT = [
    lambda m, d: f"{m.expression(k(m, 'list', 'words', 'text', 'dict', 'rows'), d)}|{k(m, 'length', 'count')}",
    lambda m, d: f"{m.expression('int', d)} {k(m, '+', '-', '*', '//', '%')} {m.expression('int', d)}",
    lambda m, d: f"({m.expression('int', d)} {k(m, '+', '-', '*', '//', '%')} {m.expression('int', d)})",
    lambda m, d: f"({k(m, '2', 'n', '3', '-2')} ** {k(m, '2', '3', '0', '-1', 'n')})", lambda m, d: f"-{m.expression('int', d)}",
    lambda m, d: f"{m.expression('any', d)}|int{k(m, '', '(5)', '(base=16)', '(default=none)', '(0, 0)', '(0, 2)')}",
    lambda m, d: f"{m.expression('int', d)}|abs", lambda m, d: f"{m.expression('list', d)}|sum", lambda m, d: f"{m.expression('list', d)}|{k(m, 'min', 'max', 'first')}",
    lambda m, d: f"{m.expression('text', d)}.{k(m, 'find', 'rfind', 'index', 'count', 'rindex')}({m.expression('text', d)}{k(m, '', '', ', 1', ', 1, 4', ', -3', ', n, n')})",
    lambda m, d: f"{m.expression('text', d)}|wordcount",
    lambda m, d: f"{m.expression('int', d)}|round({k(m, '', '1', '-1', '0')})",
    lambda m, d: f"({m.expression('list', d)}|list).{k(m, 'index', 'count')}({m.expression('int', d)})",
]
FLOAT = [
    lambda m, d: f"{m.expression('float', d)} {k(m, '+', '-', '*', '/', '//', '%')} {m.expression(k(m, 'float', 'int'), d)}",
    lambda m, d: f"({m.expression('int', d)} / {m.expression('int', d)})", lambda m, d: f"{m.expression('any', d)}|float{k(m, '', '(1.5)', '(none)')}",
    lambda m, d: f"{m.expression(k(m, 'float', 'int'), d)}|round({k(m, '', '1', '2', '-1', '0, ' + chr(39) + 'ceil' + chr(39), '1, ' + chr(39) + 'floor' + chr(39))})",
    lambda m, d: f"{m.expression('float', d)}|abs", lambda m, d: f"({m.expression('float', d)} ** 2)", lambda m, d: f"-{m.expression('float', d)}",
]
NAMES = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping", "sequence", "iterable", "odd",
         "even", "lower", "upper", "escaped", "callable", "divisibleby 3", "eq(n)", "ne 1", "in [1, 'a', none]", "gt 2", "lt(f)", "ge n", "sameas none",
         "sameas(true)", "filter", "test", "equalto 'a'"]
METHODS = ["isalpha", "isdigit", "isalnum", "isspace", "islower", "isupper", "istitle", "isnumeric", "isdecimal", "isascii", "isprintable"]
BOOL = [
    lambda m, d: f"{m.expression('any', d)} is {k(m, '', 'not ')}{m.rng.choice(NAMES)}", lambda m, d: f"not {m.expression('bool', d)}",
    lambda m, d: f"{m.expression('int', d)} {k(m, '<', '<=', '>', '>=', '==', '!=')} {m.expression(k(m, 'int', 'float'), d)}",
    lambda m, d: f"{m.expression('text', d)} {k(m, '<', '==', '!=', 'in', 'not in')} {m.expression('text', d)}",
    lambda m, d: f"{m.expression('any', d)} {k(m, 'in', 'not in')} {m.expression(k(m, 'list', 'words', 'dict'), d)}",
    lambda m, d: f"{m.expression('any', d)} == {m.expression('any', d)}", lambda m, d: f"({m.expression('bool', d)} {k(m, 'and', 'or')} {m.expression('bool', d)})",
    lambda m, d: f"{m.expression('text', d)}.{k(m, 'startswith', 'endswith')}({m.expression('text', d)}{k(m, '', '', ', 1')})",
    lambda m, d: f"{m.expression('text', d)}.{m.rng.choice(METHODS)}()", lambda m, d: f"1 < {m.expression('int', d)} <= 5",
    lambda m, d: f"{m.expression('text', d)}.startswith(('a', 'H', s))", lambda m, d: f"{m.expression('list', d)} < {m.expression('list', d)}",
]
SELECT = ["select", "reject", "select('odd')", "reject('gt', 2)", "select('in', l)", "select('divisibleby', 2)", "select('nope')", "reject('none')"]
LIST = [
    lambda m, d: f"{m.expression('list', d)}|{k(m, 'list', 'sort', 'sort(reverse=true)', 'unique|list', 'reverse|list', 'reverse')}",
    lambda m, d: f"{m.expression('list', d)}|{m.rng.choice(SELECT)}{k(m, '|list', '|list', '')}", lambda m, d: f"{m.expression('list', d)}{k(m, '[1:]', '[::-1]', '[:2]', '[-2:]', '[n:]')}",
    lambda m, d: f"({m.expression('list', d)} + {m.expression('list', d)})", lambda m, d: f"[{m.expression('any', d)}, {m.expression('any', d)}]",
    lambda m, d: f"{m.expression('list', d)}|map({k(m, 'abs', 'string', 'float', 'round', 'int', 'upper').__repr__()})|list",
    lambda m, d: f"{m.expression('list', d)}|batch({m.expression('int', d)}{k(m, '', ', 0')})|list", lambda m, d: f"{m.expression('list', d)}|slice(2{k(m, '', ', n')})|list",
    lambda m, d: f"range({m.expression('int', d)}, {m.expression('int', d)})|list", lambda m, d: f"range(7, n, {k(m, '-1', '-2', '1', '0')})",
    lambda m, d: f"({m.expression('any', d)}, {m.expression('any', d)})", lambda m, d: f"{m.expression('rows', d)}|map(attribute='k')|list",
    lambda m, d: f"{m.expression('rows', d)}|map(attribute='v.0', default=3)|list", lambda m, d: f"([1] * {m.expression('int', d)})",
    lambda m, d: f"{m.expression('rows', d)}|groupby('{k(m, 'k', 'v', 'role')}')", lambda m, d: f"{m.expression('dict', d)}|dictsort{k(m, '', '(true)', '(by=' + repr('value') + ')', '(reverse=true)')}",
]
WORDS = [
    lambda m, d: f"{m.expression('text', d)}.split({k(m, '', '', m.expression('text', d))})", lambda m, d: f"{m.expression('text', d)}.splitlines({k(m, '', '', 'true')})",
    lambda m, d: f"{m.expression('text', d)}.rsplit(none, {m.expression('int', d)})", lambda m, d: f"{m.expression('words', d)}|{k(m, 'sort', 'unique|list', 'list', 'reverse|list', 'sort(case_sensitive=true)')}",
    lambda m, d: f"{m.expression('words', d)}|map({k(m, 'upper', 'trim', 'length', 'title', 'int', 'tojson').__repr__()})|list", lambda m, d: f"{m.expression('words', d)}|select|list",
    lambda m, d: f"{m.expression('text', d)}|list", lambda m, d: f"[{m.expression('text', d)}, {m.expression('text', d)}]", lambda m, d: f"{m.expression('dict', d)}.{k(m, 'keys()', 'items()', 'values()')}|list",
    lambda m, d: f"{m.expression('dict', d)}|{k(m, 'list', 'items|list', 'items')}", lambda m, d: f"{m.expression('rows', d)}|map(attribute='v')|list",
    lambda m, d: f"{m.expression('words', d)}|map('replace', {m.expression('text', d)}, 'Q')|list", lambda m, d: f"{m.expression('words', d)}|reject('in', {m.expression('text', d)})|list",
    lambda m, d: f"{m.expression('dict', d)}.{k(m, 'keys()', 'items()', 'values()')}",
]
ROWS = [
    lambda m, d: f"{m.expression('rows', d)}|{k(m, 'selectattr', 'rejectattr')}('k'{k(m, '', ', ' + repr('gt') + ', 1', ', ' + repr('defined'), ', ' + repr('equalto') + ', n')})|list",
    lambda m, d: f"{m.expression('rows', d)}|sort(attribute='{k(m, 'k', 'v', 'k,v', 'role')}')", lambda m, d: f"{m.expression('rows', d)}|unique(attribute='k')|list",
    lambda m, d: f"{m.expression('rows', d)}{k(m, '[1:]', '[::-1]', '[:-1]')}", lambda m, d: f"[{m.expression('dict', d)}]", lambda m, d: f"(messages + {m.expression('rows', d)})",
    lambda m, d: f"messages|{k(m, 'selectattr', 'rejectattr')}('role', 'equalto', '{m.rng.choice(ROLES)}')|list", lambda m, d: f"{m.expression('rows', d)}|list",
]


# ---- templates
class Template(Maker):
    def tag(self, inside):
        return self.pick("{% ", "{%- ", "{% ", "{%+ ") + inside + self.pick(" %}", " -%}", " %}", " %}")

    def name(self):
        return self.pick("x", "y", "z", "item")

    def print(self, depth):
        kind = self.pick("text", "text", "any", "int", "float", "bool", "list", "words", "dict", "rows")
        return self.pick("{{ ", "{{- ", "{{ ") + self.expression(kind, self.rng.randrange(1, 4)) + self.pick(" }}", " -}}", " }}")

    def data(self, depth):
        return self.rng.choice(["\n", " ", "text ", "  \n  ", "<|im_start|>", "\n\n", "{# note #}", "{#- n -#}\n", "{% raw %}{{ x }}{% endraw %}", "a\tb ", "  "])

    def set(self, depth):
        name = self.name()
        made = self.tag(f"set {name} = {self.expression('any', 3)}")
        self.locals.append(name)
        return made

    def set_block(self, depth):
        name = self.name()
        filters = self.pick("", "", "|upper", "|trim")
        made = self.tag(f"set {name} {filters}") + self.body(depth) + self.tag("endset")
        self.locals.append(name)
        return made

    def set_two(self, depth):
        return self.tag(f"set x, y = {self.expression('any', 2)}, {self.expression('text', 2)}") + "{{ y }}"

    def condition(self, depth):
        made = self.tag(f"if {self.expression('bool', 3)}") + self.body(depth)
        if self.rng.random() < 0.4:
            made += self.tag(f"elif {self.expression('bool', 2)}") + self.body(depth)
        if self.rng.random() < 0.5:
            made += self.tag("else") + self.body(depth)
        return made + self.tag("endif")

    def loop(self, depth):
        kind = self.pick("list", "words", "rows", "rows")
        name = self.pick("item", "m", "x")
        head = f"for {name} in {self.expression(kind, 2)}"
        if self.rng.random() < 0.2:
            head += f" if {name}{self.pick('', ' is string', ' != 2', '.k is defined', ' is not none')}"
        self.loops += 1
        kept = list(self.locals)
        self.locals.append(name if kind == "words" else self.pick(f"{name}.v", f"{name}['content']", "loop.index0", f"{name}.role"))
        body = self.body(depth)
        if self.rng.random() < 0.5:
            body += "{{ " + self.rng.choice(LOOP) + " }}"
        if self.rng.random() < 0.2:
            body += self.tag(f"if {self.expression('bool', 2)}") + self.tag(self.pick("break", "continue")) + self.tag("endif") + self.body(0)
        self.loops -= 1
        self.locals = kept
        otherwise = self.tag("else") + self.body(depth) if self.rng.random() < 0.2 else ""
        return self.tag(head) + body + otherwise + self.tag("endfor")

    def pairs(self, depth):
        return self.tag(f"for a, b in {self.expression('dict', 2)}{self.pick('.items()', '|items', '|dictsort', '.items()')}") + \
            "{{ a }}={{ b" + self.pick("", "|tojson", "|string") + " }};" + self.body(depth) + self.tag("endfor")

    def recursive(self, depth):
        return self.tag("for x in [1, [2, [3]], 'ab'] recursive") + "{{ loop.depth }}{{ loop(x) if x is iterable and x is not string else x }}" + self.tag("endfor")

    def macro(self, depth):
        name = self.pick("show", "part")
        kept, self.locals = self.locals, ["a", "b"]
        body = self.body(depth) + self.pick("", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller }}")
        self.locals = kept
        call = self.pick("", self.expression("text", 2), f"{self.expression('any', 2)}, 1", f"b={self.expression('any', 2)}", "1, 2, 3", "q=1")
        made = self.tag(f"macro {name}(a, b={self.expression('text', 1)})") + body + self.tag("endmacro")
        if self.rng.random() < 0.25:
            return made + self.tag(f"call {name}({call})") + self.body(0) + self.tag("endcall")
        return made + "{{ " + name + "(" + call + ") " + self.pick("", "", "|trim", "~ s", "+ s") + "}}"

    def namespace(self, depth):
        return self.tag(f"set ns = namespace(v={self.expression('any', 2)}, c=0)") + self.tag("for q in [1, 2, 3]") + \
            self.tag(f"set ns.{self.pick('v', 'c', 'w')} = {self.pick('ns.c + q', self.expression('any', 2))}") + self.body(0) + self.tag("endfor") + "{{ ns.v }}{{ ns.c }}{{ ns.w }}"

    def block(self, depth):
        head, end = self.pick(("filter upper", "endfilter"), ("filter indent(2)|trim", "endfilter"), (f"with x = {self.expression('any', 2)}", "endwith"),
                              ("generation", "endgeneration"), ("with", "endwith"))
        return self.tag(head) + self.body(depth) + self.tag(end)

    def trouble(self, depth):
        return self.rng.choice(["{{ missing.a }}", "{{ missing() }}", "{{ raise_exception('no') }}", "{{ l.append(1) }}", "{% set q = l.append %}", "{{ d.update }}",
                           "{{ s|nope }}", "{{ 1 +  }}", "{% if %}", "{{ s.nope }}", "{{ s.nope.more }}", "{{ none.x }}", "{{ missing|upper }}", "{{ missing + 1 }}",
                           "{% set g = l|map('string') %}{{ g|join }}{{ g|join }}", "{% for x in missing %}{% else %}e{% endfor %}", "{{ 5|list }}", "{{ [1, 'a']|sort }}",
                           "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}", "{% set j = joiner('-') %}{{ j() }}{{ j() }}{{ j() }}",
                           "{% endif %}", "{{ '%d' % s }}", "{{ {}.a.b }}", "{{ 1 if missing }}|", "{{ (1 if false)|default('D') }}", "{{ [l] is in [[l]] }}"])

    def body(self, depth):
        makes = [self.print, self.print, self.print, self.data, self.data]
        if depth > 0:
            makes += [self.set, self.set_block, self.condition, self.condition, self.loop, self.loop, self.pairs, self.macro, self.namespace, self.block,
                      self.recursive, self.set_two]
        made = "".join(self.rng.choice(makes)(depth - 1) for _ in range(self.rng.randrange(1, 4)))
        return made + (self.trouble(0) if self.rng.random() < 0.03 else "")


LOOP = ["loop.index", "loop.first", "loop.last", "loop.length", "loop.revindex", "loop.cycle('a', 'b')", "loop.previtem", "loop.nextitem", "loop.changed(1)",
        "loop.index0", "loop.revindex0", "loop.depth", "loop.depth0", "loop.nope", "',' if not loop.last"]


def expected(env, case):
    try:
        return {"text": env.from_string(case["template"]).render(**case["context"])}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def comparable(case, theirs, ours):
    printed = theirs.get("text", "").lower()
    error = ours.get("error", "")
    return not (any(p in printed for p in (" at 0x", "<function", "<built-in", "<class", "<macro")) or "64 bits" in error
                or "no such slice" in error or re.search(r"\b[0-9]+\[[^]]*:", case["template"]))


def well_marked(case, ours):
    marks, text = ours["marks"], ours["text"]
    if "messages" not in case["template"] and "tools" not in case["template"]:
        return "1" not in marks
    at = 0
    for c in text:
        size = len(c.encode())
        if c in USERS and marks[at:at + size] != "1" * size:
            return False
        at += size
    return at == len(marks)


def run_driver(driver, cases):
    lines = "".join(json.dumps(c) + "\n" for c in cases)
    done = subprocess.run([driver], input=lines.encode(), stdout=subprocess.PIPE, check=False)
    replies = [json.loads(line) for line in done.stdout.decode().splitlines()]
    if len(replies) != len(cases):
        print(f"the driver ended with {done.returncode} at", json.dumps(cases[len(replies)]))
        sys.exit(1)
    return replies


def main():
    driver, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    env, cases, differences, failures, left_out = environment(), [], 0, 0, 0
    for i in range(count):
        maker = Template(random.Random(f"{seed} {i}"))
        cases.append({"template": maker.body(maker.rng.randrange(3)), "context": maker.context()})
    for case, ours in zip(cases, run_driver(driver, cases)):
        theirs = expected(env, case)
        if not comparable(case, theirs, ours):
            left_out += 1
            continue
        failures += "error" in theirs
        same = theirs["text"] == ours.get("text") and well_marked(case, ours) if "text" in theirs else "error" in ours
        if same:
            continue
        differences += 1
        if differences <= 20:
            print(json.dumps(case, ensure_ascii=False), "\n  Jinja2:", json.dumps(theirs), "\n  here:  ", json.dumps(ours))
    print(f"{failures} cases fail in both, {left_out} are left out")
    print(f"{count} cases, {differences} differences")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
