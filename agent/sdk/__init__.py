"""PUBLIC: what authors of components and publishers import. It stays light: standard library only."""

from agent.sdk.extension import Component, Extension, InstanceId, MessagePublisher, ObjectState
from agent.sdk.message import Message
from agent.sdk.periodic import periodic
from agent.sdk.settings import PublisherSettings, Settings, SettingsError

__all__ = [
    "Component",
    "Extension",
    "InstanceId",
    "Message",
    "MessagePublisher",
    "ObjectState",
    "PublisherSettings",
    "Settings",
    "SettingsError",
    "periodic",
]
