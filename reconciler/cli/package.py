"""`tdie package`: make, look at, check and upload packages, by the rules that agents apply."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from zipfile import ZipFile

from cyclopts import App, Parameter

from agent.errors import Invalid, Missing
from agent.packages.digest import content_rows, read_folder
from agent.packages.manifest import FILE_NAME, Manifest, parse_manifest
from agent.packages.pack import write_pack
from agent.wire import PackageRef
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, say, say_json, table

package = App(name="package", help="Make, look at, check and upload packages.")
app.command(package)


@dataclass(frozen=True, slots=True)
class Found:
    """A package that keeps all rules, and its archive in the form in which it is stored."""

    ref: PackageRef
    manifest: Manifest
    archive: Path


@package.command
def build(folder: Path = Path("."), *, out: Annotated[Path | None, Parameter(name=["--out", "-O"])] = None) -> int:
    """Pack a folder with a manifest.json; the same content gives the same bytes on any machine.

    Parameters
    ----------
    folder
        The package: manifest.json and the content root.
    out
        The zip to write; default is NAME-VERSION.zip here.
    """
    with _found(folder) as found:
        target = out or Path(f"{found.ref.name}-{found.ref.version}.zip")
        target.write_bytes(found.archive.read_bytes())
    say(f"{found.ref}  {target}\ndigest {found.ref.digest}")
    return 0


@package.command
def inspect(path: Path = Path("."), *, output: Output = "text") -> int:
    """What is in a package: its manifest, its files and its digest.

    Parameters
    ----------
    path
        A folder or a zip.
    """
    with _found(path) as found:
        document = _document(found)
    if output == "json":
        say_json(document)
        return 0
    manifest = found.manifest
    lines = [
        f"{found.ref}  {manifest.description}".rstrip(),
        f"  digest        {found.ref.digest}",
        f"  runs          {manifest.component_type or ' '.join(manifest.command)}",
        f"  dependencies  {', '.join(manifest.dependencies) or 'none'}",
        f"  settings      {', '.join(_settings(manifest)) or 'none declared'}",
        "",
        *table([[f["path"], str(f["size"]), "x" if f["executable"] else ""] for f in document["files"]],
               ["FILE", "BYTES", "PROGRAM"]),
    ]  # fmt: skip
    say("\n".join(lines))
    return 0


@package.command
def verify(path: Path = Path("."), *, digest: str | None = None) -> int:
    """Check a package by every rule that agents apply; exit code 1 and the reason when one is broken.

    Parameters
    ----------
    path
        A folder or a zip.
    digest
        What its content digest must be, 64 hex digits.
    """
    with _found(path) as found:
        if digest is not None and digest != found.ref.digest:
            raise Invalid(f"want={digest} got={found.ref.digest}", code="PKG_DIGEST_MISMATCH", where=str(path))
    say(f"{found.ref} is good\ndigest {found.ref.digest}")
    return 0


@package.command
def push(
    path: Path = Path("."),
    *,
    at: At = HERE,
    output: Output = "text",
) -> int:
    """Upload a package to the leader and print the Package document that names it; commit that to use it.

    Parameters
    ----------
    path
        A folder or a zip.
    """

    with _found(path) as found, at.leader() as master:
        answer: dict[str, Any] = master.upload("/packages", found.archive)
    if output == "json":
        say_json(answer)
        return 0
    import yaml

    say(yaml.safe_dump(answer["document"], sort_keys=False).rstrip())
    return 0


@contextmanager
def _found(path: Path) -> Iterator[Found]:
    """The package of a folder or zip, checked; raises TdieError (PKG_…) when a rule is broken."""
    from reconciler.source.shelf import Shelf

    if not path.exists():
        raise Missing(f"there is no {path}")
    with tempfile.TemporaryDirectory(prefix="tdie-package-") as folder:
        work = Path(folder)
        archive = write_pack(read_folder(path), work / "built.zip") if path.is_dir() else path
        shelf = Shelf(work)
        ref = shelf.take(archive)
        stored = shelf.zip_path(ref.digest)
        assert stored is not None  # taken above
        with ZipFile(stored) as opened:
            manifest = parse_manifest(opened.read(FILE_NAME))
        yield Found(ref, manifest, stored)


def _document(found: Found) -> dict[str, Any]:
    with ZipFile(found.archive) as opened:
        content = {e.filename: (opened.read(e), bool(e.external_attr >> 16 & 0o100)) for e in opened.infolist()}
    return {
        "name": found.ref.name,
        "version": found.ref.version,
        "digest": found.ref.digest,
        "manifest": json.loads(found.manifest.model_dump_json(by_alias=True)),
        "files": [row._asdict() for row in content_rows(content)],
    }


def _settings(manifest: Manifest) -> list[str]:
    schema = manifest.settings_schema or {}
    return sorted({*manifest.default_configuration, *schema.get("properties", {})})
