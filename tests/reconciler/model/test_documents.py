"""Units, ranges, settings and schemas: tables for what may be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from agent.packages.manifest import Manifest
from agent.packages.settings import overlaid
from reconciler.model import schemas
from reconciler.model.desired import Share
from reconciler.model.documents import KINDS
from reconciler.model.problems import Problem, as_github, as_json, as_text
from reconciler.model.settings import SettingsRules
from reconciler.model.units import seconds, share, size_in_bytes
from reconciler.model.versions import best, parse_range, split_reference
from reconciler.source import yaml

SAMPLES = Path(__file__).parents[3] / "sample-repo"


@pytest.mark.parametrize(
    ("text", "value"),
    [("50s", 50.0), ("10m", 600.0), ("1h", 3600.0), ("1500ms", 1.5), ("1h30m", 5400.0), ("0s", 0.0), ("0.5s", 0.5)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", [50, "50", "", "s", "-5s", "5 s", "5S", None, "٣s", "1e3s", "9" * 20 + "s"])
def test_no_durations(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("256Mi", 256 << 20), ("8Gi", 8 << 30), (1024, 1024), ("1k", 1000), ("1.5Gi", 3 << 29), ("5", 5)],
)
def test_sizes(text: Any, value: int) -> None:
    assert size_in_bytes(text) == value


@pytest.mark.parametrize("text", ["5GB", "-1", True, None, 1.5, "Mi"])
def test_no_sizes(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        size_in_bytes(text)


def test_shares() -> None:
    assert (share("20%"), share(3), share("0%")) == (Share(20, percent=True), Share(3), Share(0, percent=True))
    for wrong in ("101%", "20", -1, True, 1.5, None):
        with pytest.raises(ValueError, match="expected a count"):
            share(wrong)


@pytest.mark.parametrize(
    ("wanted", "versions", "chosen"),
    [
        ("1.0.0", ["1.0.0", "1.0.1"], "1.0.0"),
        ("=1.0.0", ["1.0.0", "1.0.1"], "1.0.0"),
        ("^1.0", ["1.0.0", "1.10.0", "1.9.0", "2.0.0"], "1.10.0"),
        ("^1", ["1.9.9", "2.0.0"], "1.9.9"),
        ("^0.2.3", ["0.2.3", "0.2.9", "0.3.0"], "0.2.9"),
        ("^0.0.3", ["0.0.3", "0.0.4"], "0.0.3"),
        ("^0.0", ["0.0.9", "0.1.0"], "0.0.9"),
        ("^0", ["0.9.0", "1.0.0"], "0.9.0"),
        ("~1.2", ["1.2.0", "1.2.9", "1.3.0"], "1.2.9"),
        ("~1.2.3", ["1.2.2"], None),
        ("~1", ["1.9.0", "2.0.0"], "1.9.0"),
        (">=1 <2", ["0.9.0", "1.9.9", "2.0.0"], "1.9.9"),
        (">1.0.0 <=1.2.0", ["1.0.0", "1.2.0", "1.2.1"], "1.2.0"),
        ("*", ["3.0.0", "1.0.0"], "3.0.0"),
        ("^1.0", ["1.1.0-rc.1"], None),
        (">=1.1.0-rc.0", ["1.1.0-rc.1", "1.2.0-rc.1"], "1.1.0-rc.1"),
        ("^1.0", [], None),
    ],
)
def test_ranges(wanted: str, versions: list[str], chosen: str | None) -> None:
    assert best(parse_range(wanted), versions) == chosen


@pytest.mark.parametrize(
    "text", ["a", "a@", "a@x", "a@1.2", "a@1.0.0 || 2.0.0", "A@1.0.0", "a@^", "@1.0.0", "a@1.0.0,", "a@" + "9" * 40]
)
def test_no_references(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        split_reference(text)


def rules(schema: dict[str, Any], defaults: dict[str, Any] | None = None) -> SettingsRules:
    return SettingsRules(
        Manifest.model_validate(
            {
                "name": "x",
                "version": "1.0.0",
                "runtime": "exec",
                "command": "x",
                "settingsSchema": schema,
                "defaultConfiguration": defaults or {},
            }
        )
    )


def test_settings_are_laid_over_defaults_and_spelled_values_converted() -> None:
    number, switch = {"type": "integer"}, {"type": ["boolean", "null"]}
    schema = {
        "properties": {
            "size": number,
            "real": {"type": "number"},
            "on": switch,
            "text": {"type": ["integer", "string"]},
            "list": {"items": number},
            "deep": {"properties": {"n": number}},
        }
    }
    found, wrong = rules(schema, {"size": "1", "deep": {"n": "1", "m": "1"}}).effective(
        {"size": "8192", "real": "1.5", "on": "False", "text": "5", "list": ["1", 2], "deep": {"n": "7"}, "other": "5"}
    )
    assert wrong == []
    assert found == {
        "size": 8192,
        "real": 1.5,
        "on": False,
        "text": "5",
        "list": [1, 2],
        "deep": {"n": 7, "m": "1"},
        "other": "5",
    }


def test_schemas_of_packages_never_reach_out_and_never_crash() -> None:
    for elsewhere in ("http://127.0.0.1:1/x", "#/nowhere", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="leads nowhere"):
            rules({"properties": {"b": {"anyOf": [{"$ref": elsewhere}]}}})
        _, wrong = rules({"$id": "http://127.0.0.1:1/y", "allOf": [{"$ref": elsewhere}]}).effective({"a": 1})
        assert [w.path for w in wrong] == [()]
    _, wrong = rules({"$ref": "#"}).effective({"a": 1})
    assert [w.path for w in wrong] == [()]
    assert rules({"properties": {"$ref": {"const": {"$ref": "x"}}}}).effective({"a": 1})[1] == []
    with pytest.raises(ValueError, match="settingsSchema"):
        rules({"type": 5})


def test_overlay_replaces_lists_and_scalars() -> None:
    assert overlaid({"a": {"b": 1, "c": [1]}, "d": {"e": 1}}, {"a": {"c": [2]}, "d": 5}) == {
        "a": {"b": 1, "c": [2]},
        "d": 5,
    }


def test_generated_schemas_are_fresh_and_valid() -> None:
    assert schemas.stale() == []
    for text in schemas.generate().values():
        Draft202012Validator.check_schema(__import__("json").loads(text))


def test_samples_satisfy_the_generated_schema_too() -> None:
    import json

    schema = Draft202012Validator(json.loads(schemas.generate()["tdie.schema.json"]))
    checked = 0
    for file in SAMPLES.rglob("*.yaml"):
        for document in yaml.read(file.read_bytes(), []):
            if isinstance(document.value, dict) and document.value.get("kind") in KINDS:
                assert [e.message for e in schema.iter_errors(document.value)] == [], file
                checked += 1
    assert checked >= 4


def test_a_stale_or_missing_schema_is_named(tmp_path: Path) -> None:
    for name, text in schemas.generate().items():
        (tmp_path / name).write_text(text)
    assert schemas.stale(tmp_path) == []
    (tmp_path / "tdie.schema.json").unlink()
    (tmp_path / "cluster.schema.json").write_text("{}")
    assert schemas.stale(tmp_path) == ["cluster.schema.json", "tdie.schema.json"]


def test_problems_for_people_programs_and_pull_requests() -> None:
    problem = Problem("a,b.yaml", 3, 5, "CYCLE", "a → b\n100%")
    assert as_text([problem]) == "a,b.yaml:3:5 CYCLE a → b\n100%\n"
    assert '"valid": false' in as_json([problem])
    assert '"valid": true' in as_json([])
    assert as_github([problem]) == "::error file=a%2Cb.yaml,line=3,col=5,title=CYCLE::a → b%0A100%25\n"
