"""Installed packages on disk: one read-only folder per content digest, which appears by one rename and never changes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import Invalid, Missing, TdieError, Waiting
from agent.packages import archive
from agent.packages.archive import DEFAULT_LIMITS, Limits
from agent.packages.dependencies import check_requirements
from agent.packages.digest import ContentRow, read_folder, rows_digest
from agent.packages.manifest import FILE_NAME, Manifest, check_layout, parse_manifest
from agent.packages.pack import pack
from agent.packages.protocol import Installed
from agent.wire import PackageRef

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
    ) -> None:
        """`disk` tells (total, free) bytes of the file system of a path."""
        self.root = root
        self.limits = limits
        self._disk = disk or _disk
        self._installed: dict[str, Installed] = {}

    def open(self) -> tuple[str, ...]:
        """Read what is installed and collect what a crash left half-done; one line for each folder that makes no sense."""
        self.root.mkdir(parents=True, exist_ok=True)
        unreadable = []
        for entry in sorted(self.root.iterdir()):
            if entry.name.startswith(_PARTIAL):
                remove_tree(entry)
                continue
            try:
                self._installed[entry.name] = self._read(entry)
            except (OSError, TdieError) as error:
                unreadable.append(f"{entry.name[:12]}: {error}")
        return tuple(unreadable)

    def installed(self) -> dict[str, Installed]:
        """What is installed, by digest."""
        return dict(self._installed)

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A fresh folder beside the packages for half-done work; gone afterwards, whatever happens."""
        path = self.root / f"{_PARTIAL}{uuid.uuid4().hex}"
        try:
            with disk_errors():
                path.mkdir()
                yield path
        finally:
            remove_tree(path)

    def check_room(self, need: int) -> None:
        """Raises DiskFull when writing `need` bytes would leave less than 5 % free."""
        total, free = self._disk(self.root)
        if free - need < total * MIN_FREE:
            raise DiskFull(f"need={need} free={free} (5 % of {total} must stay free)", where=str(self.root.name))

    def add(self, file: Path, want: PackageRef) -> Installed:
        """The package of this archive is installed, its content and identity verified before it can be used."""
        if want.digest in self._installed:
            return self._installed[want.digest]
        with self.partial() as into:
            self.check_room(file.stat().st_size)
            rows = archive.unpack(file, into, self.limits)
            got = rows_digest(rows)
            if got != want.digest:
                raise Invalid(f"{want}: want={want.digest} got={got}", code="PKG_DIGEST_MISMATCH")
            self._verify(into, rows, want)
            _seal(into)
            target = self.root / want.digest
            into.rename(target)
            _sync(self.root)
        self._installed[want.digest] = self._read(target)
        return self._installed[want.digest]

    def remove(self, digest: str) -> None:
        """Gone afterwards; by a rename first, so that a crash leaves nothing that looks installed."""
        self._installed.pop(digest, None)
        target = self.root / digest
        if target.is_dir():
            doomed = self.root / f"{_PARTIAL}{uuid.uuid4().hex}"
            target.chmod(0o755)
            target.rename(doomed)
            remove_tree(doomed)

    def archive(self, digest: str) -> bytes:
        """The package as an archive, for other machines."""
        if digest not in self._installed:
            raise Missing(f"package {digest} is not installed here", code="PACKAGE_MISSING")
        return pack(read_folder(self.root / digest))

    def manifest(self, digest: str) -> Manifest:
        """What an installed package says of itself."""
        if digest not in self._installed:
            raise Missing(f"package {digest} is not installed here", code="PACKAGE_MISSING")
        return parse_manifest((self.root / digest / FILE_NAME).read_bytes())

    def _verify(self, folder: Path, rows: tuple[ContentRow, ...], want: PackageRef) -> None:
        paths = [row.path for row in rows]
        if FILE_NAME not in paths:
            raise Invalid(f"{want}: there is no {FILE_NAME}", code="PKG_MANIFEST")
        manifest = parse_manifest((folder / FILE_NAME).read_bytes())
        if (manifest.name, manifest.version) != (want.name, want.version):
            raise Invalid(f"want={want} got={manifest.name}@{manifest.version}", code="PKG_IDENTITY")
        check_layout(manifest, paths)
        check_requirements(manifest.dependencies)

    def _read(self, folder: Path) -> Installed:
        manifest = parse_manifest((folder / FILE_NAME).read_bytes())
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
