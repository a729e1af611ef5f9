"""What Consul's answers and the network's failures mean to a caller."""

from __future__ import annotations

import re

from agent.consul.protocol import CheckGone, SessionGone, TxnRefused
from agent.errors import Denied, Missing, Refused, TdieError, Waiting

UNAVAILABLE = "CONSUL_UNAVAILABLE"


class Answered(Exception):
    """Consul answered with an HTTP status that is not a success."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}")
        self.status = status
        self.body = body


# Consul says 500 for nearly everything, so the sentence decides; newer versions say 404 with the same words.
_SENTENCES: tuple[tuple[re.Pattern[str], type[TdieError]], ...] = (
    (re.compile(r"invalid session TTL", re.IGNORECASE), Refused),
    (re.compile(r"invalid session|session id .* not found|UUID must be", re.IGNORECASE), SessionGone),
    (re.compile(r"does not have associated TTL|unknown check|missing check .* registration", re.IGNORECASE), CheckGone),
    (
        re.compile(r"unknown service", re.IGNORECASE),
        Missing,
    ),  # said when ACLs are on, to whoever takes away what is not there
    (re.compile(r"is in critical state", re.IGNORECASE), Refused),
    (re.compile(r"permission denied|ACL not found", re.IGNORECASE), Denied),
)


def meaning(doing: str, answer: Answered) -> TdieError:
    """Our error for an answer; `doing` completes "cannot …"."""
    said = " ".join(answer.body.split())[:300] or f"status {answer.status}"
    detail = f"cannot {doing}: Consul says {said}"
    if answer.status in (401, 403):
        return denied(detail)
    if answer.status == 429:
        return Waiting(detail, code=UNAVAILABLE)
    for pattern, error in _SENTENCES:
        if answer.status in (404, 500) and pattern.search(answer.body):
            return denied(detail) if error is Denied else error(detail)
    if answer.status == 404:
        return Missing(detail)
    if answer.status == 409:
        return TxnRefused(detail)
    if answer.status == 413:
        return Refused(detail, code="CONSUL_TOO_LARGE", hint="a value may have 512 KiB, a transaction 64 operations")
    if answer.status < 500:
        return Refused(detail, code="CONSUL_REFUSED")
    return Waiting(detail, code=UNAVAILABLE)


def denied(detail: str) -> Denied:
    return Denied(detail, code="CONSUL_DENIED", hint="check CONSUL_HTTP_TOKEN or CONSUL_HTTP_TOKEN_FILE")


def unreachable(doing: str, address: str, why: str) -> Waiting:
    return Waiting(f"cannot {doing}: Consul at {address} does not answer: {why}", code=UNAVAILABLE)
