"""How problems speak of places and of what was likely meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def dotted(path: Iterable[str | int]) -> str:
    """A place inside a document, as in `spec.nodes[1].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def meant(given: str, choices: Sequence[str]) -> str | None:
    """The choice somebody likely meant, if any is near."""
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.6)
    return close[0] if close else folded.get(given.lower())
