"""Built-in components in real hosts: one cluster that schedules, answers HTTP, and in the end runs its own controller."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.components import folder
from tests.conftest import ConsulServer
from tests.e2e.system import System, cluster, instance, package, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]


def builtin(name: str) -> tuple[str, str]:
    """The Package document of a built-in package, and how instances refer to it."""
    version = json.loads((folder(name) / "manifest.json").read_text())["version"]
    return package(name, version, builtin=name), f"{name}@{version}"


@pytest.fixture
def running(consul_server: ConsulServer) -> Iterator[System]:
    """A controller and an agent of their own, and nothing to run yet."""
    with system(consul_server.http, ("n1",)) as made:
        yield made


def documents(made: System, **more: str) -> dict[str, str | None]:
    out = {"package": builtin("basic-publisher")[1]}
    says = [builtin(name)[0] for name in ("basic-publisher", "scheduler", "web-api", "node-manager")]
    manager = {
        "masterConfigurationFile": str(made.repo.origin),
        "cluster": made.name,
        "consul": made.consul,
        "tokenFile": str(made.token_file),
        "syncInterval": 500,
    }
    clock = {"cronSchedule": "* * * * * *", "type": "Tick"}
    routes = {"routes": [{"path": "/orders/{number}", "method": "PUT", "type": "OrderPut"}]}
    gone: dict[str, str | None] = dict.fromkeys(("watch.yaml", "sleep.yaml", "each.yaml"))
    return {
        **(gone if (made.repo.work / "watch.yaml").exists() else {}),
        "cluster.yaml": cluster(made.name, ("n1",), sync={"maxPrune": "100%"}),
        "packages.yaml": "---\n".join(says),
        "clock.yaml": instance(
            "clock",
            package=builtin("scheduler")[1],
            replicas=1,
            settings=clock,
            publisher={**out, "settings": {"file": str(made.folder / "ticks")}},
        ),
        "intake.yaml": instance(
            "intake",
            package=builtin("web-api")[1],
            replicas=1,
            settings=routes,
            publisher={**out, "settings": {"file": str(made.folder / "orders")}},
            health={"http": "/livez", "interval": "1s"},
        ),
        "manager.yaml": instance("node-manager", package=builtin("node-manager")[1], replicas=1, settings=manager),
        **more,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def port(made: System, name: str) -> int:
    """Where the instance's replica answers, as Consul's catalog knows it."""
    with urllib.request.urlopen(f"http://{made.consul}/v1/catalog/service/{name}", timeout=5) as answer:
        (entry,) = [one for one in json.load(answer) if one["ServiceMeta"].get("tdie-cluster") == made.name]
    return int(entry["ServicePort"])


def leading(made: System) -> str:
    """Who leads, as Consul knows it."""
    told = made.key("leader")
    return str(json.loads(told)["name"]) if told else ""


def test_components_run_and_the_cluster_runs_its_own_controller(running: System) -> None:
    commit = running.repo.push(documents(running))
    first = running.controller("c1", "--consul", running.consul)
    running.agent("n1", "--consul", running.consul)
    pids = running.settled(commit)
    assert sorted(pids) == ["clock.0", "intake.0", "node-manager.0"]

    until(lambda: len(lines(running.folder / "ticks")) >= 2, "two ticks")
    assert {tick["source"] for tick in lines(running.folder / "ticks")} == {"clock.0"}
    assert (running.data / "nodes/n1/replicas/clock.0/last-run.json").exists()

    body = json.dumps({"lines": 3}).encode()
    address = f"http://127.0.0.1:{port(running, 'intake')}/orders/7"
    asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    asked.method = "PUT"
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.status == 202
        answered = json.load(answer)["id"]
    (order,) = lines(running.folder / "orders")
    assert (order["id"], order["content"], order["properties"]["number"]) == (answered, {"lines": 3}, "7")

    assert leading(running) == "c1"
    first.terminate()
    first.wait(20)
    until(lambda: leading(running) == "node-manager.0", "the cluster's own controller leads", seen=running.logs)
    changed = documents(running)["clock.yaml"]
    assert changed is not None
    commit = running.repo.push({"clock.yaml": changed.replace("Tick", "Tock")})
    assert running.settled(commit) == pids, "its own controller has reconfigured the clock in place"
    until(lambda: lines(running.folder / "ticks")[-1]["type"] == "Tock", "a tock")
