"""Tokens of leases: they order holders, and a resource that remembers the highest refuses who came before."""

from __future__ import annotations

import sqlite3

from agent.host.members import token
from agent.keeper.protocol import Code, HostOrder, Lease
from agent.sdk import LeaseToken


def test_a_resource_refuses_a_holder_that_was_superseded() -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE accounts (id INTEGER, balance INTEGER, token INTEGER)")
    db.execute("INSERT INTO accounts VALUES (1, 100, 0)")

    def write(balance: int, held: LeaseToken) -> bool:
        done = db.execute(
            "UPDATE accounts SET balance = :new, token = :token WHERE id = :id AND token <= :token",
            {"new": balance, "token": held.number, "id": 1},
        )
        return done.rowcount == 1

    old, new, later = LeaseToken(3, 9), LeaseToken(3, 10), LeaseToken(4, 1)
    assert old < new < later
    assert old.number < new.number < later.number < 2**63
    assert write(90, old)
    assert write(80, new)
    assert not write(70, old)  # it stood still meanwhile
    assert write(60, later)
    assert not write(50, new)


def test_an_order_brings_its_token() -> None:
    order = HostOrder("a.0", "a", "n", "s", "python", Code("p", "1", "d", "/x"))
    assert token(order) is None
    leased = HostOrder("a.0", "a", "n", "s", "python", Code("p", "1", "d", "/x"), lease=Lease(3, 9, 1.0, 1.0))
    assert str(token(leased)) == leased.lease.token == "3.9"  # type: ignore[union-attr]
