"""PUBLIC: decides which Consul this machine uses, starts one if there is none, and says so in a sentence."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.consul.address import DEFAULT_PORT, Address
from agent.consul.client import ConsulClient
from agent.consul.process import (
    LOOPBACK,
    dev_command,
    embedded_command,
    find_binary,
    preferred_http_port,
    running,
)
from agent.errors import TdieError

Kind = Literal["configured", "local", "dev", "embedded"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The Consul in use: how it was chosen, where it is, and the sentence that tells the user.

    `pid` is set when we started it, and `ui` when it shows the Consul UI in a browser.
    """

    kind: Kind
    address: Address
    sentence: str
    pid: int | None = None
    ui: str | None = None

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment with which our other processes reach the same Consul."""
        return {**environ, "CONSUL_HTTP_ADDR": str(self.address)}


async def existing(environ: Mapping[str, str], *, local_port: int = DEFAULT_PORT) -> Choice | None:
    """The Consul that is configured or already answers on this machine, or None. Starts nothing.

    A configured one is taken without asking: when it is away, everything waits for it rather than turning to another.
    """
    if environ.get("CONSUL_HTTP_ADDR"):
        address = Address.from_environ(environ)
        return Choice(
            "configured", address, f"Using the Consul at {address} (CONSUL_HTTP_ADDR).", ui=f"{address.url}/ui/"
        )
    address = Address(LOOPBACK, local_port)
    client = ConsulClient.from_environ({**environ, "CONSUL_HTTP_ADDR": str(address)})
    try:
        await client.leader()
        about = await client.describe()
    except TdieError:
        return None
    finally:
        await client.close()
    if about.startswith("embedded"):
        return Choice("local", address, f"Using the {about} (already running); it has no Consul UI.")
    return Choice("local", address, f"Using the {about} (already running).", ui=f"{address.url}/ui/")


@asynccontextmanager
async def running_consul(
    data_dir: Path, environ: Mapping[str, str], *, local_port: int = DEFAULT_PORT
) -> AsyncIterator[Choice]:
    """A Consul to use until the block ends; one that we start is stopped then, any other is left alone.

    In order: the configured one, one that answers on this machine, `consul agent -dev -ui` when the program is on PATH, else the
    embedded server, which keeps its data in `data_dir`.
    """
    found = await existing(environ, local_port=local_port)
    if found is not None:
        yield found
        return
    node = f"tdie-{socket.gethostname().split('.')[0]}"
    port = preferred_http_port() if local_port == DEFAULT_PORT else local_port
    binary = find_binary(environ.get("PATH"))
    if binary is not None:
        command = dev_command(binary, port, node)
        async with running(command, port, node, data_dir / "consul.log") as server:
            ui = f"{server.address.url}/ui/"
            sentence = (
                f"Started {binary} agent -dev at {server.address}; its UI is {ui}. It keeps nothing when it stops."
            )
            yield Choice("dev", server.address, sentence, server.process.pid, ui)
        return
    data = data_dir / "consul.db"
    async with running(embedded_command(data, port, node), port, node, data_dir / "consul.log") as server:
        sentence = (
            f"No consul program on PATH: started the embedded Consul API at {server.address}, kept in {data}. "
            "It has no Consul UI; the consul program works with it."
        )
        yield Choice("embedded", server.address, sentence, server.process.pid)
