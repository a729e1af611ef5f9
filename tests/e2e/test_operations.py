"""Every operation the seed names, over HTTP against real processes: what it does, how it refuses. One table, in order."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from agent import components
from agent.correlation import HEADER
from agent.packages.digest import read_folder
from agent.packages.pack import pack
from tests.conftest import ConsulServer
from tests.e2e.system import System, cluster, sleeper, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Ask:
    """One request; `path` None is the row's own. `say` stands for the body: JSON, or bytes of a package."""

    path: str | None = None
    say: Any = None
    method: str = ""
    kind: str = "application/zip"
    token: str | None = None

    def send(self, http: httpx.Client, base: str, row: Row, known: Mapping[str, str]) -> httpx.Response:
        path = base + (self.path or row.path).format(**known)
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        if isinstance(self.say, bytes):
            return http.request(
                self.method or row.method, path, content=self.say, headers={**headers, "Content-Type": self.kind}
            )
        return http.request(self.method or row.method, path, json=self.say, headers=headers)


Refusal = tuple[Ask, int, str]


def stranger() -> Refusal:
    return Ask(token="not-the-token"), 401, "UNAUTHORIZED"


def wrong_method(method: str) -> Refusal:
    return Ask(method=method), 405, "METHOD_NOT_ALLOWED"


def unknown(path: str, code: str = "PKG_UNKNOWN") -> Refusal:
    return Ask(path), 404, code


@dataclass(frozen=True)
class Row:
    """One operation: its good use, what must be true of the answer, and two refusals."""

    method: str
    path: str
    status: int
    true: Callable[[Any, dict[str, str]], object]
    refusals: tuple[Refusal, Refusal]
    good: Ask = field(default_factory=Ask)


def zipped(version: str, name: str = "nap") -> bytes:
    manifest = json.loads(sleeper(version)) | {"name": name}
    return pack({"manifest.json": (json.dumps(manifest).encode(), False)})


def builtin(name: str) -> bytes:
    return pack(read_folder(components.folder(name)))


def names(answer: list[dict[str, Any]]) -> set[str]:
    return {one["packageName"] for one in answer}


def state(wanted: str) -> Callable[[Any, dict[str, str]], object]:
    return lambda answer, known: answer["state"] == wanted


def remember(*keys: str) -> Callable[[Any, dict[str, str]], object]:
    def true(answer: Any, known: dict[str, str]) -> bool:
        known.update({key: str(answer[key]) for key in keys})
        return all(known[key] for key in keys)

    return true


MASTER = (
    Row("GET", "/api/master", 200, lambda a, k: a["leading"] and a["links"]["nodes"] == "/api/master/nodes",
        (stranger(), wrong_method("POST"))),
)  # fmt: skip

NODE = (
    Row("POST", "/packages", 201, lambda a, k: (a["packageName"], a["origin"]) == ("nap", "manual"),
        ((Ask(say=zipped("1.0.0")), 409, "PKG_EXISTS"), (Ask(say=b"{}", kind="text/plain"), 415, "UNSUPPORTED_MEDIA_TYPE")),
        Ask(say=zipped("1.0.0"))),
    Row("PUT", "/packages", 200, lambda a, k: a["versions"] == ["1.1.0", "1.0.0"],
        ((Ask(say=zipped("0.9.0")), 409, "PKG_LOWER_VERSION"), (Ask(say=zipped("1.0.0", "nobody")), 404, "PKG_UNKNOWN")),
        Ask(say=zipped("1.1.0"))),
    Row("GET", "/packages/configuration", 200, lambda a, k: "nap" in names(a), (stranger(), wrong_method("PATCH"))),
    Row("GET", "/packages/{packageName}/configuration", 200, lambda a, k: a["packageVersion"] == "1.1.0",
        (unknown("/packages/nobody/configuration"), stranger())),
    Row("PUT", "/processes/{packageName}/start", 201, remember("settingsId", "pid", "port", "url"),
        (unknown("/processes/nobody/start"), (Ask(say={"settings": {"wrod": "x"}}), 422, "SETTING_UNKNOWN")),
        Ask(say={"settings": {"word": "hand"}})),
    Row("GET", "/processes", 200, lambda a, k: {"nap", "sleeper", "file-watcher"} <= names(a),
        (stranger(), wrong_method("POST"))),
    Row("GET", "/processes/{packageName}", 200, lambda a, k: [str(row["pid"]) for row in a] == [k["pid"]],
        (unknown("/processes/nobody"), stranger())),
    Row("GET", "/processes/{packageName}/{processId}", 200, lambda a, k: a["settingsId"] == k["settingsId"],
        (unknown("/processes/nap/99999999", "PROCESS_UNKNOWN"), unknown("/processes/sleeper/{processId}", "PROCESS_UNKNOWN"))),
    Row("GET", "/processes/{packageName}/{settingsId}", 200, lambda a, k: [row["owner"] for row in a] == ["manual"],
        (unknown("/processes/nap/nobody", "PROCESS_UNKNOWN"), stranger())),
    Row("GET", "/stats", 200, lambda a, k: a["node"] == "n1" and a["network"] and a["memory"]["total"] > 0,
        (stranger(), wrong_method("PUT"))),
    Row("GET", "/stats/processes", 200, lambda a, k: k["pid"] in {str(row["pid"]) for row in a},
        (stranger(), wrong_method("PUT"))),
    Row("GET", "/stats/processes/{packageName}", 200, lambda a, k: a[0]["used"]["memory"] > 0,
        (unknown("/stats/processes/nobody"), stranger())),
    Row("PUT", "/processes/{packageName}/{processId}/kill", 202, lambda a, k: a["replicas"] == [k["settingsId"]],
        (unknown("/processes/nap/99999999/kill", "PROCESS_UNKNOWN"), stranger())),
    Row("PUT", "/processes/{packageName}/kill", 202, lambda a, k: True,
        (unknown("/processes/nobody/kill"), stranger())),
    Row("PUT", "/processes/kill", 202, lambda a, k: "sleep.0" in a["replicas"], (stranger(), wrong_method("POST"))),
)  # fmt: skip

COMPONENT, PUBLISHER = "/services/component/{component}", "/services/messagePublisher/{publisher}"
HOST = (
    Row("GET", "/configuration", 200, state("AwaitingConfiguration"), (stranger(), wrong_method("PUT"))),
    Row("POST", "/packages", 201, lambda a, k: (a["packageName"], a["origin"]) == ("doze", "manual"),
        ((Ask(say=zipped("1.0.0", "doze")), 409, "PKG_EXISTS"), (Ask(say=b"no zip"), 422, "PKG_CORRUPT")),
        Ask(say=zipped("1.0.0", "doze"))),
    Row("PUT", "/packages", 200, lambda a, k: a["packageVersion"] == "1.2.0",
        ((Ask(say=zipped("1.1.0", "doze")), 409, "PKG_LOWER_VERSION"), (Ask(say=zipped("1.0.0", "nobody")), 404, "PKG_UNKNOWN")),
        Ask(say=zipped("1.2.0", "doze"))),
    Row("GET", "/packages/configuration", 200, lambda a, k: {"doze", "nap", "file-watcher"} <= names(a),
        (stranger(), wrong_method("PATCH"))),
    Row("GET", "/packages/{packageName}/configuration", 200, lambda a, k: a["packageName"] == "nap",
        (unknown("/packages/nobody/configuration"), stranger())),
    Row("PUT", f"{PUBLISHER}/init", 200, state("AwaitingConfiguration"),
        (unknown("/services/messagePublisher/nobody/init"), (Ask(say={"setting": {}}), 422, "INVALID")),
        Ask(say={"settings": {}})),
    Row("PUT", f"{COMPONENT}/init", 200, state("Configured"),
        ((Ask(say={"packageName": "Other"}), 422, "PACKAGE_NAME"),
         (Ask("/services/component/nobody/init", say={"settings": {}}), 404, "PKG_UNKNOWN")),
        Ask(say={"settings": {"inputPath": "{inbox}", "filter": "*.xml"}})),
    Row("PUT", f"{PUBLISHER}/start", 200, state("Configured"),
        (unknown("/services/messagePublisher/nobody/start"), (Ask(), 409, "MEMBER_RUNNING"))),
    Row("PUT", f"{COMPONENT}/start", 200, state("Started"),
        (unknown("/services/component/nobody/start"), (Ask(), 409, "WRONG_STATE"))),
    Row("PUT", f"{COMPONENT}/stop", 200, state("Stopping"),
        (unknown("/services/component/nobody/stop"), (Ask(), 409, "MEMBER_NOT_RUNNING"))),
    Row("PUT", f"{PUBLISHER}/stop", 200, state("Stopped"), (stranger(), (Ask(), 409, "MEMBER_NOT_RUNNING"))),
    Row("PUT", "/services/start", 200, state("Started"), (stranger(), (Ask(), 409, "WRONG_STATE"))),
    Row("PUT", "/services/stop", 200, state("Stopped"), (stranger(), (Ask(), 409, "WRONG_STATE"))),
    Row("POST", "/shutdown", 202, state("Stopped"), (stranger(), wrong_method("GET"))),
)  # fmt: skip


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    with system(consul_server.http, ("n1",)) as made:
        made.up()
        yield made


@pytest.fixture
def http(shared: System) -> Iterator[httpx.Client]:
    token = shared.token_file.read_text().strip()
    with httpx.Client(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {token}"}) as made:
        yield made


def walk(rows: tuple[Row, ...], base: str, http: httpx.Client, known: dict[str, str]) -> None:
    """Each row's good use and refusals; those that hold in any state are made before, the others after it."""
    for row in rows:
        what = f"{row.method} {row.path}"
        good = filled(row.good, known)
        early = [refusal for refusal in row.refusals if refusal[0].token or refusal[0].method]
        others = [refusal for refusal in row.refusals if refusal not in early]
        for refusal in early:
            refused(refusal, base, row, http, known)
        answer = good.send(http, base, row, known)
        assert answer.status_code == row.status, f"{what}: {answer.status_code} {answer.text}"
        assert answer.headers[HEADER]
        assert row.true(answer.json(), known), f"{what}: {answer.text}"
        known |= {"processId": known.get("pid", "")}
        for refusal in others:
            refused(refusal, base, row, http, known)


def filled(ask: Ask, known: Mapping[str, str]) -> Ask:
    text = json.dumps(ask.say) if isinstance(ask.say, dict) else ""
    return Ask(say=json.loads(text.replace("{inbox}", known["inbox"]))) if "{inbox}" in text else ask


def refused(refusal: Refusal, base: str, row: Row, http: httpx.Client, known: Mapping[str, str]) -> None:
    ask, status, code = refusal
    answer = ask.send(http, base, row, known)
    what = f"{row.method} {row.path} refused with {code}"
    assert answer.headers["content-type"] == "application/problem+json", f"{what}: {answer.text}"
    assert (answer.status_code, answer.json()["code"]) == (status, code), f"{what}: {answer.text}"
    assert answer.json()["detail"], what


def test_all_thirty(shared: System, http: httpx.Client) -> None:
    rows = [(part, row.method, row.path) for part, all_of in enumerate((MASTER, NODE, HOST)) for row in all_of]
    assert len(rows) == len(set(rows)) == 30
    status = shared.status()
    known = {"packageName": "nap", "inbox": str(shared.inbox)}
    walk(MASTER, json.loads(shared.key("leader"))["api"], http, known)
    node = f"{status['nodes'][0]['api']}/api/node"
    walk(NODE, node, http, known)
    until(lambda: shared.status()["converged"], "what Git owns is healed")
    for name in ("basic-publisher", "file-watcher"):
        assert http.get(f"{node}/packages/{name}/configuration").status_code == 200
    begun = http.put(f"{node}/processes/file-watcher/start", json={"autoStart": False}).json()
    known |= {"component": "FileWatcher", "publisher": "BasicPublisher", "pid": str(begun["pid"])}
    walk(HOST, f"{begun['url']}/api/componentHost", http, known)
    until(
        lambda: http.get(f"{node}/processes/file-watcher/{begun['settingsId']}").status_code == 404,
        "its process is gone",
    )


def test_a_host_that_git_owns_runs_what_git_says(shared: System, http: httpx.Client) -> None:
    before = shared.settled()["watch.0"]
    node = f"{shared.status()['nodes'][0]['api']}/api/node"
    (row,) = http.get(f"{node}/processes/file-watcher/watch.0").json()
    services = f"http://127.0.0.1:{row['port']}/api/componentHost/services"
    refused = http.put(f"{services}/component/FileWatcher/init", json={"settings": {"path": "/tmp"}})
    assert (refused.status_code, refused.json()["code"]) == (409, "OWNED_BY_GIT")
    refused = http.put(f"{services}/component/FileWatcher/init")
    assert (refused.status_code, refused.json()["code"]) == (409, "WRONG_STATE")
    assert shared.settled()["watch.0"] == before
    assert http.put(f"{services}/component/FileWatcher/stop").json()["state"] == "Stopping"
    shared.another("watch.0", before)  # a component that somebody stopped is drift


def test_nobody_does_anything_without_the_token(shared: System, http: httpx.Client) -> None:
    node = shared.status()["nodes"][0]["api"]
    host = http.put(f"{node}/api/node/processes/file-watcher/start", json={"autoStart": False}).json()
    before = shared.pids()
    tried = 0
    for base in (json.loads(shared.key("leader"))["api"], node, host["url"]):
        described = http.get(f"{base}/openapi.json").json()["paths"]
        asked = [(method, path) for path, methods in described.items() for method in methods]
        for method, path in [*asked, ("get", "/openapi.json"), ("get", "/docs"), ("get", "/metrics")]:
            if path in ("/livez", "/readyz"):
                continue
            for header in (None, "Bearer", "Bearer nonsense", "Basic dGRpZTp0ZGll", "Bearer " + "x" * 4000):
                headers = {} if header is None else {"Authorization": header}
                answer = httpx.request(
                    method.upper(),
                    base + re.sub(r"{\w+}", "sleeper", path),
                    headers=headers,
                    trust_env=False,
                    timeout=30,
                )
                what = f"{method} {path} with {header}: {answer.text[:200]}"
                assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED"), what
                assert answer.headers["WWW-Authenticate"] == "Bearer", what
                tried += 1
    assert tried > 250
    assert shared.pids() == before
    assert http.get(f"{host['url']}/api/componentHost/configuration").json()["state"] == "AwaitingConfiguration"


def test_what_is_not_owned_by_git_is_said_and_goes_when_the_cluster_prunes_all(
    shared: System, http: httpx.Client
) -> None:
    node = f"{shared.status()['nodes'][0]['api']}/api/node"
    headers = {"Content-Type": "application/zip"}
    assert http.post(f"{node}/packages", content=zipped("1.0.0", "byhand"), headers=headers).status_code == 201
    begun = http.put(f"{node}/processes/byhand/start").json()
    shared.see(
        lambda s: len([m for m in s["nodes"][0]["manual"] if "byhand" in m]) == 2, "process and package are told"
    )
    shown = shared.asked("status").stdout
    assert f"not owned by Git: process {begun['settingsId']} (byhand@1.0.0, Started, pid {begun['pid']})" in shown
    assert "not owned by Git: package byhand@1.0.0" in shown
    assert "the word is" in shared.asked("logs", begun["settingsId"]).stdout
    before = shared.pids()
    spec = {"sync": {"maxPrune": "50%", "prune": "all"}}
    commit = shared.repo.push({"cluster.yaml": cluster(shared.name, ("n1",), **spec)})
    shared.see(lambda s: s["git"]["commit"] == commit and not s["nodes"][0]["manual"], "nothing is left of it")
    assert http.get(f"{node}/processes/byhand").status_code == 404
    assert shared.settled(commit) == before
