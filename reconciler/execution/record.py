"""What controllers remember in Consul: the last good commit, approvals, confirmations, rejected commits, history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, TxnOp
from agent.errors import Refused
from agent.wire import PackageRef
from reconciler.model.observed import Record

MOST_UPLOADS = 250  # remembered; older ones stay where they are, but are not copied to new controllers
LIMIT = 60_000  # bytes; values stay below 64 KiB


class RecordStore:
    """Reads and writes `tdie/<cluster>/record/`; every write proves that the leader key is still ours."""

    def __init__(self, cluster: str, *, consul: Consul, clock: Clock) -> None:
        self._cluster = cluster
        self._consul = consul
        self._clock = clock
        self._commit: str | None = None

    async def last_good(self) -> str | None:
        """The commit that was in force last, also under earlier leaders."""
        entry = await self._consul.get(keys.record(self._cluster, "commit"))
        return str(json.loads(entry.value)["commit"]) if entry else None

    async def put_last_good(self, commit: str, subject: str, session: str) -> None:
        """The commit in force is remembered; no write when it is already."""
        if commit == self._commit:
            return
        if await self.last_good() != commit:
            since = f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"
            await self._put("commit", {"commit": commit, "subject": subject[:200], "since": since}, session)
        self._commit = commit

    async def load(self) -> Record:
        """What planning needs to know besides the fleet."""
        approvals = await self._get("approvals")
        confirmed = await self._get("confirmed-prune")
        return Record(
            approved=frozenset(approvals.get("changes", ())),
            confirmed_prune=str(confirmed.get("plan", "")),
        )

    async def approve(self, changes: frozenset[str], who: str, session: str) -> None:
        """These changes may run; replaces an earlier approval."""
        await self._put("approvals", {"changes": sorted(changes), "who": who, "at": self._now()}, session)

    async def confirm_prune(self, plan: str, who: str, session: str) -> None:
        """The plan with this digest may stop more than the limit."""
        await self._put("confirmed-prune", {"plan": plan, "who": who, "at": self._now()}, session)

    async def uploads(self) -> Mapping[str, Any]:
        """Packages uploaded to controllers, by digest, the oldest first: `name`, `version`, `at`."""
        return await self._get("uploads")

    async def put_upload(self, package: PackageRef, session: str) -> None:
        """The upload is remembered, so that other controllers copy it. Refused (PKG_VERSION_REUSED) when the version is taken."""
        held = dict(await self.uploads())
        for digest, known in held.items():
            if (known["name"], known["version"]) == (package.name, package.version) and digest != package.digest:
                raise Refused(
                    f"{package} was uploaded with other content ({digest[:12]}…)",
                    code="PKG_VERSION_REUSED",
                    hint="raise the version in its manifest",
                )
        if package.digest in held:
            return
        held[package.digest] = {"name": package.name, "version": package.version, "at": self._now()}
        await self._put("uploads", dict(list(held.items())[-MOST_UPLOADS:]), session)

    async def _get(self, name: str) -> Mapping[str, Any]:
        entry = await self._consul.get(keys.record(self._cluster, name))
        value: Mapping[str, Any] = json.loads(entry.value) if entry else {}
        return value

    async def _put(self, name: str, value: Mapping[str, Any], session: str) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        if len(data) > LIMIT:
            raise ValueError(f"record/{name} would take {len(data)} bytes; the limit is {LIMIT}")
        await self._consul.txn(
            [
                TxnOp("check-session", keys.leader(self._cluster), session=session),
                TxnOp("set", keys.record(self._cluster, name), data),
            ]
        )

    def _now(self) -> str:
        return f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"
