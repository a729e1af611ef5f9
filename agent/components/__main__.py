"""Write `versions.json` anew, after the version of a changed built-in package was raised."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agent.components import HERE, VERSIONS, content_digest, folder, names


def main(root: Path = HERE) -> int:
    """The file holds what is in the folders; refuses a changed content under an old version."""
    file = root / VERSIONS
    held = json.loads(file.read_text()) if file.exists() else {}
    now = {}
    for name in names(root):
        version = json.loads((folder(name, root) / "manifest.json").read_text())["version"]
        now[name] = {"version": version, "sha256": content_digest(name, root)}
        before = held.get(name, {})
        if before.get("version") == version and before["sha256"] != now[name]["sha256"]:
            sys.stderr.write(f"{name}: the content changed, raise version {version} in its manifest first\n")
            return 1
    file.write_text(json.dumps(now, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
