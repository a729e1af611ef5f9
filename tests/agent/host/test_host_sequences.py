"""Any sequence of calls, with parts that fail now and then: states and objects always fit, and nothing is left running."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.errors import TdieError
from agent.host.host import Host
from agent.host.objects import Role
from agent.host.states import HostState
from agent.keeper.protocol import Code, HostOrder

MODULE = "tdie_host_sequences"
SOURCE = """
from agent.sdk import Component, MessagePublisher
LIVES, FAILING = [], set()

class Part:
    def __init__(self):
        self.life(f"make {type(self).__name__}")
    def life(self, step):
        LIVES.append((id(self), self, step.split()[0] + "!" * (step in FAILING)))
        if step in FAILING:
            raise OSError(step)
    async def start(self): self.life(f"start {type(self).__name__}")
    async def stop(self): self.life(f"stop {type(self).__name__}")
    async def close(self): self.life(f"close {type(self).__name__}")

class Works(Part, Component): ...
class Leaves(Part, MessagePublisher):
    async def publish(self, message): ...
"""
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["start", "stop", "reconfigure", "destroy", "fail component", "fail publisher"]
            + [f"{call} {role}" for call in ("init", "up", "down", "new") for role in Role]
        ),
        st.sets(
            st.sampled_from([f"{s} {c}" for s in ("make", "start", "stop") for c in ("Works", "Leaves")]), max_size=1
        ),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("sequences")
    (made / f"{MODULE}.py").write_text(SOURCE)
    before = list(sys.path)
    yield made
    sys.path[:] = before
    sys.modules.pop(MODULE, None)


def code(folder: Path, name: str) -> Code:
    return Code(name.lower(), "1.0.0", "d", str(folder), f"{MODULE}:{name}")


async def act(host: Host, step: str, folder: Path) -> None:
    words = step.split()
    match words:
        case ["start"]:
            await host.start()
        case ["stop"]:
            await host.stop()
        case ["destroy"]:
            await host.destroy()
        case ["reconfigure"]:
            await host.reconfigure(host.order)
        case ["fail", role]:
            if (member := host.objects.get(Role(role))) is not None and host.objects.running(Role(role)):
                member.fail("the tap is closed")
                await asyncio.sleep(0)  # the watcher is woken,
                while host._failing.is_set():
                    await asyncio.sleep(0)  # and has seen it
                async with host._turn:
                    return
        case ["init", role]:
            await host.init(Role(role))
        case ["new", role]:
            await host.init(Role(role), code(folder, "Works" if role == Role.COMPONENT else "Leaves"))
        case ["up", role]:
            await host.start_member(Role(role))
        case ["down", role]:
            await host.stop_member(Role(role))


def check(host: Host, lives: list[tuple[int, Any, str]]) -> None:
    assert host.status()["halted"] == (host.state is HostState.STOPPING)
    running = {role for role in Role if host.objects.running(role)}
    there = {role for role in Role if host.objects.get(role)}
    match host.state:
        case HostState.STARTED:
            assert running == there
            assert Role.COMPONENT in there
        case HostState.STOPPING:
            assert running == {Role.PUBLISHER}
        case HostState.CONFIGURED:
            assert Role.COMPONENT in there - running
        case HostState.AWAITING_CONFIGURATION:
            assert Role.COMPONENT not in there
            assert not running
        case _:
            assert not there
    assert (host.failure is not None) or host.state is not HostState.ERRORED
    held = {id(host.objects.get(role)) for role in there}
    ended = {number for number, _, step in lives if step == "close"}
    begun = {number for number, _, step in lives if step == "start"}
    assert begun <= held | ended, "an object was started and never closed"
    for number in begun:
        steps = [step for n, _, step in lives if n == number]
        assert steps.count("start") == 1, steps
        assert steps.count("close") <= 1, steps
        assert "close" not in steps or {"stop", "stop!"} & set(steps), f"closed without a stop: {steps}"


@example(
    awaiting=False, steps=[("start", set()), ("down component", {"stop Works"})]
)  # its publisher was closed running
@example(awaiting=False, steps=[("start", set()), ("down component", set()), ("up component", {"start Works"})])
@example(awaiting=True, steps=[("new publisher", set()), ("new component", {"make Works"}), ("new component", set())])
@given(awaiting=st.booleans(), steps=STEPS)
@settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_states_and_objects_always_fit(folder: Path, awaiting: bool, steps: list[tuple[str, set[str]]]) -> None:
    async def history() -> None:
        order = HostOrder(
            "a.0", "a", "n", "s", "python", code(folder, "Works"),
            publisher=None if awaiting else code(folder, "Leaves"), awaiting=awaiting,
        )  # fmt: skip
        host = Host(order, lambda: None)
        watching = asyncio.create_task(host.watch())
        module: Any = sys.modules.get(MODULE)
        if module is not None:
            module.LIVES.clear()
        for step, failing in [*steps, ("destroy", set[str]())]:
            module = sys.modules.get(MODULE)
            if module is not None:
                module.FAILING = failing
            with contextlib.suppress(TdieError, OSError):  # refused, or the part failed
                await act(host, step, folder)
            check(host, sys.modules[MODULE].LIVES if MODULE in sys.modules else [])
        assert host.state is HostState.DESTROYED
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(history())
