"""The controller as a component: the cluster runs its own controllers, and one of them leads."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from pathlib import Path
from typing import Any

import structlog

from agent.errors import TdieError
from agent.sdk import Component, Settings, SettingsError
from reconciler.app import run_controller
from reconciler.model.documents import Cluster
from reconciler.settings import ControllerSettings, read_settings
from reconciler.source.decode import decode

STOPS_WITHIN = 8.0  # seconds to give up leadership
_REMOTE = re.compile(r"[a-z+]+://|[\w.-]+@[\w.-]+:")
_PASSED_ON = {  # setting here → setting of a controller
    "ref": "ref",
    "consul": "consul",
    "port": "port",
    "bind": "bind",
    "advertise": "advertise",
    "tokenFile": "token_file",
    "peopleFile": "people_file",
    "consulTokenFile": "consul_token_file",
    "sshKey": "ssh_key",
    "gitHome": "git_home",
    "gitTokenFile": "git_token_file",
    "gitCaFile": "git_ca_file",
}


class NodeManager(Component):
    """Stands by or leads. Stopping it gives up leadership and leaves the fleet as it is."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        self._log = log
        self._told = asyncio.Event()
        self._run: asyncio.Task[object] | None = None
        self._given = {ours: settings[key] for key, ours in _PASSED_ON.items() if key in settings}
        interval = settings.number("syncInterval", None)
        if interval is not None:
            self._given["sync_interval"] = interval / 1000
        if self._given.get("bind") in ("0.0.0.0", "::"):
            self._given.setdefault("advertise", _own_address())
        self._where, self._cluster = settings.text("masterConfigurationFile"), settings.text("cluster", None)

    async def start(self) -> None:
        found = await asyncio.to_thread(self._controller)
        _log_like_a_host()
        self._run = self.spawn(run_controller(found, self._told), name="controller")

    async def stop(self) -> None:
        self._told.set()
        if self._run is not None:
            await asyncio.wait({self._run}, timeout=STOPS_WITHIN)

    def _controller(self) -> ControllerSettings:
        repository, subdir, cluster = _followed(self._where, self._cluster)
        own = {"repository": repository, "subdir": subdir, "cluster": cluster, "name": self.name}
        try:
            return read_settings(None, {**self._given, **own, "data": self.data_folder / "controller"})
        except TdieError as error:
            raise SettingsError(error.detail) from error


def _followed(where: str, cluster: str | None) -> tuple[str, str, str]:
    """Repository, folder in it and name of the cluster. SettingsError when that is not clear."""
    if _REMOTE.match(where) or Path(where).is_dir():
        if cluster is None:
            raise SettingsError(
                f"'masterConfigurationFile' is the repository {_shown(where)}: say which 'cluster' it holds"
            )
        return where, "", cluster
    file = Path(where).absolute()
    try:
        found = [one.document for one in decode(file.read_bytes()).found if isinstance(one.document, Cluster)]
    except OSError as error:
        raise SettingsError(f"'masterConfigurationFile' {where} cannot be read: {error.strerror}") from error
    if len(found) != 1:
        raise SettingsError(f"'masterConfigurationFile' {where} does not hold one Cluster document: see tdie validate")
    top = next((folder for folder in file.parents if (folder / ".git").exists()), None)
    if top is None:
        raise SettingsError(f"'masterConfigurationFile' {where} is in no Git repository")
    named = found[0].metadata.name
    if cluster not in (None, named):
        raise SettingsError(f"{where} is of cluster {named}, and the setting 'cluster' says {cluster}")
    inside = file.parent.relative_to(top).as_posix()
    return str(top), "" if inside == "." else inside, named


def _own_address() -> str:
    """The address of the interface towards the network: this machine's, wherever the replica was placed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _shown(where: str) -> str:
    return re.sub(r"//[^/@]*@", "//", where)


def _log_like_a_host() -> None:
    """What the controller logs becomes lines of this host's log, with everything it says beside the event."""

    def as_extra(_logger: Any, _method: str, event: Any) -> Any:
        said = dict(event)
        return {"msg": said.pop("event", ""), "extra": said}

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, as_extra],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
