"""What people push: nodes, packages, instances and how they are kept in step."""

from __future__ import annotations

from dataclasses import replace

from agent.wire import PackageRef
from reconciler.model.desired import (
    ClusterSpec,
    DesiredState,
    FailoverPolicy,
    InstanceSpec,
    NodeSpec,
    Share,
    SyncPolicy,
)
from reconciler.model.windows import SyncWindow
from reconciler.simulation.clauses import instance_of, package_of
from reconciler.simulation.verbs import Verbs
from reconciler.simulation.world import CLUSTER, World


class Git:
    """The repository of a script; each of its verbs is a commit, except `fleet`, which is in the first of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._instances: dict[str, InstanceSpec] = {}
        self._commits = 0
        self._labels: dict[str, dict[str, str]] = {}
        self._retired: set[str] = set()
        self._packages: tuple[PackageRef, ...] = ()
        self._retain: int | None = None
        self._sync = SyncPolicy()

    def verbs(self) -> Verbs:
        return (
            (r"fleet (.+)", self._fleet),
            (r"join (\S+)", self._join),
            (r"label (\S+) (\w+)=(\S+)", self._label),
            (r"retire (\S+)", self._retire),
            (r"packages (.+)", self._every_node),
            (r"retain (\d+)", self._keep),
            (r"prune at most (\d+)%", self._prune),
            (r"self-heal (on|off)", self._self_heal),
            (r"window (.+) for ([\d.]+)s", self._window),
            (r"commit drop (.+)", self._drop),
            (r"commit (.+)", self._commit),
        )

    async def _fleet(self, names: str) -> None:
        for name in names.split():
            self.world.add_machine(name)
            self.world.start_agent(name)

    async def _join(self, name: str) -> None:
        await self._fleet(name)
        self._push()

    async def _label(self, node: str, name: str, value: str) -> None:
        self._labels.setdefault(node, {})[name] = value
        self._push()

    async def _retire(self, node: str) -> None:
        self._retired.add(node)
        self._push()

    async def _every_node(self, names: str) -> None:
        self._packages = tuple(map(package_of, () if names == "none" else names.split()))
        self._push()

    async def _keep(self, versions: str) -> None:
        self._retain = int(versions)
        self._push()

    async def _prune(self, percent: str) -> None:
        self._sync = replace(self._sync, max_prune=Share(int(percent), percent=True))
        self._push()

    async def _self_heal(self, word: str) -> None:
        self._sync = replace(self._sync, self_heal=word == "on")
        self._push()

    async def _window(self, schedule: str, seconds: str) -> None:
        self._sync = replace(self._sync, windows=(SyncWindow(schedule, float(seconds)),))
        self._push()

    async def _commit(self, texts: str) -> None:
        for text in texts.split(";"):
            spec = instance_of(text.strip())
            self._instances[spec.name] = spec
            if spec.moved_from is not None:
                self._instances.pop(spec.moved_from, None)
        self._push()

    async def _drop(self, names: str) -> None:
        for name in names.split():
            del self._instances[name]
        self._push()

    def _push(self) -> None:
        self._commits += 1
        listed = sorted(self.world.nodes.keys() - self._retired)
        cluster = ClusterSpec(
            CLUSTER,
            {name: NodeSpec(name, dict(self._labels.get(name, {}))) for name in listed},
            self._packages,
            sync=self._sync,
            failover=FailoverPolicy(lost_after=15.0),
            retain_versions=self._retain,
        )
        instances = {name: self._instances[name] for name in sorted(self._instances)}
        self.world.push(DesiredState(f"{self._commits:040x}", cluster, instances, subject=f"commit {self._commits}"))
