"""From a content root and `module:Class` to a class that may run here.

Paths are plain text here: every host goes this way, and what it needs not touch stays shared with the zygote."""

from __future__ import annotations

import importlib
import inspect
import sys
from os import path

from agent.errors import Invalid
from agent.host import borrowed
from agent.keeper.protocol import Code
from agent.sdk.extension import Component, Extension, MessagePublisher, describe

RESERVED = ("agent", "reconciler")
BUILT_IN = "tdie_"  # how modules of built-in packages begin: they use libraries of the agent without declaring them


class CannotLoad(Invalid):
    """The package does not hold what its manifest promises; starting again is useless."""

    code = "LOAD_FAILED"


def load(code: Code, base: type[Extension]) -> type[Extension]:
    """The class of a package, a concrete subclass of `base`. CannotLoad says what is wrong with it."""
    where = f"{code.name}@{code.version}"
    module_name, _, class_name = code.component_type.partition(":")
    if not module_name or not class_name:
        raise CannotLoad(f"componentType {code.component_type!r} is not module:Class", where=where)
    root = code.content_root
    _make_importable(root, where)
    if module_name.startswith(BUILT_IN):
        borrowed.lend()
    if (held := sys.modules.get(module_name)) is not None:
        _check_origin(held, root, module_name, where)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = f"there is no {module_name} in {root}" if error.name == module_name else f"it imports {error.name}"
        raise CannotLoad(
            f"module {module_name} cannot be imported: {hint}", code="MODULE_MISSING", where=where
        ) from error
    except Exception as error:
        raise CannotLoad(f"module {module_name} cannot be imported: {describe(error)}", where=where) from error
    _check_origin(module, root, module_name, where)
    found = getattr(module, class_name, None)
    if found is None:
        raise CannotLoad(f"module {module_name} has no class {class_name}", code="CLASS_MISSING", where=where)
    return _checked(found, base, f"{module_name}:{class_name}", where)


def _make_importable(root: str, where: str) -> None:
    if not path.isdir(root):
        raise CannotLoad(f"the content root {root} is not there", code="CONTENT_MISSING", where=where)
    for name in RESERVED:
        if path.exists(path.join(root, name)) or path.exists(path.join(root, f"{name}.py")):
            raise CannotLoad(f"a top-level module may not be named {name}", code="MODULE_RESERVED", where=where)
    for folder in (path.join(root, "dependencies"), root):
        if path.isdir(folder):
            if folder in sys.path:
                sys.path.remove(folder)
            sys.path.insert(0, folder)


def _check_origin(module: object, root: str, name: str, where: str) -> None:
    origin = getattr(module, "__file__", None)
    places = [path.realpath(root)]
    if sys.prefix != sys.base_prefix and borrowed.libraries:  # the packages' own environment may hold the class too
        places.append(path.realpath(sys.prefix))
    if origin is None or not any(path.realpath(origin).startswith(path.join(place, "")) for place in places):
        raise CannotLoad(
            f"module {name} is taken by {origin or 'the interpreter'}",
            code="MODULE_CLASH",
            where=where,
            hint="rename it",
        )


def _checked(found: object, base: type[Extension], name: str, where: str) -> type[Extension]:
    word = "MessagePublisher" if base is MessagePublisher else "Component" if base is Component else base.__name__
    if not inspect.isclass(found) or not issubclass(found, base):
        raise CannotLoad(f"{name} is no {word} of agent.sdk", code="NOT_A_" + word.upper(), where=where)
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise CannotLoad(f"{name} is abstract: it lacks {missing}", code="CLASS_ABSTRACT", where=where)
    return found
