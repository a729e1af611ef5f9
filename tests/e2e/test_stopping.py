"""A node that is stopped as a whole: what its hosts still have to say gets through."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests.conftest import ConsulServer
from tests.e2e.system import System, instance, package, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

GOODBYE = """
from agent.sdk import Component, Message, MessagePublisher

class Goodbye(Component):
    def __init__(self, publisher: MessagePublisher):
        self._publisher = publisher

    async def start(self): ...

    async def stop(self):
        await self._publisher.publish(Message("goodbye", type="Last"))
        self.log.info("the last word is out")
"""
MANIFEST = {
    "name": "goodbye",
    "version": "1.0.0",
    "componentType": "tdie_e2e_goodbye:Goodbye",
    "contentRoot": "content",
}


@pytest.fixture
def made(consul_server: ConsulServer) -> Iterator[System]:
    with system(consul_server.http, ("n1",)) as made:
        made.repo.push(
            {
                **dict.fromkeys(("watch.yaml", "sleep.yaml", "each.yaml", "packages/sleeper/manifest.json")),
                "packages/goodbye/manifest.json": json.dumps(MANIFEST),
                "packages/goodbye/content/tdie_e2e_goodbye.py": GOODBYE,
                "packages.yaml": "---\n".join((package("goodbye", path="packages/goodbye"), package("bus", builtin="bus"))),
                "goodbye.yaml": instance(
                    "goodbye", package="goodbye@1.0.0", replicas=1,
                    publisher={"package": "bus@1.0.0", "settings": {"topic": "pulse"}},
                ),
            },
            "somebody who says goodbye",
        )  # fmt: skip
        yield made


def test_hosts_send_their_last_messages_before_their_agent_ends(made: System) -> None:
    agent = made.agent("n1")
    made.controller("c1")
    made.see(lambda status: status["converged"], "the host runs")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(60) == 0
    log = (made.data / "nodes" / "n1" / "logs" / "goodbye.0.log").read_text()
    assert "the last word is out" in log
