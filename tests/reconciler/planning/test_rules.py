"""Tables for the small rules: verdicts, evenness, reasons, what a broken plan is told."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import Monotonic
from agent.wire import ReplicaOrder, SubscriptionSpec
from reconciler.model.observed import Record
from reconciler.model.plan import Verdict
from reconciler.planning import PlanBroken, plan, planner
from reconciler.planning.compare import Pair, compare
from reconciler.planning.evenness import evenness
from reconciler.planning.explain import differences
from reconciler.planning.render import document, markdown
from reconciler.planning.waves import positions

sys.path.append(str(Path(__file__).parents[3]))
from tests.reconciler.planning.stories import Story, instance


@pytest.mark.parametrize(
    ("counts", "value"),
    [([], 0.0), ([5], 0.0), ([0, 3], 0.0), ([2, 2], 1.0), ([1, 1, 1], 1.0), ([3, 1], 0.811278), ([9, 0, 1], 0.468996)],
)
def test_evenness(counts: list[int], value: float) -> None:
    assert math.isclose(evenness(counts), value, abs_tol=1e-6)


def test_every_verdict_has_a_row() -> None:
    story = Story()
    for line in ("fleet a", "commit web@1.0", "settle"):
        story.run(line)
    assignment = story.observed.nodes["a"].assignment
    assert assignment is not None
    entry = assignment.replicas[0]
    same, other = instance("web", "web@1.0"), instance("web", "web@1.1")
    tuned, foreign = instance("web", "web@1.0", settings={"x": 1}), instance("web", settings={"x": 1}, runtime="exec")
    table = [
        (Pair("web.0", other, entry, silent=True), Verdict.LEAVE),
        (Pair("web.0", None, entry), Verdict.STOP),
        (Pair("web.0", same, None), Verdict.START),
        (Pair("web.0", same, entry, must_leave="cordoned"), Verdict.MOVE),
        (Pair("site.0", other, entry), Verdict.RENAME),
        (Pair("web.0", same, entry), Verdict.KEEP),
        (Pair("web.0", tuned, entry), Verdict.RECONFIGURE),
        (Pair("web.0", foreign, entry), Verdict.REPLACE),
        (Pair("web.0", other, entry), Verdict.REPLACE),
    ]
    assert [compare(pair).verdict for pair, _ in table] == [verdict for _, verdict in table]


def test_secrets_are_veiled_also_inside_structures() -> None:
    old = instance("web", settings={"db": {"password": "hunter1", "host": "a"}, "list": [{"apiToken": "hunter2"}]})
    new = instance("web", settings={"db": {"password": "hunter3", "host": "b"}, "list": []})
    text = differences(old.spec, new.spec)
    assert text == "settings.db.host: a → b, settings.db.password: *** → ***, +1 more"
    assert "hunter" not in differences(old.spec, instance("web").spec)


def test_other_subscriptions_are_told_and_taken_over_in_place() -> None:
    spec = instance("web", "1.0.0", replicas=1).spec
    subscribed = spec.model_copy(
        update={"subscribe": (SubscriptionSpec(topic="orders", type="New"), SubscriptionSpec(topic="news"))}
    )
    assert differences(spec, subscribed) == "subscribe: (none) → orders/New news"
    wanted = replace(instance("web", "1.0.0", replicas=1), spec=subscribed, spec_hash=subscribed.hash())
    entry = ReplicaOrder(replica="web.0", instance="web", spec=spec, spec_hash=spec.hash())
    assert compare(Pair("web.0", wanted, entry)).verdict is Verdict.RECONFIGURE


def test_a_cycle_breaks_the_plan_with_a_name() -> None:
    story = Story()
    for line in ("fleet a", "commit one@1.0 after two", "commit two@1.0 after one"):
        story.run(line)
    with pytest.raises(PlanBroken, match="depend on each other"):
        positions(story.instances)


def test_a_plan_that_sends_two_copies_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story()
    for line in ("fleet a b", "commit web@1.0"):
        story.run(line)
    copy = _copy()
    monkeypatch.setattr(planner, "edits", lambda cases: {"a": copy, "b": copy})
    with pytest.raises(PlanBroken, match=r"web\.0 would start on a and on b"):
        plan(story.desired, story.observed, Record(), Monotonic(0.0))


def _copy() -> dict[str, ReplicaOrder]:
    other = Story()
    for line in ("fleet a", "commit web@1.0", "settle"):
        other.run(line)
    assignment = other.observed.nodes["a"].assignment
    assert assignment is not None
    return {"web.0": assignment.replicas[0]}


def test_markdown_neutralises_what_documents_say_and_json_names_its_format() -> None:
    story = Story()
    for line in ("fleet a", "commit web@1.0 set filter=a", "settle", "commit web@1.0 set filter=<b>|`x`"):
        story.run(line)
    made = replace(story.plan(), warnings=("a <script>",))
    assert "<script>" not in markdown(made)
    assert "&lt;b>\\|\\`x\\`" in markdown(made)
    shown = document(made)
    assert shown["format"] == "tdie/plan/1"
    assert shown["summary"]["reconfigure"] == 1
