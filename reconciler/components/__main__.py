"""Write `versions.json` of this folder anew, after the version of a changed package was raised."""

from __future__ import annotations

import sys

from agent.components.__main__ import main
from reconciler.components import HERE

if __name__ == "__main__":
    sys.exit(main(HERE))
