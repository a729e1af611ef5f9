"""How a repository may be reached: which URLs, whose certificates and host keys, with which credentials, for how long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import pygit2
from pygit2.enums import ConfigLevel, CredentialType

from agent.errors import Invalid, Refused, Waiting

_SCP = re.compile(r"[\w.-]+@[\w.-]+:(?!:).+")


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and trust; nothing of it ever appears in an error. Times in seconds.

    `home` is where known_hosts is looked up (`home/.ssh/known_hosts`); system units may have no HOME of their own.
    """

    home: Path | None = None
    username: str = "git"
    token_file: Path | None = None  # https
    ssh_key: Path | None = None  # private key; the public one lies beside it as .pub
    ca_file: Path | None = None
    connect_timeout: float = 10.0
    timeout: float = 20.0  # of any silence of the server


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Caps while objects come in."""

    bytes: int = 2 << 30
    objects: int = 5_000_000


DEFAULT_ACCESS = Access()
DEFAULT_LIMITS = FetchLimits()


def normal_url(url: str) -> str:
    """The URL of a local path, file://, https:// or ssh repository; Invalid (GIT_URL) for anything else."""
    if "://" in url:
        parts = urlsplit(url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return unquote(parts.path)
        if parts.scheme in ("https", "ssh") and parts.hostname:
            return url
        raise Invalid(f"{parts.scheme}:// is not used to read Git; use https, ssh, file or a path", code="GIT_URL")
    if _SCP.fullmatch(url):
        return url
    if "::" in url or "\0" in url or not url:
        raise Invalid(f"'{url[:40]!a}' is not a repository", code="GIT_URL")
    return str(Path(url).absolute())


def is_local(url: str) -> bool:
    """Whether a normal URL is a folder on this machine."""
    return url.startswith("/")


def shown_url(url: str) -> str:
    """The URL without credentials, for people."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def prepare(access: Access) -> None:
    """libgit2 in this process never hangs on a silent server and reads no configuration of the machine or its users."""
    settings = pygit2.settings
    settings.server_connect_timeout = int(access.connect_timeout * 1000)
    settings.server_timeout = int(access.timeout * 1000)
    for level in (ConfigLevel.SYSTEM, ConfigLevel.GLOBAL, ConfigLevel.XDG, ConfigLevel.PROGRAMDATA):
        settings.search_path[level] = ""  # url.insteadOf and proxies of a user must not redirect the controller
    settings.homedir = str(access.home or Path.home())
    if access.ca_file is not None:
        settings.set_ssl_cert_locations(str(access.ca_file), None)


class Callbacks(pygit2.RemoteCallbacks):
    """One conversation with a server: checks who it is, answers who we are, stops what grows too large."""

    def __init__(self, access: Access, limits: FetchLimits) -> None:
        super().__init__()
        self._access = access
        self._limits = limits
        self._asked = 0

    def certificate_check(self, certificate: None, valid: bool, host: bytes) -> bool:
        # pygit2 lets unknown SSH host keys through unless this says no.
        return valid

    def credentials(self, url: str, username_from_url: str | None, allowed_types: CredentialType) -> Any:
        self._asked += 1
        if self._asked > 3:  # libgit2 asks again for as long as the server refuses
            raise Waiting("the server refuses our credentials", code="GIT_UNREACHABLE")
        access, user = self._access, username_from_url or self._access.username
        if allowed_types & CredentialType.SSH_KEY:
            if access.ssh_key is not None:
                return pygit2.Keypair(user, f"{access.ssh_key}.pub", str(access.ssh_key), "")
            return pygit2.KeypairFromAgent(user)
        if allowed_types & CredentialType.USERNAME:
            return pygit2.Username(user)
        if allowed_types & CredentialType.USERPASS_PLAINTEXT and access.token_file is not None:
            return pygit2.UserPass(user, access.token_file.read_text().strip())
        raise Waiting("the server wants credentials and none are configured", code="GIT_UNREACHABLE")

    def transfer_progress(self, stats: Any) -> None:
        if stats.received_bytes > self._limits.bytes:
            raise Refused(f"more than {self._limits.bytes} bytes", code="GIT_TOO_LARGE")
        if stats.total_objects > self._limits.objects:
            raise Refused(f"{stats.total_objects} objects, at most {self._limits.objects}", code="GIT_TOO_LARGE")
