"""Built-in packages without dependencies also load in an environment that has nothing of the agent's."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig

import pytest

from agent.components import folder, names
from tests.conftest import ROOT

SCRIPT = """
import importlib, importlib.util, sys
agent, libraries, content, module, name = sys.argv[1:]
spec = importlib.util.spec_from_file_location("cold", agent + "/host/cold.py")
cold = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cold)
cold._make_importable("agent", cold.HERE)
from agent.host import borrowed
borrowed.libraries = libraries
from agent.host.loading import load
from agent.keeper.protocol import Code
from agent.sdk import Extension
print(load(Code(name, "1", "", content, module + ":" + name), Extension).__name__)
try:
    import psutil
except ModuleNotFoundError:
    print("nothing else is lent")
"""


def manifest(name: str) -> dict[str, object]:
    read: dict[str, object] = json.loads((folder(name) / "manifest.json").read_text())
    return read


@pytest.mark.parametrize("name", [name for name in names() if not manifest(name)["dependencies"]])
def test_it_loads_beside_a_package_with_dependencies(name: str) -> None:
    module, _, wanted = str(manifest(name)["componentType"]).partition(":")
    words = [str(ROOT / "agent"), sysconfig.get_path("purelib"), str(folder(name) / "content"), module, wanted]
    bare = [sys.executable, "-I", "-S", "-c", SCRIPT]  # -S: no site-packages, as in a new environment
    done = subprocess.run([*bare, *words], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.split("\n")[:2] == [wanted, "nothing else is lent"], done.stderr
