"""Built-in packages: their manifests, their versions, their documents."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from mypy import api as mypy_api

from agent.components import VERSIONS, content_digest
from agent.errors import Missing
from agent.packages.manifest import parse_manifest
from reconciler.components import folder, names
from reconciler.model.documents import Instance
from reconciler.source.decode import decode
from tests.conftest import ROOT


@pytest.mark.parametrize("name", names())
def test_changed_content_has_a_new_version(name: str) -> None:
    root = folder(name).parent
    held = json.loads((root / VERSIONS).read_text())[name]
    version = json.loads((folder(name) / "manifest.json").read_text())["version"]
    assert held == {"version": version, "sha256": content_digest(name, root)}, (
        "raise the version, then python -m agent.components"
    )


@pytest.mark.parametrize("name", names())
def test_manifests_are_valid(name: str) -> None:
    manifest = parse_manifest((folder(name) / "manifest.json").read_bytes())
    assert manifest.name == name
    jsonschema.Draft202012Validator.check_schema(dict(manifest.settings_schema or {}))
    assert (folder(name) / manifest.content_root / f"{manifest.module}.py").is_file()


@pytest.mark.parametrize("name", names())
def test_every_setting_is_described(name: str) -> None:
    manifest = parse_manifest((folder(name) / "manifest.json").read_bytes())
    schema = manifest.settings_schema or {}
    assert schema["additionalProperties"] is False
    readme = (folder(name) / "README.md").read_text()
    for key, about in schema["properties"].items():
        assert about.get("description"), key
        assert f"`{key}`" in readme, f"{key} is not in the README"
    shown = "\n".join(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL))
    assert f"{name}@{manifest.version}" in shown, "the README shows another version"
    if "kind: Instance" in shown:
        decoded = decode(shown.encode())
        assert decoded.flaws == (), "the README shows what would be refused"
        for found in decoded.found:
            if isinstance(found.document, Instance) and found.document.spec.package.startswith(f"{name}@"):
                jsonschema.validate(found.document.spec.settings, schema, cls=jsonschema.Draft202012Validator)
    defaults = dict(manifest.default_configuration)
    relaxed = {key: value for key, value in schema.items() if key not in ("required", "anyOf", "oneOf")}
    jsonschema.validate(defaults, relaxed, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", names())
def test_contents_are_typed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strictly, each package by itself, as its host imports it."""
    root = folder(name) / "content"
    monkeypatch.setenv("MYPYPATH", str(root))
    found = mypy_api.run(
        [
            "--strict",
            "--python-version",
            "3.11",
            "--cache-dir",
            str(ROOT / ".mypy_cache" / name),
            *map(str, sorted(root.glob("*.py"))),
        ]
    )
    assert found[2] == 0, found[0]


def test_an_unknown_builtin_is_named() -> None:
    with pytest.raises(Missing, match="file-watcher"):
        folder("nothing")
