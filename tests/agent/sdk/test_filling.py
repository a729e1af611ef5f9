"""Settings as a dataclass, lists, choices and secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from agent.sdk import Settings, SettingsError


@dataclass(frozen=True)
class Wanted:
    input_path: Path
    size: int = 1
    retry_delay: timedelta = timedelta(seconds=30)
    mode: Literal["fast", "safe"] = "safe"
    tables: tuple[str, ...] = ()
    note: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size > 100:
            raise ValueError("size is too large")


def test_a_dataclass_is_filled_from_the_spelling_of_yaml() -> None:
    given = {"inputPath": "/in", "size": "3", "retryDelay": "5m", "mode": "fast", "tables": ["a", 7], "extra": {"x": 1}}
    assert Settings(given).into(Wanted) == Wanted(
        Path("/in"), 3, timedelta(minutes=5), "fast", ("a", "7"), None, {"x": 1}
    )
    assert Settings({"input_path": "/in", "note": None}).into(Wanted) == Wanted(Path("/in"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "'inputPath' is missing"),
        ({"inputPath": None}, "'inputPath' must be"),
        ({"inputPath": "/in", "size": "x"}, "'size' must be a whole number"),
        ({"inputPath": "/in", "mode": "other"}, "'mode' must be one of fast, safe"),
        ({"inputPath": "/in", "tables": "a"}, "'tables' must be a list"),
        ({"inputPath": "/in", "tables": ["a", []]}, r"'tables\[1\]' must be a text"),
        ({"inputPath": "/in", "sise": 1}, "'sise' is not known"),
        ({"inputPath": "/in", "size": 101}, "size is too large"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Settings(given, "pkg@1.0.0").into(Wanted)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SettingsError, match=r"'more' is not known.*'inputPath' is missing.*'size' must be"):
        Settings({"size": [], "more": 1}).into(Wanted)


def test_a_class_that_is_no_model_is_a_mistake_of_the_author() -> None:
    with pytest.raises(TypeError, match="Path is neither"):
        Settings({}).into(Path)


def test_choices_and_lists() -> None:
    settings = Settings({"mode": "b", "list": [1, 2]})
    assert settings.choice("mode", ("a", "b")) == "b"
    assert settings.choice("other", ("a", "b"), "a") == "a"
    assert settings.sequence("list") == (1, 2)
    with pytest.raises(SettingsError, match="'mode' must be one of a, c"):
        settings.choice("mode", ("a", "c"))


def test_secrets_are_read_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    monkeypatch.setenv("THE_TOKEN", "from-env")
    settings = Settings(
        {"file": f"file:{tmp_path}/token", "env": "env:THE_TOKEN", "plain": "as it is", "gone": f"file:{tmp_path}/no"}
    )
    assert settings.secret("file") == "s3cret"
    assert settings.secret("env") == "from-env"
    assert settings.secret("plain") == "as it is"
    assert settings.secret("nothing", None) is None
    with pytest.raises(SettingsError, match=r"SECRET_MISSING the setting 'gone' names .*/no, .*No such file"):
        settings.secret("gone")
    monkeypatch.delenv("THE_TOKEN")
    with pytest.raises(SettingsError, match="THE_TOKEN, which is not set"):
        settings.secret("env")
