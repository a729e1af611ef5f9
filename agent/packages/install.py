"""Packages come to this machine: fetched from the first source that serves them, verified, then installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import structlog

from agent.errors import Denied, Missing, TdieError, Waiting
from agent.packages.environments import Environments
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecord, PackageRecords
from agent.packages.retention import collectable
from agent.packages.store import PackageStore, disk_errors
from agent.wire import PackageOrder, PackageRef

log = structlog.get_logger("packages")

SHORT_READS = 3  # a broken connection is tried again so often before the next source
OUR_PATHS = ("/api/master/packages/", "/api/node/packages/")  # only controllers and agents are shown the token


class Truncated(Waiting):
    """The connection ended before the archive did."""

    code = "PKG_FETCH"


class PackageInstaller:
    """Implements Installer over HTTP and a PackageStore."""

    def __init__(
        self,
        store: PackageStore,
        environments: Environments,
        records: PackageRecords,
        client: httpx.AsyncClient,
        *,
        wall: Callable[[], float],
        keep: int = 5,
        token: Callable[[], str] = str,
        total_timeout: float = 300.0,
        pause: float = 0.2,
    ) -> None:
        """`token` is asked for every request, so a rotated one is used; `keep` versions of each name stay; seconds."""
        self._store = store
        self._environments = environments
        self._records, self._wall, self._keep = records, wall, keep
        self._known: dict[str, PackageRecord] = {}
        self._unwritten: dict[str, PackageRecord] = {}  # what a bad disk did not take yet
        self._one_environment = asyncio.Lock()  # making one takes all of a processor and much disk
        self._client = client
        self._token = token
        self._total = total_timeout
        self._pause = pause
        self._under_way: dict[str, asyncio.Task[Installed]] = {}

    def installed(self) -> Mapping[str, Installed]:
        made = self._environments.all()
        return {d: item for d, item in self._store.installed().items() if not item.dependencies or d in made}

    def environments(self) -> Mapping[str, str]:
        return self._environments.all()

    async def prepare(self, digests: Collection[str]) -> None:
        held = self._store.installed()
        if lacking := sorted(digest for digest in digests if digest not in held):
            raise Missing(f"package {lacking[0]} is not installed", code="PACKAGE_MISSING")
        packages = [held[digest] for digest in digests]
        async with self._one_environment:
            await asyncio.to_thread(self._environments.make, packages)

    async def install(self, order: PackageOrder) -> Installed:
        """Several callers that want one digest share one fetch."""
        digest = order.package.digest
        task = self._under_way.get(digest)
        if task is None:
            task = asyncio.create_task(self._install(order), name=f"install {order.package}")
            self._under_way[digest] = task
            task.add_done_callback(lambda _: self._under_way.pop(digest, None))
        return await asyncio.shield(task)

    async def remove(self, digest: str) -> None:
        await asyncio.to_thread(self._environments.remove, digest)
        await asyncio.to_thread(self._store.remove, digest)
        self._unwritten.pop(digest, None)
        await asyncio.to_thread(self._records.forget, digest)
        self._known.pop(digest, None)

    def collectable(self, in_use: Collection[str], keep: int | None) -> tuple[str, ...]:
        return collectable(
            self._store.installed(),
            in_use,
            self._keep if keep is None else keep,
            current={digest: record.current_at for digest, record in self._known.items()},
            good={digest: record.good_at for digest, record in self._known.items()},
        )

    def manual(self) -> frozenset[str]:
        return frozenset(digest for digest, record in self._known.items() if record.origin == "manual")

    async def good(self, digests: Collection[str]) -> None:
        now = self._wall()
        await self._write_notes()
        await asyncio.to_thread(self._records.good, digests, now)
        self.look_at_records(await asyncio.to_thread(self._records.all))

    async def verify(self) -> Mapping[str, str]:
        checked, wrong = [], {}
        for digest, item in sorted(self._store.installed().items()):
            if await asyncio.to_thread(self._store.verify, digest):
                checked.append(digest)
            else:
                wrong[digest] = str(item.package)
        await asyncio.to_thread(self._records.checked, checked, self._wall())
        return wrong

    def look_at_records(self, records: Mapping[str, PackageRecord]) -> None:
        """These are the records now: they were read anew because somebody changed them."""
        self._known = dict(records)

    async def close(self) -> None:
        """Nothing is being fetched any more."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _install(self, order: PackageOrder) -> Installed:
        found = self._store.installed().get(order.package.digest) or await self._fetched(order)
        await self._note(found.package)
        if found.dependencies:
            await self.prepare((order.package.digest,))
        return found

    async def _note(self, package: PackageRef) -> None:
        """It is the version to use now, and belongs to Git: what was uploaded by hand and is then ordered is no longer manual."""
        now = self._wall()
        known = self._known.get(package.digest) or PackageRecord(package, "git", now)
        self._known[package.digest] = replace(known, origin="git", current_at=now)
        self._unwritten[package.digest] = self._known[package.digest]
        try:
            await self._write_notes()
        except (
            Waiting
        ) as error:  # it is installed all the same, and is noted with the next one or when it is proven good
            log.warning("not noted", package=str(package), error=str(error))

    async def _write_notes(self) -> None:
        for digest, note in tuple(self._unwritten.items()):
            await asyncio.to_thread(self._records.put, note.package, "git", note.current_at)
            if self._unwritten.get(digest) is note:
                del self._unwritten[digest]

    async def _fetched(self, order: PackageOrder) -> Installed:
        if not order.sources:
            raise Missing(f"{order.package}: nobody is known to have it", code="PACKAGE_MISSING")
        failures: list[TdieError] = []
        for source in order.sources:
            try:
                return await self._from(source, order)
            except TdieError as error:
                if error.code == "DISK_FULL":
                    raise
                failures.append(error)
                log.warning("package source failed", package=str(order.package), source=source, error=str(error))
        raise _most_telling(failures)

    async def _from(self, source: str, order: PackageOrder) -> Installed:
        with self._store.partial() as folder:
            file = folder / "archive.zip"
            for attempt in range(1, SHORT_READS + 1):
                try:
                    async with asyncio.timeout(self._total):
                        await self._fetch(source, file)
                    return await asyncio.to_thread(self._store.add, file, order.package)
                except TimeoutError as error:
                    raise Waiting(f"{source}: not complete after {self._total:.0f} s", code="PKG_FETCH") from error
                except TdieError as error:
                    again = isinstance(error, Truncated) or error.code == "PKG_CORRUPT"
                    if not again or attempt == SHORT_READS:
                        raise
                await asyncio.sleep(self._pause * attempt)
        raise AssertionError("unreachable")

    async def _fetch(self, source: str, file: Path) -> None:
        url = httpx.URL(source)
        if url.scheme not in ("http", "https"):
            raise Waiting(f"{source}: only http and https are fetched", code="PKG_FETCH")
        token = self._token() if url.path.startswith(OUR_PATHS) else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            async with self._client.stream("GET", url, headers=headers, follow_redirects=False) as answer:
                self._check_answer(source, answer)
                await self._write(source, answer, file)
        except httpx.ReadError as error:
            raise Truncated(f"{source}: the connection ended early") from error
        except httpx.RemoteProtocolError as error:
            raise Truncated(f"{source}: the connection ended early") from error
        except httpx.HTTPError as error:
            raise Waiting(f"{source}: {type(error).__name__}", code="PKG_FETCH") from error

    def _check_answer(self, source: str, answer: httpx.Response) -> None:
        if answer.is_redirect:
            raise Waiting(f"{source}: redirects elsewhere, which is not followed", code="PKG_FETCH")
        if answer.status_code in (401, 403):
            raise Denied(f"{source}: answers {answer.status_code}", code="PKG_FETCH")
        if answer.status_code != 200:
            raise Waiting(f"{source}: answers {answer.status_code}", code="PKG_FETCH")

    async def _write(self, source: str, answer: httpx.Response, file: Path) -> None:
        limit = self._store.limits.archive
        declared = answer.headers.get("content-length", "")
        expected = int(declared) if declared.isdecimal() and "content-encoding" not in answer.headers else None
        if expected is not None:
            self._check_size(source, expected, limit)
            self._store.check_room(expected)
        size = 0
        with disk_errors(), file.open("wb") as out:
            async for chunk in answer.aiter_bytes():
                size += len(chunk)
                self._check_size(source, size, limit)
                out.write(chunk)  # into the page cache; a slow disk is met in the thread that unpacks
        if expected is not None and size < expected:
            raise Truncated(f"{source}: {size} of {expected} bytes came")

    def _check_size(self, source: str, size: int, limit: int) -> None:
        if size > limit:
            raise TdieError(f"{source}: more than {limit} bytes", code="PKG_TOO_LARGE")


def _most_telling(failures: list[TdieError]) -> TdieError:
    """What is wrong with the package itself says more than a source that cannot be reached."""
    return next((f for f in failures if f.code != "PKG_FETCH"), failures[-1])
