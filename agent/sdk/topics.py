"""Where a publisher sends which messages."""

from __future__ import annotations

from collections.abc import Mapping

from agent.sdk.errors import SettingsError
from agent.sdk.message import Message
from agent.sdk.settings import Settings


class Topics:
    """A message goes where the first of `routes: [{type, topic}]` with its type says, else to the usual `topic`.

        topics = Topics(settings)
        await send(topics.of(message), message)

    `key` is another name for topic, such as url.
    """

    def __init__(self, settings: Settings, key: str = "topic") -> None:
        """SettingsError when neither is there, or a route is no mapping of type and topic."""
        self.usual: str | None = settings.text(key, None)
        self._by_type: dict[str, str] = {}
        self._key, self._where = key, settings.name
        for number, raw in enumerate(settings.sequence("routes", ())):
            if not isinstance(raw, Mapping) or set(raw) != {"type", key}:
                raise SettingsError(f"the setting 'routes[{number}]' must have type and {key}", where=settings.name)
            route = Settings(raw, f"{settings.name} routes[{number}]")
            self._by_type.setdefault(route.text("type"), route.text(key))
        if self.usual is None and not self._by_type:
            settings.text(key)  # says that it is missing

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic that can come out, sorted."""
        return tuple(sorted({*self._by_type.values(), *([] if self.usual is None else [self.usual])}))

    def of(self, message: Message) -> str:
        """The message's topic. SettingsError when no route has its type and there is no usual one."""
        found = self._by_type.get(message.type, self.usual)
        if found is None:
            raise SettingsError(
                f"no route for messages of type {message.type!r}, and no usual {self._key}",
                code="NO_ROUTE",
                where=self._where,
            )
        return found
