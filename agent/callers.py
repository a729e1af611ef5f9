"""PUBLIC: who calls an API, and what they may do there; standard library only, hosts use it too.

Programs of the cluster show its one token. People show tokens of their own, of which a machine only keeps the hashes: a file with
a line `NAME ROLE SHA256 UNTIL` for each (`tdie init token` makes both).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import IntEnum
from pathlib import Path

from agent.errors import Denied
from agent.tokens import PrivateFile

READING = frozenset({"GET", "HEAD", "OPTIONS"})
_HASH = re.compile(r"[0-9a-f]{64}")


class Role(IntEnum):
    """What a caller may do; each may do all that the ones before it may."""

    VIEWER = 1  # read
    OPERATOR = 2  # start, stop and change what runs
    ADMIN = 3  # change packages, and what the cluster remembers
    CLUSTER = 4  # what only programs of the cluster do: order, hand messages on

    def __str__(self) -> str:
        return self.name.lower()


PEOPLE = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who is known."""

    name: str
    role: Role


ANYBODY = Caller("anybody on this machine", Role.CLUSTER)  # where no token is asked for, which is on loopback only
PROGRAM = Caller("the cluster", Role.CLUSTER)


@dataclass(frozen=True, slots=True)
class Person:
    """A line of the people file."""

    name: str
    role: Role
    digest: str  # sha256 of the token, 64 hex digits
    until: date  # the last day (UTC) on which it is accepted

    def __str__(self) -> str:
        return f"{self.name} {self.role} {self.digest} {self.until.isoformat()}"


class Unauthorized(Denied):
    """No token, or one that is not known (any more)."""

    code = "UNAUTHORIZED"
    status = 401


class RoleTooLow(Denied):
    """The caller is known and may not do this."""

    code = "ROLE_TOO_LOW"


@dataclass(frozen=True, slots=True)
class Needs:
    """The least role that each route of an API asks for: a viewer's to read, an operator's for anything else, or what is listed."""

    listed: Mapping[str, Role] = field(
        default_factory=dict
    )  # "PUT /api/node/leader", with {name} for one part of a path

    def role(self, method: str, path: str) -> Role:
        for route, role in self.listed.items():
            wanted, _, template = route.partition(" ")
            if method == wanted and _matches(template, path):
                return role
        return Role.VIEWER if method in READING else Role.OPERATOR


def _matches(template: str, path: str) -> bool:
    parts, given = template.split("/"), path.rstrip("/").split("/")
    return len(parts) == len(given) and all(p == g or p.startswith("{") for p, g in zip(parts, given, strict=True))


def people_file(path: Path) -> Callable[[], tuple[Person, ...]]:
    """The people in a file, read again when it changes. Raises Invalid (TOKEN_FILE) naming the line that makes no sense."""
    return PrivateFile(path, people)


def people(text: str) -> tuple[Person, ...]:
    """The people of a file's text; `#` begins a comment. Raises ValueError naming the line."""
    found: list[Person] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            found.append(_person(words, f"line {number}"))
    return tuple(found)


def _person(words: list[str], where: str) -> Person:
    roles = {str(role): role for role in PEOPLE}
    if len(words) != 4 or words[1] not in roles or not _HASH.fullmatch(words[2]):
        raise ValueError(f"{where} is not NAME {'|'.join(roles)} SHA256 UNTIL")
    try:
        return Person(words[0], roles[words[1]], words[2], date.fromisoformat(words[3]))
    except ValueError:
        raise ValueError(f"{where}: '{words[3]}' is no day such as 2027-02-23") from None


def hashed(token: str) -> str:
    """What a people file keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _nobody() -> tuple[Person, ...]:
    return ()


def _now() -> datetime:
    return datetime.now(UTC)


class Callers:
    """Finds out who shows a token. Without the cluster's token and without people, anybody may do anything."""

    def __init__(
        self,
        token: Callable[[], str] = str,
        people: Callable[[], Iterable[Person]] = _nobody,
        wall: Callable[[], datetime] = _now,
    ) -> None:
        """All are asked for each request: what is replaced counts at once."""
        self._token, self._people, self._wall = token, people, wall

    @property
    def asked(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._token()) or self._people is not _nobody

    def admit(self, authorization: str, needed: Role) -> Caller:
        """The caller behind a header `Authorization`. Raises Unauthorized, or RoleTooLow."""
        caller = self.find(authorization)
        permit(caller, needed)
        return caller

    def find(self, authorization: str) -> Caller:
        """The caller, whatever it wants. Raises Unauthorized."""
        token, known = self._token(), tuple(self._people())
        if not token and self._people is _nobody:  # a list of people that is empty lets nobody in
            return ANYBODY
        scheme, _, shown = authorization.partition(" ")
        digest = hashed(shown.strip())
        program = hmac.compare_digest(digest, hashed(token)) and bool(token)
        # All are compared, so that the time tells nothing.
        person = [other for other in known if hmac.compare_digest(digest, other.digest)]
        if scheme.lower() != "bearer" or not (program or person):
            raise Unauthorized("a bearer token is needed")
        if program:
            return PROGRAM
        today = self._wall().date()
        valid = [other for other in person if today <= other.until]
        if not valid:
            raise Unauthorized(
                f"the token of {person[0].name} ran out on {person[0].until}", code="TOKEN_EXPIRED",
                hint="`tdie init token` makes a new one",
            )  # fmt: skip
        return Caller(valid[0].name, valid[0].role)


def permit(caller: Caller, needed: Role) -> None:
    """Return when the caller may do what needs this role; raises RoleTooLow."""
    if caller.role < needed:
        what = "a program of the cluster" if needed is Role.CLUSTER else _article(needed)
        raise RoleTooLow(f"{caller.name} is {_article(caller.role)}; only {what} may do this")


def _article(role: Role) -> str:
    return f"{'an' if str(role)[0] in 'ao' else 'a'} {role}"
