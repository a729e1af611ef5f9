"""Packages of a commit as resolved bytes: built once, named by content digest, kept where the controller can serve them."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent.components import README
from agent.errors import Invalid, TdieError, Waiting
from agent.packages.archive import checked, unpack
from agent.packages.dependencies import check_requirements
from agent.packages.digest import Content, content_digest, read_folder
from agent.packages.manifest import FILE_NAME, Manifest, check_layout, parse_manifest
from agent.packages.pack import write_pack
from agent.wire import PackageRef
from reconciler import components
from reconciler.model.documents import PackageBody
from reconciler.model.settings import SettingsRules
from reconciler.model.wording import meant
from reconciler.source.walk import MAX_PACKAGE, PLAIN, PROGRAM, Tree


@dataclass(frozen=True, slots=True, eq=False)
class Packaged:
    """A package whose bytes are known. The same bytes under the same name are the same object."""

    ref: PackageRef
    manifest: Manifest
    rules: SettingsRules


@dataclass(frozen=True, slots=True, order=True)
class Download:
    """Bytes that must be fetched before a commit can be resolved: from a URL, or by content digest from who has them."""

    url: str
    sha256: str
    digest: str = ""
    name: str = ""  # name@version, for people


class Needed(Exception):
    """A package is not on this machine yet."""

    def __init__(self, download: Download) -> None:
        super().__init__(download.url or download.digest)
        self.download = download


class Shelf:
    """The packages of one controller, below a folder of its own. Used by one thread at a time."""

    def __init__(self, folder: Path, *, uploads_unknown: bool = False) -> None:
        """`uploads_unknown`: nobody can be asked for uploads, so nothing is said of documents that use one."""
        self.uploads_unknown = uploads_unknown
        self._zips = folder / "packages"
        self._downloads = folder / "downloads"
        for made in (self._zips, self._downloads):
            made.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[str, ...], Packaged | TdieError] = {}

    def get(self, name: str, body: PackageBody, tree: Tree) -> Packaged:
        """The package a document names. Raises Invalid (PKG_…, UNSUPPORTED_TREE_ENTRY), or Needed when it must be fetched."""
        source = body.source
        if source.path is not None:
            path = source.path
            folder = tree.folder(path)
            if folder is None:
                raise Invalid(f"there is no folder '{path}' in this commit", code="PKG_MISSING")
            return self._remembered((name, body.version, "path", folder), lambda: _tree_content(tree, path))
        if source.builtin is not None:
            builtin = source.builtin
            return self._remembered((name, body.version, "builtin", builtin), lambda: _builtin_content(builtin))
        if source.digest is not None:
            digest = source.digest
            key = (name, body.version, "digest", digest)
            return self._remembered(key, lambda: self._uploaded(digest, f"{name}@{body.version}"))
        url, sha256 = source.url or "", source.sha256 or ""
        return self._remembered((name, body.version, "zip", sha256), lambda: self._zip_content(url, sha256))

    def take(self, archive: Path, digest: str | None = None) -> PackageRef:
        """An uploaded or copied archive is here under its content digest. Raises Invalid (PKG_…) and keeps nothing then."""
        with tempfile.TemporaryDirectory(dir=self._downloads, prefix=".unpack-") as folder:
            unpack(archive, Path(folder))
            content = read_folder(Path(folder))
        if FILE_NAME not in content:
            raise Invalid(f"there is no {FILE_NAME} in it", code="PKG_MANIFEST")
        got = content_digest(content)
        if digest is not None and got != digest:
            raise Invalid(f"want={digest} got={got}", code="PKG_DIGEST_MISMATCH")
        manifest = parse_manifest(content[FILE_NAME][0])
        return self._made(manifest.name, manifest.version, content, None).ref

    def zip_path(self, digest: str) -> Path | None:
        """Where the packed bytes of a content digest are, if they are here."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            return None
        path = self._zips / f"{digest}.zip"
        return path if path.is_file() else None

    def download_path(self, sha256: str) -> Path:
        """Where fetched bytes belong; whoever writes them has checked their sha256."""
        return self._downloads / sha256

    def _remembered(self, key: tuple[str, ...], content: Callable[[], Content]) -> Packaged:
        found = self._known.get(key)
        if found is None or (isinstance(found, Packaged) and self.zip_path(found.ref.digest) is None):
            try:
                found = self._made(key[0], key[1], content(), found)
            except Waiting:
                raise  # says nothing of the package: it could not be read this time
            except TdieError as error:
                found = error
            self._known[key] = found
        if isinstance(found, TdieError):
            raise found
        return found

    def _made(self, name: str, version: str, content: Content, before: Packaged | TdieError | None) -> Packaged:
        if FILE_NAME not in content:
            raise Invalid(f"there is no {FILE_NAME} in it", code="PKG_MANIFEST")
        manifest = parse_manifest(content[FILE_NAME][0])
        if (manifest.name, manifest.version) != (name, version):
            got = f"{manifest.name}@{manifest.version}"
            raise Invalid(f"want={name}@{version} got={got}: document and manifest must agree", code="PKG_IDENTITY")
        check_layout(manifest, content)
        check_requirements(manifest.dependencies)
        try:
            rules = SettingsRules(manifest)
        except ValueError as error:
            raise Invalid(str(error), code="PKG_SCHEMA") from error
        digest = content_digest(content)
        if self.zip_path(digest) is None:
            _check_zip_rules(write_pack(content, self._zips / f"{digest}.zip"))
        if isinstance(before, Packaged) and before.ref.digest == digest:
            return before
        return Packaged(PackageRef(name=name, version=version, digest=digest), manifest, rules)

    def _uploaded(self, digest: str, what: str) -> Content:
        archive = self.zip_path(digest)
        if archive is None:
            raise Needed(Download("", "", digest, what))
        with tempfile.TemporaryDirectory(dir=self._downloads, prefix=".unpack-") as folder:
            unpack(archive, Path(folder))
            content = read_folder(Path(folder))
        if (got := content_digest(content)) != digest:
            archive.unlink()  # damaged here: somebody else has it
            raise Invalid(f"{what}: want={digest} got={got}", code="PKG_DIGEST_MISMATCH")
        return content

    def _zip_content(self, url: str, sha256: str) -> Content:
        archive = self.download_path(sha256)
        if not archive.is_file():
            if (local := local_path(url)) is None:
                raise Needed(Download(url, sha256))
            _copy_checked(local, sha256, archive)
        with tempfile.TemporaryDirectory(dir=self._downloads, prefix=".unpack-") as folder:
            unpack(archive, Path(folder))
            return read_folder(Path(folder))


def local_path(url: str) -> Path | None:
    """The file that a file:// URL or an absolute path names; None for anything that must be fetched."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return Path(url) if url.startswith("/") else None


def _copy_checked(source: Path, sha256: str, target: Path) -> None:
    try:
        if source.stat().st_size > MAX_PACKAGE:
            raise Invalid(f"{source} is larger than {MAX_PACKAGE} bytes", code="PKG_TOO_LARGE")
        data = source.read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {source}: {error.strerror}", code="PKG_FETCH") from error
    store_checked(data, sha256, target)


def store_checked(data: bytes, sha256: str, target: Path) -> None:
    """The bytes are at `target` if they are the ones wanted; Invalid (PKG_DIGEST_MISMATCH) if not."""
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise Invalid(f"want={sha256} got={got}", code="PKG_DIGEST_MISMATCH")
    temporary = target.with_name(f".{target.name}.part")
    temporary.write_bytes(data)
    temporary.replace(target)


def _tree_content(tree: Tree, path: str) -> Content:
    found: dict[str, tuple[bytes, bool]] = {}
    for name, (entry, data) in tree.content(path).items():
        if entry.kind not in (PLAIN, PROGRAM):
            raise Invalid(f"{path}/{name} is a {entry.kind}", code="UNSUPPORTED_TREE_ENTRY")
        found[name] = data, entry.kind == PROGRAM
    return found


def _builtin_content(name: str) -> Mapping[str, tuple[bytes, bool]]:
    if name not in components.names():
        close = meant(name, components.names())
        known = f"did you mean '{close}'?" if close else f"there is {', '.join(components.names())}"
        raise Invalid(f"there is no built-in package '{name}'; {known}", code="PKG_MISSING")
    # The README is for people who read the source: a better sentence must not replace running processes.
    return {path: file for path, file in read_folder(components.folder(name)).items() if path != README}


def _check_zip_rules(archive: Path) -> None:
    """What agents would refuse is refused here, before any of them sees it."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as opened:
            checked(opened)
    except TdieError:
        archive.unlink()
        raise
