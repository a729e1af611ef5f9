"""Packing: the same content gives the same bytes, on any machine and with any zlib."""

from __future__ import annotations

import io
import os
import secrets
import zipfile
from pathlib import Path

from agent.packages.digest import Content

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment a zip can express
_UNIX = 3


def pack(content: Content) -> bytes:
    """A stored (uncompressed) zip of the content, files in path order, without dates or owners."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, (data, executable) in sorted(content.items()):
            entry = zipfile.ZipInfo(path, _EPOCH)
            entry.create_system = _UNIX
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def write_pack(content: Content, target: Path) -> Path:
    """The packed content at `target`, which appears only once it is complete and on disk."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as stream:
            stream.write(pack(content))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target
