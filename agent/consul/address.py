"""Where a Consul is and how to be let in: the forms the `consul` program understands, read by us.

py-consul reads the environment too, but crashes on some forms and ignores others; so it is told everything explicitly.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from agent.errors import Invalid

DEFAULT_PORT = 8500
_SCHEME_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """One HTTP endpoint: host and port, or the path of a unix socket."""

    host: str
    port: int = DEFAULT_PORT
    scheme: str = "http"
    socket: str | None = None

    @classmethod
    def parse(cls, text: str, *, tls: bool = False) -> Address:
        """Read `host`, `host:port`, `[::1]:port`, `http(s)://host[:port]` or `unix:///path`.

        Without a port a bare host means 8500, and a URL means its scheme's own port, as for the `consul` program.
        `tls` makes a text without a scheme https. Raises Invalid.
        """
        text = text.strip()
        if text.startswith("unix://"):
            path = text.removeprefix("unix://")
            if not path.startswith("/"):
                raise _bad(text, "a unix socket needs an absolute path")
            return cls("localhost", 0, "http", path)
        has_scheme = "://" in text
        try:
            parts = urlsplit(text if has_scheme else f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _bad(text, str(error)) from error
        scheme = parts.scheme or ("https" if tls else "http")
        if scheme not in _SCHEME_PORTS:
            raise _bad(text, "only http, https and unix are spoken")
        if not host or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
            raise _bad(text, "only a host and a port belong here")
        return cls(host, port or (_SCHEME_PORTS[scheme] if has_scheme else DEFAULT_PORT), scheme)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], given: str = "") -> Address:
        """The given Consul, else the one CONSUL_HTTP_ADDR names, else 127.0.0.1:8500; CONSUL_HTTP_SSL counts for all of them."""
        text = given or environ.get("CONSUL_HTTP_ADDR") or "127.0.0.1"
        return cls.parse(text, tls=_true(environ.get("CONSUL_HTTP_SSL")))

    @property
    def authority(self) -> str:
        """`host:port` as it stands in a URL; brackets around IPv6."""
        if self.socket:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        """What to put into CONSUL_HTTP_ADDR to reach the same Consul."""
        if self.socket:
            return f"unix://{self.socket}"
        return self.authority if self.scheme == "http" else self.url


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server is trusted and how we prove who we are; paths of PEM files."""

    ca: str | None = None
    ca_path: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    verify: bool = True

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Tls:
        return cls(
            ca=environ.get("CONSUL_CACERT") or None,
            ca_path=environ.get("CONSUL_CAPATH") or None,
            cert=environ.get("CONSUL_CLIENT_CERT") or None,
            key=environ.get("CONSUL_CLIENT_KEY") or None,
            server_name=environ.get("CONSUL_TLS_SERVER_NAME") or None,
            verify=_true(environ.get("CONSUL_HTTP_SSL_VERIFY", "true")),
        )

    def context(self) -> ssl.SSLContext:
        """The TLS settings as Python wants them. Raises Invalid when a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca, capath=self.ca_path)
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(name) for name in (self.ca, self.ca_path, self.cert, self.key) if name)
            raise Invalid(f"cannot use the TLS files for Consul ({files}): {error}", code="CONSUL_TLS") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(slots=True)
class Token:
    """The ACL token: given, or in a file that may be replaced while we run. Never shown."""

    value: str | None = field(default=None, repr=False)
    file: Path | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Token:
        file = environ.get("CONSUL_HTTP_TOKEN_FILE")
        return cls(environ.get("CONSUL_HTTP_TOKEN") or None, Path(file) if file else None)

    def reread(self) -> bool:
        """Read the file again; True when the token is another one now. Raises Invalid when it cannot be read."""
        if self.file is None:
            return False
        try:
            value = self.file.read_text().strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"cannot read the Consul token file {self.file}", code="CONSUL_TOKEN_FILE") from error
        changed, self.value = value != self.value, value
        return changed


def _true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "t", "true", "yes", "on")


def _bad(text: str, why: str) -> Invalid:
    return Invalid(f"{text!r} is not a Consul address: {why}", code="CONSUL_ADDRESS")
