"""Writes that only the leader makes: every transaction proves that its session still holds the leader key (DESIGN §6)."""

from __future__ import annotations

from collections.abc import Sequence

from agent import keys
from agent.consul.protocol import Consul, TxnOp, TxnRefused
from agent.errors import Refused

MOST_OPS = 60  # in one transaction, beside the proof: Consul takes 64


class NotLeading(Refused):
    """This controller does not lead (any more): nothing was written."""

    code = "NOT_LEADING"

    def __init__(self, detail: str = "this controller stands by") -> None:
        super().__init__(detail, hint="ask the leader: `leader` in Consul names it")


def leads(cluster: str, session: str) -> TxnOp:
    """An operation that fails, and a whole transaction with it, unless the session holds the leader key."""
    return TxnOp("check-session", keys.leader(cluster), session=session)


async def write(consul: Consul, proof: TxnOp, ops: Sequence[TxnOp]) -> None:
    """The operations are done, in transactions of at most MOST_OPS with the proof in each.

    Raises NotLeading when another session holds the key of the proof, TxnRefused when another condition failed.
    """
    for start in range(0, len(ops), MOST_OPS):
        try:
            await consul.txn([proof, *ops[start : start + MOST_OPS]])
        except TxnRefused as error:
            held = await consul.get(proof.key)
            if proof.session and (held is None or held.session != proof.session):
                raise NotLeading("this controller does not lead any more") from error
            raise
