"""A package as the body of a request: multipart/form-data with one file, or the raw zip."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from agent.errors import Invalid, TdieError
from agent.packages.store import disk_errors

RAW = frozenset({"application/zip", "application/x-zip-compressed", "application/octet-stream"})
MULTIPART_EXTRA = 1 << 16  # bytes around a file in a form
FIELDS = 8  # besides the file

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"package": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
"""How the two forms are described."""


class WrongMedia(Invalid):
    """The body is neither of the two forms a package may come in."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


async def receive(request: Request, folder: Path, limit: int) -> Path:
    """The uploaded archive as a file below `folder`. Raises WrongMedia, Invalid (UPLOAD, PKG_TOO_LARGE), DiskFull."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    target = folder / "upload.zip"
    try:
        if kind == "multipart/form-data":
            size = await _from_form(request, target)
        elif kind in RAW:
            size = await _from_stream(request, target, limit)
        else:
            raise WrongMedia(f"a package comes as multipart/form-data or application/zip, not as '{kind[:80]}'")
    except ClientDisconnect as error:  # also how the limit of the whole body shows
        raise Invalid("the upload ended early", code="UPLOAD") from error
    if size == 0:
        raise Invalid("the upload is empty", code="UPLOAD")
    if size > limit:
        raise TooLarge(f"{size} bytes, at most {limit} are taken")
    return target


class TooLarge(TdieError):
    """The archive is larger than any package may be."""

    code = "PKG_TOO_LARGE"
    status = 413


async def _from_form(request: Request, target: Path) -> int:
    try:
        async with request.form(max_files=1, max_fields=FIELDS) as form:
            file = next((part for part in form.values() if isinstance(part, UploadFile)), None)
            if file is None:
                raise Invalid("the form has no file", code="UPLOAD", hint="-F package=@package.zip")
            return await asyncio.to_thread(_copied, file, target)
    except (MultiPartException, HTTPException) as error:  # which of them depends on who serves the request
        text = error.message if isinstance(error, MultiPartException) else error.detail
        raise Invalid(f"the form cannot be read: {text}", code="UPLOAD") from error


def _copied(file: UploadFile, target: Path) -> int:
    with disk_errors(), target.open("wb") as out:
        shutil.copyfileobj(file.file, out, 1 << 20)
        return out.tell()


async def _from_stream(request: Request, target: Path, limit: int) -> int:
    size = 0
    with disk_errors(), target.open("wb") as out:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"more than {limit} bytes")
            out.write(chunk)  # into the page cache
    return size
