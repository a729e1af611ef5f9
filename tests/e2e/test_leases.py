"""A strict lease with real processes and a real Consul: an outside witness sees every process, and never two at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ConsulServer
from tests.e2e.rounds import Life, Trial, faults, lives, trial

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
    seen = lives(file)
    assert seen[0] == Life("a", "n1", (3, 1), 1.0, 2.0)
    assert [wrong.split(":")[0] for wrong in faults(seen)] == ["overlap of 0.100 s", "token went down"]
    assert faults(seen[:1] + seen[2:]) == []


def check(made: Trial) -> None:
    for number, trouble in enumerate(made.troubles, 1):
        made.round(number, trouble)
    seen = lives(made.file)
    assert len(seen) >= len(made.troubles) - 1, made.told
    assert faults(seen) == [], made.told


@pytest.mark.consul
def test_every_trouble_once_and_never_two_at_once(real_consul: ConsulServer) -> None:
    with trial(real_consul) as made:
        check(made)


def test_the_same_on_the_embedded_server(consul_server: ConsulServer) -> None:
    with trial(consul_server) as made:
        for number, trouble in enumerate((made.cut_off, made.session_is_ended, made.node_is_drained), 1):
            made.round(number, trouble)
        assert faults(lives(made.file)) == [], made.told
