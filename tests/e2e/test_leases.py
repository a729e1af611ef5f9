"""A strict lease with real processes and a real Consul: an outside witness sees every process, and never two at once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ConsulServer
from tests.e2e.rounds import Trial, trial
from tests.e2e.system import until
from tests.e2e.witness import Beats, Ends, Life, clock, faults

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def test_what_the_witness_calls_a_fault(tmp_path: Path) -> None:
    """The witness itself is not blind."""
    file = tmp_path / "witness.txt"
    beats = [
        "1.0 a main 7 n1 3.1",
        "2.0 a child 8 n1 3.1",
        "1.9 b main 9 n2 3.2",
        "3.0 b main 9 n2 3.2",
        "3.5 c main 4 n1 3.1",
    ]
    file.write_text("\n".join(beats) + "\n")
    seen = Beats(file).lives()
    assert seen[0] == Life("a", "n1", (3, 1), 1.0, 2.0)
    assert [wrong.split(":")[0] for wrong in faults(seen)] == ["overlap of 0.100 s", "token went down"]
    assert faults(seen[:1] + seen[2:]) == []
    excused = Beats(file).lives()
    assert [wrong.split(":")[0] for wrong in faults(excused, {"a"})] == ["token went down"]
    # The kernel knows how long a process was there that did not get to write any more; another one may have had its pid before.
    seen = Beats(file).lives({8: [0.5, 2.6, 9.0], 9: [3.2]})
    assert [life.last for life in seen] == [2.6, 3.2, 3.5]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells only root of processes")
def test_the_kernel_says_when_processes_end() -> None:
    ends = Ends.listen()
    if ends is None:
        pytest.skip("this kernel tells nobody of processes (CONFIG_PROC_EVENTS)")
    try:
        before = clock()
        process = subprocess.Popen(["sleep", "0.05"])
        process.wait(5)
        (end,) = until(lambda: ends.at.get(process.pid), "the end of a process is known", within=10)
        assert before + 0.05 <= end <= clock()
    finally:
        ends.close()


def check(made: Trial, *troubles: Callable[[Life], None]) -> None:
    for number, trouble in enumerate(troubles, 1):
        made.round(number, trouble)
    seen = made.lives()
    assert len(seen) >= len(troubles), made.told
    assert faults(seen) == [], made.told


@pytest.mark.consul
def test_troubles_and_never_two_at_once(real_consul: ConsulServer) -> None:
    """Those that no other test shows; `make lease-rounds` plays them all, and more than once."""
    with trial(real_consul) as made:
        check(
            made, made.cut_off, made.agent_stands_still, made.keeper_dies, made.agent_dies, made.lock_is_deleted,
            made.keeper_is_upgraded, made.keeper_is_upgraded_while_cut_off,
        )  # fmt: skip


def test_the_same_on_the_embedded_server(consul_server: ConsulServer) -> None:
    with trial(consul_server) as made:
        check(made, made.cut_off, made.session_is_ended, made.node_is_drained)
