"""From the bytes of one file to checked documents: the same bytes are decoded once, wherever they lie."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from reconciler.model.documents import API_VERSION, KINDS, AnyDocument, Cluster
from reconciler.model.lease_figures import figures
from reconciler.model.units import shown
from reconciler.model.wording import dotted, meant
from reconciler.source import yaml
from reconciler.source.yaml import Flaw

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A document of a file: which one, where it starts, what it says. Two finds are only the same if they are identical."""

    index: int
    line: int
    column: int
    document: AnyDocument


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a file's bytes hold; positions are known, the file's name is not."""

    found: tuple[Found, ...]
    flaws: tuple[Flaw, ...]
    broken: tuple[tuple[str, str], ...] = ()  # (kind, name) of documents that are there but wrong


def decode(data: bytes) -> Decoded:
    """All documents of the bytes that are right in themselves, and all flaws of the others."""
    flaws: list[Flaw] = []
    found: list[Found] = []
    broken: list[tuple[str, str]] = []
    for document in yaml.read(data, flaws):
        checked = None if document.flawed else _checked(document, flaws)
        if checked is not None:
            found.append(Found(document.index, *document.place(), checked))
        elif isinstance(document.value, dict):
            broken.append(_named(document.value))
    return Decoded(tuple(found), tuple(map(_printable, flaws)), tuple(broken))


def _printable(flaw: Flaw) -> Flaw:
    """The same with everything escaped that a terminal would not show, or would obey."""
    if flaw.message.isprintable():
        return flaw
    return flaw._replace(message="".join(c if c.isprintable() else ascii(c)[1:-1] for c in flaw.message))


def _named(raw: dict[str, Any]) -> tuple[str, str]:
    metadata = raw.get("metadata")
    return str(raw.get("kind")), str(metadata.get("name")) if isinstance(metadata, dict) else ""


def places(data: bytes, wanted: Iterable[tuple[int, Path, bool]]) -> dict[tuple[int, Path, bool], tuple[int, int]]:
    """Line and column of (document index, path, of the key?) in bytes that were decoded before."""
    of_document: dict[int, list[tuple[int, Path, bool]]] = {}
    for want in wanted:
        of_document.setdefault(want[0], []).append(want)
    result = {}
    for document in yaml.read(data, []):
        for want in of_document.get(document.index, ()):
            result[want] = document.place(want[1], key=want[2])
    return result


def _checked(document: yaml.Document, flaws: list[Flaw]) -> AnyDocument | None:
    raw = document.value
    if not isinstance(raw, dict):
        flaws.append(
            Flaw(*document.place(), "WRONG_TYPE", f"expected a document with apiVersion and kind, found {shown(raw)}")
        )
        return None
    if raw.get("apiVersion") != API_VERSION:
        spelled = f"found {shown(raw['apiVersion'])}" if "apiVersion" in raw else "it is missing"
        hint = "a file that is not meant for tdie goes into .tdieignore"
        flaws.append(
            Flaw(
                *document.place(("apiVersion",)),
                "API_VERSION",
                f"expected apiVersion: {API_VERSION}, {spelled}; {hint}",
            )
        )
        return None
    kind = raw.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        spelled = f"unknown kind {shown(kind)}" if "kind" in raw else "kind is missing"
        flaws.append(Flaw(*document.place(("kind",)), "KIND", f"{spelled}{_one_of(kind, list(KINDS))}"))
        return None
    try:
        checked = model.model_validate(raw)
    except ValidationError as error:
        flaws += [_flaw(document, model, problem) for problem in error.errors(include_url=False)]
        return None
    if isinstance(checked, Cluster) and (fault := figures(checked.spec.leases).fault()):
        flaws.append(Flaw(*document.place(("spec", "leases")), "LEASE_UNSAFE_CONFIG", f"leases: {fault}"))
        return None
    return checked


_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _flaw(document: yaml.Document, model: type[BaseModel], problem: Any) -> Flaw:
    """One of pydantic's errors, in words for people, at the place they must change."""
    kind, loc, value = problem["type"], problem["loc"], problem["input"]
    field = loc[-1] if loc else ""
    if kind == "extra_forbidden":
        fields = _fields(_model_at(model, loc[:-1]))
        message = f"unknown field '{field}'{_one_of(field, fields, all_of_them=False)}"
        return Flaw(*document.place(loc, key=True), "UNKNOWN_FIELD", message)
    if kind == "missing":
        return Flaw(*document.place(loc[:-1], key=True), "MISSING_FIELD", f"field '{field}' is missing")
    place = document.place(loc)
    if kind in _EXPECTED:
        quote = "; quote it" if kind == "string_type" and isinstance(value, int | float) else ""
        return Flaw(*place, "WRONG_TYPE", f"{dotted(loc)}: expected {_EXPECTED[kind]}, found {shown(value)}{quote}")
    if kind == "literal_error":
        choices = [str(choice) for choice in _choices(model, loc)]
        listed = _one_of(value, choices) if choices else f": {problem['msg']}"
        return Flaw(*place, "WRONG_VALUE", f"{dotted(loc)}: unknown value {shown(value)}{listed}")
    if kind == "string_pattern_mismatch":
        what = "expected 64 hex digits" if field in ("sha256", "digest") else "expected up to 63 of a-z, 0-9 and '-'"
        return Flaw(*place, "WRONG_VALUE", f"{dotted(loc)}: {what}, found {shown(value)}")
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    found = "" if kind == "value_error" else f", found {shown(value)}"
    return Flaw(*place, "WRONG_VALUE", f"{dotted(loc)}: {text}{found}")


def _one_of(given: Any, choices: Sequence[str], *, all_of_them: bool = True) -> str:
    if (close := meant(str(given), choices)) is not None:
        return f"; did you mean '{close}'?"
    return f"; expected {', '.join(choices[:-1])} or {choices[-1]}" if all_of_them and len(choices) > 1 else ""


def _fields(model: type[BaseModel] | None) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()] if model else []


def _annotation_at(model: type[BaseModel], loc: Path) -> Any:
    """The annotation of the field at `loc`; items of lists and mappings belong to the field that holds them."""
    annotation: Any = model
    for part in loc:
        here = _model_in(annotation)
        if here is None or isinstance(part, int):
            continue
        field = next((f for name, f in here.model_fields.items() if (f.alias or name) == part), None)
        if field is None:
            return None
        annotation = field.annotation
    return annotation


def _model_at(model: type[BaseModel], loc: Path) -> type[BaseModel] | None:
    return _model_in(_annotation_at(model, loc))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The document part that an annotation is, may be, or lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, list, Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)
    return None


def _choices(model: type[BaseModel], loc: Path) -> tuple[Any, ...]:
    annotation = _annotation_at(model, loc)
    return get_args(annotation) if get_origin(annotation) is Literal else ()
