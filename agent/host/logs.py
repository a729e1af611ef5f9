"""Logs of a host: one JSON object a line, each with the replica and the correlation id."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from agent.keeper.protocol import HostOrder
from agent.sdk.message import correlation

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Time in UTC, level, replica, correlation id, logger, message, the caller's `extra`, and an error's traceback."""

    def __init__(self, order: HostOrder) -> None:
        super().__init__()
        self.order = order

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "replica": self.order.replica,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if correlated := correlation.get() or self.order.correlation_id:
            said["correlationId"] = correlated
        said |= {key: value for key, value in vars(record).items() if key not in _STANDARD and key not in said}
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


def set_up(order: HostOrder) -> JsonLines:
    """Everything logged in this process goes to standard error as JSON lines; `.order` may be replaced later."""
    lines = JsonLines(order)
    handler = logging.StreamHandler()
    handler.setFormatter(lines)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(order.env.get("TDIE_LOG_LEVEL", "INFO").upper() if _level(order) else logging.INFO)
    logging.captureWarnings(True)
    return lines


def _level(order: HostOrder) -> bool:
    return order.env.get("TDIE_LOG_LEVEL", "").upper() in logging.getLevelNamesMapping()
