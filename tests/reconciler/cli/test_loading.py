"""A command loads what it needs and no more."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from reconciler.cli.main import MODULES

SCRIPT = """
import json, sys
from importlib import import_module
from reconciler.cli import main
known = set(main.app)
for name in sys.argv[1:]:
    import_module(f"reconciler.cli.{name}")
commands = {name for name in main.app if name not in known and not name.startswith("-")}
commands |= {"init"} if any(not name.startswith("-") for name in main.init) else set()
print(json.dumps([sorted(commands), sorted({"agent.consul.client", "pygit2", "fastapi"} & set(sys.modules))]))
"""


def loaded(*modules: str) -> tuple[list[str], list[str]]:
    """The commands that these modules bring, and which heavy libraries come with them."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *modules], capture_output=True, text=True, check=True, timeout=60
    )
    commands, heavy = json.loads(done.stdout)
    return commands, heavy


@pytest.mark.parametrize("module", MODULES)
def test_every_command_is_found_in_its_module(module: str) -> None:
    commands, _ = loaded(module)
    assert set(commands) == set(MODULES[module])


def test_reading_help_of_a_live_command_loads_no_network() -> None:
    assert loaded("live") == (sorted(MODULES["live"]), [])
