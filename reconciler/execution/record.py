"""What controllers remember in Consul: the commit in force and why it is not the tip, approvals, confirmations, uploads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, TxnOp
from agent.errors import Missing, Refused
from agent.wire import PackageRef
from reconciler.execution import proven
from reconciler.model.observed import Confirmed, Record
from reconciler.model.rollback import Rollback

MOST_UPLOADS = 250  # remembered; older ones stay where they are, but are not copied to new controllers
FORMAT = "%Y-%m-%dT%H:%M:%SZ"
LIMIT = 60_000  # bytes; values stay below 64 KiB


class RecordStore:
    """Reads and writes `tdie/<cluster>/record/`; every write proves that the leader key is still ours."""

    def __init__(self, cluster: str, *, consul: Consul, clock: Clock) -> None:
        self._cluster = cluster
        self._consul = consul
        self._clock = clock
        self._commit: str | None = None
        self._lost = False  # Consul does not know the rollback any more
        self._said = ("", "")  # which lost nodes are gone for good, and when a person said so …
        self._confirmed_lost = Confirmed()  # … as we know it
        self._one_at_a_time = asyncio.Lock()  # of those who write which commit is in force
        self.rollback: Rollback | None = None  # why an earlier commit is in force; known once `in_force` was asked
        self.unsure = False  # no answer said whether the last write of it was done: `in_force` has to be asked again

    async def in_force(self) -> str | None:
        """The commit that was in force last, also under earlier leaders; `rollback` then says why, if it is not the tip."""
        known = await self._get("commit")
        self.unsure = False
        if not known and self.rollback is not None:  # Consul has lost its data, and who led last knows better
            self._lost = True
            return self.rollback.to
        back = known.get("rollback")
        self._commit = str(known["commit"]) if known else None
        self.rollback, self._lost = Rollback.read(back) if back else None, False
        return self._commit

    def distrust(self) -> None:
        """Somebody else led since this controller did: what Consul has lost is not known here either."""
        if self._lost:
            self._commit, self.rollback, self._lost = None, None, False

    async def put_in_force(self, commit: str, subject: str, session: str) -> None:
        """The commit in force is remembered; no write when it is already.

        A newer commit ends a rollback. One that was rolled back from is not remembered: a cycle that began before the rollback
        may still speak of it.
        """
        async with self._one_at_a_time:
            back = self.rollback
            if back is not None and (commit in back.quarantined or (commit == back.to and not self._lost)):
                return
            if back is not None and commit == back.to:
                await self._put_commit(commit, subject, back, session)
            elif commit != self._commit:
                await self._put_commit(commit, subject, None, session)

    async def roll_back(self, back: Rollback, subject: str, session: str) -> None:
        """From now on the commit it names is in force, also under later leaders."""
        async with self._one_at_a_time:
            await self._put_commit(back.to, subject, back, session)

    async def end_rollback(self, session: str) -> None:
        """The tip of the branch may be in force again."""
        async with self._one_at_a_time:
            known = await self._get("commit")
            commit = known.get("commit", self._commit)
            await self._put_commit(str(commit), str(known.get("subject", "")), None, session)

    async def _put_commit(self, commit: str, subject: str, back: Rollback | None, session: str) -> None:
        value: dict[str, Any] = {"commit": commit, "subject": subject[:200], "since": self._now()}
        if back is not None:
            value["rollback"] = back.text()
        self.unsure = True
        await self._put("commit", value, session)
        self._commit, self.rollback, self._lost, self.unsure = commit, back, False, False

    async def load(self) -> Record:
        """What planning needs to know besides the fleet."""
        approvals = await self._get("approvals")
        confirmed = await self._get("confirmed-prune")
        rollouts = await self._rollouts()
        return Record(
            approved=frozenset(approvals.get("changes", ())),
            confirmed_prune=str(confirmed.get("plan", "")),
            confirmed_lost=self._confirmed(await self._get("confirmed-lost")),
            rewound=await self._consul.get(keys.rewound(self._cluster)) is not None,
            suspended={name: _word(name, known) for name, known in (await self._get("suspended")).items()},
            stable={name: str(known["stable"]) for name, known in rollouts.items() if known.get("stable")},
            promoted={name: str(known["promoted"]) for name, known in rollouts.items() if known.get("promoted")},
        )

    async def put_rollouts(self, stable: Mapping[str, str], gone: Iterable[str], session: str) -> None:
        """These specs (by instance) have run well on all replicas; these instances are there no more."""
        await self._put_rollouts({name: {"stable": spec, "at": self._now()} for name, spec in stable.items()}, session)
        await self._write([TxnOp("delete", keys.record(self._cluster, "rollouts", name)) for name in gone], session)

    async def _promote(self, specs: Mapping[str, str], who: str, session: str) -> None:
        known = await self._rollouts()
        await self._put_rollouts(
            {name: {**known.get(name, {}), "promoted": spec, "by": who} for name, spec in specs.items()}, session
        )

    async def _rollouts(self) -> dict[str, dict[str, Any]]:
        prefix = keys.record(self._cluster, "rollouts", "")
        return {pair.key.removeprefix(prefix): json.loads(pair.value) for pair in await self._consul.get_all(prefix)}

    async def _put_rollouts(self, values: Mapping[str, Mapping[str, Any]], session: str) -> None:
        ops = [
            TxnOp("set", keys.record(self._cluster, "rollouts", name), json.dumps(value).encode())
            for name, value in values.items()
        ]
        await self._write(ops, session)

    async def _write(self, ops: Sequence[TxnOp], session: str) -> None:
        await proven.write(self._consul, proven.leads(self._cluster, session), ops)

    async def approve(
        self, changes: frozenset[str], who: str, session: str, *, promoted: Mapping[str, str] | None = None
    ) -> None:
        """These changes may run, replacing an earlier approval; and these specs (by instance) may go past their canaries."""
        if promoted:
            await self._promote(promoted, who, session)
        await self._put("approvals", {"changes": sorted(changes), "who": who, "at": self._now()}, session)

    async def confirm_prune(self, plan: str, who: str, session: str) -> None:
        """The plan with this digest may stop more than the limit."""
        await self._put("confirmed-prune", {"plan": plan, "who": who, "at": self._now()}, session)

    async def confirm_lost(self, nodes: str, who: str, session: str) -> None:
        """The nodes with this digest (empty: none were lost together) are gone, and all that did not come back since Consul lost
        its data: what ran there may move."""
        if nodes:
            await self._put("confirmed-lost", {"nodes": nodes, "who": who, "at": self._now()}, session)
        await self.all_is_known(session)

    async def all_is_known(self, session: str) -> None:
        """Consul had lost data; what every listed node runs is known again, or a person says that the others are gone."""
        await self._write([TxnOp("delete", keys.rewound(self._cluster))], session)

    async def suspend(self, instance: str, who: str, why: str, session: str) -> None:
        """Nothing of this instance (empty: of the whole cluster) is changed until it is resumed."""
        held = dict(await self._get("suspended"))
        held[instance] = {"who": who, "why": why, "at": self._now()}
        await self._put("suspended", held, session)

    async def resume(self, instance: str, session: str) -> str:
        """Who had suspended it and why. Missing (NOT_SUSPENDED) when nobody had."""
        held = dict(await self._get("suspended"))
        if instance not in held:
            what = instance or "the cluster"
            others = ", ".join(sorted(name or "the cluster" for name in held))
            hint = f"suspended is {others}" if others else ""
            raise Missing(f"{what} is not suspended", code="NOT_SUSPENDED", hint=hint)
        word = _word(instance, held.pop(instance))
        await self._put("suspended", held, session)
        return word

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

    def _confirmed(self, value: Mapping[str, Any]) -> Confirmed:
        """At the moment at which we first read it: a time of day that was set would stop its pace, or move all nodes at once."""
        said = (str(value["nodes"]), str(value["at"])) if value else ("", "")
        if self._said != said:
            self._said, self._confirmed_lost = said, Confirmed(said[0], self._clock.now()) if value else Confirmed()
        return self._confirmed_lost

    async def _get(self, name: str) -> Mapping[str, Any]:
        entry = await self._consul.get(keys.record(self._cluster, name))
        value: Mapping[str, Any] = json.loads(entry.value) if entry else {}
        return value

    async def _put(self, name: str, value: Mapping[str, Any], session: str) -> None:
        data = json.dumps(value, ensure_ascii=False).encode()
        if len(data) > LIMIT:
            raise ValueError(f"record/{name} would take {len(data)} bytes; the limit is {LIMIT}")
        await self._write([TxnOp("set", keys.record(self._cluster, name), data)], session)

    def _now(self) -> str:
        return self._clock.wall().strftime(FORMAT)


def _word(name: str, known: Mapping[str, Any]) -> str:
    what = name or "the cluster"
    return f"{what} is suspended by {known['who']}" + (f": {known['why']}" if known.get("why") else "")
