"""What settings a replica gets: the package's defaults, overlaid by the Instance's, checked by the package's schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from agent.packages.manifest import Manifest
from agent.packages.settings import overlaid
from agent.wire import canonical_json
from reconciler.model.wording import meant

_REMEMBERED = 10_000
_INTEGER = re.compile(r"[-+]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][-+]?\d{1,2})?", re.ASCII)


class Wrong(NamedTuple):
    """A setting the schema refuses. `key` says whether the key itself is wrong rather than its value."""

    path: tuple[str | int, ...]
    message: str
    key: bool = False


class SettingsRules:
    """One package's defaults and schema. ValueError when the schema itself is wrong."""

    def __init__(self, manifest: Manifest) -> None:
        self._defaults = dict(manifest.default_configuration)
        self._schema = manifest.settings_schema
        self._validator: Any = None
        self._known: dict[bytes, tuple[dict[str, Any], list[Wrong]]] = {}  # many Instances are set alike
        if self._schema is not None:
            kind = validator_for(self._schema, default=Draft202012Validator)
            try:
                kind.check_schema(dict(self._schema))
            except SchemaError as error:
                at = "/".join(str(part) for part in error.absolute_path)
                raise ValueError(f"settingsSchema {at}: {error.message[:200]}") from error
            # An empty registry: a schema never makes the controller fetch another one.
            self._validator = kind(dict(self._schema), registry=Registry())
            _check_references(self._schema)

    def effective(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
        """The settings a replica gets, and everything the schema refuses about them; equal input may share one result."""
        key = canonical_json(given)
        if (known := self._known.get(key)) is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._effective(given)
        return known

    def _effective(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
        settings: dict[str, Any] = overlaid(self._defaults, given)
        if self._schema is None:
            return settings, []
        settings = _converted(settings, self._schema)
        try:
            wrong = [found for error in self._validator.iter_errors(settings) for found in _wrong(error, settings)]
        except (Unresolvable, RecursionError) as error:
            return settings, [Wrong((), f"the settingsSchema cannot be followed: {str(error)[:200]}")]
        return settings, wrong


def _check_references(schema: Mapping[str, Any]) -> None:
    """ValueError for a `$ref` that leads nowhere within the schema itself. One that names its parts by `$id` is followed in use."""
    rest, references = [schema], list[str]()
    while rest:
        for key, value in rest.pop().items():
            if key == "$id":
                return
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                references.append(value)
            elif key not in ("const", "enum", "default", "examples"):
                rest += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Mapping)]
    resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
    for reference in references:
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"settingsSchema: $ref '{reference[:200]}' leads nowhere within it") from error


def _wrong(error: Any, settings: Any) -> list[Wrong]:
    path = tuple(error.absolute_path)
    if (
        error.validator == "additionalProperties"
        and isinstance(error.instance, dict)
        and error.validator_value is False
    ):
        known = set(error.schema.get("properties", {}))
        patterns = [re.compile(pattern) for pattern in error.schema.get("patternProperties", {})]
        extra = [k for k in error.instance if k not in known and not any(p.search(k) for p in patterns)]
        return [
            Wrong((*path, key), f"the package knows no setting '{key}'; {_known(key, known)}", True) for key in extra
        ]
    message = error.message if len(error.message) <= 300 else f"{error.message[:297]}…"
    return [Wrong(path, message)]


def _known(key: str, known: set[str]) -> str:
    close = meant(key, sorted(known))
    return f"did you mean '{close}'?" if close else f"it knows {', '.join(sorted(known)) or 'none'}"


def _converted(value: Any, schema: Any) -> Any:
    """The value with strings that spell the schema's number or boolean turned into those."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, dict):
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            return value
        return {key: _converted(item, properties.get(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_converted(item, schema.get("items")) for item in value]
    if not isinstance(value, str):
        return value
    wanted = schema.get("type", ())
    types = {wanted} if isinstance(wanted, str) else set(wanted)
    if not types or "string" in types:
        return value
    text = value.strip()
    if "boolean" in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if types & {"integer", "number"} and _INTEGER.fullmatch(text):
        return int(text)
    if "number" in types and _NUMBER.fullmatch(text):
        return float(text)
    return value
