"""The three APIs against what they say of themselves: generated requests find no 5xx, and every answer is as described."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks as described

from agent import components
from agent.consul.process import free_ports
from agent.packages.digest import read_folder
from agent.packages.pack import pack
from tests.agent.programs import Program, programs
from tests.conftest import ConsulServer
from tests.e2e.system import system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]

EXAMPLES = 8  # of each operation
SEED = 20
CHECKS = [
    checks.not_a_server_error,
    described.status_code_conformance,
    described.content_type_conformance,
    described.response_headers_conformance,
    described.response_schema_conformance,
]
UNAVAILABLE = frozenset({503, 507})  # said of others that are away, such as a package source; no fault of the API
ENDING = frozenset({("POST", "/api/componentHost/shutdown")})  # walked in test_operations
PATIENT = ("wait", "follow")  # parameters with which an answer may take long on purpose


@schemathesis.serializer("application/zip")
def _as_it_is(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def fuzz(base: str, token: str) -> int:
    """How many requests were answered as described; the first that was not fails the test."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    schema = schemathesis.openapi.from_url(f"{base}/openapi.json", headers=headers)
    count, wrong = 0, []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if (operation.method.upper(), operation.path) in ENDING:
            continue

        @seeded(SEED)
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
        def ask(case: Any) -> None:
            nonlocal count
            for name in PATIENT:
                (case.query or {}).pop(name, None)
            answer = case.call(headers=headers, timeout=20)
            if answer.status_code not in UNAVAILABLE:
                case.validate_response(answer, checks=CHECKS)
            else:
                assert answer.headers["content-type"] == ["application/problem+json"]
            count += 1

        try:
            ask()
        except (AssertionError, schemathesis.errors.FailureGroup) as failed:  # all of them, then one verdict
            wrong.append(f"{operation.label}\n{failed}")
    assert not wrong, "\n\n".join(wrong)
    return count


@pytest.fixture(scope="module")
def program(consul_server: ConsulServer) -> Iterator[Program]:
    (port,) = free_ports(1)
    with (
        tempfile.TemporaryDirectory(prefix="tdie-api-") as folder,
        programs(Path(folder), consul_server.http, port) as made,
    ):
        made.start()
        asyncio.run(_ready(made))
        for name in ("file-watcher", "basic-publisher"):
            body = pack(read_folder(components.folder(name)))
            headers = {"Content-Type": "application/zip"}
            answer = httpx.post(f"{made.api}/api/node/packages", content=body, headers=headers, trust_env=False)
            assert answer.status_code == 201, answer.text
        yield made


async def _ready(program: Program) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        await program.ready(http)


def test_a_host(program: Program) -> None:
    path = f"{program.api}/api/node/processes/file-watcher/start"
    begun = httpx.put(path, json={"autoStart": False}, trust_env=False).json()
    assert fuzz(begun["url"], "") >= 13


def test_a_node(program: Program) -> None:
    assert fuzz(program.api, "") >= 25


def test_a_controller(consul_server: ConsulServer) -> None:
    with system(consul_server.http, ("n1",)) as made:
        made.up()
        assert fuzz(json.loads(made.key("leader"))["api"], made.token_file.read_text().strip()) >= 20
