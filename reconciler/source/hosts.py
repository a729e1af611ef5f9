"""Which addresses packages may come from: listed hosts only, never this machine's own network by a trick."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from reconciler.source.shelf import local_path


def refused_url(url: str, hosts: Iterable[str]) -> str:
    """Why a package URL is refused; empty when it is fine."""
    if local_path(url) is not None:
        return ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        return f"not a URL: {error}"
    if parts.scheme not in ("http", "https") or not host:
        return "expected an http(s) or file URL, or an absolute path"
    if parts.username is not None or parts.password is not None:
        return "a URL in Git must not hold credentials"
    listed = set(hosts)
    if host in listed or (port is not None and f"{host}:{port}" in listed):
        return ""
    return f"host '{host}' is not listed in the Cluster's spec.source.packageHosts"


def refused_address(address: str, host: str) -> str:
    """Why a resolved address is refused; empty when it is fine. A host may be loopback only by its own name."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_loopback and (host == "localhost" or host == address):
        return ""
    if found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified or found.is_reserved:
        return f"{host} resolves to {found}, which no package is fetched from"
    return ""
