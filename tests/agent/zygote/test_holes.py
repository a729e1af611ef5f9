"""Free places of the small-object allocator are found and taken."""

from __future__ import annotations

import subprocess
import sys


def test_filling_takes_most_free_places() -> None:
    """In a process of its own: what is kept stays for as long as the process."""
    script = (
        "from agent.zygote import holes\n"
        "before = sum(holes.free_places().values())\n"
        "filled = holes.fill()\n"
        "print(before, filled, sum(holes.free_places().values()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    before, filled, after = map(int, done.stdout.split())
    assert filled > before > 500
    assert after < before * 0.8  # measuring makes objects, too
