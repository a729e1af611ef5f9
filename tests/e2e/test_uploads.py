"""A package uploaded to one leader runs everywhere, and still does under the next leader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from agent.packages.pack import pack
from tests.conftest import ConsulServer
from tests.e2e.system import System, instance, kill, replicas, sleeper, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    with system(consul_server.http, environ={"TDIE_CONTROLLER_BEAT_TTL": "1"}) as made:
        made.up("--controllers", "2")
        yield made


def uploaded(shared: System, version: str, word: str = "none") -> dict[str, object]:
    """The Package document of a freshly uploaded package."""
    folder = shared.folder / f"parcel-{version}"
    folder.mkdir()
    manifest = json.loads(sleeper(version)) | {"name": "parcel", "defaultConfiguration": {"word": word}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = shared.asked("package", "push", str(folder))
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = yaml.safe_load(done.stdout)
    return found


def copies(shared: System, digest: str) -> list[Path]:
    return sorted(shared.data.glob(f"controller-*/packages/packages/{digest}.zip"))


def test_an_upload_is_used_through_git_and_survives_the_leader(shared: System) -> None:
    document = uploaded(shared, "1.0.0")
    digest = document["spec"]["source"]["digest"]  # type: ignore[index]
    commit = shared.repo.push(
        {"parcel.yaml": yaml.safe_dump(document), "box.yaml": instance("box", package="parcel@1.0.0", replicas=2)}
    )
    before = shared.settled(commit)
    assert {"box.0", "box.1"} <= before.keys()
    until(lambda: len(copies(shared, digest)) == 2, "both controllers have it")
    refused = shared.asked("package", "push", str(shared.folder / "parcel-1.0.0"))
    assert refused.returncode == 0  # the same again
    (shared.folder / "parcel-1.0.0" / "more.txt").write_text("x")
    refused = shared.asked("package", "push", str(shared.folder / "parcel-1.0.0"))
    assert (refused.returncode, "PKG_VERSION_REUSED" in refused.stderr) == (1, True)

    # The leader dies, and the other one has lost its copy: an agent that runs the package still has it.
    leader = json.loads(shared.key("leader"))["name"]
    for copy in copies(shared, digest):
        copy.unlink()
    kill(shared.process("reconciler", leader))
    until(lambda: json.loads(shared.key("leader") or "{}").get("name") not in (None, leader), "another one leads")
    commit = shared.repo.push({"box.yaml": instance("box", package="parcel@1.0.0", replicas=3)})
    after = shared.settled(commit)
    assert {name: after[name] for name in before} == before
    assert "box.2" in after


def test_a_digest_that_nobody_has_changes_nothing(shared: System) -> None:
    before = shared.settled()
    nobody = {"apiVersion": "tdie/v1", "kind": "Package", "metadata": {"name": "nobody"},
              "spec": {"version": "1.0.0", "source": {"digest": "ab" * 32}}}  # fmt: skip
    shared.repo.push(
        {"nobody.yaml": yaml.safe_dump(nobody), "n.yaml": instance("n", package="nobody@1.0.0", replicas=1)}
    )
    shared.see(lambda s: "PACKAGE_MISSING nobody@1.0.0" in s["git"]["trouble"], "it is said what is missing")
    assert {name: row["pid"] for name, row in replicas(shared.status()).items()} == before
    commit = shared.repo.push({"nobody.yaml": None, "n.yaml": None})
    assert shared.settled(commit) == before


def test_the_seed_s_file_processor_uploaded_over_rest_runs_on_every_node_after_the_next_sync(shared: System) -> None:
    sample = Path(__file__).parents[2] / "sample-repo/packages/file-processor"
    ours = json.loads((sample / "manifest.json").read_text())
    seed = {
        "packageName": "FileProcessor",
        "packageVersion": "2.0.0",
        "contentRoot": "content",
        "extensionProperties": {
            "AssemblyName": "file_processor.py",
            "ComponentType": "TDIE.Components.FileProcessor",
            "Dependencies": [],
        },
        "defaultConfiguration": ours["defaultConfiguration"],
    }
    files = {path.relative_to(sample).as_posix(): (path.read_bytes(), False) for path in sample.glob("content/*.py")}
    zipped = pack({**files, "manifest.json": (json.dumps(seed).encode(), False)})
    token = shared.token_file.read_text().strip()
    with httpx.Client(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {token}"}) as http:
        answer = http.post(
            f"{json.loads(shared.key('leader'))['api']}/api/master/packages",
            files={"package": ("fileProcessor.zip", zipped)},
        )
        assert answer.status_code == 201, answer.text
        document = answer.json()["document"]
        document["spec"]["distribute"] = "all"
        shared.repo.push({"file-processor.yaml": yaml.safe_dump(document)})  # on every node, before anything runs

        def held(status: dict[str, Any]) -> bool:
            apis = [node["api"] for node in status["nodes"]]
            found = [http.get(f"{api}/api/node/packages/FileProcessor/configuration") for api in apis]
            return len(apis) == 3 and all(each.status_code == 200 and each.json()["origin"] == "git" for each in found)

        shared.see(held, "every node has it")
        spec = {
            "package": "file-processor@2.0.0",
            "perNode": 1,
            "settings": {"inputPath": str(shared.inbox)},
            "publisher": {"package": "basic-publisher@^1.0"},
        }
        commit = shared.repo.push({"process.yaml": instance("process", **spec)})
        running = shared.settled(commit)
        assert {f"process.n{number}.0" for number in (1, 2, 3)} <= running.keys()
        (shared.inbox / "a.txt").write_text("  one \ntwo\n")
        done = shared.inbox / "archive" / "a.txt"
        until(done.exists, "the file was processed")
