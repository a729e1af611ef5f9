"""Who calls, and what they may do: tables."""

from __future__ import annotations

import stat
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from agent.callers import (
    ANYBODY,
    PROGRAM,
    Caller,
    Callers,
    Needs,
    Person,
    Role,
    RoleTooLow,
    Unauthorized,
    hashed,
    people,
    people_file,
)
from agent.errors import Invalid

TODAY = datetime(2026, 11, 25, 12, tzinfo=UTC)
ANN = Person("ann", Role.OPERATOR, hashed("ann's"), date(2026, 11, 25))
BOB = Person("bob", Role.VIEWER, hashed("bob's"), date(2026, 11, 24))
CALLERS = Callers(lambda: "cluster's", lambda: (ANN, BOB), lambda: TODAY)


@pytest.mark.parametrize(
    ("shown", "caller"),
    [
        ("Bearer cluster's", PROGRAM),
        ("bearer   ann's ", Caller("ann", Role.OPERATOR)),  # also on the last day
        ("Bearer bob's", "TOKEN_EXPIRED"),
        ("Bearer eve's", "UNAUTHORIZED"),
        ("Bearer ", "UNAUTHORIZED"),
        ("", "UNAUTHORIZED"),
        ("Basic ann's", "UNAUTHORIZED"),
        (f"Bearer {ANN.digest}", "UNAUTHORIZED"),  # what is kept is no key
    ],
)
def test_who_shows_what(shown: str, caller: Caller | str) -> None:
    if isinstance(caller, Caller):
        assert CALLERS.find(shown) == caller
        return
    with pytest.raises(Unauthorized) as caught:
        CALLERS.find(shown)
    assert (caught.value.code, caught.value.status) == (caller, 401)


def test_a_role_may_do_what_those_before_it_may_and_no_more() -> None:
    assert CALLERS.admit("Bearer ann's", Role.VIEWER).name == "ann"
    assert CALLERS.admit("Bearer ann's", Role.OPERATOR).name == "ann"
    with pytest.raises(RoleTooLow, match="ann is an operator; only an admin may do this"):
        CALLERS.admit("Bearer ann's", Role.ADMIN)
    with pytest.raises(RoleTooLow, match="only a program of the cluster"):
        CALLERS.admit("Bearer ann's", Role.CLUSTER)
    assert CALLERS.admit("Bearer cluster's", Role.CLUSTER) is PROGRAM


def test_a_token_that_was_made_longer_counts() -> None:
    longer = Person("bob", Role.OPERATOR, BOB.digest, date(2026, 12, 1))
    assert Callers(str, lambda: (BOB, longer), lambda: TODAY).find("Bearer bob's") == Caller("bob", Role.OPERATOR)


def test_nobody_is_asked_where_there_is_neither_token_nor_people() -> None:
    assert (Callers().find(""), Callers().asked) == (ANYBODY, False)
    nobody_left = Callers(str, lambda: (), lambda: TODAY)
    assert nobody_left.asked
    with pytest.raises(Unauthorized):
        nobody_left.find("")
    only_people = Callers(str, lambda: (ANN,), lambda: TODAY)
    assert only_people.asked
    with pytest.raises(Unauthorized):
        only_people.find("Bearer ")  # an empty token of the cluster is nobody's


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", "/anything", Role.VIEWER),
        ("HEAD", "/a/x/b", Role.VIEWER),
        ("PUT", "/anything", Role.OPERATOR),
        ("FROBNICATE", "/anything", Role.OPERATOR),
        ("PUT", "/a/x/b", Role.ADMIN),
        ("PUT", "/a/x/b/", Role.ADMIN),
        ("PUT", "/a/x", Role.OPERATOR),
        ("PUT", "/a/x/y/b", Role.OPERATOR),
    ],
)
def test_what_a_route_asks_for(method: str, path: str, role: Role) -> None:
    assert Needs({"PUT /a/{name}/b": Role.ADMIN}).role(method, path) is role


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"ann root {ANN.digest} 2026-01-01", "line 1 is not NAME"),
        (f"ann cluster {ANN.digest} 2026-01-01", "line 1 is not NAME"),
        ("\nann viewer abc 2026-01-01", "line 2 is not NAME"),
        (f"ann viewer {ANN.digest}", "line 1 is not NAME"),
        (f"ann viewer {ANN.digest} soon", "line 1: 'soon' is no day"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        people(text)


def test_the_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "people"
    file.write_text(f"# who\n{ANN}  # on call\n")
    with pytest.raises(Invalid, match="can be read by others"):
        people_file(file)
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    known = people_file(file)
    assert known() == (ANN,)
    file.write_text(f"{ANN}\n{BOB}\n")
    assert known() == (ANN, BOB)
    file.write_text("nonsense\n")
    assert known() == (ANN, BOB)
    with pytest.raises(Invalid, match="line 1 is not NAME"):
        people_file(file)
