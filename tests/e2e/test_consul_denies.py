"""Consul's ACLs: agents and controllers need only what is listed here, and an agent whose token is revoked is cut off."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.consul.process import dev_command, free_ports
from tests.conftest import ConsulServer, consul_binary
from tests.e2e.rounds import FIGURES, T
from tests.e2e.system import System, kill, replicas, system, until
from tests.e2e.witness import Watched, clock, faults

pytestmark = [pytest.mark.e2e, pytest.mark.consul, pytest.mark.timeout(120)]

# What one node and one controller may do, and nothing else. NODE is the Consul agent that sessions and services belong to.
AGENT = """
node            "NODE"                     { policy = "read" }
session         "NODE"                     { policy = "write" }
service_prefix  ""                         { policy = "write" }   # one of each replica, named after its instance
key             "tdie/CLUSTER/nodes/ME"    { policy = "write" }
key_prefix      "tdie/CLUSTER/leases/"     { policy = "write" }
key_prefix      "tdie/CLUSTER/"            { policy = "read" }
"""
CONTROLLER = """
node_prefix     ""                         { policy = "read" }
session         "NODE"                     { policy = "write" }
service         "tdie-controller"          { policy = "write" }
service_prefix  ""                         { policy = "read" }
key             "tdie/CLUSTER/leader"      { policy = "write" }
key             "tdie/CLUSTER/epoch"       { policy = "write" }
key             "tdie/CLUSTER/fresh"       { policy = "write" }
key             "tdie/CLUSTER/rewound"     { policy = "write" }
key_prefix      "tdie/CLUSTER/locks/"      { policy = "write" }
key_prefix      "tdie/CLUSTER/record/"     { policy = "write" }
key_prefix      "tdie/CLUSTER/bus/"        { policy = "write" }
key_prefix      "tdie/CLUSTER/"            { policy = "read" }
"""


@dataclass
class Guarded:
    """A Consul that denies what is not allowed."""

    server: ConsulServer
    master: str

    def ask(self, path: str, *, method: str = "GET", body: Any = None, token: str = "") -> Any:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"X-Consul-Token": token or self.master}
        request = urllib.request.Request(
            f"http://{self.server.http}/v1/{path}", data=data, method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read() or b"null")

    def leads(self) -> bool:
        """Whether it answers, and knows its own node."""
        try:
            return self.server.node in {each["Node"] for each in self.ask("catalog/nodes")}
        except OSError:
            return False

    def token(self, name: str, rules: str, **names: str) -> tuple[str, str]:
        """Accessor and secret of a new token with these rules."""
        for word, value in {"NODE": self.server.node, **names}.items():
            rules = rules.replace(word, value)
        policy = f"{name}-{uuid.uuid4().hex[:6]}"
        self.ask("acl/policy", method="PUT", body={"Name": policy, "Rules": rules})
        made = self.ask("acl/token", method="PUT", body={"Policies": [{"Name": policy}]})
        return made["AccessorID"], made["SecretID"]

    def status(self, path: str, *, method: str, token: str, body: bytes = b"") -> int:
        try:
            self.ask(path, method=method, body=body, token=token)
        except urllib.error.HTTPError as error:
            return error.code
        return 200


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    binary, (port,), master = consul_binary(), free_ports(1), str(uuid.uuid4())
    assert binary is not None
    node = f"guarded-{port}"
    acl = f'acl {{ enabled = true default_policy = "deny" tokens {{ master = "{master}" agent = "{master}" }} }}'
    command = [*dev_command(binary, port, node), f'-hcl=session_ttl_min="1s" {acl}']
    found = Guarded(ConsulServer("real", node, port, command, tmp_path / "consul.log", binary), master)
    found.server.launch()
    try:
        until(found.leads, "Consul leads", seen=found.server.log.read_text, within=20)
        yield found
    finally:
        found.server.stop()


def test_a_revoked_token_is_an_outage_and_no_revocation(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", guarded.master)  # that of whoever looks; programs of ours have files
    with system(guarded.server.http, ("n1",), failover={"lostAfter": "1s"}, leases=FIGURES) as made:
        seen = Watched(made)
        made.repo.push({**dict.fromkeys(("watch.yaml", "each.yaml")), **seen.documents()}, "a leased witness")
        files = {name: tmp_path / f"{name}.token" for name in ("agent", "controller")}
        _, one = guarded.token("controller", CONTROLLER, CLUSTER=made.name)
        accessor, secret = guarded.token("agent", AGENT, CLUSTER=made.name, ME="n1")
        files["controller"].write_text(one)
        files["agent"].write_text(secret)
        made.agent("n1", "--beat-ttl", "2", "--consul-token-file", str(files["agent"]))
        made.controller("c1", "--beat-ttl", "1", "--consul-token-file", str(files["controller"]))
        life = seen.runs()
        before = made.settled()
        assert not forbidden(guarded, made, secret)

        began = clock()
        guarded.ask(f"acl/token/{accessor}", method="DELETE")
        until(lambda: "CONSUL_DENIED" in problems(made), "it is said", seen=made.logs)
        until(lambda: seen.now() is None, "strict stops", seen=made.logs)
        row = made.see(lambda s: "LEASE_EXPIRED" in str(replicas(s)["one.0"]["lease"]), "it ran out")
        assert seen.lives()[-1].last - began > T / 4, "it was not revoked: the lease was good for a while"
        assert made.hosts("sleep.0") == [before["sleep.0"]], row
        kill(before["sleep.0"])
        (again,) = until(lambda: set(made.hosts("sleep.0")) - {before["sleep.0"]}, "started again", seen=made.logs)

        _, secret = guarded.token("agent", AGENT, CLUSTER=made.name, ME="n1")
        files["agent"].write_text(secret)  # the same file, while it runs
        seen.runs(but=life.launch)
        until(lambda: "CONSUL_DENIED" not in problems(made), "it is healed", seen=made.logs)
        assert made.settled()["sleep.0"] == again
        assert faults(seen.lives()) == []


def problems(made: System) -> set[str]:
    return {each["code"] for node in made.status()["nodes"] for each in node["problems"]}


def forbidden(guarded: Guarded, made: System, secret: str) -> list[str]:
    """What an agent may do though it must not."""
    cluster, epoch = made.name, b"99"
    guarded.ask("catalog/register", method="PUT", body={"Node": "elsewhere", "Address": "192.0.2.1"})
    other = guarded.ask("session/create", method="PUT", body={"Node": "elsewhere", "NodeChecks": []})
    wrong = [
        (f"kv/tdie/{cluster}/leader", "PUT", epoch), (f"kv/tdie/{cluster}/epoch", "PUT", epoch),
        (f"kv/tdie/{cluster}/nodes/n2", "PUT", epoch), (f"kv/tdie/{cluster}/record/commit", "PUT", epoch),
        (f"kv/tdie/{cluster}/locks/nodes/n1", "PUT", epoch), (f"kv/tdie/{cluster}/epoch", "DELETE", b""),
        ("kv/elsewhere", "PUT", epoch), ("kv/tdie/another/leader", "GET", b""), ("acl/tokens", "GET", b""),
        ("catalog/deregister", "PUT", json.dumps({"Node": guarded.server.node}).encode()), ("snapshot", "GET", b""),
        ("operator/raft/configuration", "GET", b""), ("agent/leave", "PUT", b""), ("agent/maintenance?enable=true", "PUT", b""),
        (f"session/destroy/{other['ID']}", "PUT", b""),
    ]  # fmt: skip
    return [
        f"{method} {path}"
        for path, method, body in wrong
        if guarded.status(path, method=method, token=secret, body=body) != 403
    ]
