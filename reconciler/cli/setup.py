"""`tdie init cluster`: tokens, settings and systemd units of a cluster on several machines, and the commands to run there."""

from __future__ import annotations

import os
import re
import secrets
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import yaml
from cyclopts import Parameter

from agent.callers import PEOPLE, Person, Role, hashed, people_file
from agent.errors import Invalid, Refused
from reconciler.cli.main import init
from reconciler.cli.out import say

PEOPLE_FILE = "people"
VALID_DAYS = 90
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
Rank = Literal["viewer", "operator", "admin"]


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of the new cluster."""

    name: str
    address: str
    controls: bool  # runs a controller too


@init.command
def cluster(
    name: str,
    *,
    repository: str,
    node: Annotated[list[str], Parameter(negative=())],
    controller: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006 - cyclopts copies it
    ref: str = "main",
    consul: str = "127.0.0.1:8500",
    folder: Path = Path("tdie-cluster"),
    data: Path = Path("/var/lib/tdie"),
) -> int:
    """Make everything a cluster on several machines needs: tokens (0600), settings, systemd units, a first Cluster document.

    Machines show each other the cluster's token. People show one of their own: a viewer reads, an operator also changes what runs,
    an admin also packages and what the cluster remembers.

    Parameters
    ----------
    name
        Of the cluster.
    repository
        Git repository that the controllers follow, as they reach it.
    node
        NAME=ADDRESS of a machine; give one for each. The address is the one the others reach it at.
    controller
        Names of the nodes that also run a controller; the first node when none is given.
    ref
        Branch to follow.
    consul
        Consul's HTTP address as each machine reaches it.
    folder
        Where to write; must not exist yet.
    data
        Where agents and controllers keep their data on their machines.
    """
    machines = _machines(node, controller)
    if folder.exists():
        raise Refused("exists already", code="EXISTS", where=str(folder), hint="name another with --folder")
    folder.mkdir(mode=0o700, parents=True)
    _write(folder / "cluster.token", secrets.token_urlsafe(32) + "\n")
    _write(folder / PEOPLE_FILE, "".join(f"{_new_person(folder, str(role), role, VALID_DAYS)}\n" for role in PEOPLE))
    for machine in machines:
        _machine(folder.resolve(), machine, name, repository, ref, consul, data)
    _write(folder / "cluster.yaml", _document(name, machines), 0o644)
    say(_what_next(folder.resolve(), machines))
    return 0


@init.command
def token(
    name: str,
    *,
    role: Rank = "viewer",
    days: int = VALID_DAYS,
    folder: Path = Path("tdie-cluster"),
    revoke: bool = False,
) -> int:
    """Make a token for a person, or take it back: a file NAME.token, and its hash for each machine. An earlier one ends.

    Parameters
    ----------
    name
        Whose it is; logs name it.
    role
        viewer reads; operator also changes what runs; admin also packages and what the cluster remembers.
    days
        How long it is good for, at most 90.
    folder
        The one that `tdie init cluster` has made.
    revoke
        Take the person's token back instead.
    """
    if not NAME.fullmatch(name):
        raise Invalid(f"'{name}' is no name", code="NAME", hint="use small letters, digits and dashes")
    if not 1 <= days <= VALID_DAYS:
        raise Invalid(f"a token is good for 1 to {VALID_DAYS} days", code="DAYS")
    known = people_file(folder / PEOPLE_FILE)()
    rest = [person for person in known if person.name != name]
    if revoke and len(rest) == len(known):
        raise Invalid(f"nobody is called {name}", code="NAME", where=str(folder / PEOPLE_FILE))
    (folder / f"{name}.token").unlink(missing_ok=True)
    if not revoke:
        rest.append(_new_person(folder, name, next(one for one in PEOPLE if str(one) == role), days))
    text = "".join(f"{person}\n" for person in rest)
    homes = [folder, *sorted(path.parent for path in folder.glob(f"*/{PEOPLE_FILE}"))]
    for home in homes:
        _replace(home / PEOPLE_FILE, text)
    done = "is taken back" if revoke else f"is in {folder / f'{name}.token'}, good for {days} days"
    say(f"The token of {name} {done}.")
    say(f"Copy {PEOPLE_FILE} to each machine, beside its settings: it is read again at once.")
    return 0


def _new_person(folder: Path, name: str, role: Role, days: int) -> Person:
    """Somebody with a new token, which is in a file of the folder."""
    secret = secrets.token_urlsafe(32)
    _write(folder / f"{name}.token", secret + "\n")
    return Person(name, role, hashed(secret), datetime.now(UTC).date() + timedelta(days=days))


def _machines(nodes: list[str], controllers: list[str]) -> list[Machine]:
    found: list[Machine] = []
    for text in nodes:
        name, equals, address = text.partition("=")
        if not (name and equals and address):
            raise Invalid(f"'{text}' is not NAME=ADDRESS", code="NODE", hint="e.g. --node tdie-node-1=10.0.10.21")
        found.append(Machine(name, address, name in controllers or (not controllers and not found)))
    if unknown := set(controllers) - {machine.name for machine in found}:
        raise Invalid(f"{', '.join(sorted(unknown))} is not among the nodes", code="NODE")
    return found


def _machine(folder: Path, machine: Machine, name: str, repository: str, ref: str, consul: str, data: Path) -> None:
    """The settings and units of one machine in a folder of its own, complete as it is copied there."""
    home = folder / machine.name
    home.mkdir(mode=0o700)
    for file in ("cluster.token", PEOPLE_FILE):
        _write(home / file, (folder / file).read_text())
    common = {
        "cluster": name,
        "bind": machine.address,
        "consul": consul,
        "token_file": str(home / "cluster.token"),
        "people_file": str(home / PEOPLE_FILE),
    }
    _write(home / "agent.yaml", _yaml({**common, "node": machine.name, "port": 5100, "data": str(data / "agent")}))
    kinds = ["keeper", "agent"]
    if machine.controls:
        extra = {
            "name": machine.name,
            "repository": repository,
            "ref": ref,
            "data": str(data / "controller"),
            "port": 7777,
        }
        _write(home / "controller.yaml", _yaml({**common, **extra}))
        kinds.append("controller")
    for kind in kinds:
        text = files("reconciler").joinpath(f"units/tdie-{kind}.service").read_text()
        settings = home / ("controller.yaml" if kind == "controller" else "agent.yaml")
        for mark, value in (("python", sys.executable), ("data", str(data / "agent")), ("config", str(settings))):
            text = text.replace(f"@{mark}@", value)
        _write(home / f"tdie-{kind}.service", text, 0o644)


def _document(name: str, machines: list[Machine]) -> str:
    nodes = [{"name": machine.name} for machine in machines]
    return _yaml({"apiVersion": "tdie/v1", "kind": "Cluster", "metadata": {"name": name}, "spec": {"nodes": nodes}})


def _what_next(folder: Path, machines: list[Machine]) -> str:
    lines = [
        f"Made {folder}. Next:",
        "",
        "1. Put cluster.yaml into the repository, commit and push it.",
        f"2. Copy each machine's folder to the same path there (it holds its token), e.g. {folder / machines[0].name}",
        "3. Start it there. Try it by hand first:",
        "",
    ]
    for machine in machines:
        home = folder / machine.name
        lines.append(f"   on {machine.name} ({machine.address}):")
        lines.append(f"      tdie-agent --config {home / 'agent.yaml'}")
        if machine.controls:
            lines.append(f"      tdie controller --config {home / 'controller.yaml'}")
    lines += [
        "",
        "   and for good with systemd:",
        "      cp FOLDER/*.service /etc/systemd/system/ && systemctl enable --now tdie-keeper tdie-agent   # and tdie-controller",
        "",
        "4. From anywhere that reaches Consul and the leader:",
        f"      tdie status --consul HOST:8500 --token-file {folder / 'operator.token'}",
        "",
        f"Tokens of viewer, operator and admin are good for {VALID_DAYS} days; `tdie init token NAME --role ROLE` makes more.",
    ]
    return "\n".join(lines)


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, sort_keys=False))


def _replace(path: Path, text: str) -> None:
    """The file with another text, which appears at once."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    _write(beside, text)
    beside.replace(path)


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    """A new file with this mode from its first moment on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
