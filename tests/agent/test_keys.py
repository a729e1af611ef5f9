"""What is spelled once is read back."""

from __future__ import annotations

from agent import keys


def test_replicas_are_found_by_their_node() -> None:
    ids = [
        keys.replica_service_id("c", node, replica)
        for node, replica in (("a", "web.0"), ("a", "db.a.1"), ("b", "web.1"))
    ]
    others = [keys.agent_service_id("c", "a"), keys.replica_service_id("c2", "a", "web.9"), "web.0", ""]
    assert keys.replicas_by_node("c", [*ids, *others]) == {"a": {"web.0", "db.a.1"}, "b": {"web.1"}}
