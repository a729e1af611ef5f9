"""What travels on the bus socket: a JSON head and a body of bytes, each with its length before it. Standard library only."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from agent.errors import Invalid

MAX_BODY = 1 << 20  # bytes of one message
_MAX_HEAD = 1 << 20
_LENGTHS = struct.Struct("!II")

Frame = tuple[dict[str, Any], bytes]


class FrameInvalid(Invalid):
    """The other side does not speak this language; the connection is of no use."""

    code = "FRAME_INVALID"


def frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Head and body as they travel."""
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%b%b%b" % (_LENGTHS.pack(len(text), len(body)), text, body)


class Frames:
    """Turns received bytes into frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by these bytes. FrameInvalid for one that is too long or has no JSON object as its head."""
        self._held += data
        found: list[Frame] = []
        at, held = 0, self._held
        while len(held) - at >= _LENGTHS.size:
            head_size, body_size = _LENGTHS.unpack_from(held, at)
            if head_size > _MAX_HEAD or body_size > MAX_BODY:
                raise FrameInvalid(f"a frame of {head_size + body_size} bytes")
            begin, middle = at + _LENGTHS.size, at + _LENGTHS.size + head_size
            if len(held) < middle + body_size:
                break
            found.append((_head(bytes(held[begin:middle])), bytes(held[middle : middle + body_size])))
            at = middle + body_size
        del held[:at]
        return found


def _head(text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameInvalid("the head of a frame is no JSON") from error
    if not isinstance(head, dict):
        raise FrameInvalid("the head of a frame is no JSON object")
    return head
