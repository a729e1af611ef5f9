"""The part of Consul's `?filter=` language that is in use: comparisons of selectors with texts, joined by and, or, not."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from agent.consul.embedded.state import Rejected

Predicate = Callable[[Mapping[str, Any]], bool]
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*"|`[^`]*`)|(==|!=|\(|\)|\[|\]|\.)|([A-Za-z0-9_:/-]+))')


def parse(text: str) -> Predicate:
    """A predicate over one JSON object. Raises Rejected 400 for what cannot be read."""
    parser = _Parser(text)
    predicate = parser.either()
    if parser.at < len(parser.tokens):
        raise parser.error("an operator")
    return predicate


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.tokens: list[str] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise Rejected(400, f"Failed to create boolean expression evaluator: cannot read {text[position:]!r}")
            self.tokens.append(match.group().strip())
            position = match.end()

    def error(self, wanted: str) -> Rejected:
        found = self.tokens[self.at] if self.at < len(self.tokens) else "the end"
        return Rejected(400, f"Failed to create boolean expression evaluator: expected {wanted}, found {found}")

    def take(self, *wanted: str) -> bool:
        """Step over these tokens if they are next."""
        if tuple(self.tokens[self.at : self.at + len(wanted)]) != wanted:
            return False
        self.at += len(wanted)
        return True

    def either(self) -> Predicate:
        first = self.both()
        if not self.take("or"):
            return first
        second = self.either()
        return lambda row: first(row) or second(row)

    def both(self) -> Predicate:
        first = self.one()
        if not self.take("and"):
            return first
        second = self.both()
        return lambda row: first(row) and second(row)

    def one(self) -> Predicate:
        if self.take("not"):
            inner = self.one()
            return lambda row: not inner(row)
        if self.take("("):
            inside = self.either()
            if not self.take(")"):
                raise self.error('")"')
            return inside
        return self.comparison()

    def comparison(self) -> Predicate:
        if self.tokens[self.at : self.at + 1] and self.tokens[self.at][0] in '"`':
            text = self.value()
            negated = self.take("not")
            if not self.take("in"):
                raise self.error('"in"')
            read = self.selector()
            return lambda row: _contains(read(row), text) != negated
        read = self.selector()
        if self.take("is", "empty"):
            return lambda row: not read(row)
        if self.take("is", "not", "empty"):
            return lambda row: bool(read(row))
        if self.take("=="):
            text = self.value()
            return lambda row: _text(read(row)) == text
        if self.take("!="):
            text = self.value()
            return lambda row: _text(read(row)) != text
        negated = self.take("not")
        if self.take("contains"):
            text = self.value()
            return lambda row: _contains(read(row), text) != negated
        if self.take("matches"):
            try:
                pattern = re.compile(self.value())
            except re.error as error:
                raise Rejected(400, f"Failed to create boolean expression evaluator: {error}") from error
            return lambda row: bool(pattern.search(_text(read(row)))) != negated
        raise self.error("an operator")

    def value(self) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at] in ("(", ")", "[", "]", "."):
            raise self.error("a value")
        token = self.tokens[self.at]
        self.at += 1
        if token[0] == "`":
            return token[1:-1]
        return re.sub(r"\\(.)", r"\1", token[1:-1]) if token[0] == '"' else token

    def selector(self) -> Callable[[Mapping[str, Any]], Any]:
        path = [self.value()]
        while True:
            if self.take("."):
                path.append(self.value())
            elif self.take("["):
                path.append(self.value())
                if not self.take("]"):
                    raise self.error('"]"')
            else:
                return lambda row: _follow(row, path)


def _follow(row: Any, path: list[str]) -> Any:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _contains(value: Any, text: str) -> bool:
    return text in (value if isinstance(value, (list, Mapping, str)) else ())
