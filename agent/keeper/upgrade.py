"""From one image of the keeper to the next in the same process, so that every host stays its child.

The new code is rehearsed in a child first, on what it will get. Then launches wait, and at a quiet moment it takes our place.
It has to be there before the first leased host is due to be killed: if it is not, the process ends, and such hosts with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from agent.errors import Refused
from agent.keeper import handover, linux
from agent.keeper.handover import Handover
from agent.keeper.loop import Loop, Timer
from agent.keeper.supervisor import Supervisor

REHEARSAL_LIMIT = 30.0  # seconds; it imports all that hosts need
QUIET_LIMIT = 15.0  # seconds to wait for launches on their way
ROOM = 1.0  # seconds that a new image gets at least; what has less left to live is not upgraded over
LONGEST = 10.0  # seconds after which an image that does not work ends, when there is no deadline to hold
LOOK_AGAIN = 0.02
HELD_BACK = (signal.SIGTERM, signal.SIGINT)  # over the change; the next image hears of them
REHEARSE = "--rehearse"
RESUME = "--resume"
FAILED = "UPGRADE_FAILED"


class Upgrade:
    """At most one change of code at a time. `gather` is everything to hand over, `failed` is told why one did not happen."""

    def __init__(self, loop: Loop, supervisor: Supervisor, code: str) -> None:
        self._loop, self._supervisor, self.code = loop, supervisor, code
        self.gather: Callable[[], Handover]
        self.failed: Callable[[Refused], None] = lambda _error: None
        self.due = False  # nothing is left to do but `carry_out`
        self._command: tuple[str, ...] = ()
        self._rehearsal: int | None = None
        self._timers: list[Timer] = []
        self._ending = False

    def ask(self, command: tuple[str, ...], code: str) -> None:
        """This command is the keeper from soon on; refused when that cannot be."""
        if self._ending:
            raise Refused("the keeper is shutting down", code="SHUTTING_DOWN")
        if self._command:
            raise Refused("another upgrade is under way", code="UPGRADE_UNDER_WAY")
        if code == self.code:
            raise Refused(f"the keeper runs {code} already", code="SAME_CODE")
        self._command = command
        self._at(0.0, self._rehearse)

    def never(self) -> None:
        """The keeper ends instead."""
        self._ending, self.due = True, False
        self._give_up("the keeper is shutting down")

    # ------------------------------------------------------------------ the rehearsal

    def _rehearse(self) -> None:
        words = (*self._command, REHEARSE)
        try:
            memory = handover.write(self.gather())
            try:
                given = [(os.POSIX_SPAWN_DUP2, memory, 0)]
                pid = os.posix_spawn(words[0], words, os.environ, file_actions=given, setsid=True, setsigmask=())
            finally:
                os.close(memory)
        except OSError as error:
            self._give_up(f"{words[0]}: {error.strerror}")
            return
        self._rehearsal = pid
        self._supervisor.processes.await_child(pid, lambda status: self._rehearsed(pid, status))
        self._at(linux.now() + REHEARSAL_LIMIT, lambda: self._give_up("the rehearsal of the new code does not end"))

    def _rehearsed(self, pid: int, status: int) -> None:
        if pid != self._rehearsal:
            return
        self._rehearsal = None
        self._wait_no_more()
        if (ended := os.waitstatus_to_exitcode(status)) != 0:
            self._give_up(f"the new code failed its rehearsal with status {ended}; keeper.log has what it said")
            return
        self._at(linux.now() + QUIET_LIMIT, lambda: self._give_up("there was no quiet moment"))
        self._look()

    # ------------------------------------------------------------------ the change

    def _look(self) -> None:
        room = self._supervisor.deadlines.first_kill() >= linux.now() + ROOM
        self._supervisor.processes.hold(room)  # nothing waits for a lease that may not come
        if not (room and self._supervisor.processes.quiet):
            self._at(linux.now() + LOOK_AGAIN, self._look)
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        self._at(0.0, self._leave)  # in the next turn, which hears of signals from before

    def _leave(self) -> None:
        self.due = True
        self._loop.stop()

    def carry_out(self, lock: int, options: Sequence[str]) -> None:
        """The next image takes the place of this one; comes back only when it could not, and all is as before."""
        self.due = False
        inherited: list[int] = []
        try:
            kept = self.gather()
            memory = handover.write(kept)
            inherited = [memory, lock, *kept.descriptors()]
            for descriptor in inherited:
                os.set_inheritable(descriptor, True)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(
                signal.ITIMER_REAL, max(0.001, min(LONGEST, self._supervisor.deadlines.first_kill() - linux.now()))
            )
            os.execv(self._command[0], [*self._command, *options, RESUME, f"{memory}:{lock}"])
        except OSError as error:
            for descriptor in inherited:
                os.set_inheritable(descriptor, False)
            if inherited:
                os.close(inherited[0])
            self._loop.soon(self._supervisor.processes.reap)  # nobody listened to signals for a moment
            self._give_up(f"{self._command[0]}: {error.strerror}")

    # ------------------------------------------------------------------ the old code goes on

    def _give_up(self, why: str) -> None:
        self._wait_no_more()
        if self._rehearsal is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._rehearsal, signal.SIGKILL)  # our child, not reaped yet: nobody else has that number
            self._rehearsal = None
        if self._command:
            self._command = ()
            self._supervisor.processes.hold(False)
            self._loop.at(0.0, arrived)
            self.failed(Refused(why, code=FAILED, hint="the keeper goes on with the code it has"))

    def _at(self, when: float, call: Callable[[], None]) -> None:
        self._timers.append(self._loop.at(when, call))

    def _wait_no_more(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def arrived() -> None:
    """Whichever image runs now hears signals and has no time limit. Only inside a running loop."""
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
