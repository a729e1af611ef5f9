"""What an author does: from `tdie init component` to running in under ten commands; packages that bring their libraries."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, ConsulServer
from tests.e2e.system import System, instance, package, replicas, system, until
from tests.wheels import wheel

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

NEEDS = """
from tdielib import VERSION
from agent.sdk import Component

class Needs(Component):
    async def start(self):
        self.log.info("its own library is %s", VERSION)
"""


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    with system(consul_server.http, ("n1",)) as made:
        made.up()
        yield made


def _told_commands() -> list[str]:
    """The commands that the README tells authors to type, one for each that does something."""
    section = (ROOT / "README.md").read_text().split("## A component of your own", 1)[1]
    block = re.search(r"```console\n(.*?)```", section, re.S)
    assert block is not None
    lines = [line[2:].partition("  #")[0] for line in block[1].splitlines() if line.startswith("$ ")]
    return [part.strip() for line in lines[1:] for part in line.split(" && ")]  # the first line goes there


def test_the_commands_of_the_readme_lead_from_nothing_to_a_running_component(shared: System) -> None:
    commands = _told_commands()
    assert len(commands) < 10
    work = shared.repo.work
    for command in commands[:-1]:
        words = shlex.split(command)
        if words[0] == "tdie":
            done = (shared.asked if words[1] == "plan" else shared.tdie)(*words[1:], at=work)
            assert done.returncode == 0, (command, done.stderr)
            assert words[1] != "plan" or "hello.0" in done.stdout
        elif words[0] == "git":
            shared.repo.git(*words[1:])
        else:  # the test that came with it, by the interpreter that has the SDK
            assert words[1:3] == ["-m", "pytest"]
            tried = subprocess.run([sys.executable, *words[1:]], cwd=work, capture_output=True, text=True, check=False)
            assert tried.returncode == 0, tried.stdout
    logs = shlex.split(commands[-1])
    assert logs[:2] == ["tdie", "logs"]
    until(lambda: replicas(shared.status()).get(logs[2], {}).get("healthy"), "it runs", seen=shared.logs)
    assert shared.asked(*logs[1:]).stdout


def test_a_log_is_followed_as_it_grows(shared: System) -> None:
    script = "n=0; while sleep 0.2; do n=$((n+1)); echo line $n; done"
    manifest = {"name": "counts", "version": "1.0.0", "runtime": "exec", "command": ["sh", "-c", script]}
    shared.settled(
        shared.repo.push(
            {
                "packages/counts/manifest.json": json.dumps(manifest),
                "counts.yaml": "---\n".join(
                    (package("counts", path="packages/counts"), instance("counts", package="counts@1.0.0", replicas=1))
                ),
            }
        )
    )
    command = [sys.executable, "-m", "reconciler", "logs", "counts.0", "--follow", "--lines", "1"]
    where = ["--cluster", shared.name, "--consul", shared.consul, "--token-file", str(shared.token_file)]
    with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, cwd=ROOT, text=True) as following:
        assert following.stdout is not None
        numbers = [int(following.stdout.readline().split()[1]) for _ in range(4)]
        assert numbers == list(range(numbers[0], numbers[0] + 4))
        following.terminate()
    assert shared.asked("logs", "nobody.0", "--follow").returncode == 1


def _needing(version: str) -> dict[str, str | bytes]:
    """A package that brings this version of a library as a wheel."""
    manifest = {
        "name": "needs", "version": version, "componentType": "tdie_needs:Needs", "contentRoot": "content",
        "dependencies": [f"tdielib=={version}"],
    }  # fmt: skip
    file, data = wheel("tdielib", version, {"tdielib.py": f"VERSION = {version!r}"})
    at = f"packages/needs-{version}"
    return {
        f"{at}/manifest.json": json.dumps(manifest),
        f"{at}/content/tdie_needs.py": NEEDS,
        f"{at}/content/dependencies/{file}": data,
    }


def test_two_versions_of_a_package_run_on_one_node_each_with_its_own_library(shared: System) -> None:
    work, documents = shared.repo.work, []
    for number, version in enumerate(("1.0.0", "2.0.0")):
        for path, content in _needing(version).items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        documents += [package("needs", version, path=f"packages/needs-{version}")]
        documents += [instance(f"user-{number}", package=f"needs@{version}", replicas=1)]
    shared.settled(shared.repo.push({"needs.yaml": "---\n".join(documents)}))
    for number, version in enumerate(("1.0.0", "2.0.0")):
        assert f"its own library is {version}" in shared.asked("logs", f"user-{number}.0").stdout
    assert {replicas(shared.status())[f"user-{n}.0"]["node"] for n in (0, 1)} == {"n1"}
