"""The file watcher: each file once, when it is complete, whatever happens to the folder."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.components import folder
from agent.errors import Missing
from agent.sdk import ObjectState
from agent.sdk.testing import Running, running


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


@asynccontextmanager
async def watching(inbox: Path, **settings: Any) -> AsyncIterator[Running]:
    async with running(folder("file-watcher"), {"path": str(inbox), **settings}, name="w.0") as run:
        yield run


def said(run: Running) -> list[tuple[str, str]]:
    return [(message.content["fileName"], message.content["eventType"]) for message in run.published]


def module(run: Running) -> Any:
    """The module the component was loaded from."""
    import sys

    return sys.modules[type(run.component).__module__]


async def test_existing_created_and_renamed_files_are_reported_once(inbox: Path) -> None:
    (inbox / "old.xml").write_text("old")
    (inbox / "other.txt").write_text("not wanted")
    (inbox / "folder.xml").mkdir()
    async with watching(inbox, filter="*.xml") as run:
        await run.until(lambda: said(run) == [("old.xml", "existing")])
        (inbox / "new.xml").write_text("new")
        await run.until(lambda: ("new.xml", "created") in said(run))
        (inbox / "new.xml").rename(inbox / "newer.xml")
        await run.until(lambda: ("newer.xml", "renamed") in said(run))
        (inbox / "part.tmp").write_text("whole")
        (inbox / "part.tmp").rename(inbox / "whole.xml")
        await run.until(lambda: any(name == "whole.xml" for name, _ in said(run)))
        (inbox / "old.xml").write_text("touched again, not a new appearance")
        (inbox / "last.xml").write_text("last")
        await run.until(lambda: ("last.xml", "created") in said(run))
        assert sorted(name for name, _ in said(run)) == ["last.xml", "new.xml", "newer.xml", "old.xml", "whole.xml"]
        (inbox / "last.xml").unlink()
        (inbox / "last.xml").write_text("again, perhaps with the same inode")
        await run.until(lambda: said(run).count(("last.xml", "created")) == 2)


async def test_a_file_is_reported_when_it_is_complete(inbox: Path) -> None:
    async with watching(inbox) as run:
        with (inbox / "slow.bin").open("wb") as slow:
            for _ in range(12):
                slow.write(b"x" * 1000)
                slow.flush()
                await asyncio.sleep(0.05)
                assert said(run) == []
        message = await run.message("FileWatcherMessage")
    assert message.content == {
        "fileName": "slow.bin",
        "filePath": str(inbox / "slow.bin"),
        "fileSize": 12000,
        "eventType": "created",
    }


async def test_every_file_means_also_one_without_a_dot(inbox: Path) -> None:
    (inbox / "README").write_text("x")
    async with watching(inbox, filter="*.*") as run:
        await run.until(lambda: said(run) == [("README", "existing")])


async def test_many_files_are_each_reported_once_with_little_room(inbox: Path) -> None:
    async with watching(inbox, bufferSize=10) as run:
        run.publisher.refuse(OSError("away"), times=3)
        for number in range(200):
            (inbox / f"{number}.x").write_text("x")
        await run.until(lambda: len(said(run)) == 200, within=30)
        assert len({name for name, _ in said(run)}) == 200
        assert len({message.id for message in run.published}) == 200


async def test_no_more_than_the_buffer_is_under_way(inbox: Path) -> None:
    for number in range(20):
        (inbox / f"{number}.x").write_text("x")
        os.utime(inbox / f"{number}.x", (1, 1))
    async with watching(inbox, bufferSize=3) as run:
        run.publisher.refuse(OSError("away"), times=3)
        await run.until(lambda: not run.publisher._refusals)
        reports = [task for task in asyncio.all_tasks() if "report" in task.get_name()]
        assert len(reports) == 3
        await run.until(lambda: len(said(run)) == 20)


async def test_existing_files_can_be_left_alone(inbox: Path) -> None:
    (inbox / "old").write_text("x")
    async with watching(inbox, reportExisting=False) as run:
        (inbox / "new").write_text("x")
        await run.until(lambda: said(run) == [("new", "created")])


async def test_a_missing_folder_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"FOLDER_MISSING the folder .*/in is not there"):
        async with watching(tmp_path / "in"):
            pass
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Missing, match="FOLDER_MISSING"):
        async with watching(tmp_path / "file"):
            pass


async def test_a_folder_that_comes_back_is_watched_again(inbox: Path) -> None:
    async with watching(inbox) as run:
        (inbox / "one.x").write_text("x")
        await run.until(lambda: said(run) == [("one.x", "created")])
        away = inbox.parent / "away"
        os.rename(inbox, away)
        await asyncio.sleep(0.3)
        os.rename(away, inbox)  # the same folder with the same file: nothing new
        (inbox / "two.x").write_text("x")
        await run.until(lambda: said(run) == [("one.x", "created"), ("two.x", "created")], within=20)
        os.rename(inbox, inbox.parent / "old")
        os.mkdir(inbox)  # another folder of that name
        (inbox / "three.x").write_text("x")
        await run.until(lambda: len(said(run)) == 3, within=40)
        assert run.state is ObjectState.STARTED


async def test_a_folder_that_stays_away_fails_the_component(inbox: Path) -> None:
    async with watching(inbox, folderBackWithin=0.3) as run:
        os.rmdir(inbox)
        await run.until(lambda: run.state is ObjectState.ERRORED, within=20)
        assert "FileNotFoundError" in run.cause


async def test_lost_permission_reports_nothing_twice(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (inbox / "one").write_text("x")
    async with watching(inbox) as run:
        await run.until(lambda: len(said(run)) == 1)
        original, denied = Path.stat, True
        refusals = 0

        def stat(path: Path, **options: Any) -> os.stat_result:
            nonlocal refusals
            if denied and path.parent == inbox:
                refusals += 1
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return original(path, **options)

        monkeypatch.setattr(Path, "stat", stat)
        (inbox / "two").write_text("x")
        await run.until(lambda: refusals > 2)
        assert run.state is ObjectState.STARTED
        denied = False
        await run.until(lambda: len(said(run)) == 2)
        (inbox / "three").write_text("x")
        await run.until(lambda: len(said(run)) == 3)
        assert sorted(name for name, _ in said(run)) == ["one", "three", "two"]


@pytest.mark.parametrize(
    "error",
    [
        OSError("OS file watch limit reached."),
        RuntimeError("Error creating recommended watcher: Too many open files (os error 24)"),
    ],
)
async def test_without_a_kernel_watch_it_looks_itself(
    error: Exception, inbox: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(inbox) as run:
        source = module(run)
        watch, asked = source.awatch, 0

        def refuse(*_args: object, **_options: object) -> object:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise error
            return watch(*_args, **_options)

        monkeypatch.setattr(source, "awatch", refuse)
        monkeypatch.setattr(source, "LOOK_UNWATCHED", 0.02)
        monkeypatch.setattr(source, "TRY_KERNEL_AGAIN", 0.5)
        os.rename(inbox, inbox.parent / "old")  # the watch that there is breaks off
        os.mkdir(inbox)
        await run.until(lambda: asked == 1, within=40)
        (inbox / "polled").write_text("x")
        await run.until(lambda: said(run) == [("polled", "created")])
        assert "the kernel cannot watch" in caplog.text
        await run.until(lambda: asked == 2)
        (inbox / "watched").write_text("x")
        await run.until(lambda: len(said(run)) == 2)


async def test_a_watcher_that_starts_anew_reports_what_is_there(inbox: Path) -> None:
    (inbox / "one").write_text("x")
    for _ in range(2):
        async with watching(inbox) as run:
            await run.until(lambda: said(run) == [("one", "existing")])
