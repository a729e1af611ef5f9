"""PUBLIC: what authors of components and publishers import. It stays light: standard library only.

    from agent.sdk import Component, Message, MessagePublisher, Settings

    class Greeter(Component):
        def __init__(self, settings: Settings, publisher: MessagePublisher) -> None:
            self._name = settings.text("name", "world")
            self._publisher = publisher

        async def start(self) -> None:
            await self._publisher.publish(Message(f"Hello, {self._name}", type="Greeting"))

`agent.sdk.testing` runs one in a unit test; `tdie init component NAME` makes a package with one.
"""

from agent.sdk.errors import SettingsError
from agent.sdk.extension import Component, Deliver, Extension, InstanceId, MessagePublisher, ObjectState
from agent.sdk.lease import LeaseToken
from agent.sdk.message import Message, MessageInvalid, Subscription, derived_id
from agent.sdk.payload import decoded, encoded
from agent.sdk.periodic import periodic
from agent.sdk.retrying import finish, pauses, retry
from agent.sdk.settings import PublisherSettings, Settings
from agent.sdk.topics import Topics

__all__ = [
    "Component",
    "Deliver",
    "Extension",
    "InstanceId",
    "LeaseToken",
    "Message",
    "MessageInvalid",
    "MessagePublisher",
    "ObjectState",
    "PublisherSettings",
    "Settings",
    "SettingsError",
    "Subscription",
    "Topics",
    "decoded",
    "derived_id",
    "encoded",
    "finish",
    "pauses",
    "periodic",
    "retry",
]
