"""What this node says is true: rows with indexes, deltas, tombstones, and waiting readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from agent.wire import Accepted, Capacity, NodeProblem, PackageStatus, ReplicaState, ReplicaStatus, Report

TOMBSTONES = 4096  # a reader that is further behind gets all rows
_MOVING = (ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.STOPPING)
_LONGEST_LINGER = 10  # times the usual one


class ReportBook:
    """The node's report, kept current row by row. Its index grows with every change and never otherwise."""

    def __init__(
        self,
        *,
        cluster: str,
        node: str,
        agent: str,
        boot_id: str,
        version: str,
        labels: Mapping[str, str],
        capacity: Capacity,
        now: Callable[[], float],
        linger: float = 0.005,
    ) -> None:
        """`linger` seconds pass between a change and the answer to a waiting reader, so that a burst is one answer."""
        self._head = Report(
            cluster=cluster,
            node=node,
            agent=agent,
            boot_id=boot_id,
            index=1,
            at=0.0,
            epoch=0,
            version=version,
            labels=labels,
            capacity=capacity,
        )
        self._now = now
        self._linger = linger
        self.rows: dict[str, ReplicaStatus] = {}
        self._removed: dict[str, int] = {}
        self._forgotten = 0  # deltas from before this index would miss removals
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def index(self) -> int:
        return self._head.index

    def put(self, status: ReplicaStatus) -> bool:
        """The row is this; True if that is news."""
        before = self.rows.get(status.replica)
        if before is not None and before.model_copy(update={"index": 0}) == status.model_copy(update={"index": 0}):
            return False
        self._removed.pop(status.replica, None)
        self.rows[status.replica] = status.model_copy(update={"index": self._news()})
        return True

    def remove(self, replica: str) -> None:
        """There is no such replica here any more."""
        if self.rows.pop(replica, None) is not None:
            self._removed[replica] = self._news()
            if len(self._removed) > TOMBSTONES:
                oldest = min(self._removed, key=self._removed.__getitem__)
                self._forgotten = self._removed.pop(oldest)

    def say(
        self,
        *,
        epoch: int | None = None,
        accepted: Accepted | None = None,
        settled: bool | None = None,
        packages: Iterable[PackageStatus] | None = None,
        problems: Iterable[NodeProblem] | None = None,
        by_hand: Iterable[ReplicaStatus] | None = None,
    ) -> None:
        """What is given is true of the node as a whole."""
        said: dict[str, object] = {
            "epoch": epoch,
            "accepted": accepted,
            "settled": settled,
            "packages": None if packages is None else tuple(packages),
            "problems": None if problems is None else tuple(problems),
            "by_hand": None if by_hand is None else tuple(by_hand),
        }
        news = {key: value for key, value in said.items() if value is not None and getattr(self._head, key) != value}
        if news:
            self._head = self._head.model_copy(update={**news, "index": self._news()})

    def whole(self) -> Report:
        """All rows."""
        rows = tuple(self.rows[name] for name in sorted(self.rows))
        return self._head.model_copy(update={"at": self._now(), "replicas": rows})

    def since(self, index: int) -> Report:
        """Rows that changed after `index`; all rows when that cannot be told."""
        if not 0 < index <= self.index or index < self._forgotten:
            return self.whole()
        rows = sorted((row for row in self.rows.values() if row.index > index), key=lambda row: row.replica)
        gone = sorted(name for name, at in self._removed.items() if at > index)
        return self._head.model_copy(
            update={"at": self._now(), "base": index, "replicas": tuple(rows), "removed": tuple(gone)}
        )

    async def wait(self, index: int, wait: float, agent: str | None) -> Report:
        """At once if the reader is behind or knows another agent; else when something changes, at the latest after `wait`."""
        if agent is not None and agent != self._head.agent:
            return self.whole()
        if index == self.index and not self._closed:
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                return self.since(index)  # nothing changed, and that is an answer
        if index and not self._closed:
            await asyncio.sleep(self._linger_now())
        return self.since(index)

    def _linger_now(self) -> float:
        """The more replicas are on their way, the more news follows at once: a reader needs them together, not one by one."""
        moving = sum(row.state in _MOVING for row in self.rows.values())
        return self._linger * min(_LONGEST_LINGER, 1 + moving / 8)

    def close(self) -> None:
        """Nobody waits any more: every reader is answered at once, so that a stop does not wait for long polls."""
        self._closed = True
        self._changed.set()

    def _news(self) -> int:
        self._head = self._head.model_copy(update={"index": self._head.index + 1})
        self._changed.set()
        self._changed = asyncio.Event()
        return self._head.index
