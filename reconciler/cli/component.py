"""`tdie init component`: the package folder, the test and the documents of a new component."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

from agent.components import folder as builtin
from agent.errors import Invalid, Missing, Refused
from reconciler.cli.main import init
from reconciler.cli.out import say

PUBLISHER = "basic-publisher"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


@init.command
def component(name: str, *, folder: Path = Path(".")) -> int:
    """Make a component of your own: a package with code, a test that passes, and the documents that run it.

    Parameters
    ----------
    name
        Of the package and of its first instance: lower-case letters, digits and dashes.
    folder
        Top folder of the repository.
    """
    if not _NAME.fullmatch(name) or name == "consul" or name.startswith("tdie-") or name.endswith("-"):
        raise Invalid(
            f"'{name}' is no name for a component",
            code="NAME",
            hint="a letter, then up to 62 of a-z, 0-9 and '-'; not consul, not tdie-…",
        )
    words = [word for word in name.split("-") if word]
    module = "_".join([*words, "component"])
    known = _publisher(folder)
    marks = {
        "name": name,
        "module": module,
        "class": "".join(word.capitalize() for word in words),
        "publisher": known or f"{PUBLISHER}@{_builtin_version()}",
    }
    made = {
        f"packages/{name}/manifest.json": _filled("manifest.json", marks),
        f"packages/{name}/content/{module}.py": _filled("component.py", marks),
        f"tests/test_{module}.py": _filled("test.py", marks),
        f"instances/{name}.yaml": _filled("documents.yaml", marks) + ("" if known else _publishers_document()),
    }
    if there := [path for path in made if (folder / path).exists()]:
        raise Refused(f"{there[0]} exists already", code="EXISTS", where=str(folder), hint="choose another name")
    for path, text in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    say("\n".join(["Made", *(f"  {path}" for path in made), "", *_what_next(module)]))
    return 0


def _publisher(folder: Path) -> str:
    """`name@version` of the basic publisher that the repository has already; empty if it has none."""
    from reconciler.model.documents import Package
    from reconciler.source.catalog import Catalog
    from reconciler.source.walk import FolderTree

    if not folder.is_dir():
        raise Missing(f"there is no folder {folder}")
    catalog = Catalog()
    catalog.advance(FolderTree(folder))
    versions = [
        found.document.spec.version
        for decoded in catalog.files.values()
        for found in decoded.found
        if isinstance(found.document, Package) and found.document.metadata.name == PUBLISHER
    ]
    return f"{PUBLISHER}@{versions[-1]}" if versions else ""


def _builtin_version() -> str:
    return str(json.loads((builtin(PUBLISHER) / "manifest.json").read_text())["version"])


def _publishers_document() -> str:
    return (
        f"---\napiVersion: tdie/v1\nkind: Package\nmetadata: {{name: {PUBLISHER}}}\n"
        f"spec: {{version: {_builtin_version()}, source: {{builtin: {PUBLISHER}}}}}\n"
    )


def _filled(name: str, marks: dict[str, str]) -> str:
    text = files("reconciler").joinpath(f"scaffold/{name}.txt").read_text(encoding="utf-8")
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    return text


def _what_next(module: str) -> list[str]:
    steps = (
        f"python -m pytest tests/test_{module}.py    # needs pytest",
        "tdie validate && tdie plan",
        "git add . && git commit -m 'a new component' && git push",
    )
    return ["Next:", *(f"  {step}" for step in steps)]
