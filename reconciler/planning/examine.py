"""One instance: its wanted replicas paired with where they are, and what follows for each."""

from __future__ import annotations

from collections import Counter

from reconciler.model.desired import InstanceSpec
from reconciler.planning.cases import Case, World
from reconciler.planning.homes import homes_of, wanted_replicas
from reconciler.planning.keeping import keep
from reconciler.planning.leftovers import leftovers, leftovers_of_replica, note_deadline
from reconciler.planning.outlook import Stay
from reconciler.planning.place import Seats
from reconciler.planning.starting import start
from reconciler.planning.stay import must_leave


def stay_of(world: World, spec: InstanceSpec) -> Stay:
    """Where the replicas of one instance are, and which of them can stay there."""
    wanted = wanted_replicas(world, spec)
    stay = Stay(spec, wanted, homes_of(world, spec, wanted))
    for name, home in stay.homes.items():
        if home is None or world.forsaken(home):
            continue
        fault = stay.leaving[name] = must_leave(world, spec, home, stay.own)
        if not fault or world.fleet.sites[home.node].silent:
            stay.staying.add(name)
            stay.own[home.node] += 1
    return stay


def examine(world: World, stay: Stay) -> Case:
    """Everything that should change for one instance, as if it were alone; holds that need the others come later."""
    spec, homes, own = stay.spec, stay.homes, stay.own
    case = Case(spec.name, spec)
    settled = (homes[name] for name in stay.staying)
    seen = Counter(home.node for home in settled if home is not None and not world.outlook.fresh(home))
    seats = Seats(spec, world.openings, world.outlook, own, seen)
    for name, node in stay.wanted.items():
        home = homes[name]
        if home is None:
            start(world, spec, case, seats, name, node, None)
        elif world.forsaken(home):
            start(world, spec, case, seats, name, node, home)
        else:
            if name in stay.staying:
                seats.pass_by(home)
            note_deadline(world, case, home.node)
            keep(world, spec, case, seats, name, home, stay.leaving[name])
        leftovers_of_replica(world, spec, case, name, home, own)
    leftovers(world, spec, case, stay.wanted)
    return case
