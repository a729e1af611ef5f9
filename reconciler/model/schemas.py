"""JSON Schemas of everything people write, generated from the models: `python -m reconciler.model.schemas [--check]`.

They serve editors; the program itself checks with the models, whose errors are better.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import reconciler
from agent.packages.manifest import Manifest
from reconciler.model.documents import AnyDocument, Cluster, Instance, Package

FOLDER = Path(reconciler.__file__).parent.parent / "schemas"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def generate() -> dict[str, str]:
    """File name → text of every schema; the same text for the same models."""
    models: dict[str, tuple[str, Any]] = {
        "cluster": ("tdie Cluster", Cluster),
        "package": ("tdie Package", Package),
        "instance": ("tdie Instance", Instance),
        "tdie": ("tdie document", AnyDocument),
        "manifest": ("tdie package manifest", Manifest),
    }
    return {f"{name}.schema.json": _text(name, title, model) for name, (title, model) in models.items()}


def _text(name: str, title: str, model: Any) -> str:
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    schema = _tidy(adapter.json_schema(by_alias=True))
    if isinstance(model, type) and issubclass(model, Manifest):
        _allow_seed_forms(schema)
    return json.dumps({"$schema": _DIALECT, **schema, "title": title}, indent=2, ensure_ascii=False) + "\n"


def _allow_seed_forms(schema: dict[str, Any]) -> None:
    """The seed's spellings are read too, so an editor must not mark them."""
    schema["properties"] |= {
        "$schema": {"type": "string"},
        "packageName": {"type": "string", "description": "The seed's spelling of name."},
        "packageVersion": {"type": "string", "description": "The seed's spelling of version."},
        "extensionProperties": {
            "type": "object",
            "description": "The seed's AssemblyName, ComponentType, Dependencies.",
        },
    }
    schema.pop("required", None)


def _tidy(value: Any) -> Any:
    """Without generated titles, and without defaults that are spelled differently in documents (durations, shares, switches)."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    tidied = {
        key: _tidy_properties(item) if key in ("properties", "$defs") else _tidy(item)
        for key, item in value.items()
        if key != "title"
    }
    default = tidied.get("default")
    misspelled = "pattern" in tidied and not isinstance(default, str | int)
    if misspelled or isinstance(default, dict) or default not in tidied.get("enum", [default]):
        tidied.pop("default", None)
    return tidied


def _tidy_properties(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: _tidy(schema) for name, schema in properties.items()}


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of schema files that are missing or differ from the models."""
    wanted = generate()
    there = {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.schema.json")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def main(arguments: list[str]) -> int:
    """Write the schemas, or with --check say which are stale; the exit status is 1 then."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m reconciler.model.schemas [--check]\n")
        return 64
    found = stale()
    if not arguments:
        for name, text in generate().items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        return 0
    for name in found:
        sys.stderr.write(f"schemas/{name} is stale; run python -m reconciler.model.schemas\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
