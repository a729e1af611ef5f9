"""Secrets are named in Git and read on the machine: `env:NAME` or `file:PATH`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.sdk.errors import SettingsError

_REFERENCE = re.compile(r"(env|file):(.+)", re.DOTALL)
MAX_BYTES = 1 << 20


def resolved(text: str, key: str, where: str = "") -> str:
    """The value a reference points at, one trailing newline taken off; any other text as it is.

    SettingsError names the setting and the reference, never the value.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return text
    kind, name = found.groups()
    if kind == "env":
        if (value := os.environ.get(name)) is None:
            raise SettingsError(
                f"the setting {key!r} names the variable {name}, which is not set", code="SECRET_MISSING", where=where
            )
        return value
    try:
        with Path(name).expanduser().open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SettingsError(f"the setting {key!r} names {name}, which is larger than a secret", where=where)
        return data.decode().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(
            f"the setting {key!r} names {name}, which cannot be read: {why}", code="SECRET_MISSING", where=where
        ) from error
