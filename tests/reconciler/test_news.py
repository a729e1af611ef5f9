"""What people are told of the fleet and its plan: once, together when many have the same news, again after it was over."""

from __future__ import annotations

from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import LeaseStatus, NodeProblem, PackageRef, ReplicaState
from reconciler.model.observed import NodeView, ObservedState, Presence, ReplicaView
from reconciler.model.plan import Hold, HoldReason, Plan
from reconciler.news import Heard, listed

WEB = PackageRef(name="web", version="1.0.0", digest="d")
NOTHING = Plan(commit="c", changes=(), holds=(), targets={})


def node(name: str, presence: Presence = Presence.ALIVE, detail: str = "", *, vanishing: bool = False) -> NodeView:
    return NodeView(name=name, presence=presence, detail=detail, vanishing=vanishing)


def fleet(*views: NodeView) -> ObservedState:
    return ObservedState(epoch=1, nodes={view.name: view for view in views})


def held(reason: HoldReason, *instances: str) -> Plan:
    holds = tuple(Hold(f"{name}-id", f"{name}.0", name, reason, f"why {name} waits") for name in instances)
    return replace(NOTHING, holds=holds)


def told(heard: Heard, observed: ObservedState, plan: Plan = NOTHING) -> list[str]:
    return [f"{news.code} {news.detail}" for news in heard.news(observed, plan)]


def test_a_node_that_goes_and_comes_back_is_told_of_step_by_step() -> None:
    heard, well = Heard(), node("b")
    silent = node("a", Presence.UNREACHABLE, "our poll gets no answer")
    assert told(heard, fleet(node("a"), well)) == []
    assert told(heard, fleet(silent, well)) == ["UNREACHABLE a: our poll gets no answer"]
    assert told(heard, fleet(silent, well)) == []
    assert told(heard, fleet(replace(silent, vanishing=True), well)) == ["AGENT_DOWN a: our poll gets no answer"]
    assert told(heard, fleet(node("a", Presence.LOST, "both miss it"), well)) == ["NODE_LOST a: both miss it"]
    assert told(heard, fleet(node("a", Presence.JOINING), well)) == []
    assert told(heard, fleet(node("a"), well)) == ["NODE_BACK a: is alive again"]
    assert told(heard, fleet(silent, well)) == ["UNREACHABLE a: our poll gets no answer"]


def test_what_a_missed_node_holds_is_told() -> None:
    row = ReplicaView("job.0", "job", "h", WEB, ReplicaState.STARTED, True, Monotonic(0.0))
    rows = {"job.0": replace(row, lease=LeaseStatus(state="held")), "job.1": replace(row, lease=None)}
    waiting = {"job.2": replace(row, lease=LeaseStatus(state="waiting"))}
    silent = replace(node("a", Presence.UNREACHABLE, "it is silent"), replicas={**rows, **waiting})
    assert told(Heard(), fleet(silent)) == ["UNREACHABLE a: it is silent; it held the leases of 1 replica"]


def test_many_with_the_same_news_are_one_line() -> None:
    gone = [node(f"n{number}", Presence.LOST, "both miss it") for number in range(8)]
    assert told(Heard(), fleet(*gone)) == ["NODE_LOST n0: both miss it; and so 7 more: n1, n2, n3, n4, n5, …"]


def test_what_is_wrong_at_a_node_is_told_once_and_again_after_it_was_over() -> None:
    heard = Heard()
    full = replace(node("a"), problems=(NodeProblem(code="DISK_FULL", detail="3 % are free"),))
    fenced = replace(full, problems=(*full.problems, NodeProblem(code="FENCED", detail="job.0 LEASE_REVOKED")))
    assert told(heard, fleet(full)) == ["DISK_FULL a: 3 % are free"]
    assert told(heard, fleet(fenced)) == ["FENCED a: job.0 LEASE_REVOKED"]
    assert told(heard, fleet(node("a"))) == []
    assert told(heard, fleet(full)) == ["DISK_FULL a: 3 % are free"]


def test_what_waits_for_somebody_is_told_with_what_to_do() -> None:
    heard, well = Heard(), fleet(node("a"))
    said = "ROLLOUT_HALTED web: why web waits (next: push a fix, or tdie rollback)"
    assert told(heard, well, held(HoldReason.TOO_FEW_LEFT, "web")) == []  # ends by itself
    assert told(heard, well, held(HoldReason.ROLLOUT_HALTED, "web")) == [said]
    assert told(heard, well, held(HoldReason.ROLLOUT_HALTED, "job", "web")) == [said.replace("web", "job", 2)]
    assert told(heard, well, held(HoldReason.ROLLOUT_HALTED, "web")) == []
    assert told(heard, well) == []
    assert told(heard, well, held(HoldReason.ROLLOUT_HALTED, "web")) == [said]


def test_that_nothing_has_a_place_means_nothing_before_the_nodes_were_heard() -> None:
    heard, plan = Heard(), held(HoldReason.NO_PLACE, "web")
    assert told(heard, fleet(node("a", Presence.ABSENT)), plan) == []
    assert told(heard, fleet(node("a"), node("b", Presence.JOINING)), plan) == []
    assert told(heard, fleet(node("a"), node("b")), plan) == ["NO_PLACE web: why web waits (next: tdie explain web)"]


def test_what_crashes_is_told_with_how_it_ended() -> None:
    heard = Heard()

    def look(state: ReplicaState, restarts: int, error: str = "") -> list[str]:
        row = ReplicaView("web.0", "web", "h", WEB, state, False, Monotonic(0.0), restarts, last_error=error)
        return told(heard, fleet(replace(node("a"), replicas={"web.0": row})))

    assert look(ReplicaState.STARTED, 3, "exit 1 an hour ago") == []  # nobody here saw it
    assert look(ReplicaState.STARTED, 4, "exit 139") == ["CRASHED web.0: on a, exit 139"]
    assert look(ReplicaState.STARTED, 4, "exit 139") == []
    assert look(ReplicaState.BACKOFF, 4, "exit 139") == ["CRASH_LOOP web.0: on a, exit 139"]
    assert look(ReplicaState.STARTING, 5, "exit 139") == ["CRASHED web.0: on a, exit 139"]
    assert look(ReplicaState.FAILED, 5) == ["FAILED web.0: on a, Failed"]
    assert look(ReplicaState.STOPPED, 5) == []


def test_long_lists_end() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([f"{n}" for n in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
