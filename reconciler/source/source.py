"""Git as the loop uses it: the last good commit stays in force until a better one is seen, and why not is said."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pygit2
import structlog

from agent.clock import Clock, Monotonic, SystemClock
from agent.errors import Missing, Refused, TdieError, Waiting
from agent.wire import PackageRef
from reconciler.model.desired import DesiredState
from reconciler.model.rollback import Rollback
from reconciler.source import watch
from reconciler.source.access import DEFAULT_ACCESS, DEFAULT_LIMITS, Access, FetchLimits, is_local
from reconciler.source.disk import full_disk
from reconciler.source.fetch import download
from reconciler.source.mirror import Mirror
from reconciler.source.resolve import Resolved, Resolver
from reconciler.source.shelf import Shelf
from reconciler.source.sourced import Sourced
from reconciler.source.walk import Corrupt

log = structlog.get_logger("source")

INTERVAL = 50.0
FIRST_RETRY, LAST_RETRY = 5.0, 300.0
_T = TypeVar("_T")

ByDigest = Callable[[str, str, Path], Awaitable[None]]
"""Digest, name for people, file: the package's archive is in the file. Raises Missing (PACKAGE_MISSING)."""


class GitSource:
    """Follows one ref of one repository. `subdir` is the folder of it that holds the documents.

    `mirror_dir` holds our copy of the repository, `cache_dir` the packages built from it.
    """

    def __init__(
        self,
        url: str,
        ref: str = "main",
        *,
        mirror_dir: Path,
        cache_dir: Path,
        subdir: str = "",
        cluster_name: str | None = None,
        access: Access = DEFAULT_ACCESS,
        limits: FetchLimits = DEFAULT_LIMITS,
        clock: Clock | None = None,
        by_digest: ByDigest | None = None,
        uploads_unknown: bool = False,
        interval: float | None = None,
    ) -> None:
        """`by_digest` writes an uploaded package to a file. `uploads_unknown` as of the Shelf. `interval`: seconds between
        looks, instead of what the Cluster document says."""
        self._interval = interval
        self._by_digest = by_digest
        self._mirror = Mirror(url, ref, mirror_dir, access=access, limits=limits)
        self._shelf = Shelf(cache_dir, uploads_unknown=uploads_unknown)
        self._incoming = cache_dir / "incoming"
        self._cluster_name = cluster_name
        self._resolver = Resolver(self._shelf, cluster_name=cluster_name)
        self._subdir = subdir.strip("/").removeprefix("./")
        self._ref = ref
        self._clock: Clock = clock or SystemClock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="git")
        self._busy = asyncio.Lock()
        self._last = Sourced(None)
        self._in_force = ""  # the commit in force; recorded by an earlier controller, or adopted by this one
        self._accepted = ""  # a tip that a person accepted although history was rewritten
        self._judged = ""  # the tip that `_last` speaks of, once nothing more is to be learned from it
        self._over: Rollback | None = None  # a rollback that a newer commit has ended, whoever may still ask for it
        self._retry = 0.0
        self._closed = False
        self._folder: Path | None = None  # of a repository on this machine
        self._seen: watch.Signature = ()

    @property
    def shown_url(self) -> str:
        """Where Git is read from, without credentials."""
        return self._mirror.shown

    async def look(self, *, fetch: bool = True, rollback: Rollback | None = None) -> Sourced:
        """What is in force now; a bad, missing, empty, rewritten or unreachable commit leaves the last good one in force.

        Under a rollback that is the commit it names, until the tip is a good one that is not quarantined. The same object
        comes back while nothing changed. Without `fetch`, what was fetched last is looked at.
        """
        async with self._busy:
            try:
                await self._on_whole_copy(lambda: self._look(fetch, rollback))
            except TdieError as error:
                self._troubled(error)
            else:
                self._retry = 0.0
            return self._last

    async def _look(self, fetch: bool, rollback: Rollback | None) -> None:
        if rollback is None and self._last.rollback is not None:
            self._last, self._judged = replace(self._last, rollback=None), ""
        elif rollback is not None and rollback not in (self._last.rollback, self._over):
            await self._go_back(rollback)
        if fetch:
            self._seen = await self._signature()
            tip: str | None = await self._run(self._mirror.fetch)
        else:
            tip = await self._run(self._mirror.tip)
        if tip is None:
            return
        if tip != self._judged:
            await self._judge(tip)
        elif self._last.trouble is not None:
            self._last = replace(self._last, commit=tip, trouble=None, since=None)

    async def _judge(self, tip: str) -> None:
        """Adopt the tip, or say why it cannot be in force."""
        rollback = self._last.rollback
        if rollback is not None and tip in rollback.quarantined:
            self._last = Sourced(self._last.desired, tip, rollback=rollback)
        else:
            await self._refuse_rewritten(tip, rollback)
            resolved = await self._resolve(self._resolver, tip)
            if resolved.desired is not None:
                await self._adopt(resolved.desired)
                self._over = rollback
            else:
                self._last = Sourced(self._last.desired, tip, resolved.problems, rollback=rollback)
        self._judged = tip

    async def _go_back(self, rollback: Rollback) -> None:
        """The commit a rollback names is in force; if it cannot be, nothing is, rather than what was rolled back from."""
        if self._in_force != rollback.to or self._last.desired is None:
            self._last = replace(self._last, desired=None)
            await self._resume(rollback.to)
            if self._last.desired is None:
                raise Refused(f"commit {rollback.to[:12]} is not valid any more", code="ROLLBACK_TARGET")
        self._last, self._judged = Sourced(self._last.desired, self._last.commit, rollback=rollback), ""

    async def _refuse_rewritten(self, tip: str, rollback: Rollback | None) -> None:
        if tip == self._in_force:
            return
        old = self._in_force if rollback is None else rollback.reached
        desired = self._last.desired
        allowed = desired is not None and desired.cluster.source.allow_force
        if not old or allowed or tip == self._accepted:
            return
        if not await self._run(lambda: self._mirror.descends(tip, old)):
            text = (
                f"{old[:12]}..{tip[:12]}: history was rewritten; the commit in force stays until this one is accepted"
            )
            if self._last.commit != tip or self._last.problems:
                self._last = replace(self._last, commit=tip, problems=())
            self._judged = ""
            raise Refused(
                text,
                code="GIT_NON_FF",
                hint=f"accept it: tdie accept {tip[:12]}; or set spec.source.allowForce before rewriting",
            )

    async def _adopt(self, desired: DesiredState) -> None:
        await self._run(lambda: self._mirror.keep(desired.commit))
        self._in_force, self._accepted = desired.commit, ""
        self._last = Sourced(desired, desired.commit)

    def _troubled(self, error: TdieError) -> None:
        """The same trouble again keeps its beginning, and its object when nothing at all is new."""
        last, self._retry = self._last, min(LAST_RETRY, max(FIRST_RETRY, self._retry * 2))
        same = last.trouble is not None and last.trouble.code == error.code
        if same and str(last.trouble) == str(error):
            return
        since: Monotonic | None = last.since if same else self._clock.now()
        self._last = replace(last, trouble=error, since=since)

    async def changed(self) -> None:
        """Returns when the ref may have moved: a push to a local repository at once, else after the interval or back-off."""
        desired = self._last.desired
        wait = self._retry or self._interval or (desired.cluster.sync.interval if desired is not None else INTERVAL)
        try:
            async with asyncio.timeout(max(1.0, wait)):
                if self._folder is None:
                    await asyncio.Event().wait()
                else:
                    self._seen = await watch.until_moved(self._folder, self._ref, self._seen)
        except TimeoutError:
            return

    async def load(self, revision: str) -> Sourced:
        """What any revision asks for (`HEAD~1`, a branch, a commit id), without touching what is in force.

        Raises TdieError (GIT_REF_MISSING, GIT_UNREACHABLE, PKG_FETCH, …).
        """
        async with self._busy:
            return await self._on_whole_copy(lambda: self._load(revision))

    async def _load(self, revision: str) -> Sourced:
        commit = await self._run(lambda: self._mirror.resolve(revision))
        desired = self._last.desired
        if desired is not None and desired.commit == commit:
            return Sourced(desired, commit)
        # A resolver of its own: the one in force stays warm for the next push.
        resolved = await self._resolve(Resolver(self._shelf, cluster_name=self._cluster_name), commit)
        return Sourced(resolved.desired, commit, resolved.problems)

    async def is_earlier(self, commit: str, than: str) -> bool:
        """Whether a commit is part of the history of another one."""
        async with self._busy:
            return commit != than and await self._run(lambda: self._mirror.descends(than, commit))

    async def start_from(self, commit: str) -> None:
        """The commit that was in force under an earlier controller is in force again, if it can be read.

        If it cannot, nothing is in force, but history must still go forward from it.
        """
        async with self._busy:
            if commit == self._in_force:
                return
            self._in_force, self._judged = commit, ""
            try:
                await self._on_whole_copy(lambda: self._resume(commit))
            except TdieError as error:
                self._troubled(error)

    async def _resume(self, commit: str) -> None:
        if not await self._run(lambda: self._mirror.has(commit)):
            await self._run(self._mirror.fetch)
        resolved = await self._resolve(self._resolver, commit)
        if resolved.desired is not None:
            await self._adopt(resolved.desired)

    async def accept(self, revision: str) -> str:
        """A person accepts this tip although history was rewritten; the next look adopts it if it is good.

        Refused (NOTHING_TO_ACCEPT) unless it is what is held as rewritten. Returns the commit.
        """
        async with self._busy:
            trouble, tip = self._last.trouble, self._last.commit
            held = trouble is not None and trouble.code == "GIT_NON_FF"
            if not held or not tip.startswith(revision) or len(revision) < 7:
                what = f"it is {tip[:12]} that is held" if held else "nothing is held because history was rewritten"
                raise Refused(f"'{revision}' is not held: {what}", code="NOTHING_TO_ACCEPT")
            self._accepted, self._judged = tip, ""
            return tip

    def package_zip(self, digest: str) -> Path | None:
        """The packed bytes of a content digest, if this controller has built or fetched them."""
        return self._shelf.zip_path(digest)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A folder for an archive on its way in; gone afterwards."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._incoming) as folder:
            yield Path(folder)

    async def take(self, archive: Path) -> PackageRef:
        """An uploaded archive is a package of this controller. Raises Invalid (PKG_…)."""
        return await self._run(lambda: self._shelf.take(archive))

    async def copy(self, digest: str, what: str) -> None:
        """The package of this digest is here, from whoever has it. Raises Missing (PACKAGE_MISSING) when nobody answers."""
        if self._shelf.zip_path(digest) is not None:
            return
        if self._by_digest is None:
            raise Missing(f"{what} ({digest[:12]}…) was uploaded elsewhere", code="PACKAGE_MISSING")
        with self.incoming() as folder:
            file = folder / "package.zip"
            await self._by_digest(digest, what, file)
            await self._run(lambda: self._shelf.take(file, digest))

    async def close(self) -> None:
        """Files are closed and the worker thread ends, at the latest after the timeouts of a fetch under way."""
        async with self._busy:
            if self._closed:
                return
            self._closed = True
            await self._run(self._mirror.close)
            self._worker.shutdown(wait=False)

    async def _resolve(self, resolver: Resolver, commit: str) -> Resolved:
        """The commit resolved; packages at URLs are fetched on the way."""
        resolved = await self._run(lambda: self._resolved(resolver, commit))
        if not resolved.needed:
            return resolved
        for needed in resolved.needed:
            if needed.digest:
                await self.copy(needed.digest, needed.name)
            else:
                await download(needed, self._shelf.download_path(needed.sha256))
        return await self._run(lambda: self._resolved(resolver, commit))

    def _resolved(self, resolver: Resolver, commit: str) -> Resolved:
        info, tree = self._mirror.read(commit, self._subdir)
        return resolver.resolve(tree, info)

    async def _signature(self) -> watch.Signature:
        if self._folder is None and is_local(self._mirror.url):
            self._folder = await asyncio.to_thread(watch.git_folder, Path(self._mirror.url))
        if self._folder is None:
            return ()
        return await asyncio.to_thread(watch.signature, self._folder, self._ref)

    async def _on_whole_copy(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """The result of work on our copy of the repository; where that turns out damaged, of the same work on a new one."""
        try:
            return await work()
        except Corrupt as error:
            log.warning("our copy of the repository is damaged, it is fetched anew", error=str(error))
            await self._run(self._mirror.rebuild)
            return await work()  # if that does not help, the origin is damaged

    async def _run(self, work: Callable[[], _T]) -> _T:
        """The result of blocking work, with foreign errors turned into ours."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except pygit2.GitError as error:
            raise full_disk(error) or Corrupt(str(error)) from error
        except OSError as error:
            raise full_disk(error) or Waiting(
                f"{error.filename or 'disk'}: {error.strerror or error}", code="SOURCE_IO"
            ) from error
