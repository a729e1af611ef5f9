"""Services and checks of the embedded store's one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from agent.consul.embedded.sessions import Sessions
from agent.consul.embedded.state import Check, Rejected, Service

STATES = ("passing", "warning", "critical")
DEREGISTER_MIN = 60.0


class Services(Sessions):
    """The catalog of one node. An index per service name, so that a watch of one is not woken by another."""

    def __init__(
        self, now: Callable[[], float], new_id: Callable[[], str], node: str, session_ttl_min: float = 10.0
    ) -> None:
        super().__init__(now, new_id, node, session_ttl_min)
        self.services: dict[str, Service] = {}
        self.names: dict[str, int] = {}
        self.catalog_index = 1

    def register(self, service: Service, checks: Sequence[Check], *, replace_checks: bool = False) -> None:
        """The service is there with these checks; a check that was there keeps its status. Nothing new moves no index."""
        held = self.services.get(service.id)
        if held is not None and held.name != service.name:
            self._touch(held.name, self.bump())
        service.create, service.modify = (held.create, held.modify) if held else (0, 0)
        if held != service:
            service.modify = self.bump()
            service.create = service.create or service.modify
            self.services[service.id] = service
            self._touch(service.name, service.modify)
            self.saved("service", service.id, service)
        kept = {check.id for check in checks}
        for old in [each for each in self.checks.values() if each.service == service.id and each.id not in kept]:
            if replace_checks:
                self.remove_check(old.id)
            else:
                self.add_check(replace(old))
        for check in checks:
            check.service = service.id
            self.add_check(check)
        self.follow_aliases()

    def add_check(self, check: Check) -> None:
        """Register one check. Raises Rejected when it names a service that is not there, or a state that does not exist."""
        if check.status not in STATES:
            raise Rejected(400, f"Invalid check status {check.status!r}")
        service = self.services.get(check.service) if check.service else None
        if check.service and service is None:
            raise Rejected(500, f'ServiceID "{check.service}" does not exist')
        check.service_name = service.name if service else ""
        check.service_tags = list(service.tags) if service else []
        held = self.checks.get(check.id)
        if held is not None:
            check.status, check.output = held.status, held.output
            check.create, check.modify, check.critical_since = held.create, held.modify, held.critical_since
        check.expires = None if check.ttl is None else self.now() + check.ttl
        if check.status == "critical" and check.critical_since is None:
            check.critical_since = self.now()
        self.lapses("check", check.id, check.expires)
        self.lapses("check", check.id, self.deregister_at(check))
        if held is not None and held.same(check):
            self.checks[check.id] = check
            return
        check.modify = self.bump()
        check.create = check.create or check.modify
        self.checks[check.id] = check
        self._touch(check.service_name, check.modify)
        self.saved("check", check.id, check)

    def update_check(self, check: str, status: str, output: str) -> None:
        """Beat or change a TTL check. Raises Rejected when it is not one, or the state does not exist."""
        held = self.checks.get(check)
        if held is None or held.ttl is None:
            raise Rejected(500, f'CheckID "{check}" does not have associated TTL')
        if status not in STATES:
            raise Rejected(400, f"Invalid check status: '{status}'")
        held.expires = self.now() + held.ttl
        self.lapses("check", check, held.expires)
        self.observe(check, status, output)

    def observe(self, check: str, status: str, output: str) -> None:
        """A check has this status and output now, whoever found out; what hangs on it follows at once."""
        if self._set(check, status, output):
            self.follow_aliases()

    def _set(self, check: str, status: str, output: str) -> bool:
        held = self.checks.get(check)
        if held is None or (held.status, held.output) == (status, output):
            return False
        if status != "critical":
            held.critical_since = None
        elif held.status != "critical":
            held.critical_since = self.now()
            self.lapses("check", check, self.deregister_at(held))
        held.status, held.output, held.modify = status, output, self.bump()
        self._touch(held.service_name, held.modify)
        self.saved("check", check, held)
        if status == "critical":
            self.end_sessions_of(check)
        return True

    def follow_aliases(self) -> None:
        """Every alias check says what the service it follows says, also along chains; a circle comes to rest too."""
        aliases = [each for each in self.checks.values() if each.alias is not None]
        followed: dict[str, list[Check]] = {str(alias.alias): [] for alias in aliases}
        for check in self.checks.values():
            if check.service in followed:
                followed[check.service].append(check)
        for _ in aliases:
            changes = [self._set(each.id, *self._aliased(str(each.alias), followed)) for each in aliases]
            if not any(changes):
                return

    def _aliased(self, service: str, followed: dict[str, list[Check]]) -> tuple[str, str]:
        if service not in self.services:
            return "critical", f"Service {service} could not be found on node {self.node}"
        checks = followed[service]
        for status in ("critical", "warning"):
            for check in checks:
                if check.status == status:
                    # An alias's own output is left out: in a circle it would grow for ever.
                    said = "" if check.alias is not None else f": {check.output}"
                    return status, f'Aliased check "{check.name}" failing{said}'
        return "passing", "All checks passing." if checks else "No checks found."

    def deregister(self, service: str) -> None:
        """Gone with its checks; nothing happens when it was not there."""
        held = self.services.pop(service, None)
        if held is None:
            return
        self._touch(held.name, self.bump())
        self.saved("service", service, None)
        for check in [each.id for each in self.checks.values() if each.service == service]:
            self.remove_check(check)
        self.follow_aliases()

    def remove_check(self, check: str) -> None:
        held = self.checks.pop(check, None)
        if held is not None:
            self._touch(held.service_name, self.bump())
            self.saved("check", check, None)
            self.end_sessions_of(check)

    def expire_checks(self) -> None:
        """TTL checks nobody beat turn critical; services critical for too long go away."""
        now = self.now()
        for check in list(self.checks.values()):
            if check.expires is not None and check.expires <= now:
                check.expires = None
                said = f" (last output before timeout follows): {check.output}" if check.output else ""
                if check.status != "critical":
                    self.observe(check.id, "critical", f"TTL expired{said}")
        for check in list(self.checks.values()):
            if (due := self.deregister_at(check)) is not None and due <= now:
                self.deregister(check.service)

    @staticmethod
    def deregister_at(check: Check) -> float | None:
        if check.deregister_after is None or check.critical_since is None or not check.service:
            return None
        return check.critical_since + max(check.deregister_after, DEREGISTER_MIN)

    def _touch(self, service_name: str, index: int) -> None:
        self.catalog_index = index
        if service_name:
            self.names[service_name] = index
            self.saved("name", service_name, {"index": index})
