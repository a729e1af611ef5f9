"""Groups of hosts: on a hierarchy in memory that keeps the kernel's rules, and the part of it that this machine has for real."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.keeper import linux
from agent.keeper.cgroups import PIDS, PIDS_OF_ALL, SHARED, Cgroups, mounted
from agent.keeper.hosted import Hosted
from agent.keeper.loop import Loop
from agent.keeper.processes import Processes
from agent.keeper.protocol import Code, HostOrder, Lease
from tests.agent.keeper.kernel import Kernel

Rig = Any
MI = 1 << 20
ORDER = HostOrder("a.0", "a", "n", "s", "exec", Code("p", "1", "d", "/", "m:C"))
ROOT = "/cg/tdie/k"


def opened(kernel: Kernel, mount: str = "/cg") -> Cgroups:
    made = Cgroups(kernel, mount, "k")
    made.open()
    return made


def lease() -> Lease:
    return Lease(1, 1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("limits", "values"),
    [
        ({"memory": 256 * MI}, {"memory.max": str(256 * MI), "memory.swap.max": "0", "memory.oom.group": "1"}),
        ({"cpu": 0.5}, {"cpu.max": "50000 100000"}),
        ({"cpu": 2.0}, {"cpu.max": "200000 100000"}),
        ({"cpu": 0.0001}, {"cpu.max": "1000 100000"}),  # the kernel takes no less
    ],
)
def test_limits_are_those_of_the_order(limits: dict[str, Any], values: dict[str, str]) -> None:
    kernel = Kernel()
    group = opened(kernel).prepare("l1", replace(ORDER, **limits))
    assert group == f"{ROOT}/l1"
    assert kernel.groups[group].values == {"pids.max": str(PIDS), **values}


def test_only_who_has_limits_or_a_lease_gets_a_group() -> None:
    kernel = Kernel()
    made = opened(kernel)
    assert made.prepare("l1", ORDER) == ""
    made.share(7)  # the image, whose children inherit it
    shared = kernel.groups[f"{ROOT}/{SHARED}"]
    assert (shared.processes, shared.values) == ({7}, {"pids.max": str(PIDS_OF_ALL), "cpu.weight": "50"})
    assert made.missing == ""
    assert made.bounds_memory(made.prepare("l2", replace(ORDER, memory=MI)))
    assert not made.bounds_memory("")


@pytest.mark.parametrize(
    ("kernel", "mount", "said"),
    [
        (Kernel(), "", "no cgroup of its own (cgroup v2 is not mounted): memory is bounded per process, cpu is not bounded"),
        (Kernel(controllers=("pids",)), "/cg", "no cpu, memory controller: cpu is not bounded, memory is bounded per process"),
        (Kernel(controllers=()), "/cg", "no cpu, memory, pids controller"),
        (Kernel(others=(1, 99)), "/cg", "no cpu, memory, pids controller"),  # a container: EBUSY above us
    ],
)  # fmt: skip
def test_what_is_missing_is_said(kernel: Kernel, mount: str, said: str) -> None:
    made = opened(kernel, mount)
    assert made.missing.startswith(said)
    group = made.prepare("l1", replace(ORDER, memory=MI, cpu=1.0))
    assert bool(group) is bool(mount)
    assert not made.bounds_memory(group)


def test_where_nothing_may_be_written_all_goes_on_without() -> None:
    kernel = Kernel()
    kernel.read_only = True
    made = opened(kernel)
    assert made.missing.startswith("no cgroup of its own (/cg: Read-only file system)")
    assert made.prepare("l1", replace(ORDER, memory=MI)) == ""
    made.share(7)
    made.kill("l1")
    made.remove("l1")
    assert (made.populated("l1"), made.processes("l1"), made.killed_for_memory("l1")) == (False, [], False)
    assert made.close()


def test_everything_in_a_group_ends_at_once_whatever_it_made_below() -> None:
    kernel = Kernel()
    made = opened(kernel)
    group = made.prepare("l1", replace(ORDER, lease=lease()))
    made.prepare("l2", replace(ORDER, cpu=1.0))
    kernel.write(f"{ROOT}/l2/cgroup.procs", "50")
    kernel.make(f"{group}/own")
    for pid in (10, 11):
        kernel.write(f"{group}/own/cgroup.procs", str(pid))
    assert (made.populated("l1"), made.processes("l1")) == (True, [10, 11])
    made.remove("l1")
    assert group in kernel.groups  # something lives in it
    made.kill("l1")
    assert (made.populated("l1"), made.processes("l1")) == (False, [])
    assert made.processes("l2") == [50]
    made.remove("l1")
    assert [name for name in kernel.groups if name.startswith(group)] == []
    made.kill("l1")  # again, and for what never had a group
    made.kill("l3")
    made.remove("l3")


def test_a_new_keeper_finds_what_lives_and_clears_away_what_is_empty() -> None:
    kernel = Kernel()
    made = opened(kernel)
    for launch in ("l1", "l2"):
        made.prepare(launch, replace(ORDER, memory=MI))
    kernel.write(f"{ROOT}/l1/cgroup.procs", "10")
    assert not made.close()
    again = opened(kernel)
    assert again.processes("l1") == [10]
    assert f"{ROOT}/l2" not in kernel.groups
    assert again.missing == ""
    again.kill("l1")
    again.remove("l1")
    assert again.close()
    assert list(kernel.groups) == ["/cg"]


class Nobody:
    def began(self, host: Hosted) -> None: ...
    def heard(self, host: Hosted, said: dict[str, Any]) -> None: ...
    def hung_up(self, host: Hosted) -> None: ...
    def failed(self, host: Hosted, code: str, cause: str) -> None: ...
    def gone(self, host: Hosted) -> None: ...
    def stuck(self, host: Hosted, pids: tuple[int, ...]) -> None: ...


@pytest.mark.parametrize(
    ("size", "said", "cause"),
    [
        (257 * MI, "", "OOMKilled limit=256Mi"),
        (255 * MI, "", ""),
        (257 * MI, "it says why itself", "it says why itself"),
    ],
)
def test_who_takes_too_much_ends_alone_and_is_told_why(size: int, said: str, cause: str, tmp_path: Path) -> None:
    kernel = Kernel()
    groups, loop = opened(kernel), Loop()
    processes = Processes(loop, tmp_path / "sock", tmp_path, groups, Nobody())
    hosts = []
    for pid, launch in ((10, "l1"), (20, "l2")):
        host = Hosted(order=replace(ORDER, memory=256 * MI), launch=launch, pid=pid, cause=said)
        kernel.write(f"{groups.prepare(launch, host.order)}/cgroup.procs", str(pid))
        hosts.append(host)
    kernel.charge(10, size)
    processes._exited(hosts[0], signal.SIGKILL)
    loop.close()
    assert hosts[0].cause == cause
    assert kernel.groups[f"{ROOT}/l2"].processes == {20}
    assert not groups.killed_for_memory("l2")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"),
        (
            "31 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
            "32 31 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "/sys/fs/cgroup/unified",
        ),
        ("32 31 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", ""),
        ("", ""),
    ],
)
def test_where_it_is_mounted(text: str, where: str) -> None:
    assert mounted(text) == where


def writable() -> bool:
    mount = mounted(Path("/proc/self/mountinfo").read_text())
    return bool(mount) and os.access(mount, os.W_OK) and (Path(mount) / "cgroup.kill").parent.exists()


NEEDS_CGROUP2 = pytest.mark.skipif(not writable(), reason="no cgroup v2 that may be written here")
ESCAPES = "import os,sys,time\nif os.fork():\n    time.sleep(600)\nos.setsid()\nif os.fork():\n    os._exit(0)\n"
ESCAPES += "os.execve(sys.executable, ['python-without-marker', '-c', 'import time; time.sleep(600)'], {})\n"


@NEEDS_CGROUP2
@pytest.mark.parametrize("killed", [False, True])
async def test_what_hides_from_its_host_ends_with_it(killed: bool, rig: Rig, kill: Any, is_alive: Any) -> None:
    """A double fork in a session of its own, without any marker: only the group knows whose it is."""
    order = rig.program("a.0", "python3", "-c", ESCAPES, cpu=1.0, restart_attempts=0)
    row = await rig.started(order)
    own = next(line[3:] for line in _proc(row.pid, "cgroup").splitlines() if line.startswith("0::"))
    assert own.startswith(f"/tdie/{linux.keeper_id(rig.data)}/")
    procs = Path(mounted(_proc("self", "mountinfo")) + own) / "cgroup.procs"
    await rig.until(lambda: len(_hidden(procs)) == 1)
    hidden = _hidden(procs)
    if killed:
        kill(row.pid)
    else:
        await rig.client.stop("a.0")
    await rig.row("a.0", lambda found: found.state in ("Stopped", "Failed"))
    assert not any(is_alive(pid) for pid in hidden)
    assert procs.parent.name not in os.listdir(procs.parent.parent)


def _proc(pid: object, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def _hidden(procs: Path) -> list[int]:
    found = [int(pid) for pid in procs.read_text().split()]
    return [pid for pid in found if _command(pid).startswith("python-without-marker")]


def _command(pid: int) -> str:
    try:
        return _proc(pid, "cmdline")
    except OSError:  # the one in between has ended
        return ""


async def test_the_kernel_has_no_reason_to_spare_a_host(rig: Rig) -> None:
    row = await rig.started(rig.order("a.0", memory=200 * MI))
    assert int(_proc(row.pid, "oom_score_adj")) >= 0
    assert "Max core file size        0 " in _proc(row.pid, "limits")
