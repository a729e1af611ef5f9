"""Secrets that callers show, and which addresses only this machine reaches; standard library only, hosts use it too."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path

from agent.errors import Invalid


class TokenFile:
    """The token in a file, read again when the file changes."""

    def __init__(self, path: Path) -> None:
        """Raises Invalid (TOKEN_FILE) when it cannot be read, is empty, or others may read it."""
        self._path = path
        self._stamp: tuple[int, int] = (0, 0)
        self._token = ""
        self._read()

    def __call__(self) -> str:
        """The token now; the last good one while the file is being replaced."""
        try:
            self._read()
        except Invalid:
            return self._token
        return self._token

    def _read(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._stamp:
                return
            text = self._path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{self._path} cannot be read", code="TOKEN_FILE") from error
        if stat.st_mode & 0o077:
            raise Invalid(f"{self._path} can be read by others", code="TOKEN_FILE", hint="chmod 600")
        if not text:
            raise Invalid(f"{self._path} is empty", code="TOKEN_FILE")
        self._stamp, self._token = stamp, text


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


def same(shown: str, token: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing about either."""
    return hmac.compare_digest(hashlib.sha256(shown.encode()).digest(), hashlib.sha256(token.encode()).digest())
