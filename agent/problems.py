"""What is wrong with this node as a whole."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from agent.wire import NodeProblem

log = structlog.get_logger("agent")


class NodeProblems:
    """Problems by code, each there until it is healed. `changed` is called for each that comes, goes or reads differently."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._found: dict[str, NodeProblem] = {}

    @property
    def all(self) -> tuple[NodeProblem, ...]:
        """Those that are there now."""
        return tuple(self._found.values())

    def __call__(self, code: str, detail: str) -> None:
        """The problem is there, or with an empty detail healed."""
        before = self._found.get(code)
        if detail and (before is None or before.detail != detail):
            self._found[code] = NodeProblem(code=code, detail=detail)
            log.warning("problem", code=code, detail=detail)
        elif not detail and self._found.pop(code, None) is not None:
            log.info("healed", code=code)
        else:
            return
        self._changed()
