"""What a keeper hands over to its next image: everything, or the next image says that it cannot read it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import agent
from agent.errors import Invalid
from agent.keeper import codec, handover
from agent.keeper.cgroups import Cgroups, SystemFiles
from agent.keeper.channel import Line
from agent.keeper.handover import Handover, KeptClient, KeptHost, KeptHosts, KeptServer, KeptZygote
from agent.keeper.hosted import Hosted
from agent.keeper.identity import PARTS
from agent.keeper.loop import Loop
from agent.keeper.protocol import Code, HostOrder, Lease
from agent.keeper.server import Connection, Server
from agent.keeper.supervisor import Supervisor
from agent.keeper.upgrade import Upgrade

ORDER = HostOrder(
    "a.0",
    "a",
    "n",
    "spec-1",
    "python",
    Code("parts", "1.0.0", "0" * 64, "/parts", "parts:Idle", {"colour": "grün"}),
    lease=Lease(3, 7, 0.4, 0.2),
)
OTHER = replace(ORDER, spec_hash="spec-2", lease=None)

HOST: dict[str, Any] = {
    "order": ORDER, "order_text": codec.order_text(ORDER), "state": "Stopping", "healthy": True, "since": 12.25,
    "started_at": "2026-01-02T03:04:05Z", "pid": 4711, "start_time": 815, "restarts": 3, "last_error": "out of paper ✂",
    "retry_at": 0.1 + 0.2, "host_state": "Errored", "fenced": "LEASE_EXPIRED", "crashes": (1.5, 2.5), "launch": "c0ffee",
    "whole": False, "own": True, "descriptor": 9, "wanted": OTHER, "ending": True, "ended": (4710, 11.5), "cause": "why",
    "final": True, "status": 256, "killed_at": 13.75, "on_way": True, "seen": ("Stopping", True, 4711, None),
}  # fmt: skip
OF_THIS_IMAGE = {"channel", "timer"}


def filled() -> Hosted:
    host = Hosted(order=ORDER)
    for name, value in HOST.items():
        setattr(host, name, value)
    return host


def kept(*hosts: KeptHost) -> Handover:
    return Handover(
        code="c0de",
        at=99.5,
        hosts=KeptHosts(
            hosts=hosts,
            waiting=("a.0",),
            swept=("b.0",),
            zygote=KeptZygote(pid=5, descriptor=6, generation=7, guarded=("c0ffee",)),
            deadline=0.1 + 0.2,
            agreed={"a.0": 55.5},
            problems={"STUCK_UNKILLABLE a.0": "STUCK_UNKILLABLE pid=3"},
        ),
        server=KeptServer(
            listener=4,
            clients=(
                KeptClient(Line(10, b'{"do":"\xc3', b"\x00\xff"), pending=("a.0",), asked=3),
                KeptClient(Line(11)),
            ),
        ),
    )


def test_every_field_of_a_host_travels() -> None:
    assert {f.name for f in fields(Hosted)} == set(HOST) | OF_THIS_IMAGE, "a new field needs a value in HOST"
    fresh = Hosted(order=OTHER)
    same = [name for name, value in HOST.items() if value == getattr(fresh, name)]
    assert not same, "a value that a new host has anyway shows nothing"
    found = handover.read(handover.write(kept(KeptHost(filled()))))
    host = found.hosts.hosts[0].host
    assert {name: getattr(host, name) for name in HOST} == HOST
    assert (host.channel, host.timer) == (None, None)


def test_all_the_rest_travels() -> None:
    line = Line(12, b"half", b"unsent")
    given = kept(KeptHost(filled(), line=line, due=77.7), KeptHost(Hosted(order=OTHER)))
    found = handover.read(handover.write(given))
    assert (found.code, found.at, found.server) == (given.code, given.at, given.server)
    assert replace(found.hosts, hosts=()) == replace(given.hosts, hosts=())
    assert [(each.line, each.due) for each in found.hosts.hosts] == [(line, 77.7), (None, None)]
    assert sorted(found.descriptors()) == [4, 6, 9, 10, 11, 12]


TRAVELS = {
    "Supervisor": {"hosts", "problems", "processes", "deadlines"},
    "Processes": {"zygote", "_waiting", "_unproven"},
    "Launcher": {"_socket", "_former", "guarded", "pid", "generation"},
    "Fence": {"deadline", "_agreed"},
    "Server": {"_listener", "_connections"},
    "Connection": {"channel", "_pending", "_asked"},
    "Channel": {"socket", "_in", "_out"},
}
MADE_ANEW = {
    # its own parts, and who listens to it; `_leaving` and `_left`: a keeper that is shutting down is not upgraded
    "Supervisor": {"_loop", "changed", "dropped", "journal", "touch", "_leaving", "_left"},
    # from hosts: `_of_pid`, `_sweeping`; over before the change: `_flying`, `_others`, `_held`
    "Processes": {
        "_loop", "_owner", "cgroups", "keeper", "_cache", "_keeper_socket", "_of_pid", "_flying", "_sweeping", "_others",
        "_busy", "_held",
    },
    # the zygote is replaced
    "Launcher": {"_loop", "_failed", "_began", "_pause", "_started", "_stopping", "ready"},
    "Fence": {"_loop", "_hosts", "_end", "_kill", "_timer"},
    "Server": {"_loop", "_path", "_supervisor", "_upgrade"},
    "Connection": {"_loop", "_supervisor", "_upgrade", "closed", "_telling"},
    "Channel": {"_loop", "hear", "ended", "drained", "_waits", "closed"},
}  # fmt: skip


def test_whoever_adds_to_a_keeper_says_what_becomes_of_it_in_an_upgrade(tmp_path: Path) -> None:
    loop = Loop()
    supervisor = Supervisor(loop, tmp_path, tmp_path / "sock", Cgroups(SystemFiles(), "", "k"))
    upgrade = Upgrade(loop, supervisor, "c0de")
    server = Server(loop, tmp_path / "sock", supervisor, upgrade)
    ours, its = socket.socketpair()
    connection = Connection(loop, ours, supervisor, upgrade)
    processes = supervisor.processes
    parts = (supervisor, processes, processes.zygote, supervisor.deadlines, server, connection, connection.channel)
    try:
        for part in parts:
            name = type(part).__name__
            assert set(vars(part)) == TRAVELS[name] | MADE_ANEW[name], name
    finally:
        its.close()
        connection.channel.close()
        server.close()
        loop.close()


def test_what_was_forgotten_while_its_end_was_proven_neither_travels_nor_comes_back(tmp_path: Path) -> None:
    loop = Loop()
    supervisor = Supervisor(loop, tmp_path, tmp_path / "sock", Cgroups(SystemFiles(), "", "k"))
    crashed, other = (Hosted(order=OTHER, state="Started", launch=launch) for launch in ("c0ffee", "deca"))
    supervisor.hosts["a.0"] = crashed
    supervisor.processes.sweep(crashed)
    assert supervisor.hand_over().swept == ("a.0",)
    supervisor.forget("a.0")
    supervisor.hosts["a.0"] = other
    assert supervisor.hand_over().swept == ()
    supervisor.gone(crashed)
    assert supervisor.processes.waiting() == ()
    assert (crashed.state, other.state) == ("Started", "Started")
    loop.close()


def rewritten(change: Callable[[dict[str, Any]], object]) -> int:
    memory = handover.write(kept(KeptHost(filled())))
    with os.fdopen(memory, "rb") as stream:
        said = json.loads(stream.read())
    change(said)
    again = os.memfd_create("again")
    os.write(again, json.dumps(said).encode())
    os.lseek(again, 0, os.SEEK_SET)
    return again


def host_of(said: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = said["kept"]["hosts"]["hosts"][0]["host"]
    return found


def test_what_an_earlier_image_did_not_know_is_as_of_a_new_host() -> None:
    memory = rewritten(lambda said: [host_of(said).pop(name) for name in ("final", "killed_at")])
    host = handover.read(memory).hosts.hosts[0].host
    assert (host.final, host.killed_at, host.pid) == (False, None, 4711)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda said: said.update(version=2), "HANDOVER_UNREADABLE"),
        (lambda said: said.pop("version"), "HANDOVER_UNREADABLE"),
        (lambda said: said["kept"]["hosts"].pop("deadline"), "HANDOVER_UNREADABLE"),
        (lambda said: said["kept"]["hosts"]["zygote"].update(colour="red"), "HANDOVER_UNREADABLE"),
        (lambda said: host_of(said).update(order="{}"), "ORDER_INVALID"),
        (lambda said: host_of(said).update(colour="red"), "VERSION_SKEW"),
        (lambda said: said.update(kept=[]), "HANDOVER_UNREADABLE"),
    ],
)  # fmt: skip
def test_half_of_it_is_not_read(change: Callable[[dict[str, Any]], object], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        handover.read(rewritten(change))
    assert refused.value.code == code


LOADED = """
import sys
import agent.keeper.__main__, agent.zygote.__main__
from agent.zygote import image
image.warm()
print(*(m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "agent"), sep="\\n")
"""


def test_the_identity_of_code_is_that_of_all_that_keepers_and_hosts_load() -> None:
    found = subprocess.run([sys.executable, "-I", "-c", LOADED], capture_output=True, text=True, check=True)
    root = Path(agent.__file__).parent
    loaded = {Path(file).relative_to(root).parts[0] for file in found.stdout.split()}
    assert loaded <= set(PARTS)
    assert "keeper" in loaded
