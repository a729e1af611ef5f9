"""Two witnesses, one conclusion: the whole table."""

from __future__ import annotations

import pytest

from agent.clock import Monotonic
from reconciler.model.observed import Presence
from reconciler.observe.witness import Says, Witness, consul_says, presence

UP, DOWN, UNKNOWN = Says.UP, Says.DOWN, Says.UNKNOWN
LOST_AFTER = 15.0


def witness(says: Says, since: float = 0.0) -> Witness:
    return Witness(says, Monotonic(since), says.value)


@pytest.mark.parametrize(
    ("joined", "catalog", "poll", "now", "expected"),
    [
        (True, UP, UP, 100, Presence.ALIVE),
        (True, UNKNOWN, UP, 100, Presence.ALIVE),  # Consul away: our own poll is enough
        (True, DOWN, UP, 100, Presence.UNREACHABLE),  # one witness alone concludes nothing
        (True, UP, DOWN, 100, Presence.UNREACHABLE),
        (True, UNKNOWN, DOWN, 100, Presence.UNREACHABLE),
        (True, DOWN, DOWN, 14.9, Presence.UNREACHABLE),
        (True, DOWN, DOWN, 15, Presence.LOST),
        (True, UP, UNKNOWN, 100, Presence.JOINING),
        (True, UNKNOWN, UNKNOWN, 100, Presence.JOINING),
        (True, DOWN, UNKNOWN, 100, Presence.JOINING),
        (False, UNKNOWN, UNKNOWN, 100, Presence.ABSENT),
        (False, DOWN, UNKNOWN, 100, Presence.ABSENT),
        (False, UP, UNKNOWN, 100, Presence.JOINING),
    ],
)
def test_every_pair_of_words(joined: bool, catalog: Says, poll: Says, now: float, expected: Presence) -> None:
    found = presence(joined, witness(catalog), witness(poll), Monotonic(now), LOST_AFTER)
    assert found.presence is expected


@pytest.mark.parametrize(
    ("catalog", "name", "expected"),
    [
        (witness(UP, 1.0), witness(UP, 2.0), witness(UP, 1.0)),
        (witness(UP, 1.0), witness(UNKNOWN, 2.0), witness(UP, 1.0)),
        (witness(UP, 1.0), witness(DOWN, 2.0), witness(DOWN, 2.0)),
        (witness(UP, 3.0), witness(DOWN, 2.0), witness(DOWN, 3.0)),  # Consul was away meanwhile
        (
            witness(UNKNOWN, 1.0),
            witness(DOWN, 2.0),
            witness(UNKNOWN, 1.0),
        ),  # it is now: what it last said proves nothing
        (witness(DOWN, 1.0), witness(UP, 2.0), witness(DOWN, 1.0)),
        (witness(DOWN, 1.0), witness(DOWN, 2.0), witness(DOWN, 1.0)),
    ],
)
def test_what_consul_says_of_a_node(catalog: Witness, name: Witness, expected: Witness) -> None:
    assert consul_says(catalog, name) == expected


def test_what_both_miss_is_vanishing_until_it_is_lost() -> None:
    def vanishing(catalog: Says, poll: Says, now: float) -> bool:
        return presence(True, witness(catalog), witness(poll), Monotonic(now), LOST_AFTER).vanishing

    assert vanishing(DOWN, DOWN, 14.9)
    assert not vanishing(DOWN, DOWN, 15)
    assert not any(vanishing(*words, 1) for words in ((UP, DOWN), (DOWN, UP), (UNKNOWN, DOWN), (DOWN, UNKNOWN)))


@pytest.mark.parametrize(
    ("catalog", "own", "now", "expected", "again"),
    [
        (UP, UP, 100, Presence.ALIVE, None),
        (UP, UNKNOWN, 100, Presence.ALIVE, None),
        (UP, DOWN, 14.9, Presence.ALIVE, 15.0),  # an election is over soon
        (UP, DOWN, 15, Presence.UNREACHABLE, None),  # the Consul agent on its machine is cut off, too
        (UNKNOWN, DOWN, 15, Presence.UNREACHABLE, None),
        (DOWN, DOWN, 1, Presence.UNREACHABLE, None),
    ],
)
def test_a_node_that_answers_knows_whether_it_reaches_consul(
    catalog: Says, own: Says, now: float, expected: Presence, again: float | None
) -> None:
    found = presence(True, witness(catalog), witness(UP), Monotonic(now), LOST_AFTER, witness(own))
    assert (found.presence, found.look_again_at) == (expected, again)


@pytest.mark.parametrize(
    ("catalog", "poll", "own", "expected"),
    [
        (DOWN, UP, UP, Presence.ALIVE),  # its beat is still to come
        (DOWN, UP, DOWN, Presence.UNREACHABLE),  # it says itself that it does not get there
        (UP, UP, UP, Presence.ALIVE),
        (DOWN, DOWN, UP, Presence.LOST),  # both miss it: its machine may have been the one that took Consul away
        (UP, DOWN, UP, Presence.UNREACHABLE),
        (UNKNOWN, DOWN, UP, Presence.UNREACHABLE),
        (DOWN, UNKNOWN, UP, Presence.JOINING),
    ],
)
def test_after_consul_was_away_what_it_misses_counts_only_for_a_node_that_is_silent(
    catalog: Says, poll: Says, own: Says, expected: Presence
) -> None:
    words = witness(catalog), witness(poll)
    found = presence(True, *words, Monotonic(15.0), LOST_AFTER, witness(own), beats_due=True)
    assert found.presence is expected


def test_what_a_silent_node_said_of_itself_counts_no_more() -> None:
    found = presence(True, witness(UP), witness(DOWN), Monotonic(100.0), LOST_AFTER, witness(DOWN))
    assert (found.presence, found.detail) == (Presence.UNREACHABLE, "down")


def test_lost_counts_from_the_later_witness() -> None:
    catalog, poll = witness(DOWN, since=2.0), witness(DOWN, since=10.0)
    waiting = presence(True, catalog, poll, Monotonic(20.0), LOST_AFTER)
    assert waiting.presence is Presence.UNREACHABLE
    assert waiting.look_again_at == 25.0
    assert presence(True, catalog, poll, Monotonic(25.0), LOST_AFTER).presence is Presence.LOST


def test_a_witness_that_repeats_itself_keeps_its_time() -> None:
    first = witness(DOWN, since=3.0)
    assert first.turn(DOWN, Monotonic(9.0), "still").since == 3.0
    assert first.turn(UP, Monotonic(9.0)).since == 9.0
