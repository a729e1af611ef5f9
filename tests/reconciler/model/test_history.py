"""What was in force when: which entries each thing that happens adds or closes, and what a rollback may go to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.model.history import Entries, Entry, Seen, bring_up, current, earlier
from reconciler.model.rollback import Rollback, roll_back


def tell(*moments: Seen, keep: int = 50) -> Entries:
    """The history after each of these was seen, one a minute."""
    entries: Entries = ()
    for minute, seen in enumerate(moments):
        entries = bring_up(entries, replace(seen, at=f"{minute:02}"), keep)
    return entries


def commit(name: str, *, healthy: bool = True, back: Rollback | None = None, halted: str = "") -> Seen:
    return Seen("", name, f"subject {name}", "ann", rollback=back, healthy=healthy, halted=halted)


def lines(entries: Entries) -> list[str]:
    return [f"{e.number} {e.commit} {e.since}-{e.until} {e.cause} {e.who} {e.result}" for e in entries]


BACK = Rollback(to="a", left="b", reached="b", quarantined=frozenset({"b"}), who="bob", why="slow")


@pytest.mark.parametrize(
    ("moments", "told"),
    [
        ((commit("a", healthy=False),), ["1 a 00- commit ann changing"]),
        ((commit("a", healthy=False), commit("a")), ["1 a 00- commit ann healthy"]),
        ((commit("a"), commit("a", healthy=False)), ["1 a 00- commit ann healthy"]),
        ((commit("a"), commit("b")), ["1 a 00-01 commit ann healthy", "2 b 01- commit ann healthy"]),
        (
            (commit("a", healthy=False), commit("b", healthy=False, halted="1/3 unhealthy")),
            ["1 a 00-01 commit ann superseded", "2 b 01- commit ann halted"],
        ),
        ((commit("a", healthy=False, halted="1/3 unhealthy"), commit("a")), ["1 a 00- commit ann healthy"]),
        (
            (commit("a"), commit("b"), commit("a", back=BACK)),
            ["1 a 00-01 commit ann healthy", "2 b 01-02 commit ann rolled back", "3 a 02- rollback bob healthy"],
        ),
        (
            (commit("a"), commit("b"), commit("a", back=BACK), commit("c", healthy=False)),
            [
                "1 a 00-01 commit ann healthy",
                "2 b 01-02 commit ann rolled back",
                "3 a 02-03 rollback bob healthy",
                "4 c 03- commit ann changing",
            ],
        ),
        (
            (commit("a"), replace(commit("a"), rejected="x", rejected_for="no such field")),
            ["1 a 00- commit ann healthy", "2 x 01-01 commit  rejected"],
        ),
        ((Seen("", rejected="x"), Seen("", rejected="x")), ["1 x 00-00 commit  rejected"]),
    ],
    ids=str,
)
def test_what_is_told(moments: tuple[Seen, ...], told: list[str]) -> None:
    assert lines(tell(*moments)) == told


def test_nothing_new_is_the_same_object() -> None:
    entries = tell(commit("a"))
    assert bring_up(entries, commit("a"), 50) is entries


@pytest.mark.parametrize(
    ("moments", "than", "best_first"),
    [
        ((commit("a"), commit("b"), commit("c", healthy=False)), "c", ("b", "a")),
        ((commit("a"), commit("b", healthy=False), commit("c")), "c", ("a", "b")),
        ((commit("a"), commit("b"), commit("a", back=BACK)), "a", ()),
        ((commit("a"), commit("b"), commit("a", back=BACK), commit("c")), "c", ("a",)),
        # b was rolled back once, and ran well later on: what became of it last counts
        ((commit("a"), commit("b"), commit("a", back=BACK), commit("b"), commit("c")), "c", ("b", "a")),
        ((replace(commit("a"), rejected="x"), commit("b")), "b", ("a",)),
        ((), "a", ()),
    ],
    ids=str,
)
def test_what_a_rollback_may_go_to(moments: tuple[Seen, ...], than: str, best_first: tuple[str, ...]) -> None:
    assert earlier(tell(*moments), than) == best_first
    assert earlier(tell(*moments), than, frozenset(best_first[:1])) == best_first[1:]


def test_only_so_much_is_kept_but_always_what_a_rollback_needs() -> None:
    bad = [replace(commit("b", healthy=False), rejected=f"x{n}") for n in range(20)]
    entries = tell(commit("z"), commit("a"), *bad, keep=3)
    assert [e.commit for e in entries] == ["a", "b", "x17", "x18", "x19"]
    now = current(entries)
    assert now is not None
    assert now.commit == "b"
    assert earlier(entries, "b")[0] == "a"


def test_texts_stay_small_and_are_read_back() -> None:
    seen = replace(commit("a"), subject="s" * 10_000, author="a" * 10_000, halted="h" * 10_000, healthy=False)
    entry = tell(seen, seen)[0]
    assert len(str(entry.text())) < 2000
    assert Entry.read({**entry.text(), "added-by-a-later-version": 1}) == entry


def test_a_rollback_of_a_rollback_quarantines_both() -> None:
    first = roll_back(None, "c", "c", "b", who="ann", why="", at="")
    second = roll_back(first, "b", "c", "a", who="ann", why="", at="")
    assert (second.to, second.left, second.reached) == ("a", "b", "c")
    assert second.quarantined == {"b", "c"}
    assert Rollback.read(second.text()) == second
    # a rejected tip is quarantined too, and one that is wanted after all is not any more
    assert roll_back(None, "c", "d", "b", who="ann", why="", at="").quarantined == {"c", "d"}
    assert roll_back(second, "a", "c", "b", who="ann", why="", at="").quarantined == {"a", "c"}
