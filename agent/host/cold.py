"""A host that starts in its packages' own environment: run by path, with the interpreter of that environment.

Only two things of the agent are seen from there. `agent` itself, made importable by its path alone. And, once somebody calls the
host's API or a built-in package is loaded, the few libraries of agent.host.borrowed, each only if the environment has none of
that name: the packages' own win.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
FIRST = 3  # descriptor of the first thing handed down


def main() -> None:
    """Run what the keeper says, in this process."""
    _make_importable("agent", HERE)
    from agent.host import borrowed
    from agent.zygote.child import start_cold

    request = json.loads(sys.argv[1])
    borrowed.libraries = request["libraries"]
    start_cold(request, {kind: FIRST + at for at, kind in enumerate(request["kinds"])})


def _make_importable(name: str, folder: Path) -> None:
    """The package is loaded from its folder; what lies beside the folder stays out of sight."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} is not there")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
