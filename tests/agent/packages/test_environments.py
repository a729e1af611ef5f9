"""Packages with dependencies: an environment each, made from the wheels they bring, named by digest."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from agent.errors import TdieError
from agent.packages.dependencies import environment_of
from agent.packages.digest import content_digest
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.pack import write_pack
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecords
from agent.packages.store import PackageStore
from agent.wire import PackageOrder, PackageRef
from tests.wheels import wheel


@pytest.fixture(autouse=True)
def _no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that nobody serves: whoever asks it gets an error at once."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "2")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")


class Disk:
    """Store and environments of one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store, self.environments = PackageStore(root / "packages"), Environments(root / "environments")
        self.store.open()
        self.environments.open()

    def add(self, name: str, requires: Sequence[str], wheels: Sequence[tuple[str, bytes]] = ()) -> Installed:
        manifest = {
            "name": name, "version": "1.0.0", "componentType": "part:Part", "contentRoot": "content",
            "dependencies": list(requires),
        }  # fmt: skip
        content = {"manifest.json": (json.dumps(manifest).encode(), False), "content/part.py": (b"", False)}
        content |= {f"content/dependencies/{file}": (data, False) for file, data in wheels}
        ref = PackageRef(name=name, version="1.0.0", digest=content_digest(content))
        return self.store.add(write_pack(content, self.root / f"{name}.zip"), ref)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


LIB_1 = wheel("tdielib", "1.0", {"tdielib.py": "VERSION = 1"})
LIB_2 = wheel("tdielib", "2.0", {"tdielib.py": "VERSION = 2"})
NEEDS_LIB = wheel("tdieuser", "1.0", {"tdieuser.py": "from tdielib import VERSION"}, ["tdielib>=2"])


def says(python: str, program: str) -> str:
    return subprocess.run([python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def test_each_package_sees_its_own_version_and_nothing_of_the_agent(disk: Disk) -> None:
    one, two = disk.add("one", ["tdielib==1.0"], [LIB_1]), disk.add("two", ["tdieuser"], [NEEDS_LIB, LIB_2, LIB_1])
    pythons = [disk.environments.make([one]), disk.environments.make([two])]
    assert [says(python, "import tdielib; print(tdielib.VERSION)") for python in pythons] == ["1", "2"]
    seen = says(
        pythons[0], "import importlib.util as u; print([n for n in ('agent','httpx','yaml') if u.find_spec(n)])"
    )
    assert seen == "[]"
    again = Disk(disk.root)  # as after a restart
    assert again.environments.all() == {one.package.digest: pythons[0], two.package.digest: pythons[1]}


def test_publisher_and_component_share_one_or_are_refused_by_name(disk: Disk) -> None:
    component, publisher = disk.add("one", ["tdielib"], [LIB_1, LIB_2]), disk.add("two", ["tdielib==1.0"], [LIB_1])
    assert environment_of([component, publisher]) == "+".join(
        sorted([component.package.digest, publisher.package.digest])
    )
    python = disk.environments.make([component, publisher])
    assert says(python, "import tdielib; print(tdielib.VERSION)") == "1"
    other = disk.add("three", ["tdielib==2.0"], [LIB_2])
    with pytest.raises(TdieError, match=r"PKG_DEPENDENCY.*(two|three)@1.0.0.*tdielib==1.0.*tdielib==2.0") as refused:
        disk.environments.make([other, publisher])
    assert refused.value.code == "PKG_DEPENDENCY"
    disk.environments.remove(publisher.package.digest)
    assert disk.environments.all() == {}
    assert [entry.name for entry in disk.environments.root.iterdir()] == []


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("tdie-is-nowhere==1.0", r"cannot install tdie-is-nowhere==1.0"),
        ("not a requirement", r"'not a requirement' is no requirement"),
        ("lib @ https://example.org/lib.whl", r"names a place"),
        ("--index-url=https://example.org", r"is no requirement"),
    ],
)
def test_what_cannot_be_had_is_named_and_leaves_nothing(disk: Disk, requirement: str, said: str) -> None:
    with pytest.raises(TdieError, match=said) as refused:
        disk.environments.make([disk.add("one", [requirement], [LIB_1])])
    assert refused.value.code == "PKG_DEPENDENCY"
    assert disk.environments.all() == {}
    assert [e.name for e in disk.environments.root.iterdir() if e.name != ".cache"] == []


def test_a_crash_leaves_nothing_that_counts(disk: Disk) -> None:
    (disk.environments.root / ".partial-1" / "bin").mkdir(parents=True)
    (disk.environments.root / ("a" * 64)).mkdir()
    disk.environments.open()
    assert disk.environments.all() == {}
    assert not (disk.environments.root / ".partial-1").exists()


async def test_a_package_is_installed_once_its_environment_is_made(disk: Disk) -> None:
    found = await asyncio.to_thread(disk.add, "one", ["tdielib"], [LIB_1])
    async with httpx.AsyncClient(trust_env=False) as client:
        records = PackageRecords(disk.root / "packages.sqlite")
        installer = PackageInstaller(disk.store, disk.environments, records, client, wall=time.time)
        assert installer.installed() == {}
        with pytest.raises(TdieError, match="not installed"):
            await installer.prepare(["0" * 64])
        await installer.install(PackageOrder(package=found.package))
        assert list(installer.installed()) == [found.package.digest]
        await installer.remove(found.package.digest)
        assert (installer.installed(), installer.environments()) == ({}, {})
