"""Tiny wheels, made on the spot: tests of dependencies need no registry."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def wheel(name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()) -> tuple[str, bytes]:
    """(file name, bytes) of a pure wheel."""
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content = {
        **files,
        f"{info}/METADATA": head + "".join(f"Requires-Dist: {each}\n" for each in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return f"{name}-{version}-py3-none-any.whl", made.getvalue()


def wheels_of_installed(requirements: Iterable[str], into: Path) -> None:
    """The wheels of installed distributions, and of all that they need, made again from their files into a folder."""
    wanted, done = [Requirement(text) for text in requirements], set[str]()
    while wanted:
        requirement = wanted.pop()
        found = distribution(requirement.name)
        if found.name in done:
            continue
        done.add(found.name)
        (into / _file_name(found)).write_bytes(_packed(found))
        for text in found.requires or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)


def _file_name(found: Distribution) -> str:
    tags = [
        line.removeprefix("Tag: ") for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag: ")
    ]
    parts = [sorted(set(column)) for column in zip(*(tag.split("-") for tag in tags), strict=True)]
    return "-".join([found.name.replace("-", "_"), found.version, *(".".join(part) for part in parts)]) + ".whl"


def _packed(found: Distribution) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path in found.files or ():
            if ".." not in path.parts and "__pycache__" not in path.parts and path.name not in ("RECORD", "INSTALLER"):
                archive.write(path.locate(), str(path))
        info = next(path.parts[0] for path in found.files or () if path.parts[0].endswith(".dist-info"))
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in archive.namelist()))
    return made.getvalue()
