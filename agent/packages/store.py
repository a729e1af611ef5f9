"""Installed packages on disk: one read-only folder per content digest, which appears by one rename and never changes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from agent.errors import Invalid, Missing, TdieError, Waiting
from agent.packages import archive
from agent.packages.archive import DEFAULT_LIMITS, Limits
from agent.packages.dependencies import check_requirements
from agent.packages.digest import ContentRow, folder_digest, read_folder, rows_digest
from agent.packages.manifest import FILE_NAME, Manifest, check_layout, parse_manifest
from agent.packages.pack import pack
from agent.packages.protocol import Installed
from agent.wire import PackageRef

log = structlog.get_logger("packages")

MIN_FREE = 0.05  # of the file system; installs are refused below
_PARTIAL = ".partial-"


class DiskFull(Waiting):
    """There is not enough room; the old packages are untouched."""

    code = "DISK_FULL"
    status = 507


class PackageStore:
    """The folder `packages/` of one machine. Blocking; callers use a thread for everything but `installed`."""

    def __init__(
        self,
        root: Path,
        *,
        limits: Limits = DEFAULT_LIMITS,
        disk: Callable[[Path], tuple[int, int]] | None = None,
        manifest_name: str = FILE_NAME,
    ) -> None:
        """`disk` tells (total, free) bytes of the file system of a path; `manifest.json` is read under another name too."""
        self.root = root
        self.limits = limits
        self._manifest_names = (manifest_name, FILE_NAME)
        self._corrupt: set[str] = set()
        self._disk = disk or _disk
        self._installed: dict[str, Installed] = {}
        self._doomed: set[Path] = set()  # what is to be deleted, and could not be yet

    def open(self) -> tuple[str, ...]:
        """Read what is installed and collect what a crash left half-done; one line for each folder that makes no sense."""
        with disk_errors():
            self.root.mkdir(parents=True, exist_ok=True)
        unreadable = []
        for entry in sorted(self.root.iterdir()):
            if entry.name.startswith(_PARTIAL):
                self._discard(entry)
                continue
            try:
                self._installed[entry.name] = self._read(entry)
            except (OSError, TdieError) as error:
                unreadable.append(f"{entry.name[:12]}: {error}")
        return tuple(unreadable)

    def look_again(self) -> None:
        """Packages that another process of this machine installed are known, those it removed are not."""
        there = {entry.name for entry in self.root.iterdir() if not entry.name.startswith(".")}
        for digest in there - self._installed.keys() - self._corrupt:
            with suppress(OSError, TdieError):  # a folder that makes no sense was reported when the store was opened
                self._installed[digest] = self._read(self.root / digest)
        for digest in self._installed.keys() - there:
            del self._installed[digest]

    def installed(self) -> dict[str, Installed]:
        """What is installed, by digest; without what was found to be damaged."""
        return dict(self._installed)

    def verify(self, digest: str) -> bool:
        """Whether the bytes on disk are still what the digest says. What is not counts as not installed from now on."""
        folder = self.root / digest
        try:
            whole = folder_digest(folder) == digest
        except (OSError, TdieError):
            whole = not folder.is_dir() and digest not in self._installed
        if not whole and self._installed.pop(digest, None) is not None:
            self._corrupt.add(digest)
        return whole

    @property
    def corrupt(self) -> frozenset[str]:
        """Packages that were found to be damaged and are not healed yet."""
        return frozenset(self._corrupt)

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A fresh folder beside the packages for half-done work; gone afterwards, or as soon as the disk lets it go."""
        path = self.root / f"{_PARTIAL}{uuid.uuid4().hex}"
        try:
            with disk_errors():
                path.mkdir()
                yield path
        finally:
            self._discard(path)

    def _discard(self, path: Path) -> None:
        """The folder is gone, or with what earlier could not be deleted is tried again the next time."""
        self._doomed.add(path)
        for doomed in tuple(self._doomed):
            try:
                remove_tree(doomed)
            except OSError as error:
                log.warning("cannot be deleted now", folder=doomed.name, error=error.strerror)
            else:
                self._doomed.discard(doomed)

    def check_room(self, need: int) -> None:
        """Raises DiskFull when writing `need` bytes would leave less than 5 % free."""
        total, free = self._disk(self.root)
        if free - need < total * MIN_FREE:
            raise DiskFull(f"need={need} free={free} (5 % of {total} must stay free)", where=str(self.root.name))

    def add(self, file: Path, want: PackageRef) -> Installed:
        """The package of this archive is installed, its content and identity verified before it can be used."""
        if want.digest in self._installed:
            return self._installed[want.digest]
        with self._staged(file) as (staged, rows):
            got = rows_digest(rows)
            if got != want.digest:
                raise Invalid(f"{want}: want={want.digest} got={got}", code="PKG_DIGEST_MISMATCH")
            found = self._checked(staged, rows, str(want))
            if (found.name, found.version) != (want.name, want.version):
                raise Invalid(f"want={want} got={found.name}@{found.version}", code="PKG_IDENTITY")
            return self._put(staged, got)

    def take(self, file: Path, check: Callable[[PackageRef], None]) -> Installed:
        """The package of this archive is installed under the name it gives itself, if `check` raises nothing."""
        with self._staged(file) as (staged, rows):
            digest = rows_digest(rows)
            found = self._checked(staged, rows, "the package")
            check(PackageRef(name=found.name, version=found.version, digest=digest))
            return self._installed[digest] if digest in self._installed else self._put(staged, digest)

    @contextmanager
    def _staged(self, file: Path) -> Iterator[tuple[Path, tuple[ContentRow, ...]]]:
        with self.partial() as folder:
            self.check_room(file.stat().st_size)
            yield folder, archive.unpack(file, folder, self.limits)

    def _put(self, staged: Path, digest: str) -> Installed:
        """The staged folder takes its place, also that of a damaged one."""
        _seal(staged)
        target = self.root / digest
        if target.is_dir():
            self.remove(digest)
        staged.rename(target)
        _sync(self.root)
        self._corrupt.discard(digest)
        self._installed[digest] = self._read(target)
        return self._installed[digest]

    def remove(self, digest: str) -> None:
        """Gone afterwards; by a rename first, so that a crash leaves nothing that looks installed."""
        target, doomed = self.root / digest, self.root / f"{_PARTIAL}{uuid.uuid4().hex}"
        there = target.is_dir()
        if there:
            with disk_errors():
                target.chmod(0o755)
                target.rename(doomed)
        self._installed.pop(digest, None)
        self._corrupt.discard(digest)
        if there:
            self._discard(doomed)

    def archive(self, digest: str) -> bytes:
        """The package as an archive, for other machines."""
        if digest not in self._installed:
            raise Missing(f"package {digest} is not installed here", code="PACKAGE_MISSING")
        return pack(read_folder(self.root / digest))

    def manifest(self, digest: str) -> Manifest:
        """What an installed package says of itself."""
        if digest not in self._installed:
            raise Missing(f"package {digest} is not installed here", code="PACKAGE_MISSING")
        return self._manifest(self.root / digest)

    def _checked(self, folder: Path, rows: tuple[ContentRow, ...], what: str) -> Manifest:
        paths = [row.path for row in rows]
        if not set(self._manifest_names) & set(paths):
            raise Invalid(f"{what}: there is no {self._manifest_names[0]}", code="PKG_MANIFEST")
        manifest = self._manifest(folder)
        check_layout(manifest, paths)
        check_requirements(manifest.dependencies)
        return manifest

    def _manifest(self, folder: Path) -> Manifest:
        file = next((f for name in self._manifest_names if (f := folder / name).is_file()), folder / FILE_NAME)
        return parse_manifest(file.read_bytes())

    def _read(self, folder: Path) -> Installed:
        manifest = self._manifest(folder)
        return Installed(
            package=PackageRef(name=manifest.name, version=manifest.version, digest=folder.name),
            content_root=str((folder / manifest.content_root).absolute()),
            runtime=manifest.runtime,
            component_type=manifest.component_type or "",
            command=manifest.command,
            dependencies=manifest.dependencies,
            installed_at=folder.stat().st_mtime,
        )


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turns a full or failing disk into one of our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"cannot write: {error.strerror}") from error
        raise Waiting(f"cannot write: {error.strerror}", code="DISK_ERROR") from error


def _disk(path: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(path)
    return usage.total, usage.free


def _seal(root: Path) -> None:
    """Everything below is read-only and on disk; the folder itself stays writable until it is renamed."""
    for folder, _, _ in os.walk(root, topdown=False):
        _sync(Path(folder))
        if Path(folder) != root:
            Path(folder).chmod(0o555)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Delete a folder of ours, also when it is sealed; links are removed, never followed."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        mode = stat.S_IMODE(os.lstat(folder).st_mode)
        os.chmod(folder, mode | 0o700)
    shutil.rmtree(path)
