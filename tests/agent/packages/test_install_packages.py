"""Packages come from somewhere else: broken connections, wrong bytes and full disks change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.errors import TdieError
from agent.packages.digest import content_digest
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.pack import pack
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecords
from agent.packages.retention import collectable
from agent.packages.store import PackageStore, remove_tree
from agent.wire import PackageOrder, PackageRef
from tests.disk_trouble import counted

Answer = Callable[[str], bytes]


def content(name: str = "hello", version: str = "1.0.0", body: bytes = b"print()") -> dict[str, tuple[bytes, bool]]:
    manifest = {"name": name, "version": version, "runtime": "exec", "command": ["sh", "run.sh"]}
    return {"manifest.json": (json.dumps(manifest).encode(), False), "run.sh": (body, True)}


GOOD = content()
REF = PackageRef(name="hello", version="1.0.0", digest=content_digest(GOOD))


def http(body: bytes, *, length: int | None = None, status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\nConnection: close\r\n{extra}\r\n"
    return head.encode() + body


class Source:
    """A local server that answers what it is told, and remembers who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[bytes]] = {}
        self.asked: list[str] = []
        self.heads: list[bytes] = []
        self.slow: dict[str, tuple[bytes, bytes]] = {}  # what comes at once, and what then comes for ever
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        self.asked.append(path)
        self.heads.append(head)
        if path in self.slow:
            first, rest = self.slow[path]
            writer.write(first)
            with contextlib.suppress(ConnectionError):
                while not writer.is_closing():
                    writer.write(rest)
                    await writer.drain()
                    await asyncio.sleep(0.02)
            return
        queue = self.answers.get(path, [])
        writer.write((queue.pop(0) if len(queue) > 1 else queue[0]) if queue else http(b"", status="404 Not Found"))
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def source() -> AsyncIterator[Source]:
    found = Source()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield found


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as made:
        yield made


def order(source: Source, *paths: str) -> PackageOrder:
    return PackageOrder(package=REF, sources=tuple(source.url + path for path in paths))


def installer_of(store: PackageStore, client: httpx.AsyncClient, **more: Any) -> PackageInstaller:
    beside = store.root.parent
    records = PackageRecords(beside / "packages.sqlite")
    return PackageInstaller(store, Environments(beside / "environments"), records, client, wall=time.time, **more)


def names(store: PackageStore) -> list[str]:
    return sorted(p.name for p in store.root.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    made = PackageStore(tmp_path / "packages")
    made.open()
    return made


async def test_installed_once_verified_and_read_only(
    source: Source, store: PackageStore, client: httpx.AsyncClient
) -> None:
    source.answers["/p"] = [http(pack(GOOD))]
    installer = installer_of(store, client)
    found = await asyncio.gather(*(installer.install(order(source, "/p")) for _ in range(5)))
    assert source.asked == ["/p"]  # one fetch for all
    assert found[0].runtime == "exec"
    assert names(store) == [REF.digest]
    assert not os.stat(store.root / REF.digest / "run.sh").st_mode & 0o222
    again = PackageStore(store.root)
    assert again.open() == ()
    assert again.installed() == {REF.digest: found[0]}
    assert again.archive(REF.digest) == pack(GOOD)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (pack(content(body=b"other")), "PKG_DIGEST_MISMATCH"),
        (b"no zip", "PKG_CORRUPT"),
    ],
)
async def test_wrong_bytes_are_never_used(
    body: bytes, code: str, source: Source, store: PackageStore, client: httpx.AsyncClient
) -> None:
    source.answers["/p"] = [http(body)]
    with pytest.raises(TdieError) as caught:
        await installer_of(store, client, pause=0).install(order(source, "/p"))
    assert caught.value.code == code
    assert names(store) == []


async def test_another_identity_inside(source: Source, store: PackageStore, client: httpx.AsyncClient) -> None:
    other = content(version="1.0.1")
    source.answers["/p"] = [http(pack(other))]
    wanted = PackageOrder(
        package=PackageRef(name="hello", version="1.0.0", digest=content_digest(other)), sources=(source.url + "/p",)
    )
    with pytest.raises(TdieError, match=r"PKG_IDENTITY want=hello@1\.0\.0 got=hello@1\.0\.1"):
        await installer_of(store, client).install(wanted)
    assert names(store) == []


async def test_short_reads_are_tried_again(source: Source, store: PackageStore, client: httpx.AsyncClient) -> None:
    whole = pack(GOOD)
    cut = http(whole[:50], length=len(whole))
    source.answers["/p"] = [cut, cut, http(whole)]
    await installer_of(store, client, pause=0).install(order(source, "/p"))
    assert source.asked == ["/p"] * 3


async def test_a_source_that_never_ends_is_given_up_and_the_next_one_asked(
    source: Source, store: PackageStore, client: httpx.AsyncClient
) -> None:
    whole = pack(GOOD)
    source.answers["/p"] = [http(whole)]
    source.slow["/drips"] = (http(b"", length=len(whole)), b"x")
    installer = installer_of(store, client, total_timeout=0.3)
    with pytest.raises(TdieError, match=r"PKG_FETCH .*/drips: not complete after 0 s"):
        await installer.install(order(source, "/drips"))
    assert names(store) == []
    await installer.install(order(source, "/drips", "/p"))
    assert names(store) == [REF.digest]


def test_a_crash_at_any_effect_of_an_install_leaves_what_was_there_and_the_next_one_works(tmp_path: Path) -> None:
    """STEP: the process ends at the n-th thing that it does to the disk, with nothing tidied up."""
    old = content(version="0.9.0")
    before = PackageRef(name="hello", version="0.9.0", digest=content_digest(old))
    for files, name in ((old, "old.zip"), (GOOD, "new.zip")):
        (tmp_path / name).write_bytes(pack(files))
    effects, crashed = 0, True
    while crashed:
        effects += 1
        root = tmp_path / f"at-{effects}"
        there = PackageStore(root)
        there.open()
        there.add(tmp_path / "old.zip", before)
        crashed = _ends_at(effects, root, tmp_path / "new.zip")
        again = PackageStore(root)
        assert again.open() == ()
        assert {before.digest} <= again.installed().keys() <= {before.digest, REF.digest}
        assert all(again.verify(digest) for digest in again.installed())
        assert not [entry for entry in root.iterdir() if entry.name not in again.installed()]
        again.add(tmp_path / "new.zip", REF)
        assert again.verify(REF.digest)
        remove_tree(root)
    assert effects > 10


def _ends_at(number: int, root: Path, archive: Path) -> bool:
    """Whether a process that installs the archive was ended at its n-th effect on the disk."""
    pid = os.fork()
    if pid == 0:
        with counted(root) as disk:

            def crash(what: str) -> bool:
                disk.writes += 1
                if disk.writes == number:
                    os._exit(9)
                return False

            disk._next = crash  # type: ignore[method-assign]  # this one does not fail, it is the last
            store = PackageStore(root)
            store.open()
            store.add(archive, REF)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


async def test_the_next_source_is_asked_and_redirects_are_not_followed(
    source: Source, store: PackageStore, client: httpx.AsyncClient
) -> None:
    source.answers["/moved"] = [http(b"", status="302 Found", extra=f"Location: {source.url}/p\r\n")]
    source.answers["/p"] = [http(pack(GOOD))]
    installer = installer_of(store, client)
    with pytest.raises(TdieError, match=r"PKG_FETCH .*redirects elsewhere"):
        await installer.install(order(source, "/moved"))
    await installer.install(order(source, "/none", "/moved", "/p"))
    assert source.asked == ["/moved", "/none", "/moved", "/p"]


async def test_the_token_is_shown_only_to_controllers_and_agents(
    source: Source, store: PackageStore, client: httpx.AsyncClient
) -> None:
    ours = "/api/master/packages/x"
    source.answers[ours] = [http(pack(GOOD))]
    await installer_of(store, client, token=lambda: "s3cret").install(order(source, "/elsewhere", ours))
    assert [b"s3cret" in head for head in source.heads] == [False, True]


async def test_full_disk_refuses_before_the_download(source: Source, tmp_path: Path, client: httpx.AsyncClient) -> None:
    store = PackageStore(tmp_path / "packages", disk=lambda _: (100_000, 4_000))
    store.open()
    source.answers["/p"] = [http(pack(GOOD))]
    with pytest.raises(TdieError) as caught:
        await installer_of(store, client).install(order(source, "/p"))
    assert caught.value.code == "DISK_FULL"
    assert names(store) == []


async def test_unreachable_and_unlisted(store: PackageStore, client: httpx.AsyncClient) -> None:
    installer = installer_of(store, client)
    with pytest.raises(TdieError) as caught:
        await installer.install(PackageOrder(package=REF, sources=("http://127.0.0.1:9/x",)))
    assert caught.value.code == "PKG_FETCH"
    with pytest.raises(TdieError) as caught:
        await installer.install(PackageOrder(package=REF))
    assert caught.value.code == "PACKAGE_MISSING"


def test_what_a_crash_left_is_collected_and_removal_is_complete(store: PackageStore, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(pack(GOOD))
    store.add(tmp_path / "a.zip", REF)
    (store.root / ".partial-1/x").mkdir(parents=True)
    again = PackageStore(store.root)
    again.open()
    assert names(again) == [REF.digest]
    again.remove(REF.digest)
    again.remove(REF.digest)
    assert names(again) == []
    assert again.installed() == {}


def test_retention_keeps_what_runs_and_what_a_rollback_needs() -> None:
    def have(name: str, number: int) -> Installed:
        ref = PackageRef(name=name, version=f"1.0.{number}", digest=f"{name}{number}")
        return Installed(ref, "/", installed_at=float(number))

    installed = {i.package.digest: i for i in [*(have("a", n) for n in range(6)), have("b", 1)]}
    assert collectable(installed, in_use={"a0"}, keep=0) == ("a3", "a2", "a1")
    assert collectable(installed, in_use=set(), keep=5) == ("a0",)
