"""Scripts that read like stories, run on a simulated fleet: one command a line, what it answers indented below it.

fleet a b c                        machines with agents, listed in Git
join d                             one more machine with an agent, pushed
label a zone=x · retire a          … of a node in Git; retired, it is not listed there any more
packages log@1.0 · retain 2        what every node has and how many versions it keeps, pushed
prune at most 50%                  sync.maxPrune, pushed
controller one                     a controller starts
commit web@1.0 on 3, at most 1 down      also: `web@1.0 per node 2`, `after db`, `lease strict`, `rebalance gradual`, `drop web`
                                   … and `auto revert`, `canary 1`, `wave 1`, `package web@1.0`, `was old` (movedFrom),
                                   `where zone == 'x'`, `spread zone`, `most 1 a node`, `publisher basic@1.0`,
                                   `port 8080`, `protected`
commit db@1.0; web@1.0, after db   several in one commit
settle                             wait until nothing is left to do
settle within 20s                  … or say what is left
wait 20s
show                               what runs where
processes                          which of them are the same as the last time this was asked
plan                               what the leader would do, and why it waits
crash agent a · start agent a · forget a (its ledger is lost) · disk of a full · disk of a free
power off a · power on a · cut a · cut a from controllers · cut a from consul · heal a
cut a and its consul              … the Consul agent on its machine is cut off from the servers, which go on showing it
consul stops · consul runs         its servers, so that no session ends meanwhile
leases                             what each agent says of the leases of its replicas
consul away · consul back · wipe consul · revoke a · tamper web.0     what happens to Consul, its sessions and its locks
self-heal off · window 0 6 * * * for 3600s     sync.selfHeal and sync.windows (UTC), pushed
apply                              a person approves the plan as it stands
suspend · suspend web · resume · resume web
rollback · rollback to 1 · cancel rollback · history      the number is that of a commit
confirm prune · confirm lost       a person lets go what left Git, or gives nodes up that were lost together
drain a · drain a within 60s · cordon a · uncordon a · lock a · unlock a
crash controller one · kill web.0 · stop web.0 · break web@1.1 · mend web@1.1 · lose web@1.1 · upload web@1.1
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reconciler.simulation import virtual
from reconciler.simulation.clauses import BadLine
from reconciler.simulation.verbs.consul import Consul
from reconciler.simulation.verbs.git import Git
from reconciler.simulation.verbs.looks import Looks
from reconciler.simulation.verbs.machines import Machines
from reconciler.simulation.verbs.people import People
from reconciler.simulation.world import World


def commands(script: str) -> Iterator[tuple[int, str]]:
    """The commands of a script with their line numbers: everything that is not indented, empty or a comment."""
    for number, line in enumerate(script.splitlines(), 1):
        text = line.split("#", 1)[0].rstrip()
        if text and not text.startswith(" "):
            yield number, text


def run(script: str, seed: int = 0) -> str:
    """The script with what each command answered, indented below it. Same seed, same text."""
    return virtual.run(_play(script, seed))


async def _play(script: str, seed: int) -> str:
    stage = Stage(World(seed))
    answers = dict[int, str]()
    try:
        for number, text in commands(script):
            answers[number] = await stage.do(number, text)
    finally:
        await stage.world.close()
    return "\n".join(_with_answers(script, answers)) + "\n"


def _with_answers(script: str, answers: dict[int, str]) -> Iterator[str]:
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith(" "):
            continue  # an earlier run's answer
        yield line
        for answer in filter(None, answers.get(number, "").splitlines()):
            yield f"    {answer}".rstrip()


class Stage:
    """One run of a script: whoever acts in it, on one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        cast = (Git(world), People(world), Machines(world), Consul(world), Looks(world))
        self._verbs = [verb for each in cast for verb in each.verbs()]

    async def do(self, number: int, text: str) -> str:
        """What the command answers; raises BadLine."""
        for pattern, act in self._verbs:
            if found := re.fullmatch(pattern, text):
                return await act(*found.groups()) or ""
        raise BadLine(number, text)
