"""PUBLIC: built-in packages. Each is a folder like any other package: manifest.json and content/, and a README.md for people.

`versions.json` holds the content digest each version had; a test fails when content changes and its version does not.
After raising a version: `python -m agent.components` writes the file anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from agent.errors import Missing

HERE = Path(__file__).parent
VERSIONS = "versions.json"
README = "README.md"  # of a package; not packed


def names(root: Path = HERE) -> tuple[str, ...]:
    """The built-in packages below a folder, sorted."""
    return tuple(sorted(path.parent.name for path in root.glob("*/manifest.json")))


def folder(name: str, root: Path = HERE) -> Path:
    """The folder of a built-in package. Missing names those there are."""
    if name not in names(root):
        raise Missing(f"there is no built-in package {name!r}", code="BUILTIN_UNKNOWN", hint=", ".join(names(root)))
    return root / name


def content_digest(name: str, root: Path = HERE) -> str:
    """Hex sha256 over path, executable bit, size and sha256 of every packed file of a built-in package."""
    whole = hashlib.sha256()
    top = folder(name, root)
    for path in sorted(p for p in top.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if path == top / README:
            continue
        data = path.read_bytes()
        executable = bool(path.stat().st_mode & 0o100)
        line = f"{path.relative_to(top).as_posix()} {int(executable)} {len(data)} {hashlib.sha256(data).hexdigest()}\n"
        whole.update(line.encode())
    return whole.hexdigest()
