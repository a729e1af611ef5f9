"""What a node was told and does not show yet, or does not show any more."""

from __future__ import annotations

from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import ReplicaOrder
from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import Presence
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.cases import Case, Step, World, make_change, policy_of
from reconciler.planning.compare import astray
from reconciler.planning.fleet import Sighting
from reconciler.planning.silence import hold_silent


def see_to_it(world: World, spec: InstanceSpec, case: Case, name: str, home: Sighting) -> None:
    """The node was told what is wanted: say so while its report differs, and bring its policy up to date."""
    entry = home.entry
    view = world.view(home.node)
    off = astray(home, view)
    see_to_policy(world, spec, case, home, keeps_word=off is None or not off.drift)
    if off is None or entry is None:
        return
    if off.verdict is Verdict.START and off.lease is None and _moving(world, spec, name, home):
        return
    before = (
        None
        if home.row is None or off.verdict is Verdict.START
        else replace(home, entry=None, replica=home.row.replica)
    )
    cause = Cause.DRIFT if off.drift else Cause.COMMIT
    change = make_change(
        world,
        off.verdict,
        cause,
        replica=name,
        instance=spec.name,
        node=home.node,
        spec=spec,
        before=before,
        reason=off.why,
    )
    step = Step(change, in_flight=True)
    case.steps.append(step)
    failed = view.package_errors.get(entry.spec.package.digest)
    if off.given_up:
        step.held(HoldReason.ROLLOUT_HALTED, f"{home.node} gave up on it, {off.why}; it waits for a new spec", (name,))
    elif off.lease is not None:
        lapse = off.lease.until
        until = None if lapse is None or lapse <= world.now else Monotonic(lapse)
        on = (off.lease.holder or home.node,)
        step.held(HoldReason.WAITING_LEASE, f"{name} on {home.node} {off.lease}", on, until)
    elif failed and off.verdict is Verdict.START:
        step.held(HoldReason.PACKAGE_FAILED, f"{home.node} cannot install {entry.spec.package}: {failed}", (home.node,))
    elif off.drift and home.row is not None and not world.desired.cluster.sync.self_heal:
        _heal_when_asked(world, spec, case, step, home, entry)
    elif off.drift:
        step.held(HoldReason.IN_FLIGHT, f"{home.node} is healing it", (home.node,))
    else:
        step.held(HoldReason.IN_FLIGHT, f"sent to {home.node}", (home.node,))


def see_to_answer(world: World, spec: InstanceSpec, case: Case, name: str, home: Sighting) -> None:
    """The node was sent it, has not said that it has it, and does not answer now."""
    change = make_change(
        world, Verdict.START, Cause.COMMIT, replica=name, instance=spec.name, node=home.node, spec=spec
    )
    step = Step(change, in_flight=True)
    case.steps.append(step)
    hold_silent(world, step, (home.node,))


def see_to_policy(world: World, spec: InstanceSpec, case: Case, home: Sighting, *, keeps_word: bool) -> None:
    """Bring the policy of an entry up to date; a replica that a person has started keeps the word until it is up."""
    entry, policy = home.entry, policy_of(world, spec)
    if entry is None or entry.policy is policy or entry.policy == policy:
        return
    if keeps_word or entry.policy != policy.model_copy(update={"heal": True}):
        case.patches.append((home.node, entry.model_copy(update={"policy": policy})))


def _heal_when_asked(
    world: World, spec: InstanceSpec, case: Case, step: Step, home: Sighting, entry: ReplicaOrder
) -> None:
    """Somebody stopped it and the cluster does not heal by itself: it starts once a person approves the change."""
    if entry.policy.heal or step.change.id in world.record.approved:
        step.held(HoldReason.IN_FLIGHT, f"{home.node} is healing it", (home.node,))
        if not entry.policy.heal:
            policy = spec.policy.model_copy(update={"heal": True})
            case.patches.append((home.node, entry.model_copy(update={"policy": policy})))
    else:
        step.held(HoldReason.SELF_HEAL_OFF, "sync.selfHeal is false: `tdie apply` starts it", (home.node,))


def _moving(world: World, spec: InstanceSpec, name: str, home: Sighting) -> bool:
    """Whether the replica is here because it leaves another node: that is one change, shown as the move."""
    return any(
        s.entry is not None and s.node != home.node and world.presence(s.node) is not Presence.LOST
        for s in world.fleet.of(spec.name).get(name, ())
    )
