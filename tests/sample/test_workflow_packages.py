"""The packages of the sample's workflow, each by itself."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agent.sdk import Message
from agent.sdk.testing import running

PACKAGES = Path(__file__).resolve().parents[2] / "sample-repo" / "packages"
PROCESSOR, WRITER = PACKAGES / "file-processor", PACKAGES / "database-writer"


def _settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"inputPath": str(tmp_path), "retryDelaySeconds": 0.01, "watch": False, **more}


def _reported(name: str, id: str = "m") -> Message:
    return Message({"fileName": name, "filePath": f"/x/{name}"}, type="FileWatcherMessage", id=id)


async def test_a_reported_file_is_processed_published_and_archived(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("  one \n two\n")
    async with running(PROCESSOR, _settings(tmp_path)) as processor:
        assert (await processor.message()).type == "ComponentStarted"
        await processor.component.receive(_reported("a.txt"))
        said = await processor.message("FileProcessed")
        assert said.content == "ONE\nTWO"
        assert set(said.properties) == {"FileName", "FilePath", "ProcessedAt", "InstanceId"}
        assert said.properties["FileName"] == "a.txt"
        assert (tmp_path / "archive/a.txt").exists()
        await processor.component.receive(_reported("a.txt", "again"))
        assert [m.type for m in processor.published] == ["ComponentStarted", "FileProcessed"]
    assert processor.published[-1].type == "ComponentStopped"


async def test_the_same_file_has_the_same_id_and_another_one_has_another(tmp_path: Path) -> None:
    async with running(PROCESSOR, _settings(tmp_path)) as processor:
        (tmp_path / "a.txt").write_text("one")
        processor.publisher.refuse(OSError("the bus is away"))
        await processor.component.receive(_reported("a.txt"))
        first = await processor.message("FileProcessed")
        (tmp_path / "archive/a.txt").rename(tmp_path / "a.txt")  # as if it had ended before archiving
        await processor.component.receive(_reported("a.txt"))
        assert (await processor.message("FileProcessed")).id == first.id
        (tmp_path / "a.txt").write_text("two")
        await processor.component.receive(_reported("a.txt"))
        assert (await processor.message("FileProcessed")).id != first.id
        assert sorted(p.name for p in (tmp_path / "archive").iterdir()) == ["a.1.txt", "a.txt"]


async def test_what_fails_too_often_goes_to_the_error_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.bin").write_bytes(b"\xff\xfe\xfa")
    async with running(PROCESSOR, _settings(tmp_path, maxRetries=2, errorPath=str(tmp_path / "broken"))) as processor:
        await processor.component.receive(_reported("bad.bin"))
        said = await processor.message("FileProcessingError")
        assert "can't decode" in said.properties["Error"]
        assert said.content == "Failed to process file bad.bin after 2 retries"
        assert (tmp_path / "broken/bad.bin").exists()


async def test_alone_it_watches_its_folder(tmp_path: Path) -> None:
    (tmp_path / "no.csv").write_text("x")
    async with running(PROCESSOR, _settings(tmp_path, watch=True, filter="*.txt")) as processor:
        (tmp_path / "a.txt").write_text("x")
        assert (await processor.message("FileProcessed")).properties["FileName"] == "a.txt"
        await processor.until((tmp_path / "archive/a.txt").exists)
        assert (tmp_path / "no.csv").exists()


@pytest.mark.parametrize("name", ["../a.txt", "", "gone.txt", "archive", None])
async def test_names_that_are_no_files_of_the_folder_are_left_alone(tmp_path: Path, name: Any) -> None:
    outside = tmp_path / "a.txt"
    outside.write_text("x")
    (tmp_path / "in").mkdir()
    async with running(PROCESSOR, _settings(tmp_path / "in")) as processor:
        await processor.component.receive(_reported(name))
        await processor.component.receive(Message("no object", type="FileWatcherMessage"))
        assert [m.type for m in processor.published] == ["ComponentStarted"]
    assert outside.exists()


async def test_a_missing_folder_fails_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        async with running(PROCESSOR, _settings(tmp_path / "none")):
            raise AssertionError("it started")


async def test_a_message_is_one_row_however_often_it_comes(tmp_path: Path) -> None:
    database = tmp_path / "deep/results.sqlite"
    async with running(WRITER, {"database": str(database), "table": "processed"}) as writer:
        one = Message("ONE", type="FileProcessed", id="1", properties={"FileName": "a.txt"})
        two = Message({"n": 2}, type="Other", id="2")
        await asyncio.gather(*(writer.component.receive(message) for message in (one, two, one, one)))
    async with running(WRITER, {"database": str(database), "table": "processed"}) as again:
        await again.component.receive(one)
    with sqlite3.connect(database) as db:
        rows = db.execute("SELECT id, type, file, content FROM processed ORDER BY id").fetchall()
    assert rows == [("1", "FileProcessed", "a.txt", "ONE"), ("2", "Other", "", '{"n": 2}')]


async def test_the_writer_is_not_well_without_its_table(tmp_path: Path) -> None:
    database = tmp_path / "results.sqlite"
    async with running(WRITER, {"database": str(database), "table": "processed"}) as writer:
        await writer.component.check()
        database.unlink()
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await writer.component.check()
    assert not database.exists()  # looking has made no empty one
