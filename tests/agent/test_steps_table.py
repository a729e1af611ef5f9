"""Every rule of agent.steps, each with the case that it decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent import steps
from agent.keeper.protocol import BY_HAND, Code, HostOrder, HostRow, Lease
from agent.packages.protocol import Installed
from agent.wire import (
    Assignment,
    NodePolicy,
    PackageOrder,
    PackageRef,
    PublisherSpec,
    ReplicaOrder,
    ReplicaPolicy,
    ReplicaSpec,
    Resources,
    RestartPolicy,
    SubscriptionSpec,
    content_digest,
)

V1 = PackageRef(name="web", version="1.0.0", digest="d1")
V2 = PackageRef(name="web", version="2.0.0", digest="d2")
PUB = PackageRef(name="pub", version="1.0.0", digest="p1")
SPEC = ReplicaSpec(package=V1, settings={"a": 1})


def order(
    spec: ReplicaSpec = SPEC, replica: str = "web.0", renamed_from: str | None = None, **policy: object
) -> ReplicaOrder:
    return ReplicaOrder(
        replica=replica, instance="web", spec=spec, spec_hash=spec.hash(), renamed_from=renamed_from,
        policy=ReplicaPolicy.model_validate(policy),
    )  # fmt: skip


def row(state: str = "Started", spec: ReplicaSpec = SPEC, replica: str = "web.0", runtime: str = "python") -> HostRow:
    def code(ref: PackageRef) -> Code:
        return Code(ref.name, ref.version, ref.digest, "/x")

    host = HostOrder(
        replica=replica, instance="web", node="a", spec_hash=spec.hash(), runtime=runtime,  # type: ignore[arg-type]
        component=code(spec.package), publisher=code(spec.publisher.package) if spec.publisher else None,
        env=dict(spec.env), cpu=spec.resources.cpu, memory=spec.resources.memory, port=5000,
    )  # fmt: skip
    return HostRow(replica, spec.hash(), state, state == "Started", 0.0, host)


def assignment(*replicas: ReplicaOrder, packages: tuple[PackageOrder, ...] = ()) -> Assignment:
    return Assignment(
        cluster="c", node="a", epoch=1, generation=1, packages=packages, replicas=replicas,
        digest=content_digest(packages, replicas),
    )  # fmt: skip


NEW_SETTINGS = SPEC.model_copy(update={"settings": {"a": 2}})
NEW_PACKAGE = SPEC.model_copy(update={"package": V2})
SUBSCRIBES = SPEC.model_copy(update={"subscribe": (SubscriptionSpec(topic="files"),)})
NEW_ENV = SPEC.model_copy(update={"env": {"X": "1"}})
NEW_LIMIT = SPEC.model_copy(update={"resources": Resources(cpu=1)})
NEW_PUBLISHER = SPEC.model_copy(update={"publisher": PublisherSpec(package=PUB)})
OTHER_RESTART = RestartPolicy(attempts=9)

TABLE: list[tuple[str, ReplicaOrder | None, HostRow | None, str, str]] = [
    ("stopping waits", order(NEW_PACKAGE), row("Stopping"), "", "its stop is under way"),
    ("removed and down", None, row("Stopped"), "Forget", "not ordered any more, and down"),
    ("removed and failed", None, row("Failed"), "Forget", "not ordered any more, and down"),
    ("removed", None, row(), "Stop", "not ordered any more"),
    ("removed in backoff", None, row("Backoff"), "Stop", "not ordered any more"),
    ("new", order(), None, "Start", "ordered and not there"),
    ("new version, old one down", order(NEW_PACKAGE), row("Stopped"), "Start", "another spec is ordered, and the old one is down"),
    ("new version, old one failed", order(NEW_PACKAGE), row("Failed"), "Start", "another spec is ordered, and the old one is down"),
    ("failed, other restart", order(restart=OTHER_RESTART), row("Failed"), "Start",
     "it gave up, and another restart policy is ordered"),
    ("failed", order(), row("Failed"), "", "it gave up on this spec"),
    ("stopped by hand", order(), row("Stopped"), "Start", "ordered, but it was stopped"),
    ("stopped by hand, left so", order(heal=False), row("Stopped"), "", "it was stopped, and this cluster leaves it so"),
    ("crashed, not healed by hand", order(heal=False), row("Backoff"), "", "as ordered"),
    ("new version of what is left stopped", order(NEW_PACKAGE, heal=False), row("Stopped"), "Start",
     "another spec is ordered, and the old one is down"),
    ("policy", order(stop_grace=3.0), row(), "Adjust", "another policy is ordered"),
    ("asks the component", order(health={"kind": "component"}), row(), "Adjust", "another policy is ordered"),
    ("probed by the agent", order(health={"kind": "tcp", "target": "80"}), row(), "", "as ordered"),
    ("policy in backoff", order(restart=OTHER_RESTART), row("Backoff"), "Adjust", "another policy is ordered"),
    ("as ordered", order(), row(), "", "as ordered"),
    ("starting", order(), row("Starting"), "", "as ordered"),
    ("in backoff", order(), row("Backoff"), "", "as ordered"),
    ("settings", order(NEW_SETTINGS), row(), "Reconfigure", "other settings are ordered"),
    ("subscriptions", order(SUBSCRIBES), row(), "Reconfigure", "other settings are ordered"),
    ("settings while starting", order(NEW_SETTINGS), row("Starting"), "Stop", "another spec is ordered"),
    ("settings of exec", order(NEW_SETTINGS), row(runtime="exec"), "Stop", "another spec is ordered"),
    ("package", order(NEW_PACKAGE), row(), "Stop", "another spec is ordered"),
    ("env", order(NEW_ENV), row(), "Stop", "another spec is ordered"),
    ("limits", order(NEW_LIMIT), row(), "Stop", "another spec is ordered"),
    ("publisher", order(NEW_PUBLISHER), row(), "Stop", "another spec is ordered"),
    ("health and ports are not the keeper's", order(ports=(80,)), row(), "", "as ordered"),
]  # fmt: skip


STRICT: dict[str, Any] = {"lease": "strict"}
FENCED = replace(row("Stopped"), fenced="LEASE_EXPIRED")


def leased(there: HostRow) -> HostRow:
    return replace(there, order=replace(there.order, lease=Lease(1, 1, 5.0, 2.0)))


LEASES: list[tuple[str, ReplicaOrder, HostRow | None, str, str, str]] = [
    ("new", order(**STRICT), None, "waiting", "", "its lease is not held"),
    ("new, lease held", order(**STRICT), None, "held", "Start", "ordered and not there"),
    ("down", order(**STRICT), row("Stopped"), "elsewhere", "", "its lease is not held"),
    ("gave up", order(**STRICT), row("Failed"), "waiting", "", "its lease is not held"),
    ("fenced", order(**STRICT), FENCED, "waiting", "", "its lease is not held"),
    ("fenced, lease held again", order(heal=False, **STRICT), FENCED, "held", "Start", "its lease was lost, and is held again"),
    ("runs unleased, lease not held yet", order(**STRICT), row(), "waiting", "", "as ordered"),
    ("runs unleased, lease elsewhere", order(**STRICT), row(), "elsewhere", "Stop", "its lease is held elsewhere"),
    ("runs unleased, lease held", order(**STRICT), row(), "held", "Adjust", "another policy is ordered"),
    ("runs leased, none wanted", order(), leased(row()), "", "Adjust", "another policy is ordered"),
    ("runs leased, lease not known", order(NEW_SETTINGS, **STRICT), leased(row()), "waiting", "",
     "its lease is not held yet, or not any more: its keeper sees to it"),
    ("runs leased, new settings", order(NEW_SETTINGS, **STRICT), leased(row()), "held", "Reconfigure",
     "other settings are ordered"),
    ("runs leased", order(**STRICT), leased(row()), "held", "", "as ordered"),
]  # fmt: skip


def here(*digests: str, requires: str = "") -> dict[str, Installed]:
    """Packages that are installed; those named in `requires` have dependencies."""
    refs = {"d1": V1, "d2": V2, "p1": PUB}
    return {d: Installed(refs[d], "/x", dependencies=("lib",) if d in requires.split() else ()) for d in digests}


def decide(local: steps.Local, replica: str = "web.0") -> tuple[str, str]:
    orders, heirs = steps.orders_of(local.assignment)
    step, reason = steps.step_for(steps.case_of(replica, local, orders, heirs))
    return (type(step).__name__ if step else ""), reason


def local(
    wanted: ReplicaOrder | None, there: HostRow | None, installed: dict[str, Installed] | None = None
) -> steps.Local:
    rows = {there.replica: there} if there else {}
    found = here("d1", "d2", "p1") if installed is None else installed
    return steps.Local(assignment(*([wanted] if wanted else [])), found, rows)


@pytest.mark.parametrize(("name", "wanted", "there", "step", "reason"), TABLE, ids=[t[0] for t in TABLE])
def test_table(name: str, wanted: ReplicaOrder | None, there: HostRow | None, step: str, reason: str) -> None:
    assert decide(local(wanted, there)) == (step, reason)


@pytest.mark.parametrize(("name", "wanted", "there", "lease", "step", "reason"), LEASES, ids=[t[0] for t in LEASES])
def test_leases(name: str, wanted: ReplicaOrder, there: HostRow | None, lease: str, step: str, reason: str) -> None:
    held = replace(local(wanted, there), leases={"web.0": lease} if lease else {})
    assert decide(held) == (step, reason)


def test_a_renamed_process_waits_for_its_new_lease() -> None:
    held = local(order(replica="shop.0", renamed_from="web.0", **STRICT), leased(row()))
    assert decide(replace(held, leases={"shop.0": "waiting"}), "shop.0") == ("", "its lease is not held")
    assert decide(replace(held, leases={"shop.0": "held"}), "shop.0")[0] == "Rename"


def test_nothing_is_stopped_before_its_packages_are_there() -> None:
    only_old = here("d1")
    assert decide(local(order(NEW_PACKAGE), row(), only_old)) == ("", "a package is not installed yet")
    assert decide(local(order(NEW_PUBLISHER), row(), only_old)) == ("", "a package is not installed yet")
    assert decide(local(order(), row("Stopped"), {})) == ("", "a package is not installed yet")
    assert decide(local(order(), row(), {})) == ("", "as ordered")
    found = steps.steps(local(order(NEW_PACKAGE), row(), only_old))
    assert [(type(s).__name__, s.key) for s in found] == [("Fetch", "package d2")]


def test_nothing_is_stopped_before_the_environment_its_packages_share_is_made() -> None:
    new = order(NEW_PUBLISHER)
    before = local(new, row(), here("d1", "p1", requires="d1 p1"))
    assert decide(before) == ("", "a package is not installed yet")
    assert steps.preparations(before) == (steps.Prepare("d1+p1"),)
    made = replace(before, environments=frozenset({"d1+p1"}))
    assert decide(made) == ("Stop", "another spec is ordered")
    assert steps.preparations(made) == ()
    alone = replace(local(new, row(), here("d1", "p1", requires="p1")), environments=frozenset({"p1"}))
    assert decide(alone) == ("Stop", "another spec is ordered")  # the publisher's own is enough
    assert steps.preparations(alone) == ()


def test_what_was_started_by_hand_is_left_alone_unless_the_cluster_says_otherwise() -> None:
    name = f"{BY_HAND}.m1.0"
    running = replace(row(replica=name), pid=7)
    held = local(None, running)
    assert decide(held, name) == ("", "started by hand")
    assert decide(local(None, replace(running, state="Stopped")), name) == ("", "started by hand")  # its process lives
    assert decide(local(None, replace(running, state="Stopped", pid=None)), name)[0] == "Forget"
    assert decide(local(None, replace(running, state="Failed", pid=None)), name) == ("", "started by hand")
    assert held.assignment is not None
    told = replace(held, assignment=held.assignment.model_copy(update={"policy": NodePolicy(stop_manual=True)}))
    assert decide(told, name) == ("Stop", "not ordered any more")


def test_rename_takes_over_a_running_process_and_nothing_else() -> None:
    new = order(replica="shop.0", renamed_from="web.0")
    held = local(new, row())
    assert decide(held, "shop.0") == ("Rename", "takes over a running process")
    assert decide(held, "web.0") == ("", "another replica takes over its process")
    down = local(new, row("Stopped"))
    assert decide(down, "shop.0") == ("Start", "ordered and not there")
    assert decide(down, "web.0") == ("Forget", "not ordered any more, and down")
    both = steps.Local(assignment(new), here("d1"), {"web.0": row(), "shop.0": row(replica="shop.0")})
    assert decide(both, "web.0") == ("Stop", "not ordered any more")
    assert decide(steps.Local(None), "nobody") == ("", "nothing is ordered and nothing is there")


def test_settings_a_host_refused_lead_to_a_replacement() -> None:
    refused = replace(local(order(NEW_SETTINGS), row()), in_place_refused={("web.0", NEW_SETTINGS.hash())})
    assert decide(refused) == ("Stop", "another spec is ordered")


def test_without_an_assignment_everything_is_left_as_it_is() -> None:
    assert steps.steps(steps.Local(None, {}, {"web.0": row()})) == ()


def test_order_packages_then_ends_then_starts() -> None:
    listed = (PackageOrder(package=V2, sources=("http://x",)),)
    held = assignment(order(replica="a.0"), order(NEW_SETTINGS, replica="b.0"), packages=listed)
    rows = {"z.0": row(replica="z.0"), "b.0": row(replica="b.0")}
    found = steps.steps(steps.Local(held, here("d1"), rows))
    assert [type(s).__name__ for s in found] == ["Fetch", "Stop", "Start", "Reconfigure"]
    assert found[0] == steps.Fetch(listed[0])


def test_a_spec_without_subscriptions_keeps_its_hash_and_its_text() -> None:
    assert SPEC.hash() == "c0bcc1ddeb5a18da5324396ec9d41c2b32b5c86ba22f52ffa3c2e3f719e3abd8"
    assert "subscribe" not in SPEC.model_dump_json(by_alias=True)
    assert SUBSCRIBES.hash() != SPEC.hash()
    assert ReplicaSpec.model_validate_json(SUBSCRIBES.model_dump_json(by_alias=True)) == SUBSCRIBES


def test_every_rule_is_visited() -> None:
    seen = {decide(local(wanted, there))[1] for _, wanted, there, _, _ in TABLE} | {reason for *_, reason in LEASES}
    beyond = {"nothing is ordered and nothing is there", "another replica takes over its process",
              "takes over a running process", "a package is not installed yet",
                  "started by hand", "started by hand, and over"}  # fmt: skip
    assert {reason for reason, _, _ in steps.RULES} == seen | beyond
