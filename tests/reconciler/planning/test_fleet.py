"""The index over what nodes show, kept up to date view by view."""

from __future__ import annotations

from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import ReplicaState
from reconciler.model.observed import NodeView
from reconciler.planning.fleet import Fleet
from tests.reconciler.planning.stories import Story


def test_two_heirs_of_one_name_are_told_apart() -> None:
    """A node was told twice, under two new names, to rename what it runs, and then shows both."""
    story = Story()
    for line in (
        "fleet a",
        "commit dog@1.0 on 1",
        "settle",
        "drop dog",
        "commit bee@1.0 of dog@1.0 on 1 from dog",
        "send",
    ):
        story.run(line)
    view = story.observed.nodes["a"]
    assert view.assignment is not None
    (heir,) = view.assignment.replicas
    twice = view.assignment.model_copy(
        update={"replicas": (heir, heir.model_copy(update={"replica": "cow.0", "instance": "cow"}))}
    )
    row = view.replicas["dog.0"]
    told = replace(view, assignment=twice)
    done = replace(told, replicas={name: replace(row, replica=name) for name in ("bee.0", "cow.0")})
    gone = replace(done, assignment=None, replicas={})
    fleet = Fleet()

    def look(shown: NodeView) -> dict[str, list[str]]:
        fleet.look(story.cluster, replace(story.observed, nodes={"a": shown}))
        return {old: sorted(replica for _, replica in heirs) for old, heirs in fleet.renaming.items()}

    for after in (done, gone):  # each time in the order in which the views come
        assert look(told) == {"dog.0": ["bee.0", "cow.0"]}
        assert look(after) == {}
    stopped = replace(row, state=ReplicaState.STOPPED, since=Monotonic(0.0))
    assert look(replace(told, replicas={"dog.0": stopped})) == {}
