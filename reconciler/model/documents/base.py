"""What the three documents have in common: the base that refuses unknown fields, their name, and fields of several of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema
from pydantic.alias_generators import to_camel

from reconciler.model.units import Name
from reconciler.model.versions import split_reference

API_VERSION = "tdie/v1"


class Document(BaseModel):
    """Base of everything people write: unknown fields and wrong types are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=False,
        use_attribute_docstrings=True,
    )


def _reference(text: str) -> str:
    split_reference(text)
    return text


Reference = Annotated[
    str,
    AfterValidator(_reference),
    WithJsonSchema(
        {"type": "string", "pattern": "^[a-z0-9-]{1,63}@.+$", "examples": ["file-watcher@1.0.0", "web@^1.2"]}
    ),
]
Settings = dict[str, Any]


class Metadata(Document):
    """What the document is called."""

    name: Name
    """Up to 63 of a-z, 0-9 and '-'."""
    labels: dict[str, str] = {}
    """Short facts to select by."""
    annotations: dict[str, str] = {}
    """Anything else worth noting; the system does not read it."""
