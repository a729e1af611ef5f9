"""Label expressions: what holds, and what a wrong one is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.where import matches, parse

LABELS = {"zone": "a", "disk": "ssd", "example.org/rack": "r1"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("   ", True),
        ("zone == 'a'", True),
        ('zone == "a"', True),
        ("zone=='b'", False),
        ("zone != 'b'", True),
        ("zone in ['a', 'b']", True),
        ("zone not in ['a','b']", False),
        ("gpu == 'yes'", False),
        ("gpu == ''", False),
        ("gpu != 'yes'", True),
        ("gpu in ['yes']", False),
        ("gpu not in ['yes']", True),
        ("node == 'tdie-node-1'", True),
        ("node in ['tdie-node-2']", False),
        ("example.org/rack == 'r1'", True),
        ("zone == 'a' and disk == 'hdd'", False),
        ("zone == 'b' or disk == 'ssd'", True),
        ("zone == 'b' or zone == 'a' and disk == 'hdd'", False),
        ("not zone == 'b'", True),
        ("not not zone == 'b'", False),
        ("not (zone == 'a' or disk == 'hdd') or disk == 'ssd'", True),
        ("(zone == 'a' or zone == 'b') and not disk == 'ssd'", False),
    ],
)
def test_an_expression_holds_for_a_node(text: str, holds: bool) -> None:
    assert matches(text, LABELS, "tdie-node-1") is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zone = 'a'", "column 6: cannot read '=': compare with =="),
        ("zone == a", "column 9: expected a value in quotes, as in 'a', found 'a'"),
        ("zone == 'a", 'column 9: cannot read "\'": the quote is never closed'),
        ("zone", "column 5: expected ==, !=, in or not in after zone, found the end"),
        ("(zone == 'a'", "column 13: expected a closing ), found the end"),
        ("zone == 'a')", "column 12: expected and, or, or the end, found ')'"),
        ("zone == 'a' disk == 'b'", "column 13: expected and, or, or the end, found 'disk'"),
        ("zone in 'a'", "column 9: expected a list, as in ['a', 'b'], found 'a'"),
        ("zone in []", "column 10: expected a value in quotes, as in 'a', found ']'"),
        ("zone == 'a' && disk == 'b'", "column 13: cannot read '&': write and"),
        ("== 'a'", "column 1: expected a label, as in zone == 'a', found '=='"),
        ("zone > 3", "column 6: cannot read '>': values stand in quotes, as in zone == 'a'"),
    ],
)
def test_a_wrong_expression_is_told_where_and_why(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse(text)
    assert str(caught.value) == message


def test_absurd_nesting_is_refused_without_exhausting_the_stack() -> None:
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        parse("(" * 5000 + "a == 'b'" + ")" * 5000)
    assert matches("not " * 100_000 + "zone == 'a'", LABELS, "n")


@given(st.text(alphabet="ab'\"[](), =!notinord", max_size=40))
def test_any_text_is_an_expression_or_a_value_error_with_a_column(text: str) -> None:
    try:
        matches(text, LABELS, "n")
    except ValueError as error:
        assert str(error).startswith("column ")  # noqa: PT017
