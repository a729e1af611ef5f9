"""The manifest in our form and in the seed's, and everything it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Invalid
from agent.packages.manifest import check_layout, parse_manifest
from agent.packages.names import kebab_case

OURS: dict[str, Any] = {"name": "file-watcher", "version": "1.0.0", "componentType": "watcher:FileWatcher"}


def parsed(raw: Any) -> Any:
    return parse_manifest(json.dumps(raw).encode())


def test_the_seeds_example_manifests_are_read() -> None:
    first = parsed(
        {
            "packageName": "MyFileProcessor",
            "packageVersion": "1.2.0",
            "description": "Advanced file processing component",
            "contentRoot": "content",
            "extensionProperties": {
                "AssemblyName": "MyComponent.dll",
                "AssemblyExtension": ".dll",
                "ComponentType": "MyNamespace.MyComponent",
                "Dependencies": ["Newtonsoft.Json >= 12.0.0"],
            },
        }
    )
    assert (first.name, first.version, first.module, first.class_name) == (
        "my-file-processor",
        "1.2.0",
        "MyComponent",
        "MyComponent",
    )
    assert first.dependencies == ("Newtonsoft.Json >= 12.0.0",)
    second = parsed({"name": "FileProcessor", "version": "1.2.0", "componentType": "A.B.Processor"})
    assert (second.name, second.component_type, second.content_root) == ("file-processor", "A.B:Processor", ".")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "1.2"}, "not a semantic version"),
        ({"name": "a/b"}, "not a package name"),
        ({"contentRoot": "../up"}, "not a folder inside the package"),
        ({"componentType": "no class"}, "module:Class"),
        ({"componentType": None}, "needs componentType"),
        ({"runtime": "exec"}, "needs a command"),
        ({"packageName": "x"}, "give either name or packageName"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"extensionProperties": {"Colour": 1}}, "unknown field 'Colour'"),
    ],
)
def test_wrong_manifests_are_refused_with_the_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        parsed(OURS | change)
    assert caught.value.code == "PKG_MANIFEST"


def test_exec_commands_may_be_one_string() -> None:
    assert parsed({"name": "x", "version": "1.0.0", "runtime": "exec", "command": "sh -c 'sleep 1'"}).command == (
        "sh",
        "-c",
        "sleep 1",
    )


@pytest.mark.parametrize("data", [b"\xff", b'{"a":1,"a":2}', b"[" * 100_000, b'{"a": NaN}', b"1" * 10_000, b"[]", b""])
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(Invalid):
        parse_manifest(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_invalid(data: bytes) -> None:
    with pytest.raises(Invalid):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("name", "kebab"),
    [("FileWatcher", "file-watcher"), ("HTTPServer", "http-server"), ("file-watcher", "file-watcher"), ("a_b", "a-b")],
)
def test_kebab_case(name: str, kebab: str) -> None:
    assert kebab_case(name) == kebab


def test_layout() -> None:
    manifest = parsed(OURS | {"contentRoot": "content"})
    check_layout(manifest, ["manifest.json", "content/watcher.py"])
    for paths, code in [
        (["manifest.json"], "PKG_LAYOUT"),
        (["content/other.py"], "PKG_LAYOUT"),
        (["content/watcher.py", "content/agent/__init__.py"], "PKG_RESERVED"),
        (["content/watcher.py", "content/dependencies/reconciler.py"], "PKG_RESERVED"),
    ]:
        with pytest.raises(Invalid) as caught:
            check_layout(manifest, paths)
        assert caught.value.code == code
