"""YAML 1.2 values with their positions, from untrusted bytes: whatever comes in, values or problems come out.

PyYAML's C composer scans and builds nodes; the core schema of YAML 1.2 and all limits are ours, because PyYAML reads YAML 1.1
(`no` is false, `12:30` is a number), lets the last of two equal keys win and expands aliases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_FILE = 4 << 20
MAX_DOCUMENT = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000
_MAX_INT = 2**63

_TAG = "tag:yaml.org,2002:"
_STR, _INT, _FLOAT, _BOOL, _NULL = (_TAG + name for name in ("str", "int", "float", "bool", "null"))
_SEQ, _MAP = _TAG + "seq", _TAG + "map"
_WORDS = dict.fromkeys(("", "~", "null", "Null", "NULL"), _NULL)
_WORDS |= dict.fromkeys(("true", "True", "TRUE", "false", "False", "FALSE"), _BOOL)
_NUMBER_START = frozenset("0123456789-+.")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_REAL = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
)
# What might be an anchor or alias; only then are the parser's events read once more to be sure.
_MAYBE_ANCHOR = re.compile(r"(?:^|[\s,\[{:-])[&*][^\s]", re.MULTILINE)


class Flaw(NamedTuple):
    """A problem of a text whose file is not known yet; lines and columns count from 1."""

    line: int
    column: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its values, and where each of them stands."""

    value: Any
    index: int  # among the file's documents that are not empty
    root: Node
    flawed: bool

    def place(self, path: Iterable[str | int] = (), *, key: bool = False) -> tuple[int, int]:
        """Line and column of the value at `path`, or of its nearest ancestor that exists; with `key`, of its key."""
        node = self.root
        mark = node.start_mark
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            of_key, node = found
            mark = of_key.start_mark if key or isinstance(node, MappingNode | SequenceNode) else node.start_mark
        return _place(mark)


def read(data: bytes, flaws: list[Flaw]) -> Iterator[Document]:
    """The documents of a file, one at a time because their nodes are large; `flaws` grows on the way.

    Documents after a syntax error are missing; empty ones are left out.
    """
    text, undecodable = _decode(data)
    if undecodable:
        flaws += undecodable
        return
    index = 0
    try:
        for root in _roots(text):
            values = _Values()
            value = values.of(root)
            flaws += values.flaws
            if value is not None or values.flaws:
                yield Document(value, index, root, bool(values.flaws))
                index += 1
    except _Found as found:
        flaws += found.flaws
    except yaml.YAMLError as error:
        flaws.append(_syntax(error, text))


def _child(node: Node, step: str | int) -> tuple[Node, Node] | None:
    """The key node and value node of one step; an item of a sequence stands for its own key."""
    if isinstance(node, MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


class _Found(Exception):  # carries flaws out of the parser, never leaves this module
    def __init__(self, *flaws: Flaw) -> None:
        super().__init__()
        self.flaws = flaws


class _Limit(Exception):  # raised inside the parser, where positions are not known
    pass


class _Loader(yaml.CSafeLoader):
    """The C composer with the core schema of YAML 1.2 and with limits that hold while it works."""

    nodes = 0
    depth = 0

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise _Limit

    def ascend_resolver(self) -> None:
        self.depth -= 1

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _Limit
        if kind is not ScalarNode:
            return _MAP if kind is MappingNode else _SEQ
        return _plain(value) if implicit[0] else _STR


def _plain(text: str) -> str:
    """The tag of an unquoted scalar."""
    if (word := _WORDS.get(text)) is not None:
        return word
    if text[0] not in _NUMBER_START:
        return _STR
    if _INTEGER.fullmatch(text):
        return _INT
    return _FLOAT if _REAL.fullmatch(text) else _STR


def _decode(data: bytes) -> tuple[str, list[Flaw]]:
    if len(data) > MAX_FILE:
        return "", [Flaw(1, 1, "YAML_TOO_LARGE", f"{len(data)} bytes, a file may have {MAX_FILE}")]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        before = data[:start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace").lstrip("\ufeff")) + 1
        return "", [Flaw(line, column, "YAML_UTF8", f"byte {start} is not UTF-8; save the file as UTF-8")]


def _roots(text: str) -> Iterator[Node]:
    """The root node of each document."""
    if _MAYBE_ANCHOR.search(text):
        _refuse_anchors(text)
    loader = _Loader(text)
    try:
        while loader.check_node():
            loader.nodes = loader.depth = 0
            root = loader.get_node()
            if root is None:  # the stream ended
                return
            size = root.end_mark.index - root.start_mark.index
            if size > MAX_DOCUMENT:
                flaw = _at(root, "YAML_TOO_LARGE", f"{size} characters, a document may have {MAX_DOCUMENT}")
                raise _Found(flaw)
            yield root
    except _Limit:
        raise _Found(_limit(text)) from None
    finally:
        loader.dispose()


def _refuse_anchors(text: str) -> None:
    flaws = []
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            anchor = getattr(event, "anchor", None)
            if anchor is not None:
                alias = isinstance(event, yaml.AliasEvent)
                sign, what = ("*", "alias") if alias else ("&", "anchor")
                hint = "quote it if it is text, else write the value out"
                message = f"{what} {sign}{anchor}: aliases and anchors are not used here; {hint}"
                flaws.append(Flaw(*_place(event.start_mark), "YAML_ALIAS", message))
    except yaml.YAMLError as error:
        flaws.append(_syntax(error, text))
    if flaws:
        raise _Found(*flaws[:100])


def _limit(text: str) -> Flaw:
    """Where a limit of the loader was passed, found by reading the parser's events."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            depth = nodes = 0
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        place = _place(event.start_mark)
        if depth > MAX_DEPTH:
            return Flaw(*place, "YAML_TOO_DEEP", f"nested more than {MAX_DEPTH} deep")
        if nodes > MAX_NODES:
            return Flaw(*place, "YAML_TOO_LARGE", f"more than {MAX_NODES} values in one document")
    return Flaw(1, 1, "YAML_TOO_LARGE", "too deep or too large")


def _syntax(error: yaml.YAMLError, text: str) -> Flaw:
    if isinstance(error, yaml.reader.ReaderError):
        before = text.encode()[: error.position].decode("utf-8", "replace")
        shown = f"U+{error.character:04X}" if isinstance(error.character, int) else ascii(error.character)
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return Flaw(line, column, "YAML_SYNTAX", f"character {shown} is not allowed in YAML")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    message = ": ".join(part for part in parts if part) or "not readable"
    if mark is None:
        return Flaw(1, 1, "YAML_SYNTAX", message)
    lines = text.splitlines()
    shown = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in shown[: len(shown) - len(shown.lstrip())] or shown[mark.column : mark.column + 1] == "\t":
        return Flaw(*_place(mark), "YAML_TAB", "a tab cannot indent; use spaces")
    if parts[0] in ("while scanning an alias", "while scanning an anchor"):
        return Flaw(*_place(mark), "YAML_ALIAS", "text that starts with * or & must be quoted")
    return Flaw(*_place(mark), "YAML_SYNTAX", message)


def _place(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _at(node: Node, code: str, message: str) -> Flaw:
    return Flaw(*_place(node.start_mark), code, message)


class _Values:
    """Plain Python values of one document's nodes, and every flaw on the way."""

    def __init__(self) -> None:
        self.flaws: list[Flaw] = []

    def of(self, node: Node) -> Any:
        tag = node.tag
        if tag == _STR:
            return node.value
        if isinstance(node, MappingNode) and tag == _MAP:
            return self._mapping(node)
        if isinstance(node, SequenceNode) and tag == _SEQ:
            return [self.of(item) for item in node.value]
        if not isinstance(node, ScalarNode) or tag not in (_INT, _FLOAT, _BOOL, _NULL):
            shown = tag.replace(_TAG, "!!")
            self.flaws.append(_at(node, "YAML_TAG", f"tag {shown} is not known here"))
            return None
        return self._scalar(node, tag)

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            value = self.of(value_node)
            if key_node.tag != _STR:
                self._refuse_key(key_node)
            elif key == "<<" and not key_node.style:
                self.flaws.append(_at(key_node, "YAML_MERGE_KEY", "merge keys are not used here; write the fields out"))
            elif key in found:
                message = f"key '{key}' was already given in line {first[key].start_mark.line + 1}"
                self.flaws.append(_at(key_node, "YAML_DUPLICATE_KEY", message))
            else:
                found[key] = value
                first[key] = key_node
        return found

    def _refuse_key(self, node: Node) -> None:
        if isinstance(node, ScalarNode):
            message = f"key {node.value or 'null'} is not text; quote it: '{node.value}'"
        else:
            message = "a key must be text"
        self.flaws.append(_at(node, "YAML_KEY", message))

    def _scalar(self, node: ScalarNode, tag: str) -> Any:
        text = node.value
        # An explicit tag (`!!int abc`) can claim what the text does not spell.
        if tag != _plain(text) and not (tag == _FLOAT and _INTEGER.fullmatch(text)):
            shown = tag.replace(_TAG, "!!")
            self.flaws.append(_at(node, "YAML_TAG", f"{_short(text)} is no {shown}"))
            return None
        if tag == _NULL:
            return None
        if tag == _BOOL:
            return text in ("true", "True", "TRUE")
        return self._number(node, text, tag)

    def _number(self, node: ScalarNode, text: str, tag: str) -> Any:
        if tag == _INT and len(text) <= 25:
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            number = int(text, base)
            if -_MAX_INT <= number < _MAX_INT:
                return number
        elif tag == _FLOAT and len(text) <= 400 and text.lstrip("+-.")[:3].lower() not in ("inf", "nan"):
            real = float(text)
            if math.isfinite(real):
                return real
        self.flaws.append(_at(node, "YAML_NUMBER", f"number {_short(text)} is out of range; quote it if it is text"))
        return None


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} characters)"
