"""Three Consul servers, two controllers and three nodes on machines of their own: machines die without a word, Consul is away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.conftest import consul_binary
from tests.e2e.troubles import PROFILES, Far, far
from tests.e2e.witness import Life

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.root,
    pytest.mark.consul,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and the ip program"),
]


@pytest.fixture(scope="module")
def apart() -> Iterator[Far]:
    binary = consul_binary()
    assert binary is not None
    with far(binary, PROFILES["accelerated"]) as made:
        yield made


def test_the_leader_s_machine_and_the_holder_s_die_together(apart: Far) -> None:
    """No connection is closed, no check turns critical, nobody takes leave: what they held is taken over all the same."""

    def both(life: Life) -> None:
        leader = apart.rig.led()
        apart.rig.fail(leader)
        apart.rig.fail(life.node)
        apart.rig.led(but=leader)
        apart.runs(but=life.launch, within=120)
        apart.rig.boot(leader)
        apart.rig.boot(life.node)

    apart.round(1, "both_machines_die", "moves", both)
    assert apart.odd == []
    assert apart.wrong() == [], apart.told


def test_consul_is_away(apart: Far) -> None:
    """Nothing without a lease is touched, a crash is healed on the spot, and all is as before once it is back."""
    apart.outage(8.0)
    assert apart.wrong() == [], apart.told
