"""How one controller is set up: a YAML file, then TDIE_CONTROLLER_* in the environment, then flags."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from agent.settings import LayeredSettings


class ControllerSettings(LayeredSettings):
    """Settings of a controller. Everything has a default except where the repository is and how the cluster is called."""

    model_config = SettingsConfigDict(env_prefix="TDIE_CONTROLLER_", extra="forbid", frozen=True)

    cluster: str = Field(description="Name of the cluster; the Cluster document must have the same.")
    repository: str = Field(description="Git repository: a local path, or a file, https or ssh URL.")
    ref: str = Field("main", description="Branch to follow.")
    subdir: str = Field("", description="Folder of the repository that holds the documents.")
    name: str = Field(
        default_factory=lambda: socket.gethostname().split(".")[0].lower(), description="Of this controller."
    )
    data: Path = Field(Path("/var/lib/tdie/controller"), description="Mirror and package cache.")
    sync_interval: float | None = Field(
        None, gt=0, description="Seconds between two looks at Git; default is what the Cluster document says."
    )
    bind: str = Field("127.0.0.1", description="Address to listen on; beyond loopback a token file is required.")
    port: int = Field(7777, description="Port of the API; the next free one when it is taken.")
    advertise: str = Field("", description="Address others reach this controller at; default is `bind`.")
    consul: str = Field("", description="Consul's HTTP address; default is CONSUL_HTTP_ADDR or 127.0.0.1:8500.")
    consul_token_file: Path | None = None
    token_file: Path | None = Field(None, description="The cluster's token: agents accept it, and this API does.")
    people_file: Path | None = Field(
        None, description="Who else may call this API, by hash of the token, with role and last day."
    )
    ssh_key: Path | None = Field(None, description="Private key for ssh repositories.")
    git_home: Path | None = Field(None, description="Home whose .ssh/known_hosts ssh repositories are checked against.")
    git_token_file: Path | None = Field(None, description="Token for an https repository.")
    git_ca_file: Path | None = Field(None, description="Certificates to trust for https repositories.")
    beat_ttl: float = Field(3.0, ge=1.0, description="Seconds without a beat after which another controller may lead.")
    agent_ttl: float = Field(15.0, ge=1.0, description="The agents' beat TTL, for judging Consul's silence.")
    log_format: Literal["auto", "json", "text"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def read_settings(file: Path | None, flags: Mapping[str, Any]) -> ControllerSettings:
    """The settings of a controller in force; Invalid (CONFIG) names every wrong one."""
    return ControllerSettings.layered(file, {name: value for name, value in flags.items() if value is not None})
