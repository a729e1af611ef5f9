"""Pure: the board as Prometheus text. A registry of its own each time, so nothing of an earlier answer stays."""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from reconciler import answers
from reconciler.board import Board
from reconciler.model.observed import Presence


def metrics_text(board: Board) -> bytes:
    """The figures of one controller; those of the cluster only while it leads."""
    registry = CollectorRegistry(auto_describe=False)

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tdie_controller_{name}", text, labels, registry=registry)

    gauge("leading", "1 when this controller leads").set(board.term is not None)
    source = board.source
    gauge("commit_rejected", "1 when the tip of Git is not in force because of its problems").set(
        bool(source and source.problems)
    )
    gauge("git_trouble", "1 when Git cannot be read or its tip cannot be accepted").set(bool(source and source.trouble))
    gauge("rolled_back", "1 when a person or a failed rollout keeps an earlier commit than the tip in force").set(
        bool(source and source.rollback)
    )
    if board.term is not None and board.plan is not None and board.observed is not None:
        gauge("epoch", "Number of this leadership").set(board.term.epoch)
        gauge("converged", "1 when what runs is what Git asks for").set(answers.converged(board))
        presence = Counter(view.presence for view in board.observed.nodes.values())
        nodes = gauge("nodes", "Nodes by presence", "presence")
        for each in Presence:
            nodes.labels(each.value).set(presence[each])
        gauge("changes", "Changes still to make").set(len(board.plan.changes))
        holds = gauge("holds", "Changes that wait, by reason", "reason")
        for reason, count in Counter(hold.reason.value for hold in board.plan.holds).items():
            holds.labels(reason).set(count)
        rows = [row for view in board.observed.nodes.values() for row in view.replicas.values()]
        gauge("replicas", "Replicas reported").set(len(rows))
        gauge("healthy_replicas", "Replicas reported healthy").set(sum(row.healthy for row in rows))
    return generate_latest(registry)
