"""Problems found after decoding: they know a document and a path in it; lines are looked up once, at the end."""

from __future__ import annotations

from collections.abc import Callable

from reconciler.model.problems import Problem
from reconciler.source.decode import Found, Path, places
from reconciler.source.yaml import Flaw

MOST = 1000  # nobody reads more, and every one of them costs a look into its file


class Findings:
    """Collects problems of a commit."""

    def __init__(self) -> None:
        self._known: list[Problem] = []
        self._unplaced: dict[str, list[tuple[tuple[int, Path, bool], str, str]]] = {}

    def __bool__(self) -> bool:
        return bool(self._known or self._unplaced)

    def flaw(self, file: str, flaw: Flaw) -> None:
        """A problem whose line is known."""
        self._known.append(Problem(file, flaw.line, flaw.column, flaw.code, flaw.message))

    def at(self, file: str, found: Found, path: Path, code: str, message: str, *, key: bool = False) -> None:
        """A problem at a path of a document; with `key`, at the key rather than its value."""
        self._unplaced.setdefault(file, []).append(((found.index, path, key), code, message))

    def whole(self, code: str, message: str) -> None:
        """A problem of the commit as a whole."""
        self._known.append(Problem(".", 1, 1, code, message))

    def sorted(self, read: Callable[[str], bytes]) -> tuple[Problem, ...]:
        """Every problem once, in the order of files and lines. `read` brings a file's bytes."""
        problems = set(self._known)
        for file, rows in self._unplaced.items():
            placed = places(read(file), [want for want, _, _ in rows])
            for want, code, message in rows:
                line, column = placed.get(want, (1, 1))
                problems.add(Problem(file, line, column, code, message))
        ordered = sorted(problems)
        if len(ordered) > MOST:
            more = Problem(".", 1, 1, "MORE_PROBLEMS", f"{len(ordered) - MOST} more problems are not shown")
            return (more, *ordered[:MOST])
        return tuple(ordered)
