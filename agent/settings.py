"""What an agent is told before it starts: a YAML file, then TDIE_AGENT_… variables, then flags; the later one wins."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from agent.errors import Invalid
from agent.packages.retention import versions_kept
from agent.wire import Capacity

DEFAULT_PORT = 5100
_NAME = re.compile(r"[a-z0-9-]{1,63}")


class LayeredSettings(BaseSettings):
    """Settings that come from flags, else from the environment, else from a YAML file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file (handed over among the flags under its own name)."""
        flags = dict(init_settings())
        file = flags.pop("from_file", {})
        return InitSettingsSource(settings_cls, flags), env_settings, InitSettingsSource(settings_cls, file)

    @classmethod
    def layered(cls, file: Path | None, flags: Mapping[str, Any]) -> Self:
        """The settings in force; Invalid (CONFIG) names every wrong one."""
        try:
            return cls.model_validate({**flags, "from_file": _read_file(file) if file else {}})
        except ValidationError as error:
            lines = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
            raise Invalid("; ".join(lines), code="CONFIG", where=str(file or "")) from error


class PackageSettings(BaseModel):
    """Where packages are, and how many versions of each stay. Paths are below the data folder unless absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    directory: Path = Path("packages")
    manifest_name: str = Field(default="manifest.json", pattern=r"^[\w.-]+$")
    store_path: Path = Field(
        default=Path("packages.sqlite"), description="What is known of packages besides their bytes."
    )
    retention: str = Field(
        default="KeepLast5Versions", description="Or KeepAll, or a number; the Cluster's value wins."
    )
    verify_every: float = Field(
        default=3600.0, ge=1.0, description="Seconds between two readings of every installed package."
    )

    @field_validator("retention", mode="before")
    @classmethod
    def _check_retention(cls, policy: object) -> str:
        try:
            versions_kept(str(policy))
        except Invalid as error:
            raise ValueError(f"{error.detail} ({error.hint})") from error
        return str(policy)


class AgentSettings(LayeredSettings):
    """Settings of one agent; seconds, paths."""

    model_config = SettingsConfigDict(env_prefix="TDIE_AGENT_", extra="forbid", frozen=True)

    node: str = Field(default_factory=lambda: _own_name())
    cluster: str = "default"
    data: Path = Path("/var/lib/tdie/agent")
    bind: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0 takes 5100 or the next free one.")
    advertise: str = Field("", description="Address under which others reach this agent; default is `bind`.")
    consul: str = Field("", description="Address of Consul; default is CONSUL_HTTP_ADDR or 127.0.0.1:8500.")
    consul_token_file: Path | None = None
    token_file: Path | None = Field(None, description="The cluster's token, which its programs show each other.")
    people_file: Path | None = Field(
        None, description="Who else may call, by hash of the token, with role and last day."
    )
    labels: Mapping[str, str] = Field(default_factory=dict)
    capacity: Capacity = Capacity()
    beat_ttl: float = Field(15.0, ge=1.0)
    look_every: float = Field(30.0, gt=0, description="Seconds between two looks at what processes there are.")
    packages: PackageSettings = Field(default_factory=lambda: PackageSettings())
    log_size: int = Field(64 << 20, ge=1 << 16, description="Bytes of a replica's log before it is begun anew.")
    log_parts: int = Field(3, ge=0, le=100, description="Older parts of each log that stay.")
    message_attempts: int = Field(10, ge=1, description="A message that failed so often becomes a dead letter.")
    message_pause: float = Field(
        0.5, gt=0, description="Seconds before the second attempt; each further pause is twice as long."
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"

    @field_validator("node", "cluster")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is not a name: up to 63 of a-z, 0-9 and '-'")
        return name


def read_settings(file: Path | None, flags: Mapping[str, Any]) -> AgentSettings:
    """The settings of an agent in force; Invalid (CONFIG) names every wrong one."""
    return AgentSettings.layered(file, flags)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(file.read_text())
    except OSError as error:
        raise Invalid(f"cannot be read: {error.strerror}", code="CONFIG", where=str(file)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Invalid(" ".join(str(error).split()), code="CONFIG", where=str(file)) from error
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise Invalid("is not a mapping of settings", code="CONFIG", where=str(file))
    return {_snake(str(key)): value for key, value in said.items()}


def _snake(key: str) -> str:
    """`beatTtl`, `beat-ttl` and `beat_ttl` are one setting."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").lower()


def _own_name() -> str:
    """The machine's name as a node name."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return name[:63] or "node"
