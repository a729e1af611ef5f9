"""Secrets that callers show, and which addresses only this machine reaches; standard library only, hosts use it too."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from agent.errors import Invalid

T = TypeVar("T")


class PrivateFile(Generic[T]):
    """What a file that only we may read says, read again when it changes."""

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        """Raises Invalid (TOKEN_FILE) when it cannot be read, makes no sense, or others may read it."""
        self._path, self._parse = path, parse
        self._stamp, self._value = self._read()

    def __call__(self) -> T:
        """What it says now; the last good value while the file is being replaced."""
        try:
            self._stamp, self._value = self._read(self._stamp)
        except Invalid:
            return self._value
        return self._value

    def _read(self, known: tuple[int, int] = (0, 0)) -> tuple[tuple[int, int], T]:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == known:
                return known, self._value
            text = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{self._path} cannot be read", code="TOKEN_FILE") from error
        if stat.st_mode & 0o077:
            raise Invalid(f"{self._path} can be read by others", code="TOKEN_FILE", hint="chmod 600")
        try:
            return stamp, self._parse(text)
        except ValueError as error:
            raise Invalid(f"{self._path}: {error}", code="TOKEN_FILE") from error


class TokenFile(PrivateFile[str]):
    """The token in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _token)


def _token(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def check_bind(host: str, has_token: bool) -> None:
    """Raises Invalid (OPEN_BIND) for an address that others can reach while nobody would be asked for a token."""
    if not has_token and not is_loopback(host):
        raise Invalid(
            f"{host} can be reached from other machines", code="OPEN_BIND", hint="give a token file, or bind 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
