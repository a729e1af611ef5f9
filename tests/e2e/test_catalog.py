"""Consul shows everybody how everything is, and may go away and forget all of it without a process noticing."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.children import alive
from tests.conftest import ConsulServer, consul_binary
from tests.e2e.system import System, kill, replicas, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KINDS = ["embedded", pytest.param("real", marks=pytest.mark.consul)]


def checks(made: System) -> dict[str, dict[str, Any]]:
    """Check id → check, of this cluster's replicas, as anybody reads them."""
    try:
        with urllib.request.urlopen(f"http://{made.consul}/v1/health/state/any", timeout=5) as answer:
            found = json.loads(answer.read())
    except OSError:
        return {}
    return {c["CheckID"]: c for c in found if c["ServiceID"].startswith(f"tdie/{made.name}/")}


def in_catalog(made: System, names: set[str]) -> bool:
    """Whether every replica has its two checks there, all of them passing."""
    found = checks(made)
    rows = replicas(made.status())
    wanted = {
        f"tdie/{made.name}/{rows[n]['node']}/{n}:{kind}" for n in names if n in rows for kind in ("state", "agent")
    }
    return len(wanted) == 2 * len(names) and all(found.get(each, {}).get("Status") == "passing" for each in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_catalog_tells_and_may_be_lost(
    kind: str, make_consul: Callable[[str, Path], ConsulServer], tmp_path: Path
) -> None:
    server = make_consul(kind, tmp_path)
    server.start()
    try:
        with system(server.http, environ={"TDIE_AGENT_BEAT_TTL": "3", "TDIE_CONTROLLER_AGENT_TTL": "3"}) as made:
            made.up()
            before = made.settled()
            names = set(before)
            until(lambda: in_catalog(made, names), "every replica is passing in the catalog", seen=lambda: checks(made))
            commit = made.status()["git"]["commit"][:8]
            for name, row in replicas(made.status()).items():
                sentence = checks(made)[f"tdie/{made.name}/{row['node']}/{name}:state"]
                said = sentence["Output"] + sentence["Notes"]
                assert "Healthy since" in said
                assert row["package"] in said
                assert commit in said
            if binary := consul_binary():
                _is_readable(binary, made)

            epoch = made.status()["epoch"]
            server.stop(kill=True)
            if kind == "embedded":
                for file in tmp_path.glob("consul.db*"):
                    file.unlink()
            kill(before["sleep.0"])  # while Consul is away its node puts it right alone
            (again,) = until(lambda: made.hosts("sleep.0"), "sleep.0 runs again without Consul", seen=made.logs)
            server.start()

            status = made.see(lambda s: s["epoch"] and s["epoch"] > epoch and s["converged"], "leads again")
            until(lambda: in_catalog(made, names), "the catalog is whole again", seen=lambda: checks(made))
            rows = replicas(status)
            assert {name: row["pid"] for name, row in rows.items()} == {**before, "sleep.0": again}
            assert {name for name, row in rows.items() if row["restarts"]} == {"sleep.0"}
            assert all(alive(row["pid"]) for row in rows.values())
            assert int(made.key("epoch")) > epoch
            server.stop()  # what follows ends everything of the system, also while Consul is away
    finally:
        server.stop()


def _is_readable(binary: Path, made: System) -> None:
    """The consul program shows a person who leads, since when, and which nodes there are."""
    done = subprocess.run(
        [str(binary), "kv", "get", "-recurse", f"tdie/{made.name}/"],
        env={**os.environ, "CONSUL_HTTP_ADDR": made.consul}, capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    found = dict(line.split(":", 1) for line in done.stdout.splitlines() if line.startswith("tdie/"))
    found = {key.removeprefix(f"tdie/{made.name}/"): value for key, value in found.items()}
    assert found["epoch"] == str(made.status()["epoch"])
    leader = json.loads(found["leader"])
    assert leader["name"] == "controller-1"
    assert leader["api"].startswith("http://")
    assert {"nodes/n1", "nodes/n2", "nodes/n3"} <= found.keys()
    for value in found.values():
        assert value.isprintable()
        assert made.token_file.read_text().strip() not in value
