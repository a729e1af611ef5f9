"""The rules of outliving a session by agreement, as tables."""

from __future__ import annotations

import pytest

from agent.leases.failsafe import (
    BLANK,
    FORGET,
    Answer,
    Book,
    Kept,
    Seen,
    listed,
    may_acquire,
    members_of,
    read_book,
    verdict,
)

P, R, S = Answer.PROMISE, Answer.REFUSAL, Answer.SILENCE


@pytest.mark.parametrize(
    ("members", "answers", "expected"),
    [
        ("a", {}, P),  # alone: nobody else may take it
        ("ab", {"b": P}, P),
        ("ab", {}, S),
        ("abcde", {"b": P, "c": P, "d": P, "e": P}, P),
        ("abcde", {"b": P, "c": P, "d": P}, S),  # four of five are not all
        ("abcde", {"b": P, "c": P, "d": P, "e": S}, S),
        ("abc", {"b": P, "c": R}, R),
        ("abc", {"b": S, "c": R}, R),  # a refusal counts whatever else is missing
        ("abc", {"b": P, "x": P}, S),  # nobody speaks for another
        ("bc", {"b": P, "c": P}, P),
    ],
)
def test_all_must_promise_and_one_refusal_ends_it(members: str, answers: dict[str, Answer], expected: Answer) -> None:
    assert verdict(members, "a", answers) is expected


@pytest.mark.parametrize(
    ("eligible", "allowed"), [({}, True), ({"x": "u"}, True), ({"a": "u"}, False), ({"a": "u", "x": ""}, True)]
)
def test_who_is_not_in_the_record_may_not_acquire(eligible: dict[str, str], allowed: bool) -> None:
    assert may_acquire(eligible, "x") is allowed


def test_a_promise_is_never_shortened_and_survives_a_restart() -> None:
    book = BLANK.promise("one.0", 30.0, 100.0, "boot", "a").promise("one.0", 5.0, 101.0, "boot", "a")
    assert book.until("one.0") == 130.0
    assert (book.given_to("one.0", 129.0), book.given_to("one.0", 130.0), book.given_to("two.0", 0.0)) == ("a", "", "")
    again = read_book(book.encode()).in_boot("boot", 110.0)
    assert (again, again.until("one.0"), again.until("two.0")) == (book, 130.0, 0.0)


def test_an_older_agent_wrote_no_holder() -> None:
    book = read_book('{"promises": {"one.0": [130.0, 30.0, "boot"]}, "kept": {}}')
    assert (book.until("one.0"), book.given_to("one.0", 0.0)) == (130.0, "")


def test_after_a_reboot_a_promise_counts_anew_in_full() -> None:
    book = read_book(BLANK.promise("one.0", 30.0, 1000.0, "boot", "a").encode()).in_boot("other", 3.0)
    assert (book.until("one.0"), book.given_to("one.0", 32.0)) == (33.0, "a")
    assert book.in_boot("other", 20.0) == book


def test_what_is_over_is_not_kept_for_ever() -> None:
    book = BLANK.promise("one.0", 30.0, 0.0, "b", "a").promise("two.0", 30.0, 31.0, "b", "a")
    assert list(book.promises) == ["two.0"]


def test_whom_to_ask_is_remembered_until_it_is_over() -> None:
    kept = Kept((3, 7), {"a": "http://a", "b": ""})
    book = BLANK.keep("one.0", kept)
    assert read_book(book.encode()) == book == Book({}, {"one.0": kept})
    assert book.keep("one.0", None) == BLANK


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "no", '{"promises": {"a": 1}, "kept": {}}', '{"promises": 1, "kept": 2}']
)
def test_a_book_that_makes_no_sense_is_blank(text: str) -> None:
    assert read_book(text) == BLANK


@pytest.mark.parametrize("raw", [None, [], {"a": 1}, "a"])
def test_members_are_nodes_with_addresses(raw: object) -> None:
    with pytest.raises(TypeError):
        members_of(raw)


def test_an_empty_catalog_is_not_no_nodes() -> None:
    known = listed({}, {"a": "u", "b": "v"}, 0.0)
    assert listed(known, {}, FORGET - 1) == known
    assert listed(known, {"b": "w"}, FORGET) == {"b": Seen("w", FORGET)}
