"""`tdie-agent`: the agent of one machine."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from agent import logs
from agent.app import run_agent
from agent.errors import TdieError
from agent.settings import read_settings

USAGE_ERROR = 64


class _Parser(argparse.ArgumentParser):
    """Usage errors exit 64, so that no caller mistakes them for an answer."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE_ERROR, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run an agent until it is told to stop; the exit status is 0, 1 for an error, 64 for wrong options, 130 interrupted."""
    options = _parser().parse_args(argv)
    flags = {name: value for name, value in vars(options).items() if value is not None}
    file, stop_hosts = flags.pop("config", None), flags.pop("stop_hosts", False)
    if labels := flags.pop("label", None):
        flags["labels"] = dict(labels)
    try:
        settings = read_settings(file, flags)
        logs.set_up(settings.log_level, settings.log_format)
        asyncio.run(run_agent(settings, stop_hosts=stop_hosts))
    except TdieError as error:
        sys.stderr.write(f"tdie-agent: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run() -> NoReturn:
    """The console script."""
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tdie-agent",
        allow_abbrev=False,
        description="Runs what a tdie controller assigns to this machine. SIGTERM stops the agent only; its processes stay.",
    )
    add: Any = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="settings in YAML; the environment and flags go over it")
    add("--node", help="name of this node (default: the host name)")
    add("--cluster", help="name of the cluster")
    add("--data", type=Path, metavar="FOLDER", help="where ledger, packages, logs and the keeper's socket are")
    add("--bind", metavar="ADDRESS", help="address of the node API (default 127.0.0.1)")
    add("--port", type=int, help="port of the node API (default 5100 or the next free one)")
    add("--advertise", metavar="ADDRESS", help="address under which others reach this agent")
    add("--consul", metavar="ADDRESS", help="Consul's HTTP address (default CONSUL_HTTP_ADDR or 127.0.0.1:8500)")
    add("--consul-token-file", type=Path, metavar="FILE")
    add("--people-file", type=Path, metavar="FILE", help="people that may call the node API (made by tdie init token)")
    add("--token-file", type=Path, metavar="FILE", help="bearer token that callers of the node API must show")
    add("--label", type=_label, action="append", metavar="KEY=VALUE", help="may be given several times")
    add("--beat-ttl", type=float, metavar="SECONDS", help="silence after which Consul calls this agent critical")
    add("--log-level", choices=["debug", "info", "warning", "error"])
    add("--log-format", choices=["auto", "json", "text"])
    add("--stop-hosts", action="store_true", help="stop every process of this node, too, when the agent stops")
    return parser


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    return key, value


if __name__ == "__main__":
    run()
