"""How packages are called; standard library only, hosts use it too."""

from __future__ import annotations

import re

NAME = re.compile(r"[a-z0-9-]{1,63}")


def kebab_case(name: str) -> str:
    """`FileWatcher` as `file-watcher`; names already in that form stay as they are."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return re.sub(r"[-_. ]+", "-", spaced).lower() if spaced != name or not NAME.fullmatch(name) else name


def module_and_class(spelled: str) -> str:
    """`A.B.C` is class C of module A.B, as `A.B:C`; what has a colon stays."""
    if ":" in spelled:
        return spelled
    module, _, name = spelled.rpartition(".")
    return f"{module}:{name}"
