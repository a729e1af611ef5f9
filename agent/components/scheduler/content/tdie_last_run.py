"""The last run, remembered in the replica's data folder."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

FILE = "last-run.json"


def read(folder: Path, schedule: str) -> datetime | None:
    """When this schedule last ran here; None when it never did, or another one did. OSError when that cannot be read."""
    try:
        found = json.loads((folder / FILE).read_text())
        return datetime.fromisoformat(found["last"]) if found["schedule"] == schedule else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:  # an error is never "empty": somebody must look
        raise OSError(f"{folder / FILE} makes no sense; remove it to start anew") from error


def write(folder: Path, schedule: str, last: datetime) -> None:
    """It is on disk."""
    new = folder / f"{FILE}.new"
    with new.open("w") as file:
        json.dump({"schedule": schedule, "last": last.isoformat()}, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / FILE)
