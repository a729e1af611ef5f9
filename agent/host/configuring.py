"""From an init document of the host's API to the code it names: a package of this node, or for hosts of people any folder."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agent.errors import Denied, Invalid, Missing, Refused, TdieError, Waiting
from agent.host.agent_line import Answer, ask
from agent.host.objects import Role
from agent.keeper.protocol import BY_HAND, Code, HostOrder
from agent.packages.names import kebab_case, module_and_class
from agent.packages.settings import check_depth, overlaid

FIELDS: Mapping[str, type] = {
    "packageName": str,
    "version": str,
    "assemblyPath": str,
    "fullyQualifiedClassName": str,
    "settings": dict,
}


@dataclass(frozen=True, slots=True)
class Document:
    """What people say a component or publisher is made of; all but the name may be left out."""

    package: str
    settings: Mapping[str, Any]
    version: str = ""
    path: str = ""
    type: str = ""


def read(package: str, body: Mapping[str, Any]) -> Document:
    """The document for the package of the URL. Invalid names the field that is wrong."""
    for key, value in body.items():
        if key not in FIELDS:
            raise Invalid(f"unknown field '{key[:100]}'; there are {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[key]) or "\0" in str(value):
            raise Invalid(f"'{key}' is no {'mapping' if FIELDS[key] is dict else 'text'}")
    check_depth(body)
    if kebab_case(body.get("packageName", package)) != package:
        raise Invalid(f"the document is for {body['packageName'][:100]}, the path for {package}", code="PACKAGE_NAME")
    return Document(
        package=package,
        settings=body.get("settings", {}),
        version=body.get("version", ""),
        path=body.get("assemblyPath", ""),
        type=body.get("fullyQualifiedClassName", ""),
    )


async def code_of(order: HostOrder, original: HostOrder, role: Role, said: Document, socket: str) -> Code:
    """What the document names, with its settings over the package's.

    `original` is the order the host was born with; on `socket` its agent answers about packages.
    Refused (OWNED_BY_GIT) where Git says what runs: only hosts that people started load other code, also from any folder.
    """
    if order.instance != BY_HAND:
        raise Refused(
            f"{order.replica} is set up by what Git says",
            code="OWNED_BY_GIT",
            hint="commit other settings; without a document this call sets it up as it was",
        )
    if said.path:
        return _from_folder(original, said)
    held = original.component if role is Role.COMPONENT else original.publisher
    if held is not None and held.name == said.package and said.version in ("", held.version) and not said.type:
        return _with_settings(held, overlaid(held.settings, said.settings))
    return await _from_node(order, said, socket)


def _with_settings(code: Code, settings: Mapping[str, Any]) -> Code:
    return Code(code.name, code.version, code.digest, code.content_root, code.component_type, settings)


def _from_folder(original: HostOrder, said: Document) -> Code:
    root = Path(said.path)
    if not root.is_absolute() or not root.is_dir():
        raise Invalid(f"there is no folder {said.path[:200]}", code="CONTENT_MISSING")
    held = original.component
    own = root.resolve() == Path(held.content_root).resolve()
    kind = module_and_class(said.type) if said.type else held.component_type if own else ""
    if not kind:
        raise Invalid("with an assemblyPath, fullyQualifiedClassName is needed")
    if own:
        return Code(held.name, held.version, held.digest, held.content_root, kind, said.settings)
    return Code(said.package, said.version or "0.0.0", "", str(root), kind, said.settings)


async def _from_node(order: HostOrder, said: Document, socket: str) -> Code:
    answer = await ask(
        socket, "PUT", f"/api/node/packages/{quote(said.package, safe='')}/resolved",
        _json({"version": said.version or None, "settings": dict(said.settings)}),
    )  # fmt: skip
    check(answer)
    found = answer.json()
    if found["runtime"] != "python":
        raise Refused(f"{said.package} is a program, no class that a host loads", code="NOT_A_COMPONENT")
    if found["python"] and found["python"] != order.python:
        raise Refused(
            f"{said.package} needs an environment of its own, which this process does not run in",
            code="OTHER_ENVIRONMENT",
            hint=f"PUT /api/node/processes/{said.package}/start",
        )
    kind = module_and_class(said.type) if said.type else found["componentType"]
    return Code(found["name"], found["version"], found["digest"], found["contentRoot"], kind, found["settings"])


async def _json(value: Mapping[str, Any]) -> AsyncIterator[bytes]:
    yield json.dumps(value).encode()


def check(answer: Answer) -> None:
    """Raises what the agent refused with, in its own words."""
    if answer.status < 400:
        return
    said = answer.json()
    kinds: Mapping[int, type[TdieError]] = {404: Missing, 409: Refused, 403: Denied}
    raise kinds.get(answer.status, Invalid if answer.status < 500 else Waiting)(
        said["detail"], code=said["code"], hint=said.get("hint", "")
    )
