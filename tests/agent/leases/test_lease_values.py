"""Pure rules of leases: records, tokens, figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.consul.protocol import KeyValue
from agent.leases.values import (
    Record,
    Remembered,
    Token,
    forgotten,
    is_clean,
    next_token,
    read_record,
    read_remembered,
    wait_after,
)
from agent.wire import FAST_LEASES, USUAL_LEASES, LeaseFigures, NodePolicy

RECORD = Record("a", "s", 4, Token(2, 4), 60.0, "2026-01-01T00:00:00Z", released_clean=True)


def entry(value: bytes, lock_index: int = 4, session: str | None = None) -> KeyValue:
    return KeyValue("k", value, 1, 9, lock_index, session)


def test_a_record_reads_as_it_was_written_and_nonsense_is_none() -> None:
    assert read_record(entry(RECORD.encode())) == RECORD
    assert read_record(None) is None
    for value in (b"", b"mine", b"[]", b"{}", b'{"node": "a"}', b"\xff"):
        assert read_record(entry(value)) is None


@pytest.mark.parametrize(
    ("held", "clean"),
    [
        (entry(RECORD.encode()), True),
        (entry(replace(RECORD, released_clean=False).encode()), False),
        (entry(RECORD.encode(), lock_index=5), False),  # somebody had it since
        (entry(RECORD.encode(), lock_index=0), False),  # somebody wrote over it
        (entry(replace(RECORD, lock_index=0).encode(), lock_index=0), False),
        (entry(RECORD.encode(), session="s"), False),
        (entry(b"mine"), False),
        (None, False),
    ],
)
def test_only_a_word_about_this_very_acquisition_is_a_clean_release(held: KeyValue | None, clean: bool) -> None:
    assert is_clean(held) is clean


def test_a_holder_with_longer_figures_is_waited_for_as_long_as_it_may_live() -> None:
    assert wait_after(entry(RECORD.encode()), FAST_LEASES) == 60.0
    assert wait_after(entry(b""), FAST_LEASES) == FAST_LEASES.lock_delay
    assert wait_after(entry(replace(RECORD, lock_delay=3.0).encode()), USUAL_LEASES) == USUAL_LEASES.lock_delay


@pytest.mark.parametrize(
    ("before", "epoch", "index", "token"),
    [
        (Token(), 3, 70, Token(3, 70)),  # nobody knows what was before
        (Token(2, 40), 2, 70, Token(2, 70)),
        (Token(2, 40), 3, 7, Token(3, 7)),  # a wiped Consul counts anew, under a later epoch
        (Token(2, 40), 2, 7, Token(2, 41)),  # … or before there is one
        (Token(2, 40), 2, 40, Token(2, 41)),
        (Token(2, 40), 1, 70, Token(2, 41)),
    ],
)
def test_tokens_only_grow(before: Token, epoch: int, index: int, token: Token) -> None:
    held = KeyValue("k", b"", 1, index, 2, "s")
    assert next_token(before, epoch, held) == token


def test_a_session_that_was_revoked_is_told_from_a_consul_that_forgot_it() -> None:
    held = Remembered("s", "boot", USUAL_LEASES, created=10, modified=20)
    epoch = KeyValue("epoch", b"3", 10, 20)
    assert not forgotten(held, epoch)
    assert not forgotten(held, replace(epoch, modify_index=25))  # another leader
    assert forgotten(held, None)
    assert forgotten(held, replace(epoch, create_index=11))
    assert forgotten(held, replace(epoch, modify_index=19))  # an older snapshot
    assert forgotten(replace(held, created=0), epoch)


def test_what_is_remembered_reads_as_it_was_written() -> None:
    held = Remembered("s", "boot", FAST_LEASES, created=10, modified=20)
    assert read_remembered(held.encode()) == held
    for text in ("", "{}", "[]", "x", '{"id": "s"}'):
        assert read_remembered(text) is None


@pytest.mark.parametrize(
    ("figures", "safe"),
    [
        (USUAL_LEASES, True),
        (FAST_LEASES, True),
        (LeaseFigures(ttl=2, renew_every=0.4, http_timeout=0.4, fence_grace=0.4, kill_slack=0.2, lock_delay=3), True),
        (LeaseFigures(lock_delay=32), True),
        (LeaseFigures(lock_delay=31.9), False),
        (LeaseFigures(renew_every=21), False),  # a host would be asked to end before its lease can be renewed
        (LeaseFigures(ttl=50, renew_every=45, lock_delay=55), False),
    ],
)
def test_unsafe_figures_are_known(figures: LeaseFigures, safe: bool) -> None:
    assert (figures.fault() == "") is safe


def test_usual_figures_do_not_travel() -> None:
    assert "leases" not in NodePolicy(keep_versions=3).model_dump_json(by_alias=True)
    told = NodePolicy(leases=FAST_LEASES)
    assert NodePolicy.model_validate_json(told.model_dump_json(by_alias=True)) == told
