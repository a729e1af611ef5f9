"""`python -m reconciler.simulation [--seeds N] [--from N]`: seeded histories, one line for each that broke a promise.

With `--notes FILE` what is done is written down, and the next call with the same code goes on from there; with other code it
begins anew.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from reconciler.simulation.history import FAILSAFE, run

TARGET = 1000.0  # simulated seconds in a second of one core (FAULTS §4)
CRITICAL = 50
CHUNK = 25  # histories that one process plays before it says so …
NOTED = 100  # … and with notes, where each time is a line
FOURTH = 4  # one in so many has failsafe leases
EVERY = 60.0  # seconds between lines of progress
_OWN = ("agent.", "reconciler.")


@dataclass(frozen=True, slots=True)
class Played:
    """What became of some histories."""

    first: int  # its number
    count: int
    faults: int
    simulated: float  # seconds
    took: float  # seconds of one core
    broken: tuple[tuple[str, ...], ...] = ()  # for each that broke a promise: its seed, faults and what was seen


def seed_of(number: int) -> int:
    """The seed of the history with this number: every fourth is one with failsafe leases."""
    return number if number >= FAILSAFE or number % FOURTH else FAILSAFE + number


def play(first: int, count: int) -> Played:
    """The histories of these numbers, one after the other."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    gc.collect()  # or what is left of the part before would stay for ever
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)  # histories leave little that goes round in circles
    began = time.process_time()
    outcomes = [run(seed_of(number)) for number in range(first, first + count)]
    broken = tuple(
        (
            f"seed {each.seed} broke a promise; its faults and what was seen:",
            *each.story,
            *map(str, each.violations[:20]),
        )
        for each in outcomes
        if each.violations
    )
    faults, simulated = sum(each.faults for each in outcomes), sum(each.simulated for each in outcomes)
    return Played(first, count, faults, simulated, time.process_time() - began, broken)


def files() -> list[Path]:
    """The project's own files that are loaded: by importing this module, all that a history runs."""
    loaded = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(_OWN)}
    return sorted(Path(file) for file in loaded if file is not None)


def code() -> str:
    """12 hex digits over everything that a history runs: with other code it is another history."""
    whole = hashlib.sha256()
    for path in files():
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


class Notes:
    """What was played already, a line for each chunk; nothing is kept without a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._code = code()
        self.played: dict[int, Played] = {}
        if path is not None and path.exists():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for row in rows:
                if row.pop("code") == self._code:
                    row["broken"] = tuple(tuple(each) for each in row["broken"])
                    self.played[row["first"]] = Played(**row)
            if len(self.played) < len(rows):
                path.write_text("".join(map(self._line, self.played.values())), encoding="utf-8")

    def of(self, first: int, count: int) -> list[Played]:
        """What is known of the histories with these numbers."""
        return [each for each in self.played.values() if first <= each.first < first + count]

    def add(self, played: Played) -> None:
        """These are done."""
        self.played[played.first] = played
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self._line(played))

    def _line(self, played: Played) -> str:
        row = asdict(played) | {"simulated": round(played.simulated), "took": round(played.took, 1)}
        return json.dumps({"code": self._code, **row}) + "\n"


def play_all(first: int, count: int, jobs: int, notes: Notes, chunk: int) -> Iterator[Played]:
    """All histories that the notes do not have yet."""
    starts = [start for start in range(first, first + count, chunk) if start not in notes.played]
    sizes = [min(chunk, first + count - start) for start in starts]
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(play, starts, sizes)


def main() -> int:
    """0 when every history kept every promise, else 1."""
    parser = argparse.ArgumentParser(prog="python -m reconciler.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many histories")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the number of the first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--notes", type=Path, help="file to go on from")
    asked = parser.parse_args()
    notes = Notes(asked.notes)
    for row in notes.of(asked.first, asked.seeds):
        _tell(row)
    began = said = time.monotonic()
    for played in play_all(asked.first, asked.seeds, asked.jobs, notes, NOTED if asked.notes else CHUNK):
        notes.add(played)
        _tell(played)
        if asked.notes is not None and time.monotonic() - said > EVERY:
            said = time.monotonic()
            sys.stdout.write(f"{_done(notes.of(asked.first, asked.seeds)):,} of {asked.seeds:,} histories\n")
            sys.stdout.flush()
    rows = notes.of(asked.first, asked.seeds)
    sys.stdout.write(_report(rows, time.monotonic() - began))
    return 1 if any(each.broken for each in rows) else 0


def _done(rows: Sequence[Played]) -> int:
    return sum(each.count for each in rows)


def _tell(played: Played) -> None:
    for story in played.broken:
        sys.stdout.write("\n  ".join(story) + "\n")
    sys.stdout.flush()


def _report(rows: Sequence[Played], elapsed: float) -> str:
    simulated, took = sum(each.simulated for each in rows), sum(each.took for each in rows)
    broken, speed = sum(len(each.broken) for each in rows), simulated / max(took, 0.001)
    verdict = "met" if speed >= TARGET else "MISSED"
    return (
        f"{_done(rows):,} histories, {sum(each.faults for each in rows):,} faults, {simulated / 3600:,.0f} simulated hours "
        f"in {elapsed:,.0f} s ({took:,.0f} s of a core): {broken} broke a promise; "
        f"{speed:,.0f}× real time per core, target ≥ {TARGET:,.0f}×: {verdict}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
