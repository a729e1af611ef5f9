"""Sessions of the embedded store: their life, and what ends with them."""

from __future__ import annotations

from collections.abc import Callable

from agent.consul.embedded.keys import Keys
from agent.consul.embedded.state import SERF_HEALTH, Check, Rejected, Session

TTL_MULTIPLIER = 2  # as Consul: a session may outlive its TTL, never the other way round
MAX_TTL = 86400.0
MAX_LOCK_DELAY = 60.0


class Sessions(Keys):
    """Sessions over the KV store. Checks are looked up by whoever holds them."""

    def __init__(
        self, now: Callable[[], float], new_id: Callable[[], str], node: str, session_ttl_min: float = 10.0
    ) -> None:
        super().__init__(now, new_id, node)
        self.session_ttl_min = session_ttl_min
        self.session_index = 1
        self.checks: dict[str, Check] = {}

    def create_session(
        self,
        name: str = "",
        *,
        ttl: float | None = None,
        lock_delay: float = 15.0,
        behavior: str = "release",
        node_checks: list[str] | None = None,
        service_checks: list[str] | None = None,
        node: str | None = None,
    ) -> Session:
        """A new session. Raises Rejected for a TTL out of range, an unknown behaviour, or a check that is missing or critical."""
        if node not in (None, "", self.node):
            raise Rejected(500, f"Missing node registration: {node}")
        if behavior not in ("release", "delete"):
            raise Rejected(400, f"Invalid Behavior setting '{behavior}'")
        if ttl is not None and not self.session_ttl_min <= ttl <= MAX_TTL:
            raise Rejected(
                500, f"Invalid Session TTL '{ttl:g}s', must be between [{self.session_ttl_min:g}s={MAX_TTL:g}s]"
            )
        bound = [SERF_HEALTH] if node_checks is None else node_checks
        for check in (*bound, *(service_checks or ())):
            if check == SERF_HEALTH:
                continue
            if check not in self.checks:
                raise Rejected(500, f"Missing check '{check}' registration")
            if self.checks[check].status == "critical":
                raise Rejected(500, f"Check '{check}' is in critical state")
        index = self.bump()
        session = Session(
            id=self.new_id(),
            name=name,
            node=self.node,
            ttl=ttl,
            lock_delay=min(lock_delay, MAX_LOCK_DELAY),
            behavior=behavior,
            node_checks=list(bound),
            service_checks=list(service_checks or ()),
            create=index,
            modify=index,
        )
        self.sessions[session.id] = session
        self.renew_session(session.id)
        self.session_index = index
        self.saved("session", session.id, session)
        return session

    def renew_session(self, session: str) -> Session:
        """The session, good for another TTL. Raises Rejected 404 when it is over."""
        held = self.sessions.get(session)
        if held is None:
            raise Rejected(404, f"Session id '{session}' not found")
        held.expires = None if held.ttl is None else self.now() + held.ttl * TTL_MULTIPLIER
        self.lapses("session", session, held.expires)
        return held

    def destroy_session(self, session: str) -> None:
        """The session is over and holds nothing; nothing happens when there is none."""
        held = self.sessions.pop(session, None)
        if held is None:
            return
        self.session_index = index = self.bump()
        self.drop_locks(held, index)
        self.saved("session", session, None)

    def end_sessions_of(self, check: str) -> None:
        """A check went critical or away: so do the sessions bound to it."""
        for session in list(self.sessions.values()):
            if check in session.node_checks or check in session.service_checks:
                self.destroy_session(session.id)

    def expire_sessions(self) -> None:
        for session in list(self.sessions.values()):
            if session.expires is not None and session.expires <= self.now():
                self.destroy_session(session.id)
