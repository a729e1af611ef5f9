"""Write `versions.json` anew, after the version of a changed built-in package was raised."""

from __future__ import annotations

import json
import sys

from agent.components import VERSIONS, content_digest, folder, names


def main() -> int:
    """The file holds what is in the folders; refuses a changed content under an old version."""
    held = json.loads(VERSIONS.read_text()) if VERSIONS.exists() else {}
    now = {}
    for name in names():
        version = json.loads((folder(name) / "manifest.json").read_text())["version"]
        now[name] = {"version": version, "sha256": content_digest(name)}
        before = held.get(name, {})
        if before.get("version") == version and before["sha256"] != now[name]["sha256"]:
            sys.stderr.write(f"{name}: the content changed, raise version {version} in its manifest first\n")
            return 1
    VERSIONS.write_text(json.dumps(now, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
