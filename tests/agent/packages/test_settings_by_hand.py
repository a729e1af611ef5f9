"""What a node checks of settings without a schema library: unknown and missing keys, and depth."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import Invalid
from agent.packages.settings import MAX_DEPTH, check_depth, check_keys

CLOSED = {"properties": {"a": {}, "b": {}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "settings", "whole", "code"),
    [
        (None, {"x": 1}, True, ""),
        ({}, {"x": 1}, True, ""),
        ({"properties": {}, "required": True}, {}, True, ""),  # a wrong schema is its controller's business
        (CLOSED, {"a": 1}, True, ""),
        (CLOSED, {"a": 1, "x": 1}, True, "SETTING_UNKNOWN"),
        (CLOSED, {"b": 1}, True, "SETTING_MISSING"),
        (CLOSED, {"b": 1}, False, ""),
        (CLOSED, {"x": 1}, False, "SETTING_UNKNOWN"),
        ({**CLOSED, "patternProperties": {"^x": {}}}, {"a": 1, "x": 1}, True, ""),
        ({**CLOSED, "additionalProperties": True}, {"a": 1, "x": 1}, True, ""),
    ],
)
def test_keys(schema: dict[str, Any] | None, settings: dict[str, Any], whole: bool, code: str) -> None:
    found = ""
    try:
        check_keys(schema, settings, whole=whole)
    except Invalid as error:
        found = error.code
    assert found == code


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value] if kind is list else {"a": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
def test_depth(kind: type) -> None:
    check_depth(nested(MAX_DEPTH, kind))
    for depth in (MAX_DEPTH + 1, 5000):
        with pytest.raises(Invalid, match="TOO_DEEP"):
            check_depth(nested(depth, kind))
