"""Tiny wheels, made on the spot: tests of dependencies need no registry."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence


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
