"""`make bench`: every bench_*.py beside this file, one after the other; figures beside their targets, never assertions."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    """All benches, or those whose names are given: `python -m tests.bench push planning`."""
    here = Path(__file__).parent
    wanted = sys.argv[1:]
    for file in sorted(here.glob("bench_*.py")):
        name = file.stem.removeprefix("bench_")
        if wanted and name not in wanted:
            continue
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.bench.{file.stem}").main()


main()
