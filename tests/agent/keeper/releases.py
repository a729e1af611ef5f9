"""Another release of this program beside ours: a copy of the agent's code with edits, and an interpreter that runs it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import agent

MADE_FOR = "# another release\n"


def release(folder: Path, **edits: tuple[str, str]) -> str:
    """The interpreter of a release; an edit is `module_name=(text, other text)`, dots spelled as two underscores."""
    code, environment = folder / "code", folder / "environment"
    shutil.copytree(Path(agent.__file__).parent, code / "agent")
    for module, (before, after) in {"keeper____init__": ("", MADE_FOR), **edits}.items():
        file = code / "agent" / f"{module.replace('__', '/', 1)}.py"
        text = file.read_text()
        assert before in text, f"{file.name} has no {before!r}"
        file.write_text(text.replace(before, after, 1))
    packages = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    (environment / "bin").mkdir()
    python = environment / "bin" / "python"
    base = Path(sys.executable).resolve()
    python.symlink_to(base)
    (environment / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    (packages / "release.pth").write_text(f"{code}\n{sysconfig.get_path('purelib')}\n")
    return str(python)


def command(python: str) -> list[str]:
    """What an agent of that release would start a keeper with."""
    return [python, "-I", "-m", "agent.keeper"]
