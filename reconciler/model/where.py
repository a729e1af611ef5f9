"""Expressions over a node's labels: `zone == 'a' and disk in ['ssd', 'nvme'] and not node == 'old-1'`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

NODE = "node"  # the name that stands for the node's own name

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'[^']*'|"[^"]*")
      | (?P<op>==|!=|\(|\)|\[|\]|,)
      | (?P<name>[A-Za-z_][A-Za-z0-9_./-]*)
    )""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "in"})
_DEPTH = 50  # parentheses and `not` within each other: beyond this nobody means it


@dataclass(frozen=True, slots=True)
class Is:
    """The label has one of these values. A missing label has none."""

    label: str
    values: frozenset[str]

    def holds(self, labels: Mapping[str, str], node: str) -> bool:
        return (node if self.label == NODE else labels.get(self.label)) in self.values


@dataclass(frozen=True, slots=True)
class Not:
    of: Where

    def holds(self, labels: Mapping[str, str], node: str) -> bool:
        return not self.of.holds(labels, node)


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds; without parts it always does."""

    parts: tuple[Where, ...]

    def holds(self, labels: Mapping[str, str], node: str) -> bool:
        return all(part.holds(labels, node) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf:
    parts: tuple[Where, ...]

    def holds(self, labels: Mapping[str, str], node: str) -> bool:
        return any(part.holds(labels, node) for part in self.parts)


Where = Is | Not | All | AnyOf


def parse(text: str) -> Where:
    """The expression a text spells; an empty text holds for every node. ValueError names the column (from 1)."""
    tokens = _tokens(text)
    return All(()) if tokens[0].kind == "end" else _Parser(text, tokens).whole()


def matches(text: str, labels: Mapping[str, str], node: str) -> bool:
    """Whether a node with these labels and this name satisfies the expression. ValueError as of `parse`."""
    return _cached(text).holds(labels, node)


@lru_cache(maxsize=4096)
def _cached(text: str) -> Where:
    return parse(text)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # text, op, name, word, end
    value: str
    column: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _unreadable(text, at)
        kind, value = match.lastgroup, match[match.lastgroup]
        column = match.start(kind) + 1
        at = match.end()
        if kind == "text":
            value = value[1:-1]
        elif value in _WORDS:
            kind = "word"
        found.append(_Token(kind, value, column))
    return [*found, _Token("end", "", end + 1)]


def _unreadable(text: str, at: int) -> ValueError:
    while text[at].isspace():
        at += 1
    hint = {"=": "compare with ==", "'": "the quote is never closed", '"': "the quote is never closed"}
    hint |= {"&": "write and", "|": "write or", "!": "write not, or !="}
    reason = hint.get(text[at], "values stand in quotes, as in zone == 'a'")
    return ValueError(f"column {at + 1}: cannot read {text[at]!r}: {reason}")


class _Parser:
    """Recursive descent; `or` binds weakest, then `and`, then `not`."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text, self._tokens, self._at = text, tokens, 0

    def whole(self) -> Where:
        found = self._either(0)
        self._take("end", "", "and, or, or the end")
        return found

    def _either(self, depth: int) -> Where:
        if depth > _DEPTH:
            raise ValueError(f"column {self._next.column}: nested more than {_DEPTH} deep")
        parts = [self._both(depth)]
        while self._skip("word", "or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _both(self, depth: int) -> Where:
        parts = [self._one(depth)]
        while self._skip("word", "and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _one(self, depth: int) -> Where:
        negations = 0
        while self._skip("word", "not"):
            negations += 1
        if self._skip("op", "("):
            inner = self._either(depth + 1)
            self._take("op", ")", "a closing )")
        else:
            inner = self._comparison()
        return Not(inner) if negations % 2 else inner

    def _comparison(self) -> Where:
        label = self._take("name", None, "a label, as in zone == 'a'").value
        if self._skip("op", "=="):
            return Is(label, frozenset({self._value()}))
        if self._skip("op", "!="):
            return Not(Is(label, frozenset({self._value()})))
        if self._skip("word", "in"):
            return Is(label, self._values())
        if self._skip("word", "not"):
            self._take("word", "in", "in after not")
            return Not(Is(label, self._values()))
        raise self._expected(f"==, !=, in or not in after {label}")

    def _value(self) -> str:
        return self._take("text", None, "a value in quotes, as in 'a'").value

    def _values(self) -> frozenset[str]:
        self._take("op", "[", "a list, as in ['a', 'b']")
        values = [self._value()]
        while self._skip("op", ","):
            values.append(self._value())
        self._take("op", "]", "a comma or a closing ]")
        return frozenset(values)

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _skip(self, kind: str, value: str) -> bool:
        found = self._next.kind == kind and self._next.value == value
        self._at += found
        return found

    def _take(self, kind: str, value: str | None, wanted: str) -> _Token:
        token = self._next
        if token.kind != kind or (value is not None and token.value != value):
            raise self._expected(wanted)
        self._at += 1
        return token

    def _expected(self, wanted: str) -> ValueError:
        token = self._next
        found = "the end" if token.kind == "end" else repr(token.value)
        return ValueError(f"column {token.column}: expected {wanted}, found {found}")
