"""One message of each kind, without anything that is newer than the first release: written as today's code writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from agent.keeper import codec
from agent.keeper.hosted import Hosted
from agent.keeper.protocol import Code, HostOrder
from agent.wire import (
    Accepted,
    Assignment,
    Capacity,
    Claim,
    Claimed,
    HealthCheck,
    NodeProblem,
    PackageOrder,
    PackageRef,
    PackageStatus,
    PublisherSpec,
    ReplicaOrder,
    ReplicaPolicy,
    ReplicaSpec,
    ReplicaState,
    ReplicaStatus,
    Report,
    Resources,
    RestartPolicy,
    content_digest,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEB = PackageRef(name="web", version="1.2.0", digest="ab" * 32)
BASIC = PackageRef(name="basic-publisher", version="1.0.0", digest="cd" * 32)
SPEC = ReplicaSpec(
    package=WEB,
    settings={"path": "/srv/in", "deep": {"a": [1, 2.5, None, True]}},
    env={"A": "b"},
    publisher=PublisherSpec(package=BASIC, settings={"file": "x"}),
    resources=Resources(cpu=0.5, memory=1 << 28),
)
POLICY = ReplicaPolicy(
    restart=RestartPolicy(attempts=5, mode="delay"),
    health=HealthCheck(kind="http", target="/health"),
    ports=(8080,),
    stop_grace=4.0,
    protected=True,
)


def assignment() -> Assignment:
    bare = ReplicaSpec(package=WEB)
    packages = (
        PackageOrder(package=BASIC, sources=("http://10.0.0.1:7777/api/master/packages/x",)),
        PackageOrder(package=WEB),
    )
    replicas = (
        ReplicaOrder(
            replica="api.0",
            instance="api",
            spec=SPEC,
            spec_hash=SPEC.hash(),
            policy=POLICY,
            commit=COMMIT,
            ordered=(3, 7),
        ),
        ReplicaOrder(replica="web.0", instance="web", spec=bare, spec_hash=bare.hash(), renamed_from="old.0"),
    )
    return Assignment(
        cluster="shop", node="n1", epoch=3, generation=9, commit=COMMIT, packages=packages, replicas=replicas,
        digest=content_digest(packages, replicas),
    )  # fmt: skip


def report() -> Report:
    rows = tuple(
        ReplicaStatus(
            replica=f"api.{number}", instance="api", spec_hash=SPEC.hash(), package=WEB, state=state, healthy=True,
            since=12.5, started_at="2026-11-23T10:00:00Z", pid=4711, port=5000, restarts=1, last_error="exit status 3",
            commit=COMMIT, index=4,
        )
        for number, state in enumerate(ReplicaState)
    )  # fmt: skip
    return Report(
        cluster="shop", node="n1", agent="a1", boot_id="b1", index=17, at=99.5, epoch=3,
        accepted=Accepted(epoch=3, generation=9, digest=assignment().digest), settled=True, labels={"zone": "a"},
        capacity=Capacity(slots=20, cpu=4.0, memory=8 << 30), version="0.1.0",
        packages=(
            PackageStatus(package=WEB, state="Installed"),
            PackageStatus(package=BASIC, state="Failed", error="PKG_FETCH x", used=False),
        ),
        replicas=rows, removed=("gone.0",), problems=(NodeProblem(code="SANDBOX_DEGRADED", detail="no cgroup v2"),),
    )  # fmt: skip


def order(replica: str, *, command: tuple[str, ...] = ()) -> HostOrder:
    """For a component, or with a command for a program."""
    publisher = Code(
        "basic-publisher", "1.0.0", BASIC.digest, "/data/packages/cdcd/content", "tdie_basic_publisher:BasicPublisher",
        {"file": "x"},
    )  # fmt: skip
    return HostOrder(
        replica=replica, instance="api", node="n1", spec_hash=SPEC.hash(), runtime="exec" if command else "python",
        component=Code("web", "1.2.0", WEB.digest, "/data/packages/abab/content", "web:Web", {"path": "/srv/in"}),
        publisher=None if command else publisher, command=command, env={"A": "b"}, port=5000, log="/data/logs/api.0.log",
        cpu=0.5, memory=1 << 28, stop_grace=4.0, restart_attempts=5, restart_interval=1800.0, restart_delay=15.0,
        restart_mode="delay", correlation_id="3.9",
    )  # fmt: skip


def hosted() -> Hosted:
    """A host that has crashed once, as its keeper knows it."""
    host = Hosted(order=order("api.0"))
    host.take(host.order)
    host.state, host.healthy, host.since, host.started_at = "Started", True, 50.5, "2026-11-23T10:00:00Z"
    host.pid, host.start_time, host.restarts, host.last_error = 4711, 123456, 1, "exit status 3"
    host.host_state, host.launch, host.crashes = "Started", "L1", (40.0,)
    return host


def written() -> Iterator[tuple[str, str]]:
    """Kind and JSON of every message."""
    yield "assignment", assignment().model_dump_json(by_alias=True)
    yield "claim", Claim(epoch=3).model_dump_json(by_alias=True)
    yield "accepted", Accepted(epoch=3, generation=9, digest=assignment().digest).model_dump_json(by_alias=True)
    yield "report", report().model_dump_json(by_alias=True)
    yield "claimed", Claimed(report=report(), assignment=assignment()).model_dump_json(by_alias=True)
    yield "order", codec.order_text(order("api.0"))
    yield "order", codec.order_text(order("run.0", command=("sleep", "9")))
    yield "row", hosted().row_text()
    yield "stored", hosted().stored_text()


if __name__ == "__main__":
    sys.stdout.writelines(f"{kind} {text}\n" for kind, text in written())
