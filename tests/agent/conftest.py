"""The real agent program, for tests that want it whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from agent.client import NodeClient
from tests.agent.programs import Program, programs
from tests.conftest import ConsulServer


@pytest.fixture
def program(tmp_path: Path, consul_server: ConsulServer, free_port: Callable[[], int]) -> Iterator[Program]:
    """An agent that is not started yet."""
    with programs(tmp_path, consul_server.http, free_port()) as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[NodeClient]:
    made = NodeClient()
    yield made
    await made.close()
