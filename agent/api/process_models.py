"""What the node API says of processes, and how people start one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from agent.wire import ReplicaStatus

_CAMEL = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Used(BaseModel):
    """What one process uses: bytes, seconds of processor time, threads."""

    model_config = _CAMEL
    memory: int
    cpu_seconds: float
    threads: int


class Process(ReplicaStatus):
    """One host: who owns it, and what its process uses."""

    package_name: str
    settings_id: str
    owner: Literal["git", "manual"]
    used: Used | None = None


class ProcessStats(BaseModel):
    """Figures of one running process."""

    model_config = _CAMEL
    pid: int
    package_name: str
    settings_id: str
    started_at: str
    restarts: int
    used: Used


class PublisherByHand(BaseModel):
    """The way a host's messages leave it."""

    model_config = _CAMEL
    package_name: str = Field(max_length=200)
    version: str | None = Field(default=None, max_length=128)
    settings: dict[str, Any] = Field(default_factory=dict)


class ResourcesByHand(BaseModel):
    """Upper bounds: cores, and bytes of memory."""

    model_config = _CAMEL
    cpu: float | None = Field(default=None, gt=0, le=100_000, allow_inf_nan=False)
    memory: int | None = Field(default=None, ge=1 << 20, lt=1 << 62)


class StartByHand(BaseModel):
    """How a host that people start is set up; its settings lie over the package's defaults."""

    model_config = _CAMEL
    version: str | None = Field(default=None, max_length=128, description="Default is the current one.")
    settings: dict[str, Any] = Field(default_factory=dict)
    publisher: PublisherByHand | None = None
    env: dict[str, str] = Field(default_factory=dict)
    resources: ResourcesByHand = Field(default_factory=lambda: ResourcesByHand())
    auto_start: bool = Field(
        default=True, description="False: it loads nothing until it is configured and started through its own API."
    )


class Begun(BaseModel):
    """A host that was started by hand; `settingsId` finds it again."""

    model_config = _CAMEL
    package_name: str
    package_version: str
    settings_id: str
    state: str
    pid: int | None
    port: int
    url: str


class Killed(BaseModel):
    """Hosts that are being stopped."""

    model_config = _CAMEL
    replicas: list[str]
