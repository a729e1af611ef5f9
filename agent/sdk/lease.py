"""The token of a lease: what a resource needs to know the newest holder from one that does not know yet that it lost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class LeaseToken:
    """A number that only grows from holder to holder of one replica's lease; compare with `<`.

    A process that stood still may wake up after another one has taken over: no lock can hinder its next write. The resource
    can, by remembering the highest token it has seen and refusing a lower one:

        UPDATE accounts SET balance = :new, token = :token WHERE id = :id AND token <= :token

    writes nothing when somebody with a higher token (`token.number`) was there, and the component then fails.
    """

    epoch: int
    index: int

    @property
    def number(self) -> int:
        """Both in one whole number below 2**63, in the same order."""
        return (self.epoch << 32) + self.index

    def __str__(self) -> str:
        return f"{self.epoch}.{self.index}"
