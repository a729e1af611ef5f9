"""Built-in packages: their manifests, their versions, and what they do."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.components import VERSIONS, content_digest, folder, names
from agent.errors import Missing
from agent.host.members import Members, make
from agent.keeper.protocol import Code, HostOrder
from agent.packages.manifest import parse_manifest

WATCHER = "file-watcher"


@pytest.mark.parametrize("name", names())
def test_changed_content_has_a_new_version(name: str) -> None:
    held = json.loads(VERSIONS.read_text())[name]
    version = json.loads((folder(name) / "manifest.json").read_text())["version"]
    assert held == {"version": version, "sha256": content_digest(name)}, (
        "raise the version, then python -m agent.components"
    )


@pytest.mark.parametrize("name", names())
def test_manifests_are_valid(name: str) -> None:
    manifest = parse_manifest((folder(name) / "manifest.json").read_bytes())
    assert manifest.name == name
    jsonschema.Draft202012Validator.check_schema(dict(manifest.settings_schema or {}))
    assert (folder(name) / manifest.content_root / f"{manifest.module}.py").is_file()


def test_an_unknown_builtin_is_named() -> None:
    with pytest.raises(Missing, match="file-watcher"):
        folder("nothing")


def _code(name: str, settings: dict[str, Any]) -> Code:
    manifest = json.loads((folder(name) / "manifest.json").read_text())
    content = str(folder(name) / manifest["contentRoot"])
    settings = {**manifest["defaultConfiguration"], **settings}
    return Code(name, manifest["version"], "", content, manifest["componentType"], settings)


class Watch:
    def __init__(self, members: Members, out: Path) -> None:
        self.members, self._out = members, out

    def said(self) -> list[tuple[str, str]]:
        lines = self._out.read_text().splitlines() if self._out.exists() else []
        contents = [json.loads(line)["content"] for line in lines]
        return [(content["fileName"], content["eventType"]) for content in contents]

    async def until(self, done: Callable[[], bool], within: float = 10.0) -> None:
        try:
            async with asyncio.timeout(within):
                while not done():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(self.said()) from None


@asynccontextmanager
async def watching(tmp_path: Path, **settings: Any) -> AsyncIterator[Watch]:
    out = tmp_path / "out.jsonl"
    order = HostOrder(
        "w.0",
        "w",
        "n",
        "s",
        "python",
        _code(WATCHER, {"path": str(tmp_path / "in"), **settings}),
        publisher=_code("basic-publisher", {"file": str(out)}),
    )
    members = make(order, lambda: None)
    await members.start()
    try:
        yield Watch(members, out)
    finally:
        await members.stop()
        await members.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


async def test_existing_created_and_renamed_files_are_reported_once(inbox: Path, tmp_path: Path) -> None:
    (inbox / "old.xml").write_text("old")
    (inbox / "other.txt").write_text("not wanted")
    (inbox / "folder.xml").mkdir()
    async with watching(tmp_path, filter="*.xml") as watch:
        await watch.until(lambda: watch.said() == [("old.xml", "existing")])
        (inbox / "new.xml").write_text("new")
        await watch.until(lambda: ("new.xml", "created") in watch.said())
        (inbox / "new.xml").rename(inbox / "newer.xml")
        await watch.until(lambda: ("newer.xml", "renamed") in watch.said())
        (inbox / "part.tmp").write_text("whole")
        (inbox / "part.tmp").rename(inbox / "whole.xml")
        await watch.until(lambda: any(name == "whole.xml" for name, _ in watch.said()))
        (inbox / "old.xml").write_text("touched again, not a new appearance")
        (inbox / "last.xml").write_text("last")
        await watch.until(lambda: ("last.xml", "created") in watch.said())
        assert sorted(name for name, _ in watch.said()) == ["last.xml", "new.xml", "newer.xml", "old.xml", "whole.xml"]
        (inbox / "last.xml").unlink()
        await asyncio.to_thread(time.sleep, 0.2)  # let the kernel tell of the end before the new beginning
        (inbox / "last.xml").write_text("again")
        await watch.until(lambda: watch.said().count(("last.xml", "created")) == 2)


async def test_a_file_is_reported_when_it_is_complete(inbox: Path, tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        with (inbox / "slow.bin").open("wb") as slow:
            for _ in range(12):
                slow.write(b"x" * 1000)
                slow.flush()
                await asyncio.sleep(0.05)
                assert watch.said() == []
        await watch.until(lambda: watch.said() == [("slow.bin", "created")])
        line = json.loads((tmp_path / "out.jsonl").read_text())
    assert line["content"]["fileSize"] == 12000
    assert line["content"]["filePath"] == str(inbox / "slow.bin")
    assert line["type"] == "FileWatcherMessage"
    assert line["source"] == "w.0"


async def test_many_files_are_each_reported_once(inbox: Path, tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        for number in range(200):
            (inbox / f"{number}.x").write_text("x")
        await watch.until(lambda: len(watch.said()) == 200)
        assert len({name for name, _ in watch.said()}) == 200


async def test_a_missing_folder_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"FOLDER_MISSING the folder .*/in is not there"):
        async with watching(tmp_path):
            pass


async def test_a_folder_that_comes_back_is_watched_again(inbox: Path, tmp_path: Path) -> None:
    async with watching(tmp_path) as watch:
        (inbox / "one.x").write_text("x")
        await watch.until(lambda: watch.said() == [("one.x", "created")])
        (inbox / "one.x").unlink()
        await asyncio.to_thread(inbox.rmdir)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(inbox.mkdir)
        (inbox / "two.x").write_text("x")
        await watch.until(lambda: len(watch.said()) == 2, within=40)
        assert watch.members.healthy


async def test_the_publishers_file_appends(tmp_path: Path, inbox: Path) -> None:
    for number in range(2):
        (inbox / f"{number}").write_text("x")
        os.utime(inbox / f"{number}", (1, 1))
        async with watching(tmp_path) as watch:
            await watch.until(lambda n=number: (str(n), "existing") in watch.said())  # type: ignore[misc]
    assert len(watch.said()) == 3  # a watcher that starts anew reports what is there
