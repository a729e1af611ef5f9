"""Systems that are broken on purpose, at least two for each promise, and the search for a history that shows it.

`python -m tests.sim.mutants [--seeds N]` looks whether the seed in `caught.txt` still catches each one, else for the first that
does, and writes them down.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import apply, carry, keys, orders, status, steps, stock, telling
from agent.clock import Monotonic
from agent.errors import TdieError
from agent.keeper.fence import Due
from agent.keeper.protocol import HostRow
from agent.leadership import Leadership as Obeyed
from agent.leases import acquiring, agreement
from agent.leases.acquiring import Held
from agent.leases.agreement import Agreement
from agent.leases.failsafe import Answer, Book, verdict
from agent.leases.leases import Leases
from agent.leases.session import Session
from agent.leases.tender import Tender
from agent.leases.values import Token
from agent.node import Agent
from agent.packages import retention
from agent.packages.protocol import Installed
from agent.refusals import StaleLeader
from agent.register import Registrar
from agent.stock import Stock
from agent.wire import Accepted, Assignment, content_digest
from reconciler import answers, loop
from reconciler.execution import leadership
from reconciler.execution.leadership import Leadership, Term
from reconciler.execution.locks import NodeLocks
from reconciler.execution.publish import Publisher
from reconciler.loop import Loop
from reconciler.model.observed import Presence
from reconciler.observe import fleet as observed_fleet
from reconciler.observe import views, witness
from reconciler.observe.fleet import Fleet
from reconciler.observe.witness import Finding, Says
from reconciler.planning import checks, examine, homes, keep_up, keeping, leftovers, planner, prune, targets, waves
from reconciler.planning import fleet as planned_fleet
from reconciler.planning.cases import Case, World
from reconciler.planning.memo import Memo
from reconciler.simulation import disk, machine
from reconciler.simulation.__main__ import CRITICAL
from reconciler.simulation.history import FAILSAFE, run
from reconciler.simulation.observer import PROMISES

Patch = pytest.MonkeyPatch
CAUGHT = Path(__file__).with_name("caught.txt")
SEEDS = 1000  # within which every mutant must be caught (FAULTS §3 26)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the system, and the promise that this breaks."""

    promise: str
    breaks: Callable[[Patch], None]
    first: int = 0  # seed of the first history to look at

    @property
    def name(self) -> str:
        return self.breaks.__name__

    @property
    def sentence(self) -> str:
        return (self.breaks.__doc__ or "").strip().splitlines()[0]


MUTANTS: list[Mutant] = []


def breaking(promise: str, first: int = 0) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Enters a mutant for this promise."""
    assert promise in PROMISES

    def enter(breaks: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTANTS.append(Mutant(promise, breaks, first))
        return breaks

    return enter


async def for_ever(*_: object) -> None:
    await asyncio.get_running_loop().create_future()


def nothing(*_: object, **__: object) -> None:
    return None


# ------------------------------------------------------------------------------------------- 1 to 4: leases


@breaking("one process of a leased replica")
def nobody_asks_for_the_lock(patch: Patch) -> None:
    """An agent takes any lease that it wants for held."""

    async def take(self: Tender) -> None:
        session, now = self._world.session, self._world.clock.now()
        if session.usable:
            self._hold(
                Held(0, Token(1, int(now)), session.generation, session.renewals, session.lapses, session.breaks)
            )
        else:
            await asyncio.sleep(1.0)

    patch.setattr(Tender, "_get", take)
    patch.setattr(Tender, "_is_ours", lambda *_: True)


@breaking("one process of a leased replica")
def keepers_wait_for_ever(patch: Patch) -> None:
    """A keeper knows of leases, and does not end anything for them."""
    patch.setattr(machine, "due", lambda *_: Due.NOTHING)


@breaking("leased processes end in time")
def silence_is_taken_for_consent(patch: Patch) -> None:
    """A renewal that nobody answers counts as one that was."""
    trouble = Session._trouble

    def hopeful(self: Session, error: BaseException) -> None:
        trouble(self, error)
        self.deadline = self._clock.now() + self.figures.ttl

    patch.setattr(Session, "_trouble", hopeful)
    turn = Session._turn

    async def extending(self: Session) -> float:
        pause = await turn(self)
        await self._extend()
        return pause

    patch.setattr(Session, "_turn", extending)


@breaking("leased processes end in time")
def keepers_hear_too_much(patch: Patch) -> None:
    """A keeper lets leased hosts live for a while after the deadline it was told."""
    extend = machine.Machine.extend
    patch.setattr(machine.Machine, "extend", lambda self, deadline: extend(self, deadline + 20.0))


@breaking("a lock is given back when nothing is left")
def stopping_counts_as_stopped(patch: Patch) -> None:
    """A host that was asked to end counts as gone."""
    down = Leases.down

    def early(self: Leases, replica: str) -> bool:
        row = self.row(replica)
        return down(self, replica) or (row is not None and row.state == "Stopping")

    patch.setattr(Leases, "down", early)


@breaking("a lock is given back when nothing is left")
def what_is_not_wanted_does_not_run(patch: Patch) -> None:
    """A lease goes back as soon as nothing asks for it."""
    runs = Leases.runs_leased
    patch.setattr(Leases, "runs_leased", lambda self, replica: self.wanted(replica) and runs(self, replica))


@breaking("tokens only grow")
def tokens_count_locks(patch: Patch) -> None:
    """A token says how often the lock was taken, and nothing else."""
    patch.setattr(acquiring, "next_token", lambda _before, epoch, entry: Token(epoch, entry.lock_index))


@breaking("tokens only grow")
def tokens_know_no_epoch(patch: Patch) -> None:
    """A token is a place in Consul's log, whatever became of that log."""
    patch.setattr(acquiring, "next_token", lambda _before, _epoch, entry: Token(1, entry.modify_index))


@breaking("a lease is lost for a reason")
def no_lock_is_ever_ours(patch: Patch) -> None:
    """A holder does not recognise its own lock."""
    patch.setattr(Tender, "_is_ours", lambda *_: False)


@breaking("a lease is lost for a reason")
def silence_is_taken_for_a_no(patch: Patch) -> None:
    """A renewal that nobody answers counts as refused."""

    def gloomy(self: Session, error: BaseException) -> None:
        if self._held is not None:
            self.cause, self._held, self.renewals = "LEASE_REVOKED", None, 0
            self.generation += 1
            self._moved()

    patch.setattr(Session, "_trouble", gloomy)


# ------------------------------------------------------------------------------------------- 5, 6: who is obeyed


async def _obey(self: Obeyed, offered: Assignment, *, epochs: bool) -> Accepted:
    """What an agent does with an assignment, with some of its checks."""
    async with self._commands:
        if epochs and offered.epoch < self.epoch:
            raise StaleLeader(f"epoch {offered.epoch} < {self.epoch}", self.epoch)
        ordered = self._carrier.ordered.taking(offered, self._edges.clock.now())
        await self._edges.ledger.save_assignment(offered, ordered)
        self._accept(offered, ordered)
        return Accepted(epoch=offered.epoch, generation=offered.generation, digest=offered.digest)


@breaking("a replaced leader is not obeyed")
def agents_believe_any_epoch(patch: Patch) -> None:
    """An agent takes assignments of leaders that were replaced."""
    patch.setattr(Obeyed, "assign", lambda self, offered, _: _obey(self, offered, epochs=False))


@breaking("a replaced leader is not obeyed")
def agents_forget_who_claimed_them(patch: Patch) -> None:
    """An agent lets anybody claim it, also who leads no more."""
    claim = Obeyed.claim

    async def any_claim(self: Obeyed, offered: Any) -> object:
        self.epoch = 0
        return await claim(self, offered)

    patch.setattr(Obeyed, "claim", any_claim)


@breaking("nothing is sent without certainty")
def leaders_take_silence_for_consent(patch: Patch) -> None:
    """A leader goes on as long as Consul does not tell it otherwise."""
    end = Leadership._end

    def silence(self: Leadership, term: Term, why: str) -> None:
        if not why.startswith("Consul does not answer"):
            end(self, term, why)

    patch.setattr(Leadership, "_end", silence)
    _uncertain(patch)


@breaking("nothing is sent without certainty")
def nobody_looks_at_the_deadline(patch: Patch) -> None:
    """A leader whose term is over finishes what it has begun."""
    _uncertain(patch)
    patch.setattr(loop, "_until_over", for_ever)


def _uncertain(patch: Patch) -> None:
    """Neither its deadline nor the node locks in Consul hold up a leader that sends."""

    async def all_of_them(_self: NodeLocks, nodes: Iterable[str], _why: str) -> frozenset[str]:
        return frozenset(nodes)

    patch.setattr(Term, "must_hold", nothing)
    patch.setattr(NodeLocks, "take", all_of_them)


@breaking("nothing is obeyed too late")
def agents_look_at_no_clock(patch: Patch) -> None:
    """An agent takes an assignment over however long it was on its way."""
    patch.setattr(Obeyed, "_must_be_in_time", nothing)


@breaking("nothing is obeyed too late")
def assignments_are_good_for_an_hour(patch: Patch) -> None:
    """A controller lets what it sends be taken over long after it gave up on it."""
    expiry = Fleet.expiry
    patch.setattr(Fleet, "expiry", lambda self, name, _seconds: expiry(self, name, 3600.0))


@breaking("numbers only grow")
def agents_believe_any_number(patch: Patch) -> None:
    """An agent takes assignments that come late."""
    patch.setattr(Obeyed, "assign", lambda self, offered, _: _obey(self, offered, epochs=True))


@breaking("numbers only grow")
def agents_forget_their_number(patch: Patch) -> None:
    """An agent that restarts does not know what it had accepted."""
    load = disk.SimLedger.load

    async def half(self: disk.SimLedger) -> object:
        held = await load(self)
        return replace(held, assignment=None)

    patch.setattr(disk.SimLedger, "load", half)


@breaking("never back to an older commit")
def leaders_start_from_what_they_knew(patch: Patch) -> None:
    """A controller that leads again goes on with the commit it saw first."""
    cycles = Loop._cycles

    async def first(self: Loop, sourced: Any, *rest: Any) -> None:
        if not hasattr(self.board, "first"):
            self.board.first = sourced  # type: ignore[attr-defined]
        await cycles(self, self.board.first, *rest)  # type: ignore[attr-defined]

    patch.setattr(Loop, "_cycles", first)


@breaking("never back to an older commit")
def the_commit_before_counts_too(patch: Patch) -> None:
    """Every other cycle carries out the commit before."""
    cycle = Loop.cycle

    async def swaying(self: Loop, sourced: Any, *rest: Any) -> object:
        seen = self.board.__dict__.setdefault("seen", [])
        if sourced not in seen:
            seen.append(sourced)
        turn = self.board.__dict__["turn"] = not self.board.__dict__.get("turn", False)
        return await cycle(self, seen[-2] if turn and len(seen) > 1 else sourced, *rest)

    patch.setattr(Loop, "cycle", swaying)


# ------------------------------------------------------------------------------------------- 7: how many are away


def _unchecked(patch: Patch) -> None:
    """Plans are not looked at before they are sent."""
    patch.setattr(planner, "check", nothing)
    patch.setattr(checks, "check", nothing)


@breaking("never more than maxParallel away")
def everything_counts_as_healthy(patch: Patch) -> None:
    """What was sent counts as done."""
    patch.setattr(planned_fleet.Sighting, "healthy", property(lambda self: self.entry is not None))


@breaking("never more than maxParallel away")
def all_at_once(patch: Patch) -> None:
    """An update replaces everything at once."""
    patch.setattr(keep_up, "spare", nothing)
    _unchecked(patch)


@breaking("what is missed counts")
def what_is_lost_is_not_missed(patch: Patch) -> None:
    """Replicas that ran on a lost node do not count as away."""
    patch.setattr(keep_up, "_was_there", lambda *_: False)


@breaking("what is missed counts")
def what_does_not_answer_works(patch: Patch) -> None:
    """Replicas count as healthy whatever their node says."""
    stand = keeping._stand

    def well(spec: Any, case: Any, name: Any, home: Any, silent: Any) -> None:
        stand(spec, case, name, home, silent)
        case.standings[:] = [replace(standing, healthy=True) for standing in case.standings]

    patch.setattr(keeping, "_stand", well)


# ------------------------------------------------------------------------------------------- 8: what comes first


@breaking("what it depends on is ready first")
def dependencies_are_forgotten(patch: Patch) -> None:
    """Nothing waits for what it depends on."""
    patch.setattr(waves, "_late_dependencies", lambda *_: [])


@breaking("what it depends on is ready first")
def any_dependency_is_ready(patch: Patch) -> None:
    """An instance can be relied on before it is healthy."""
    patch.setattr(waves, "ready", lambda *_: "")


@breaking("an earlier wave comes first")
def all_waves_are_one(patch: Patch) -> None:
    """The number of a wave means nothing."""
    patch.setattr(waves, "wave_numbers", lambda instances: dict.fromkeys(instances, 0))


@breaking("an earlier wave comes first")
def waves_are_settled_from_the_start(patch: Patch) -> None:
    """A wave counts as settled while it starts."""
    patch.setattr(waves, "settled", lambda _case: True)


# ------------------------------------------------------------------------------------------- 9: why things happen


@breaking("nothing stops without a cause")
def restarted_agents_start_afresh(patch: Patch) -> None:
    """An agent that starts stops what it finds."""
    read = Agent._all_read

    def all_read(self: Agent) -> None:
        read(self)
        if not self._edges.agent.endswith("-1"):
            for row in list(self.table.rows.values()):
                _go(self._carrier.carry(steps.Stop(row.replica, "afresh")))

    patch.setattr(Agent, "_all_read", all_read)


@breaking("nothing stops without a cause")
def assignments_are_not_written_down(patch: Patch) -> None:
    """An agent answers before what it accepted is on disk, and it never is."""

    async def memory_only(*_: object) -> None:
        return None

    patch.setattr(disk.SimLedger, "save_assignment", memory_only)


def _go(work: Any) -> None:
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())


@breaking("nothing starts that nobody wants")
def one_more_than_asked(patch: Patch) -> None:
    """Every instance gets a replica more than Git asks for."""
    wanted = homes.wanted_replicas

    def more(world: Any, spec: Any) -> object:
        return wanted(world, replace(spec, replicas=spec.replicas + 1) if spec.replicas else spec)

    patch.setattr(examine, "wanted_replicas", more)


@breaking("nothing starts that nobody wants")
def scaling_down_is_not_noticed(patch: Patch) -> None:
    """What once was wanted is wanted for ever."""
    wanted = homes.wanted_replicas

    def ever(world: Any, spec: Any) -> object:
        names = wanted(world, spec)
        return names if spec.per_node is not None else {**names, **dict.fromkeys(world.fleet.of(spec.name), "")}

    patch.setattr(examine, "wanted_replicas", ever)


@breaking("a wanted replica keeps a home")
def moves_stop_before_they_start(patch: Patch) -> None:
    """A replica that moves leaves its node before another one has it."""
    step = keeping._step

    def leaving(world: Any, spec: Any, seats: Any, verdict: Any, name: Any, home: Any, leaves: Any) -> object:
        made = step(world, spec, seats, verdict, name, home, leaves)
        if verdict == "move" and made.puts is not None:
            made.puts, made.drops = None, ((home.node, home.replica),)
        return made

    patch.setattr(keeping, "_step", leaving)


@breaking("a wanted replica keeps a home")
def assignments_hold_only_what_is_new(patch: Patch) -> None:
    """An assignment names what changes on a node, not all that should run there."""
    target = targets.target

    def partial(world: Any, name: Any, changes: Any, ahead: Any, texts: Any) -> object:
        made = target(world, name, changes, ahead, texts)
        if made is None or not changes:
            return made
        new = tuple(order for order in made.replicas if order.replica in changes)
        digest = content_digest(made.packages, new, made.policy)
        return replace(made, replicas=new, digest=digest)

    patch.setattr(planner, "target", partial)
    _unchecked(patch)


@breaking("moved only when lost or told to")
def one_witness_is_enough(patch: Patch) -> None:
    """A node is lost as soon as we cannot reach it, whatever Consul says."""
    both = witness.presence

    def one(joined: Any, catalog: Any, poll: Any, now: Any, lost_after: Any, *own: Any, beats_due: bool) -> Finding:
        if joined and poll.says is Says.DOWN and now - poll.since >= lost_after:
            return Finding(Presence.LOST, poll.since, poll.detail)
        return both(joined, catalog, poll, now, lost_after, *own, beats_due=beats_due)

    patch.setattr(observed_fleet, "presence", one)


@breaking("moved only when lost or told to")
def nobody_waits_for_a_lost_node(patch: Patch) -> None:
    """A node is lost the moment both witnesses miss it."""
    both = witness.presence
    patch.setattr(
        observed_fleet,
        "presence",
        lambda joined, catalog, poll, now, _, *own, beats_due: both(
            joined, catalog, poll, now, 0.0, *own, beats_due=beats_due
        ),
    )


@breaking("moved only when lost or told to")
def what_a_leader_once_knew_is_true(patch: Patch) -> None:
    """A controller that leads again believes what it knew of nodes it has not heard yet."""
    patch.setattr(views, "unknown", _remembering(views.unknown))


def _remembering(unknown: Callable[..., Any]) -> Callable[..., Any]:
    """The view of a node that a follower of the fleet had before is what it is from then on."""

    def remembered(name: str, now: Any) -> Any:
        frame = sys._getframe(1).f_locals
        known = frame.get("node")
        return known.view if known is not None and "session" in frame else unknown(name, now)

    return remembered


@breaking("moved only when lost or told to")
def unheard_nodes_run_nothing(patch: Patch) -> None:
    """A new leader takes nodes it has not heard of for empty."""
    patch.setattr(World, "may_run", lambda *_: ())


# ------------------------------------------------------------------------------------------- 10: errors are not empty


@breaking("never pruned beyond the limit")
def there_is_no_prune_limit(patch: Patch) -> None:
    """However much left Git, it is stopped."""
    patch.setattr(prune, "_beyond", lambda *_: "")


@breaking("never pruned beyond the limit")
def one_word_is_good_for_all(patch: Patch) -> None:
    """What a person let go once is let go ever after, whatever it is."""
    patch.setattr(prune, "prune_digest", lambda _cases: "all")


def _empty_when(patch: Patch, wrong: Callable[[Any], bool]) -> None:
    cycle = Loop.cycle

    async def emptied(self: Loop, sourced: Any, *rest: Any) -> object:
        if sourced.desired is not None and wrong(sourced):
            cluster = replace(sourced.desired.cluster, sync=replace(sourced.desired.cluster.sync, prune="all"))
            sourced = replace(sourced, desired=replace(sourced.desired, instances={}, cluster=cluster))
        return await cycle(self, sourced, *rest)

    patch.setattr(Loop, "cycle", emptied)


@breaking("trouble with Git changes nothing")
def git_away_means_nothing_is_wanted(patch: Patch) -> None:
    """A look at Git that fails brings an empty cluster."""
    _empty_when(patch, lambda sourced: sourced.trouble is not None)


@breaking("trouble with Git changes nothing")
def a_bad_commit_means_nothing_is_wanted(patch: Patch) -> None:
    """A commit that is rejected brings an empty cluster."""
    _empty_when(patch, lambda sourced: bool(sourced.problems))


# ------------------------------------------------------------------------------------------- 11–13: machines


@breaking("what others started is left alone")
def hosts_of_others_are_ours(patch: Patch) -> None:
    """A host that was started by hand is taken for one that is not ordered any more."""
    patch.setattr(steps, "is_by_hand", lambda _replica: False)


@breaking("what others started is left alone")
def the_rule_for_hosts_of_others_is_lost(patch: Patch) -> None:
    """The rule that leaves hosts of others alone is not there."""
    patch.setattr(steps, "RULES", tuple(rule for rule in steps.RULES if rule[0] != "started by hand"))


@breaking("what runs is installed")
def damaged_packages_still_count(patch: Patch) -> None:
    """A package that was there once counts as installed for ever."""
    ever: dict[int, dict[str, Installed]] = {}
    changed = Stock.changed

    def remembering(self: Stock) -> None:
        real = self._installer
        mine = ever.setdefault(id(real), {})
        mine.update(real.installed())
        self._installer = _Remembering(real, mine)
        changed(self)
        self._installer = real

    patch.setattr(Stock, "changed", remembering)


class _Remembering:
    """An installer that does not notice what is gone."""

    def __init__(self, real: Any, ever: dict[str, Installed]) -> None:
        self._real, self._ever = real, ever

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def installed(self) -> dict[str, Installed]:
        return dict(self._ever)


@breaking("what runs is installed")
def ordered_means_installed(patch: Patch) -> None:
    """What is ordered counts as installed before it was fetched."""
    order = orders.host_order

    def early(wanted: Any, **more: Any) -> Any:
        package = wanted.spec.package
        more["installed"] = {**more["installed"], package.digest: Installed(package, "/nowhere")}
        return order(wanted, **more)

    patch.setattr(carry, "host_order", early)
    patch.setattr(steps, "is_ready", lambda *_: True)
    patch.setattr(stock, "is_ready", lambda *_: True)


@breaking("no package is deleted while it is used")
def nothing_counts_as_used(patch: Patch) -> None:
    """Old packages are deleted whatever runs from them."""
    patch.setattr(stock, "in_use", lambda *_: frozenset())


@breaking("no package is deleted while it is used")
def retention_does_not_ask(patch: Patch) -> None:
    """The retention policy counts versions only."""
    collectable = retention.collectable
    patch.setattr(
        disk, "collectable", lambda installed, _used, keep, **known: collectable(installed, (), keep, **known)
    )


@breaking("no secret in Consul")
def locks_say_too_much(patch: Patch) -> None:
    """The reason of a node lock holds everything that is sent."""
    take = NodeLocks.take
    patch.setattr(NodeLocks, "take", lambda self, nodes, why: take(self, nodes, f"{why}: {nodes!r}"))


@breaking("no secret in Consul")
def errors_say_too_much(patch: Patch) -> None:
    """What is wrong with a replica is told with everything it was ordered with."""
    status_row = status.status_row

    def talkative(replica: Any, order: Any, row: Any, **more: Any) -> Any:
        said = status_row(replica, order, row, **more)
        return said if said is None or said.healthy else said.model_copy(update={"last_error": repr(order)})

    patch.setattr(telling, "status_row", talkative)


# ------------------------------------------------------------------------------------------- 22, 23: it comes to rest


@breaking("everything comes to rest")
def specs_are_never_recognised(patch: Patch) -> None:
    """No report ever shows what was ordered."""
    patch.setattr(planned_fleet, "_shows", lambda *_: False)


@breaking("everything comes to rest")
def nothing_is_pruned(patch: Patch) -> None:
    """What left Git stays."""
    patch.setattr(leftovers, "gone", lambda _world, instance, _claimed: Case(instance))


@breaking("everything comes to rest")
def second_copies_stay(patch: Patch) -> None:
    """A replica that came back after it was replaced runs on."""
    patch.setattr(examine, "leftovers_of_replica", nothing)


@breaking("everything comes to rest")
def pushes_are_missed(patch: Patch) -> None:
    """A leader looks at Git when it begins, and never again."""
    patch.setattr(loop, "LOOK_AT_GIT", frozenset())


@breaking("what runs is what is wanted")
def agents_report_what_they_should(patch: Patch) -> None:
    """A report shows the ordered spec, whatever runs."""
    status_row = status.status_row

    def hopeful(replica: Any, order: Any, row: Any, **more: Any) -> Any:
        said = status_row(replica, order, row, **more)
        if said is None or order is None or row is None or row.state != "Started":
            return said
        return said.model_copy(update={"spec_hash": order.spec_hash, "healthy": True})

    patch.setattr(telling, "status_row", hopeful)
    patch.setattr(steps, "RULES", (*steps.RULES[:-2], ("whatever runs will do", lambda _case: True, steps._wait)))


@breaking("what runs is what is wanted")
def done_means_sent(patch: Patch) -> None:
    """A cluster counts as converged when there is nothing to send for the moment."""
    patch.setattr(
        answers,
        "converged",
        lambda board: bool(board.plan and board.desired is board.source.desired and not board.plan.targets),
    )


@breaking("Consul shows what runs")
def entries_in_consul_stay(patch: Patch) -> None:
    """A replica that is gone is still shown in Consul."""
    patch.setattr(Registrar, "hide", nothing)
    patch.setattr(Registrar, "_sweep", _no_sweep)


@breaking("Consul shows what runs")
def entries_that_were_lost_stay_lost(patch: Patch) -> None:
    """What Consul forgot is not shown again."""
    register = Registrar.register

    async def once(self: Registrar, session: str) -> None:
        shown = dict(self._shown)
        await register(self, session)
        self._shown.update(shown)
        self._dirty.clear()

    patch.setattr(Registrar, "register", once)
    patch.setattr(Registrar, "_compare", _no_sweep)


async def _no_sweep(_self: object) -> None:
    return None


@breaking("one controller leads")
def sessions_of_an_earlier_life_stay(patch: Patch) -> None:
    """A controller that restarts keeps the lock of its earlier life alive by its own beats: nothing but a check ends a session."""

    patch.setattr(Leadership, "_register_anew", Leadership.register)
    patch.setattr(leadership, "SESSION_TTL", 86_400.0)


@breaking("one controller leads")
def only_checks_end_sessions(patch: Patch) -> None:
    """Who holds the leader's lock loses it with its check, and that stays as it is when its whole machine dies."""
    patch.setattr(leadership, "SESSION_TTL", 86_400.0)


@breaking("one controller leads")
def who_waited_once_waits_for_ever(patch: Patch) -> None:
    """A controller that found the lock taken does not look again."""

    async def waiting(_self: object, _key: object, _index: object) -> None:
        await asyncio.sleep(1e6)

    patch.setattr(Leadership, "_wait_free", waiting)


# ------------------------------------------------------------------------------------------- 24, 25: calm


@breaking("no storm of orders")
def every_look_sends_something_else(patch: Patch) -> None:
    """Each plan keeps house in another way than the one before."""
    keep = targets.policy_of
    turn = [0]

    def swaying(cluster: Any) -> Any:
        turn[0] += 1
        return keep(cluster).model_copy(update={"keep_versions": 3 + turn[0] % 5})

    patch.setattr(targets, "policy_of", swaying)
    patch.setattr(Memo, "same", lambda *_: None)
    patch.setattr(planner, "_targets", _all_nodes(planner._targets))


def _all_nodes(made: Callable[..., Any]) -> Callable[..., Any]:
    def everywhere(world: Any, cases: Any, ahead: Any, memo: Any) -> Any:
        memo.loose = set(memo.fleet.sites)
        return made(world, cases, ahead, memo)

    return everywhere


@breaking("no storm of orders")
def doubts_are_not_remembered(patch: Patch) -> None:
    """What was sent is forgotten at once, and sent again."""

    def forgetful(self: Fleet, name: str, assignment: Assignment) -> None:
        known = self._nodes[name]
        known.view = replace(known.view, next_generation=assignment.generation + 1)
        self._changed("report")

    patch.setattr(Fleet, "sent", forgetful)
    patch.setattr(views, "reported_view", _as_it_was(views.reported_view))


def _as_it_was(view: Callable[..., Any]) -> Callable[..., Any]:
    return lambda before, report, now: replace(view(before, report, now), assignment=before.assignment)


@breaking("nothing is tried again and again")
def failures_are_tried_at_once(patch: Patch) -> None:
    """What failed is tried again at once."""
    patch.setattr(apply, "pause_after", lambda _attempts: 0.01)


@breaking("nothing is tried again and again")
def failures_wait_for_nothing(patch: Patch) -> None:
    """Nobody looks when something may be tried again."""
    patch.setattr(apply.Applier, "_not_before", lambda _self, _key, _step, now: now)


@breaking("Consul is not asked again and again")
def agents_beat_without_rest(patch: Patch) -> None:
    """An agent beats many times a second."""
    stay = Registrar.stay

    async def eager(self: Registrar) -> None:
        self._settings = replace(self._settings, beat_ttl=0.06)
        await stay(self)

    patch.setattr(Registrar, "stay", eager)


@breaking("Consul is not asked again and again")
def leaders_beat_without_rest(patch: Patch) -> None:
    """A leader proves its lock many times a second."""

    async def eager(self: Leadership, term: Term) -> None:
        while not term.ended.is_set():
            sent = self._clock.now()
            entry = await self._consul.get(keys.leader(self.cluster))
            if entry is None or entry.session != term.session:
                self._end(term, "lost")
                return
            await self._consul.check_update(self._check, "passing", self._sentence)
            term.certain_until = Monotonic(sent + self._ttl)
            await asyncio.sleep(0.02)

    patch.setattr(Leadership, "_keep", eager)


@breaking("an agent's restart touches nothing")
def restarted_agents_see_nothing(patch: Patch) -> None:
    """An agent does not see what runs since before it was started."""
    _of_before(patch, lambda rows: {})


@breaking("an agent's restart touches nothing")
def restarted_agents_trust_nothing(patch: Patch) -> None:
    """An agent takes what runs since before it was started for stopped."""
    _of_before(patch, lambda rows: {name: replace(row, state="Stopped", healthy=False) for name, row in rows.items()})


def _of_before(patch: Patch, seen: Callable[[dict[str, HostRow]], dict[str, HostRow]]) -> None:
    local = carry.Carrier.local

    def partly(self: carry.Carrier) -> steps.Local:
        true = local(self)
        born = self.__dict__.setdefault("born", self._edges.clock.now())
        before = {name: row for name, row in true.rows.items() if row.since < born}
        after = {name: row for name, row in true.rows.items() if row.since >= born}
        return replace(true, rows={**after, **seen(before)})

    patch.setattr(carry.Carrier, "local", partly)


@breaking("nobody dies of an error")
def a_send_that_fails_is_fatal(patch: Patch) -> None:
    """A controller ends when an agent does not answer."""

    def fatal(_self: object, _assignment: object, error: TdieError) -> None:
        raise RuntimeError(str(error))

    patch.setattr(Publisher, "_failed", fatal)


@breaking("nobody dies of an error")
def consul_away_is_fatal(patch: Patch) -> None:
    """An agent ends when Consul does not answer."""

    def fatal(_self: object, error: TdieError) -> None:
        raise RuntimeError(str(error))

    patch.setattr(Registrar, "_trouble", fatal)


# ------------------------------------------------------------------------------------------- the search


# ------------------------------------------------------------------------------------------- failsafe leases


@breaking("leased processes end in time", FAILSAFE)
def most_are_enough(patch: Patch) -> None:
    """More than half of those that could run it agree, and it goes on."""

    def most(members: Iterable[str], node: str, answers: dict[str, Answer]) -> Answer:
        agree = sum(answers[name] is Answer.PROMISE for name in members if name != node)
        return Answer.PROMISE if 2 * (agree + 1) > len(list(members)) else Answer.SILENCE

    patch.setattr(agreement, "verdict", most)


@breaking("leased processes end in time", FAILSAFE)
def promises_count_from_the_answers(patch: Patch) -> None:
    """A holder takes all promises to begin when the last answer is there."""
    ask = Agreement.ask

    async def late(self: Agreement, members: Mapping[str, str]) -> dict[str, Answer]:
        answers = await ask(self, members)
        if verdict(members, self._world.node, answers) is Answer.PROMISE:
            until = self._world.clock.now() + self._world.session.figures.ttl
            await self._world.keeper.agree(self._replica, until)
        return answers

    patch.setattr(Agreement, "ask", late)


@breaking("leased processes end in time", FAILSAFE)
def no_answer_is_a_yes(patch: Patch) -> None:
    """Who cannot be reached is taken to agree."""
    patch.setattr(
        agreement,
        "verdict",
        lambda _members, _node, answers: Answer.REFUSAL if Answer.REFUSAL in answers.values() else Answer.PROMISE,
    )


@breaking("leased processes end in time", FAILSAFE)
def an_agreement_is_for_all(patch: Patch) -> None:
    """A keeper lets every leased host live as long as others agree for one of them."""
    agree = machine.Machine.agree

    def agrees(self: machine.Machine, replica: str, deadline: float) -> None:
        agree(self, replica, deadline)
        self.extend(deadline)

    patch.setattr(machine.Machine, "agree", agrees)


@breaking("one process of a leased replica", FAILSAFE)
def anybody_may_have_it(patch: Patch) -> None:
    """A node takes a lock whose last holder does not know that it exists."""
    patch.setattr(acquiring, "may_acquire", lambda *_: True)


@breaking("one process of a leased replica", FAILSAFE)
def who_is_getting_it_agrees(patch: Patch) -> None:
    """A node promises not to start what it is getting, and starts it."""
    patch.setattr(Tender, "busy", property(nothing))
    patch.setattr(Book, "until", lambda *_: 0.0)


@breaking("one process of a leased replica", FAILSAFE)
def renames_forget_the_lease(patch: Patch) -> None:
    """A leased replica gets its new name whoever may still start it under the old one."""
    patch.setattr(keeping, "_rename_lease", nothing)


def shows(mutant: Mutant, seed: int) -> bool:
    """Whether the history of this seed breaks the mutant's promise."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.breaks(patch)
        try:
            outcome = run(seed, until=mutant.promise)
        except (TdieError, RuntimeError, BaseExceptionGroup):
            return False
    return mutant.promise in {violation.promise for violation in outcome.violations}


def catching_seed(name: str, seeds: int) -> int | None:
    """The seed that caught a mutant before, if it still does, else the first one that does."""
    mutant = next(each for each in MUTANTS if each.name == name)
    before = known().get(name)
    if before is not None and shows(mutant, before):
        return before
    return next((seed for seed in range(mutant.first, mutant.first + seeds) if shows(mutant, seed)), None)


def known() -> dict[str, int]:
    """The seeds that `caught.txt` names, by mutant."""
    rows = (line.split() for line in CAUGHT.read_text(encoding="utf-8").splitlines() if line.strip())
    return {row[1]: int(row[0]) for row in rows if row[0].isdigit()}


def table(found: dict[str, int | None]) -> Iterable[str]:
    """A line for each mutant: seed, name, FAULTS number, promise, sentence."""
    for mutant in MUTANTS:
        seed = found.get(mutant.name)
        said = "not caught" if seed is None else f"{seed}"
        yield f"{said:<10} {mutant.name:<40} {PROMISES[mutant.promise]:>2} {mutant.promise}: {mutant.sentence}"


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))


def main() -> int:
    """0 when every mutant was caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    names = asked.names or [mutant.name for mutant in MUTANTS]
    found: dict[str, int | None] = dict(known()) if CAUGHT.exists() else {}
    with ProcessPoolExecutor(asked.jobs, initializer=_quiet) as pool:
        for name, seed in zip(names, pool.map(catching_seed, names, [asked.seeds] * len(names)), strict=True):
            found[name] = seed
            sys.stdout.write(f"{name}: {'not caught' if seed is None else f'seed {seed}'}\n")
            sys.stdout.flush()
    CAUGHT.write_text("\n".join(table(found)) + "\n", encoding="utf-8")
    missed = [name for name in names if found[name] is None]
    sys.stdout.write(f"{len(names) - len(missed)} of {len(names)} mutants caught within {asked.seeds} seeds\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
