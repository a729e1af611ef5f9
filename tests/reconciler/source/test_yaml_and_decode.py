"""YAML 1.2 values; and any bytes at all are documents or problems, never an exception."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reconciler.source.decode import decode
from reconciler.source.yaml import Flaw, read
from tests.reconciler.source.repos import BASE, GOOD, instance


def values(text: str | bytes) -> list[Any]:
    flaws: list[Flaw] = []
    found = [d.value for d in read(text if isinstance(text, bytes) else text.encode(), flaws)]
    assert flaws == []
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("12:30:00", "12:30:00"),
        ("2026-11-23", "2026-11-23"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("+5", 5),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1.2.3", "1.2.3"),
        ("-", [None]),
        ("--", "--"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("٣", "٣"),
        ("=", "="),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    assert values(f"a: {text}\n" if text != "-" else "a:\n  -\n") == [{"a": value}]


def test_line_ends_and_byte_order_mark_change_nothing() -> None:
    text = instance("one", "env:\n  A: |\n    two\n    lines\n")
    plain = decode(text.encode())
    for other in (text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.encode()):
        decoded = decode(other)
        assert [f.document for f in decoded.found] == [f.document for f in plain.found]
        assert [(f.line, f.column) for f in decoded.found] == [(f.line, f.column) for f in plain.found]


PIECES = sorted(
    {line for text in (*GOOD.values(), *BASE.values()) for line in text.splitlines(keepends=True)}
    | {
        "&a ",
        "*a",
        "<<: ",
        "- ",
        "? ",
        ": ",
        "[",
        "]",
        "{",
        "}",
        "\t",
        "|\n",
        ">-\n",
        "---\n",
        "...\n",
        "'",
        '"',
        "\x00",
        "!!int ",
    }
    | {"%YAML 1.2\n", "\r", "\ufeff", "#", "0x", "1e999", "  ", "\u2028", "kind: Cluster\n", "!<x> ", "9" * 30}
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@example("!!int \ufeff")
@example('"a\\e[31mb": 1\n"a\\e[31mb": 2\n')
def test_any_text_is_documents_or_problems(text: str) -> None:
    decoded = decode(text.encode("utf-8", "surrogatepass"))
    for flaw in decoded.flaws:
        assert flaw.line >= 1
        assert flaw.column >= 1
        assert flaw.message.isprintable()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(GOOD)), st.integers(0, 400))
def test_any_bytes_within_a_good_file_are_documents_or_problems(noise: bytes, name: str, at: int) -> None:
    good = GOOD[name].encode()
    decode(noise)
    decode(good[:at] + noise + good[at:])


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=10,
    ),
    st.sampled_from(["metadata", "spec", "kind", "apiVersion"]),
)
def test_any_value_in_any_field_is_a_document_or_problems(value: Any, field: str) -> None:
    import json

    document = {"apiVersion": "tdie/v1", "kind": "Instance", "metadata": {"name": "x"}, "spec": {}, field: value}
    decoded = decode(json.dumps(document).encode())
    assert decoded.flaws or decoded.found


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 1_000_000,
        b"- " * 1_000_000,
        b"{a: " * 300_000,
        b"- a\n" * 800_000,
        b"a: " + b"9" * 3_000_000,
        b"&a [*a,*a]\n" * 100_000,
        b"x" * 5_000_000,
        b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n",
        b"---\n" * 500_000,
        b"? " * 500_000,
        b"'" + b"\n" * 2_000_000,
    ],
    ids=lambda bomb: repr(bomb[:12]),
)
def test_bombs_cost_little(bomb: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    decoded = decode(bomb)
    assert time.process_time() - started < 5  # on a busy machine; well below 1 s on a quiet one
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024
    assert len(decoded.flaws) <= 200
    assert not decoded.found
