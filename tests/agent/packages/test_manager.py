"""Packages by hand: version control, archive and retention; and bytes that change on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from agent.errors import TdieError
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.manager import PackageManager
from agent.packages.pack import write_pack
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecords
from agent.packages.retention import collectable, versions_kept
from agent.packages.store import PackageStore
from agent.wire import PackageOrder, PackageRef


class Rig:
    """Store, records and manager of one machine, whose clock goes on by a second with each look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = PackageStore(folder / "packages")
        self.store.open()
        self.records = PackageRecords(folder / "packages.sqlite")
        self.now = 1000.0
        self.manager = PackageManager(self.store, self.records, self.wall)

    def wall(self) -> float:
        self.now += 1.0
        return self.now

    def zip(self, version: str, body: str = "echo", name: str = "Hello World") -> Path:
        manifest = {"packageName": name, "packageVersion": version, "runtime": "exec", "command": ["sh", "run.sh"]}
        content = {"manifest.json": (json.dumps(manifest).encode(), False), "run.sh": (body.encode(), True)}
        return write_pack(content, self.folder / "package.zip")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_version_control_of_uploads(rig: Rig) -> None:
    def refused(code: str, status: int, act: Callable[[], object]) -> None:
        before = sorted(p.name for p in rig.store.root.iterdir()), rig.records.all()
        with pytest.raises(TdieError) as error:
            act()
        assert (error.value.code, error.value.status) == (code, status)
        assert (sorted(p.name for p in rig.store.root.iterdir()), rig.records.all()) == before

    refused("PKG_UNKNOWN", 404, lambda: rig.manager.update(rig.zip("1.0.0")))
    first = rig.manager.add(rig.zip("1.0.0"))
    assert str(first.package) == "hello-world@1.0.0"
    refused("PKG_EXISTS", 409, lambda: rig.manager.add(rig.zip("2.0.0")))
    refused("PKG_EXISTS", 409, lambda: rig.manager.add(rig.zip("1.0.0")))
    refused("PKG_VERSION_REUSED", 409, lambda: rig.manager.update(rig.zip("1.0.0", "other")))
    assert rig.manager.update(rig.zip("1.0.0")) == first  # the same again changes nothing
    second = rig.manager.update(rig.zip("1.10.0"))
    refused("PKG_LOWER_VERSION", 409, lambda: rig.manager.update(rig.zip("1.9.0")))
    assert rig.manager.configuration("hello-world")["versions"] == ["1.10.0", "1.0.0"]
    assert rig.manager.update(rig.zip("1.0.0"), rollback=True) == first
    (found,) = rig.manager.configurations()
    assert (found["packageVersion"], found["origin"], found["versions"]) == ("1.0.0", "manual", ["1.0.0", "1.10.0"])
    assert Path(found["path"]) == rig.manager.path("hello-world") == (rig.store.root / first.package.digest).absolute()
    assert found["contentRootPath"] == first.content_root
    refused("PKG_IN_USE", 409, lambda: rig.manager.delete("hello-world", None, {second.package.digest}))
    refused("PKG_UNKNOWN", 404, lambda: rig.manager.delete("hello-world", "3.0.0", ()))
    assert rig.manager.delete("hello-world", "1.10.0", ()) == (second.package,)
    assert rig.manager.delete("hello-world", None, ()) == (first.package,)
    assert (rig.store.installed(), rig.records.all()) == ({}, {})


def test_what_another_process_uploads_is_found(rig: Rig) -> None:
    other = Rig.__new__(Rig)
    other.__init__(rig.folder)  # type: ignore[misc]
    found = rig.manager.add(rig.zip("1.0.0"))
    assert other.manager.current("hello-world") == found
    rig.manager.delete("hello-world", None, ())
    with pytest.raises(TdieError, match="PKG_UNKNOWN"):
        other.manager.current("hello-world")


def test_records_survive_nonsense_in_their_file(rig: Rig) -> None:
    rig.manager.add(rig.zip("1.0.0"))
    rig.records.path.write_bytes(b"nonsense, not a database at all" * 100)
    for end in ("-wal", "-shm"):
        rig.records.path.with_name(rig.records.path.name + end).unlink(missing_ok=True)
    assert rig.records.all() == {}
    assert rig.records.path.with_name("packages.sqlite.bad").exists()
    assert rig.manager.configuration("hello-world")["packageVersion"] == "1.0.0"


def test_a_flipped_byte_is_found_and_healed_by_the_same_digest(rig: Rig) -> None:
    found = rig.manager.add(rig.zip("1.0.0"))
    digest = found.package.digest
    assert rig.store.verify(digest)
    script = Path(found.content_root) / "run.sh"
    script.chmod(0o755)
    script.write_text("ecHo")
    assert not rig.store.verify(digest)
    assert (rig.store.installed(), rig.store.corrupt) == ({}, frozenset({digest}))
    with pytest.raises(TdieError, match="PACKAGE_MISSING"):
        rig.store.archive(digest)  # never handed on
    healed = rig.store.add(rig.zip("1.0.0"), found.package)
    assert (rig.store.verify(digest), rig.store.corrupt, script.read_text()) == (True, frozenset(), "echo")
    assert healed.content_root == found.content_root


async def test_every_package_is_verified_and_only_damaged_ones_are_named(rig: Rig) -> None:
    good, bad = rig.manager.add(rig.zip("1.0.0")), rig.manager.add(rig.zip("1.0.0", name="Other"))
    (Path(bad.content_root) / "more.txt").parent.chmod(0o755)
    (Path(bad.content_root) / "more.txt").write_text("not in the digest")
    async with httpx.AsyncClient(trust_env=False) as client:
        environments = Environments(rig.folder / "environments")
        environments.open()
        installer = PackageInstaller(rig.store, environments, rig.records, client, wall=time.time)
        assert await installer.verify() == {bad.package.digest: "other@1.0.0"}
        assert list(installer.installed()) == [good.package.digest]
        assert rig.records.all()[good.package.digest].checked_at > 0
        installer.look_at_records(rig.records.all())
        assert good.package.digest in installer.manual()
        await installer.install(PackageOrder(package=good.package))
        assert good.package.digest not in installer.manual()  # Git orders it now


def item(version: int, name: str = "a") -> Installed:
    ref = PackageRef(name=name, version=f"{version}.0.0", digest=f"{name}{version}")
    return Installed(ref, "/", installed_at=float(version))


def test_retention_keeps_what_runs_the_newest_and_the_last_two_good() -> None:
    held = {f"a{n}": item(n) for n in range(1, 10)} | {"b1": item(1, "b")}
    assert collectable(held, (), 5) == ("a4", "a3", "a2", "a1")
    assert collectable(held, ("a3",), 5) == ("a4", "a2", "a1")
    good = {"a1": 50.0, "a2": 60.0, "a9": 10.0}
    assert collectable(held, (), 5, good=good) == ("a4", "a3")  # a1 and a2 ran well last
    assert collectable(held, (), 2, current={"a1": 99.0}) == ("a8", "a7", "a6", "a5", "a4", "a3", "a2")
    assert collectable(held, (), 1) == collectable(held, (), 2)


@pytest.mark.parametrize(
    ("policy", "kept"), [("KeepLast5Versions", 5), ("keeplast1version", 1), ("3", 3), ("KeepAll", 1_000_000)]
)
def test_policies(policy: str, kept: int) -> None:
    assert versions_kept(policy) == kept


@pytest.mark.parametrize("policy", ["", "KeepLast0Versions", "KeepLastVersions", "-1", "all", "KeepLast5Versions!"])
def test_other_policies_are_refused(policy: str) -> None:
    with pytest.raises(TdieError, match="CONFIG"):
        versions_kept(policy)
