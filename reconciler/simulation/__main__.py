"""`python -m reconciler.simulation [--seeds N] [--from N]`: seeded histories, one line for each that broke a promise."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import structlog

from reconciler.simulation.history import Outcome, run

TARGET = 1000.0  # simulated seconds in a second of one core (FAULTS §4)
CRITICAL = 50


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))


def outcomes(first: int, count: int, jobs: int) -> Iterator[Outcome]:
    """The histories of these seeds, in order."""
    with ProcessPoolExecutor(jobs, initializer=_quiet) as pool:
        yield from pool.map(run, range(first, first + count), chunksize=4)


def main() -> int:
    """0 when every history kept every promise, else 1."""
    parser = argparse.ArgumentParser(prog="python -m reconciler.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many histories")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    began, simulated, faults, broken = time.monotonic(), 0.0, 0, 0
    for outcome in outcomes(asked.first, asked.seeds, asked.jobs):
        simulated += outcome.simulated
        faults += outcome.faults
        if outcome.violations:
            broken += 1
            sys.stdout.write(f"seed {outcome.seed} broke a promise; its faults and what was seen:\n")
            for line in (*outcome.story, *map(str, outcome.violations)):
                sys.stdout.write(f"  {line}\n")
    took = time.monotonic() - began
    speed = simulated / (took * asked.jobs)
    verdict = "met" if speed >= TARGET else "MISSED"
    sys.stdout.write(
        f"{asked.seeds} histories, {faults} faults, {simulated / 3600:.0f} simulated hours in {took:.0f} s: "
        f"{broken} broke a promise; {speed:,.0f}× real time per core, target ≥ {TARGET:,.0f}×: {verdict}\n"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
