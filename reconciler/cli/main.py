"""`tdie`: reads the words, runs one command, and turns how it ended into an exit code."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError

from agent import __version__
from agent.errors import TdieError

USAGE, INTERRUPTED = 64, 130

app = App(
    name="tdie",
    version=f"tdie {__version__}",
    help="Git decides what runs on your machines: push YAML, see the plan, watch it happen.",
)
init = App(name="init", help="Make the files that something new needs.")
app.command(init)

MODULES = {  # which module has which commands: only that one is loaded, so that a command answers at once
    "documents": ("validate", "plan", "diff"),
    "live": ("status", "get", "explain", "logs", "events", "apply", "approve"),
    "control": ("up", "down", "controller", "agent"),
    "nodes": ("cordon", "uncordon", "drain", "lock", "unlock"),
    "rollback": ("rollback", "history"),
    "backup": ("backup", "restore"),
    "suspend": ("suspend", "resume", "accept"),
    "doctor": ("doctor", "hook", "completion", "keeper"),
    "simulate": ("simulate",),
    "setup": ("init",),
    "component": ("init",),
    "package": ("package",),
    "messages": ("messages",),
}


def main(words: list[str] | None = None) -> int:
    """The exit code of one command: 0 done, 1 error, 2 changes (where asked for), 64 usage, 130 interrupted."""
    words = sys.argv[1:] if words is None else words
    _load(words[0] if words else "")
    try:
        result = app(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        chain = list(error.command_chain or ())
        print(f"{error}\n{_usage(chain)}\nSee '{' '.join(['tdie', *chain, '--help'])}'.", file=sys.stderr)  # noqa: T201
        return USAGE
    except TdieError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: say nothing more
        return 1
    except OSError as error:
        print(f"error: {error.strerror}: {error.filename or ''}".rstrip(": "), file=sys.stderr)  # noqa: T201
        return 1
    return result if isinstance(result, int) else 0


def _usage(chain: list[str]) -> str:
    """The usage line of a command."""
    from rich.console import Console

    told = io.StringIO()
    app.help_print(chain, console=Console(file=told, width=100))
    return next((line for line in told.getvalue().splitlines() if line.startswith("Usage:")), "Usage: tdie COMMAND")


def _load(command: str) -> None:
    """Commands register themselves on import; all of them for what speaks of all: help, completion, a word that is none."""
    from importlib import import_module

    wanted = [name for name, commands in MODULES.items() if command in commands and command != "completion"]
    for name in wanted or MODULES:
        import_module(f"reconciler.cli.{name}")


def run() -> NoReturn:
    """The console script."""
    sys.exit(main())
