"""The state file follows the hosts: at once what somebody asked for, a little later what they did by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from agent.keeper import linux, state
from agent.keeper.hosted import Hosted
from agent.keeper.loop import Loop

SAVE_AGAIN = 60.0
SAVE_LATER = (
    0.05  # seconds in which what hosts did by themselves is collected: a new keeper finds their processes anyway
)


class Journal:
    """Writes the state file of one keeper. `written` is called at the end of each turn in which something was touched."""

    def __init__(
        self,
        loop: Loop,
        file: Path,
        hosts: Callable[[], Iterable[Hosted]],
        problems: dict[str, str],
        written: Callable[[], None],
    ) -> None:
        self._loop, self._file, self._hosts, self._problems, self._written = loop, file, hosts, problems, written
        self.boot = linux.boot_id()
        self._dirty = self._settling = self._at_once = self._later = False

    def touch(self, *, at_once: bool = False) -> None:
        """The state file follows: by the end of this turn what was asked or is to be launched, the rest a little later."""
        self._dirty = True
        self._at_once = self._at_once or at_once
        if not self._settling:
            self._settling = True
            self._loop.soon(self._finish_turn)

    def save(self) -> None:
        """The state file holds all hosts; when it cannot be written, a problem says so and it is tried again."""
        self._at_once = False
        if not self._dirty:
            return
        try:
            state.save(self._file, self.boot, self._hosts())
        except OSError as error:
            self._problems["STATE_NOT_SAVED"] = f"{self._file}: {error.strerror}"
            self._loop.at(linux.now() + SAVE_AGAIN, self.save)
            return
        self._dirty = False
        self._problems.pop("STATE_NOT_SAVED", None)

    def load(self) -> state.Recorded:
        """What an earlier keeper wrote; a file that makes no sense is kept aside, and a problem says so."""
        recorded = state.load(self._file, self._file.with_suffix(f".bad-{int(linux.now())}"))
        if recorded.problem:
            self._problems["STATE_REBUILT"] = recorded.problem
        return recorded

    def _finish_turn(self) -> None:
        self._settling = False
        if self._at_once:
            self.save()
        elif not self._later:
            self._later = True
            self._loop.at(linux.now() + SAVE_LATER, self._save_later)
        self._written()

    def _save_later(self) -> None:
        self._later = False
        self.save()
