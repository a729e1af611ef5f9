"""Push → healthy, with real processes (LIMITS §3, goals 1 and 2): `python -m tests.bench push`.

Fixture: a pure-Python package of which both versions are installed on the node, a change of version, maxParallel 100 %,
minHealthyTime 0s, no `health`. Measured from before `git update-ref` of a commit whose objects are there already (that is what
a push does last), or from before a whole `git push`, to the controller's answer that everything is healthy.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.bench import figures
from tests.bench.system import Bench, documents, packages, system

VERSIONS = ("1.0.0", "1.1.0")
ONE, HUNDRED = 20, 8  # rounds


async def _rounds(bench: Bench, name: str, replicas: int, count: int, *, pushed: bool = False) -> list[float]:
    """Milliseconds from each change of version until all of it is healthy; the first round is not counted."""
    times = []
    for number in range(count + 1):
        version = VERSIONS[bench.commits % 2]  # another one than in the last commit
        text = documents({name: (replicas, version)}, VERSIONS)
        commit = bench.commit({"all.yaml": text}, f"{replicas} × {version}, {number}")
        began = bench.push() if pushed else bench.show(commit)
        ended = await bench.settled(commit)
        if number:
            times.append((ended - began) * 1000)
        await bench.quiet(commit, replicas)
    return times


async def _measure(folder: Path) -> None:
    files = {"all.yaml": documents({"one": (1, VERSIONS[0])}, VERSIONS), **packages(VERSIONS)}
    async with system(folder, files) as bench:
        times = await _rounds(bench, "one", 1, ONE)
        figures.line("ref moved → 1 replica of the new version healthy", times, "ms", 100, 500)
        times = await _rounds(bench, "one", 1, ONE // 3, pushed=True)
        figures.line("`git push` begun → the same", times, "ms", 100, 500)
        times = await _rounds(bench, "many", 100, HUNDRED)
        figures.line("ref moved → 100 replicas on one node healthy", times, "ms", 1000)


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder:
        asyncio.run(_measure(Path(folder).resolve()))
