"""The component host in this process: states, loading, order of lives, API."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import TdieError
from agent.host import loading
from agent.host.api import application
from agent.host.host import Host
from agent.host.objects import Role
from agent.host.operations import describe_host
from agent.host.states import TRANSITIONS, Call, HostState, WrongState, after
from agent.keeper.environment import environment
from agent.keeper.protocol import Code, HostOrder

_NUMBERS = count()
SOURCE = """
from agent.sdk import Component, InstanceId, Message, MessagePublisher, PublisherSettings, Settings
import logging

LIVES = []

class Part:
    async def start(self): LIVES.append(f"start {type(self).__name__}")
    async def stop(self): LIVES.append(f"stop {type(self).__name__}")
    async def close(self): LIVES.append(f"close {type(self).__name__}")

class Works(Part, Component):
    def __init__(self, settings: Settings, publisher: MessagePublisher, own: PublisherSettings,
                 log: "logging.Logger", me: InstanceId, extra: int = 1):
        self.given = (dict(settings), publisher, dict(own), log, me, extra)

class Leaves(Part, MessagePublisher):
    def __init__(self, settings: Settings): self.sent = []; self.mine = dict(settings)
    async def publish(self, message): self.sent.append(message)

class Fails(Works):
    async def start(self):
        LIVES.append("start Fails")
        raise OSError("no disk")

class Stubborn(Works):
    async def stop(self):
        LIVES.append("stop Stubborn")
        raise OSError("no way")

class Abstract(Component): ...

class NotOne: ...
"""


@pytest.fixture
def package(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    name = f"tdie_host_test_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    before = list(sys.path)
    yield tmp_path, name
    sys.path[:] = before
    sys.modules.pop(name, None)


def _order(
    package: tuple[Path, str], name: str = "Works", publisher: str | None = "Leaves", **settings: Any
) -> HostOrder:
    root, module = package
    code = Code("parts", "1.0.0", "d", str(root), f"{module}:{name}", settings)
    way = Code("ways", "1.0.0", "d", str(root), f"{module}:{publisher}", {"file": "f"}) if publisher else None
    return HostOrder("a.0", "a", "n", "s1", "python", code, publisher=way)


def _host(order: HostOrder) -> Host:
    return Host(order, lambda: None)


def _lives(package: tuple[Path, str]) -> list[str]:
    return list(sys.modules[package[1]].LIVES)


async def test_publisher_first_in_component_first_out(package: tuple[Path, str]) -> None:
    host = _host(_order(package, size=1))
    await host.start()
    assert host.status()["healthy"]
    assert host.members is not None
    settings, publisher, own, log, me, extra = host.members.component.given  # type: ignore[attr-defined]
    assert (settings, own, extra, len(me)) == ({"size": 1}, {"file": "f"}, 1, 32)
    assert log.name == "component.parts"
    inner = host.members.publisher
    await publisher.publish(sys.modules[package[1]].Message("hello"))
    assert [(m.content, m.source) for m in inner.sent] == [("hello", "a.0")]  # type: ignore[union-attr]
    await host.destroy()
    assert host.state is HostState.DESTROYED
    assert _lives(package) == [
        *("start Leaves", "start Works", "stop Works", "stop Leaves", "close Works", "close Leaves"),
    ]


async def test_a_failed_start_is_rolled_back(package: tuple[Path, str]) -> None:
    host = _host(_order(package, "Fails"))
    with pytest.raises(OSError, match="no disk"):
        await host.start()
    assert (host.state, host.cause, host.final) == (HostState.ERRORED, "OSError: no disk", False)
    assert _lives(package) == ["start Leaves", "start Fails", "stop Leaves", "close Fails", "close Leaves"]


async def test_a_failed_stop_stops_the_rest(package: tuple[Path, str]) -> None:
    host = _host(_order(package, "Stubborn"))
    await host.start()
    with pytest.raises(OSError, match="no way"):
        await host.stop()
    assert host.state is HostState.ERRORED
    assert _lives(package)[2:] == ["stop Stubborn", "stop Leaves", "close Stubborn", "close Leaves"]


async def test_reconfigured_in_place(package: tuple[Path, str]) -> None:
    host = _host(_order(package, size=1))
    await host.start()
    await host.reconfigure(replace(_order(package, size=2), spec_hash="s2"))
    assert (host.status()["state"], host.status()["spec_hash"]) == ("Started", "s2")
    assert host.members is not None
    assert host.members.component.settings["size"] == 2
    with pytest.raises(TdieError):
        await host.reconfigure(_order(package, "Gone"))
    assert host.state is HostState.ERRORED
    assert host.cause.startswith("parts@1.0.0: CLASS_MISSING")


@pytest.mark.parametrize(
    ("name", "publisher", "code"),
    [
        ("Gone", None, "CLASS_MISSING"),
        ("NotOne", None, "NOT_A_COMPONENT"),
        ("Leaves", None, "NOT_A_COMPONENT"),
        ("Works", "Works", "NOT_A_MESSAGEPUBLISHER"),
        ("Abstract", None, "CLASS_ABSTRACT"),
        ("Works", None, "PUBLISHER_MISSING"),
    ],
)
async def test_what_cannot_be_loaded_is_named(
    package: tuple[Path, str], name: str, publisher: str | None, code: str
) -> None:
    host = _host(_order(package, name, publisher))
    with pytest.raises(TdieError) as caught:
        await host.start()
    assert caught.value.code == code
    assert (host.state, host.final) == (HostState.ERRORED, True)


@pytest.mark.parametrize(("file", "type_", "code"), [
    ("agent.py", "x:Y", "MODULE_RESERVED"),
    ("x.py", "json:JSONDecoder", "MODULE_CLASH"),
    ("x.py", "nowhere:Y", "MODULE_MISSING"),
    ("tdie_broken_one.py", "tdie_broken_one:Y", "LOAD_FAILED"),
    ("x.py", "no-class", "LOAD_FAILED"),
])  # fmt: skip
async def test_modules_that_cannot_be_used_are_named(
    package: tuple[Path, str], file: str, type_: str, code: str
) -> None:
    (package[0] / file).write_text("1 +")
    order = _order(package, publisher=None)
    host = _host(replace(order, component=replace(order.component, component_type=type_)))
    with pytest.raises(TdieError) as caught:
        await host.start()
    assert caught.value.code == code


async def test_a_member_that_fails_later_takes_the_host_with_it(package: tuple[Path, str]) -> None:
    host = _host(_order(package))
    await host.start()
    watch = asyncio.create_task(host.watch())
    assert host.members is not None
    host.members.component.fail("the tap is closed")
    async with asyncio.timeout(5):
        while host.state is not HostState.ERRORED:
            await asyncio.sleep(0)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert host.cause == "the tap is closed"
    assert "close Leaves" in _lives(package)


@pytest.mark.parametrize("state", list(HostState))
@pytest.mark.parametrize("call", list(Call))
def test_every_call_in_every_state(state: HostState, call: Call) -> None:
    if (state, call) in TRANSITIONS:
        assert after(state, call) is TRANSITIONS[state, call]
    else:
        with pytest.raises(WrongState, match=f"{call} is not possible in state {state}; allowed: "):
            after(state, call)


async def test_the_api_starts_stops_and_tells(package: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame\n")
    (tmp_path / "token").chmod(0o600)
    order = replace(_order(package, password="secret"), env={"TDIE_API_TOKEN_FILE": str(tmp_path / "token")})
    host = _host(order)
    await host.start()
    ended = asyncio.Event()
    base = "/api/componentHost"
    transport = httpx.ASGITransport(app=application(host, ended.set))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        assert (await client.get("/livez")).status_code == 200
        for path in (f"{base}/configuration", "/openapi.json", "/docs", "/metrics"):
            assert (await client.get(path)).status_code == 401
        client.headers["authorization"] = "Bearer sesame"
        told = await client.get(f"{base}/configuration")
        assert told.json()["state"] == "Started"
        assert "secret" not in told.text
        assert "/api/componentHost/services/start" in (await client.get("/openapi.json")).json()["paths"]
        assert "<code>/api/componentHost/services/start</code>" in (await client.get("/docs")).text
        figures = text_string_to_metric_families((await client.get("/metrics")).text)
        known = {sample.name: sample.value for family in figures for sample in family.samples if not sample.labels}
        assert (known["tdie_host_healthy"], known["process_resident_memory_bytes"] > 1 << 20) == (1.0, True)
        huge = await client.put(f"{base}/services/component/parts/init", content=b" " * (2 << 20))
        assert (huge.status_code, huge.json()["code"]) == (413, "BODY_TOO_LARGE")
        away = await client.post(f"{base}/packages", content=b"x")
        assert (away.status_code, away.json()["code"]) == (503, "AGENT_AWAY")
        assert (await client.put(f"{base}/services/stop")).json()["state"] == "Stopped"
        again = await client.put(f"{base}/services/stop")
        assert (again.status_code, again.json()["code"]) == (409, "WRONG_STATE")
        assert "allowed: configure, destroy" in again.json()["detail"]
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.put(f"{base}/services/start")).json()["state"] == "Started"
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post(f"{base}/shutdown")).status_code == 202
    assert ended.is_set()
    await host.destroy()


def _states(host: Host) -> tuple[str | None, ...]:
    return (host.state, *(host.objects.seen(role).state for role in (Role.PUBLISHER, Role.COMPONENT)))


async def test_each_part_alone(package: tuple[Path, str]) -> None:
    host = _host(_order(package))
    await host.init(Role.COMPONENT)
    assert _states(host) == ("Configured", "Initialized", "Initialized")
    with pytest.raises(WrongState, match="PUBLISHER_NOT_STARTED"):
        await host.start_member(Role.COMPONENT)
    await host.start_member(Role.PUBLISHER)
    assert _states(host) == ("Configured", "Started", "Initialized")
    with pytest.raises(WrongState, match="MEMBER_RUNNING"):
        await host.init(Role.PUBLISHER)
    await host.init(Role.COMPONENT)  # its publisher runs on
    await host.start_member(Role.COMPONENT)
    assert _states(host) == ("Started", "Started", "Started")
    with pytest.raises(WrongState, match="MEMBER_RUNNING"):
        await host.stop_member(Role.PUBLISHER)
    await host.stop_member(Role.COMPONENT)
    assert (*_states(host), host.status()["halted"]) == ("Stopping", "Started", "Stopped", True)
    await host.start_member(Role.COMPONENT)
    assert (*_states(host), host.status()["halted"]) == ("Started", "Started", "Started", False)
    await host.stop_member(Role.COMPONENT)
    await host.stop_member(Role.PUBLISHER)
    assert (*_states(host), host.status()["halted"]) == ("Stopped", "Stopped", "Stopped", False)
    with pytest.raises(WrongState, match="start is not possible in state Stopped; allowed: configure, destroy"):
        await host.start_member(Role.PUBLISHER)
    await host.start()
    await host.stop_member(Role.COMPONENT)
    await host.start()  # what is halted goes on
    await host.stop_member(Role.COMPONENT)
    await host.stop()
    assert host.state is HostState.STOPPED
    assert _lives(package).count("start Leaves") == _lives(package).count("close Leaves") == 2
    assert _lives(package).count("start Works") == _lives(package).count("close Works") - 1 == 4
    await host.destroy()


async def test_an_awaiting_host_is_set_up_part_by_part_and_tells_what_is_wrong(package: tuple[Path, str]) -> None:
    told: list[Any] = []
    order = replace(_order(package, publisher=None), awaiting=True)
    host = Host(order, lambda: told.append(host.status()))
    with pytest.raises(WrongState, match="AwaitingConfiguration"):
        await host.start()
    way = _order(package).publisher
    assert way is not None
    with pytest.raises(TdieError, match="NOT_A_MESSAGEPUBLISHER"):
        await host.init(Role.PUBLISHER, replace(way, component_type=order.component.component_type))
    failure = host.objects.seen(Role.PUBLISHER).failure or host.failure
    assert failure is not None
    assert (host.state, failure.code, failure.at[-1]) == ("Errored", "NOT_A_MESSAGEPUBLISHER", "Z")
    await host.init(Role.PUBLISHER, way)
    assert (*_states(host), host.failure) == ("AwaitingConfiguration", "Initialized", None, None)
    await host.init(Role.COMPONENT, replace(order.component, settings={"size": 9}))
    assert host.state is HostState.CONFIGURED
    await host.start()
    assert told[-1]["order"]["component"]["settings"] == {"size": 9}
    assert "awaiting" not in told[-1]["order"]  # a keeper starts it again as it is
    with pytest.raises(WrongState, match="configure is not possible in state Started"):
        await host.init(Role.COMPONENT)
    await host.destroy()


async def test_each_failure_is_told_where_it_happened(package: tuple[Path, str]) -> None:
    host = _host(_order(package, "Fails"))
    with pytest.raises(OSError, match="no disk"):
        await host.start()
    shown = describe_host(host)
    assert (shown["state"], shown["error"]["code"], shown["error"]["detail"]) == (
        "Errored",
        "OSError",
        "OSError: no disk",
    )
    component, publisher = shown["packages"]
    assert (component["state"], component["error"]["detail"]) == ("Errored", "OSError: no disk")
    assert (publisher["state"], publisher["error"]) == ("Destroyed", None)
    stubborn = _host(_order(package, "Stubborn"))
    await stubborn.start()
    with pytest.raises(OSError, match="no way"):
        await stubborn.stop_member(Role.COMPONENT)
    assert _states(stubborn) == ("Errored", "Destroyed", "Errored")


def test_the_documents_show_the_same_table_of_transitions() -> None:
    text = (Path(loading.__file__).parent / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \|", text, re.MULTILINE)
    assert {(state, call): to for state, call, to in rows if state != "in"} == {
        (state.value, call.value): to.value for (state, call), to in TRANSITIONS.items()
    }


async def test_a_replica_has_a_folder_of_its_own(package: tuple[Path, str], tmp_path: Path) -> None:
    host = _host(replace(_order(package), data=str(tmp_path / "replicas" / "a.0")))
    await host.start()
    assert host.members is not None
    folder = host.members.component.data_folder
    assert (folder, folder.is_dir(), folder.stat().st_mode & 0o777) == (tmp_path / "replicas" / "a.0", True, 0o700)
    await host.destroy()
    assert environment(replace(_order(package), data="/d/a.0"), "l", "k")["TDIE_DATA_DIR"] == "/d/a.0"
    assert "TDIE_DATA_DIR" not in environment(_order(package), "l", "k")
