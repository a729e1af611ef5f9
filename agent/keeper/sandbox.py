"""What keeps a host within its bounds, and what is missing for it on this machine."""

from __future__ import annotations

DEGRADED = "SANDBOX_DEGRADED"


def degradation() -> str:
    """Why the sandbox is less than a cgroup v2 subtree, one sentence for the report; empty when nothing is missing.

    Processes are found by marker and session, memory is bounded by RLIMIT_DATA of each process, cpu is not bounded.
    """
    return f"{DEGRADED} no cgroup of its own: memory is bounded per process, cpu is not bounded, leftovers are found by marker"
