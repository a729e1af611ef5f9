"""The Package document: one version of a package, and where its content comes from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from agent.packages.manifest import is_version
from reconciler.model.documents.base import Document, Metadata
from reconciler.model.units import Name


class PackageSource(Document):
    """Where the package comes from: exactly one of path, builtin, url (with sha256), digest."""

    path: str | None = None
    """A folder of this repository with a manifest.json."""
    builtin: Name | None = None
    """A package that ships with the program."""
    url: str | None = None
    """A zip: http(s) from an allowed host, file:// or an absolute path."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the zip at `url`, 64 hex digits."""
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """An uploaded package: the 64 hex digits that `tdie package push` printed."""

    @model_validator(mode="after")
    def _one(self) -> PackageSource:
        given = [name for name in ("path", "builtin", "url", "digest") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of path, builtin, url or digest, found {found}")
        if (self.url is None) != (self.sha256 is None):
            raise ValueError("url and sha256 go together")
        return self

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is None:
            return None
        parts = path.removesuffix("/").removeprefix("./").split("/")
        if (
            path.startswith("/")
            or any(part in ("", ".", "..") for part in parts)
            or "\\" in path
            or not path.isprintable()
        ):
            raise ValueError(f"'{path}' is not a folder of this repository; write it as packages/name")
        return "/".join(parts)


class PackageBody(Document):
    """One version of a package."""

    version: Annotated[str, Field(examples=["1.0.0"])]
    """Semantic version; the manifest must say the same."""
    source: PackageSource
    distribute: Literal["needed", "all"] = "needed"
    """`all`: on every node, even without an instance."""

    @field_validator("version")
    @classmethod
    def _semantic(cls, version: str) -> str:
        if not is_version(version):
            raise ValueError(f"'{version}' is not a semantic version such as 1.2.0")
        return version


class Package(Document):
    """A package: (name, version) is its key; several versions may be there at once."""

    api_version: Literal["tdie/v1"]
    kind: Literal["Package"]
    metadata: Metadata
    spec: PackageBody
