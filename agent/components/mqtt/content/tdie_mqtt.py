"""Publishes to an MQTT 5 broker and delivers from it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.errors import Denied, Refused, Waiting
from agent.sdk import (
    Message,
    MessagePublisher,
    Settings,
    SettingsError,
    Subscription,
    Topics,
    decoded,
    derived_id,
    encoded,
    pauses,
)

UNACKNOWLEDGED = 8  # messages that the broker hands to one replica before the first is acknowledged
LONGEST_PAUSE = 60.0
REFUSALS = frozenset({0x86, 0x87, 0x8C})  # bad user name or password, not authorized, bad authentication method
AGAIN = (aiomqtt.MqttError, TimeoutError, OSError)

Deliver = Callable[[Message], Awaitable[None]]


class Mqtt(MessagePublisher):
    """A message is published once the broker has acknowledged it (with qos 0: once it has left)."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        url = urlsplit(settings.text("server", "mqtt://127.0.0.1:1883"))
        if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
            raise SettingsError("the setting 'server' must be mqtt://HOST or mqtts://HOST, with or without a port")
        self._host, self._port = url.hostname, url.port or (8883 if url.scheme == "mqtts" else 1883)
        self._secure = url.scheme == "mqtts"
        self._authorities = settings.path("caFile", None)
        self._topics = Topics(settings)
        for topic in self._topics.all:
            if "+" in topic or "#" in topic:
                raise SettingsError(f"nothing can be published to 'topic' {topic!r}: it has wildcards")
        self._whole = settings.choice("body", ("message", "content"), "message") == "message"
        self._qos = settings.integer("qos", 1)
        if self._qos not in (0, 1, 2):
            raise SettingsError("the setting 'qos' must be one of 0, 1, 2")
        self._retain = settings.flag("retain", False)
        self._within = settings.seconds("publishWithin", 30.0)
        self._session = settings.seconds("sessionExpiry", 86400.0)
        self._shared = settings.flag("shared", True)
        self._prefix = settings.text("clientId", "tdie")
        self._user, self._password = settings.text("user", None), settings.secret("password", None)
        self._log = log
        self._trusted: ssl.SSLContext | None = None
        self._client: aiomqtt.Client | None = None
        self._up = asyncio.Event()
        self._why = "not connected yet"

    async def start(self) -> None:
        """Connecting is under way; a broker that is away is waited for, one that refuses us fails this publisher."""
        if self._secure:
            authorities = str(self._authorities) if self._authorities is not None else None
            self._trusted = await asyncio.to_thread(ssl.create_default_context, cafile=authorities)
        self.spawn(self._stay_connected(), name="connect")

    async def publish(self, message: Message) -> None:
        topic, payload = self._topics.of(message), encoded(message, self._whole)
        try:
            async with asyncio.timeout(self._within):
                for pause in pauses(0.05, 1.0):
                    await self._up.wait()
                    assert self._client is not None, "it is up"
                    try:
                        await self._client.publish(topic, payload, qos=self._qos, retain=self._retain, timeout=5)
                    except ValueError as error:
                        raise Refused(f"{topic}: {error}", code="MQTT_REFUSED") from error
                    except AGAIN as error:
                        self._why = _text(error)
                        await asyncio.sleep(pause)
                    else:
                        return
        except TimeoutError:
            why = f"not acknowledged within {self._within:g} s: {self._why}"
            raise Waiting(why, code="MQTT_UNREACHABLE") from None

    async def subscribe(self, subscription: Subscription, deliver: Deliver) -> None:
        """One replica of the instance gets each message (a shared subscription), or each one does; what is not
        acknowledged comes again."""
        group = derived_id(self.name.partition(".")[0], subscription.topic, subscription.type)[:16]
        topic = f"$share/{group}/{subscription.topic}" if self._shared else subscription.topic
        unkept = pauses(0.2, 10.0)
        while True:
            try:
                async with self._connected(f"{self._prefix}-{self.name}-{group}", keep=True) as client:
                    await client.subscribe(topic, qos=max(1, self._qos))
                    unkept = pauses(0.2, 10.0)
                    async for found in client.messages:
                        await self._handle(client, found, subscription, deliver)
            except AGAIN as error:
                self._refused(error)
                self._log.warning("receiving from %s broke off, trying again: %s", subscription.topic, _text(error))
            await asyncio.sleep(next(unkept))

    async def _handle(
        self, client: aiomqtt.Client, found: aiomqtt.Message, wanted: Subscription, deliver: Deliver
    ) -> None:
        payload = found.payload if isinstance(found.payload, bytes) else str(found.payload).encode()
        message = decoded(payload, found.topic.value)
        if not wanted.type or message.type == wanted.type:
            for pause in pauses(0.5, LONGEST_PAUSE):
                try:
                    await deliver(message)
                except Exception:  # noqa: BLE001 - the host has said why
                    await asyncio.sleep(pause)
                else:
                    break
        client._client.ack(found.mid, found.qos)  # the library itself would acknowledge before the work is done

    async def _stay_connected(self) -> None:
        unkept = pauses(0.2, 10.0)
        while True:
            try:
                async with self._connected(f"{self._prefix}-{self.name}", keep=False) as self._client:
                    self._up.set()
                    unkept = pauses(0.2, 10.0)
                    self._log.info("connected to %s:%d", self._host, self._port)
                    async for _ in self._client.messages:
                        continue  # nothing is subscribed to here; the end of the connection is what comes out
            except AGAIN as error:
                self._refused(error)
                self._why = _text(error)
                self._log.warning("no connection to %s:%d, trying again: %s", self._host, self._port, self._why)
            finally:
                self._up.clear()
            await asyncio.sleep(next(unkept))

    @asynccontextmanager
    async def _connected(self, identifier: str, *, keep: bool) -> AsyncIterator[aiomqtt.Client]:
        """A connection; with `keep` the broker keeps its subscription and messages while it is away."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves this one out
        properties.ReceiveMaximum = UNACKNOWLEDGED
        properties.SessionExpiryInterval = int(self._session) if keep else 0
        client = aiomqtt.Client(
            self._host,
            self._port,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            username=self._user,
            password=self._password,
            clean_start=not keep,
            properties=properties,
            tls_context=self._trusted,
            timeout=10,
            keepalive=20,
            logger=logging.getLogger("mqtt"),
        )
        client._client.manual_ack_set(keep)
        async with client:
            yield client

    def _refused(self, error: Exception) -> None:
        """Credentials that are wrong now are wrong later: the replica fails, and its restart policy applies."""
        code = getattr(error, "rc", None)
        if isinstance(code, ReasonCode) and code.value in REFUSALS:
            denied = Denied(f"{self._host}:{self._port} refuses these credentials", code="MQTT_DENIED")
            self.fail(denied)
            raise denied from error


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
