"""The code that every host runs lies together, so that running it costs a host few private pages.

A call counts up and down in the function's code object, which in a fork copies the page it lies on. As imported, what hosts run is
strewn among much more that they do not; copies made in one go lie side by side.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, FunctionType


def seen_by(work: Callable[[], object]) -> tuple[CodeType, ...]:
    """The code objects of all Python functions that this call runs, in this thread."""
    seen: dict[int, CodeType] = {}

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            seen[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return tuple(seen.values())


def gather(codes: Iterable[CodeType]) -> int:
    """Every function with one of these codes has a copy of it that lies beside the others; returns how many."""
    wanted = {id(code) for code in codes}
    copies: dict[int, CodeType] = {}
    moved = 0
    for thing in gc.get_objects():
        if type(thing) is FunctionType and id(thing.__code__) in wanted:
            code = thing.__code__
            if id(code) not in copies:
                copies[id(code)] = _copy(code, wanted)
            thing.__code__ = copies[id(code)]
            moved += 1
    return moved


def _copy(code: CodeType, wanted: set[int]) -> CodeType:
    """The same code in a new place, with what it defines inside itself where that is wanted too."""
    inner = (
        _copy(each, wanted) if isinstance(each, CodeType) and id(each) in wanted else each for each in code.co_consts
    )
    return code.replace(co_consts=tuple(inner))
