"""Other people's servers that some tests need: where each is found, and what to say when it is not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REQUIRED = os.environ.get("TDIE_REQUIRE_SERVERS") == "1"
WHERE = f"{os.environ.get('PATH', '')}:/usr/sbin:/lib/systemd:/usr/lib/postgresql/15/bin:/usr/lib/rabbitmq/bin"
SERVERS: Mapping[str, str] = {  # program -> Debian package
    "sshd": "openssh-server",
    "systemd": "systemd",
    "mosquitto": "mosquitto",
    "rabbitmq-server": "rabbitmq-server",
    "initdb": "postgresql-15",
}


def find(program: str) -> Path | None:
    """The program on this machine."""
    found = shutil.which(program, path=WHERE)
    return None if found is None else Path(found)


def missing(item: pytest.Item) -> Iterator[str]:
    """What to say of each server that a test marked `server` needs and that is not there."""
    for marker in item.iter_markers("server"):
        for program in marker.args:
            if find(program) is None:
                yield f"NO {program.upper()}: install {SERVERS[program]}"


def setup(item: pytest.Item) -> None:
    """Leaves a test out when its server is not there, or fails it where servers are required."""
    for text in missing(item):
        if REQUIRED:
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
