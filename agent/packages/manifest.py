"""manifest.json: what a package says of itself, in the canonical form and in the forms of the seed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from agent.errors import Invalid
from agent.packages.names import NAME, kebab_case

FILE_NAME = "manifest.json"
MAX_BYTES = 1 << 20
RESERVED_MODULES = frozenset({"agent", "reconciler"})  # a package must never shadow the programs that run it

_SEMVER = re.compile(
    r"(0|[1-9]\d{0,17})\.(0|[1-9]\d{0,17})\.(0|[1-9]\d{0,17})"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_TYPE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_SEED_FIELDS = {"packageName": "name", "packageVersion": "version"}
_SEED_PROPERTIES = {"AssemblyName", "AssemblyExtension", "ComponentType", "Dependencies"}


class Manifest(BaseModel):
    """What a package is called, what it holds and how it is run."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    name: str = Field(description="Lower-case letters, digits and dashes; names of the seed are read as kebab-case.")
    version: str = Field(description="Semantic version, e.g. `1.2.0`.")
    description: str = ""
    kind: Literal["component", "publisher"] | None = Field(None, description="Read from the class when not given.")
    component_type: str | None = Field(None, description="`module:Class` below the content root (runtime python).")
    content_root: str = Field(".", description="Folder of the package that holds code and data.")
    dependencies: tuple[str, ...] = Field(
        (), description="Requirements as in PEP 508; the package then starts in its own venv."
    )
    default_configuration: Mapping[str, Any] = Field(
        default_factory=dict, description="Settings an Instance lays its own over."
    )
    settings_schema: Mapping[str, Any] | None = Field(None, description="JSON Schema of the settings.")
    runtime: Literal["python", "exec"] = Field("python", description="`exec` runs any program as a supervised process.")
    command: tuple[str, ...] = Field(
        (), description="Program and arguments (runtime exec); a string is split like a shell line."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_seed_forms(cls, raw: Any) -> Any:
        return _canonical(raw) if isinstance(raw, dict) else raw

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(kebab := kebab_case(name)):
            raise ValueError(f"'{name}' is not a package name: up to 63 of a-z, 0-9 and '-'")
        return kebab

    @field_validator("version")
    @classmethod
    def _check_version(cls, version: str) -> str:
        if not is_version(version):
            raise ValueError(f"'{version}' is not a semantic version such as 1.2.0")
        return version

    @field_validator("component_type")
    @classmethod
    def _check_type(cls, value: str | None) -> str | None:
        if value is not None and not _TYPE.fullmatch(value):
            raise ValueError(f"'{value}' is not of the form module:Class")
        return value

    @field_validator("content_root")
    @classmethod
    def _check_root(cls, root: str) -> str:
        parts = root.split("/")
        if root.startswith("/") or "\\" in root or ".." in parts or "\0" in root or not root:
            raise ValueError(f"'{root}' is not a folder inside the package")
        return PurePosixPath(root).as_posix()

    @field_validator("command", mode="before")
    @classmethod
    def _split_command(cls, command: Any) -> Any:
        return tuple(shlex.split(command)) if isinstance(command, str) else command

    @model_validator(mode="after")
    def _check_runtime(self) -> Manifest:
        if self.runtime == "exec" and not self.command:
            raise ValueError("runtime exec needs a command")
        if self.runtime == "python" and self.component_type is None:
            raise ValueError("runtime python needs componentType (module:Class)")
        return self

    @property
    def module(self) -> str:
        """The module that holds the class; empty for `exec`."""
        return (self.component_type or "").partition(":")[0]

    @property
    def class_name(self) -> str:
        """The class to make; empty for `exec`."""
        return (self.component_type or "").partition(":")[2]


def parse_manifest(data: bytes) -> Manifest:
    """The manifest these bytes spell; Invalid (PKG_MANIFEST) names every wrong field."""
    try:
        return read_manifest(load_json(data))
    except ValidationError as error:
        raise Invalid("; ".join(describe(error)), code="PKG_MANIFEST", where=FILE_NAME) from error


def read_manifest(raw: Any) -> Manifest:
    """The manifest of parsed JSON; pydantic's ValidationError holds every problem with its path."""
    return Manifest.model_validate(raw)


def describe(error: ValidationError) -> list[str]:
    """One line for each problem, `path: what is wrong`."""
    lines = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "model_type":
            text = "expected an object"
        lines.append(f"{path}: {text}" if path else text)
    return lines


def load_json(data: bytes) -> Any:
    """Parsed JSON; Invalid (PKG_MANIFEST) for bad UTF-8, duplicate keys, NaN, too deep or too large documents."""
    if len(data) > MAX_BYTES:
        raise Invalid(f"{len(data)} bytes, at most {MAX_BYTES} are read", code="PKG_MANIFEST", where=FILE_NAME)
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        text = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Invalid(text, code="PKG_MANIFEST", where=FILE_NAME) from error


def check_layout(manifest: Manifest, paths: Iterable[str]) -> None:
    """The package's files fit its manifest, or Invalid: PKG_LAYOUT (what is missing), PKG_RESERVED (shadows our modules)."""
    root = "" if manifest.content_root == "." else manifest.content_root + "/"
    inside = {path[len(root) :] for path in paths if path.startswith(root)}
    if root and not inside:
        raise Invalid(f"contentRoot '{manifest.content_root}' is not in the package", code="PKG_LAYOUT")
    # `dependencies/` is importable too, so it must not shadow anything either.
    tops = {path.removeprefix("dependencies/").split("/")[0].removesuffix(".py") for path in inside}
    if taken := sorted((tops & RESERVED_MODULES) | ({manifest.module.split(".")[0]} & RESERVED_MODULES)):
        raise Invalid(f"module '{taken[0]}' in the content root would shadow the program itself", code="PKG_RESERVED")
    if manifest.runtime == "python" and not manifest.dependencies:
        file = manifest.module.replace(".", "/")
        candidates = {f"{base}{file}{end}" for base in ("", "dependencies/") for end in (".py", "/__init__.py")}
        if not candidates & inside:
            raise Invalid(f"module '{manifest.module}' of componentType is not in the content root", code="PKG_LAYOUT")


def is_version(text: str) -> bool:
    """True for a semantic version."""
    return len(text) <= 128 and _SEMVER.fullmatch(text) is not None


def _canonical(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The seed's spelling turned into ours; `$schema` is for editors only. Giving one thing twice is an error."""
    seen = {key: value for key, value in raw.items() if key != "$schema"}
    for theirs, ours in _SEED_FIELDS.items():
        if theirs in seen:
            if ours in seen:
                raise ValueError(f"give either {ours} or {theirs}")
            seen[ours] = seen.pop(theirs)
    properties = seen.pop("extensionProperties", None)
    assembly = ""
    if properties is not None:
        if not isinstance(properties, dict) or (unknown := sorted(set(properties) - _SEED_PROPERTIES)):
            what = f"unknown field '{unknown[0]}'" if isinstance(properties, dict) else "not a mapping"
            raise ValueError(f"extensionProperties: {what}")
        assembly = str(properties.get("AssemblyName", ""))
        seen.setdefault("componentType", properties.get("ComponentType"))
        seen.setdefault("dependencies", properties.get("Dependencies", []))
    kind = seen.get("kind")
    if isinstance(kind, str):
        seen["kind"] = {"messagepublisher": "publisher"}.get(kind.lower(), kind.lower())
    if isinstance(spelled := seen.get("componentType"), str):
        seen["componentType"] = _module_and_class(spelled, assembly)
    return seen


def _module_and_class(spelled: str, assembly: str) -> str:
    """`A.B.C` is class C of module A.B; an assembly name says which module file holds it instead."""
    if ":" in spelled:
        return spelled
    module, _, name = spelled.rpartition(".")
    if assembly:
        module = PurePosixPath(assembly).stem
    return f"{module}:{name}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key '{next(key for key in keys if keys.count(key) > 1)}'")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
