"""`make bench`: every bench_*.py beside this file, one after the other; figures beside their targets, never assertions."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import structlog


def main() -> None:
    """All benches, or those whose names are given: `python -m tests.bench push planning`."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # figures alone
    here = Path(__file__).parent
    wanted = sys.argv[1:]
    for file in sorted(here.glob("bench_*.py")):
        name = file.stem.removeprefix("bench_")
        if wanted and name not in wanted:
            continue
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.bench.{file.stem}").main()


main()
