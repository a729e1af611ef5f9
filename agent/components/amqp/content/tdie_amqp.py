"""Publishes to RabbitMQ (AMQP 0-9-1) and delivers from it."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote, urlsplit

import aio_pika
import aio_pika.exceptions as failures
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage, AbstractQueue

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

PREFETCH = 8  # messages that the broker hands to one replica before the first is acknowledged
HEARTBEAT = 15
ATTEMPTS_HERE = 3  # before a message goes back into its queue, where another replica may take it
AGAIN = (
    failures.AMQPError,
    ConnectionError,
    TimeoutError,
    OSError,
    RuntimeError,
)  # RuntimeError: a channel that is closed
DENIED = (failures.ProbableAuthenticationError, failures.AuthenticationError)

Deliver = Callable[[Message], Awaitable[None]]


class Amqp(MessagePublisher):
    """A message is published once the broker has confirmed it."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        url = urlsplit(settings.text("server", "amqp://127.0.0.1:5672"))
        if url.scheme not in ("amqp", "amqps") or not url.hostname or url.password:
            raise SettingsError(
                "the setting 'server' must be amqp://HOST/VHOST or amqps://HOST/VHOST, without credentials"
            )
        self._host, self._secure = url.hostname, url.scheme == "amqps"
        self._port = url.port or (5671 if self._secure else 5672)
        self._vhost = unquote(url.path[1:]) or "/"
        self._user, self._password = settings.text("user", "guest"), settings.secret("password", "guest")
        self._authorities = settings.path("caFile", None)
        self._topics = Topics(settings)
        self._exchange = settings.text("exchange", "tdie")
        self._mandatory = settings.flag("mandatory", False)
        self._whole = settings.choice("body", ("message", "content"), "message") == "message"
        self._within = settings.seconds("publishWithin", 30.0)
        self._log = log
        self._trusted: ssl.SSLContext | None = None
        self._target: AbstractExchange | None = None
        self._up = asyncio.Event()
        self._why = "not connected yet"

    async def start(self) -> None:
        """Connecting is under way; a broker that is away is waited for, one that refuses us fails this publisher."""
        if self._secure:
            authorities = str(self._authorities) if self._authorities is not None else None
            self._trusted = await asyncio.to_thread(ssl.create_default_context, cafile=authorities)
        self.spawn(self._stay_connected(), name="connect")

    async def publish(self, message: Message) -> None:
        topic = self._topics.of(message)
        sent = aio_pika.Message(
            encoded(message, self._whole),
            content_type="application/json" if self._whole or not isinstance(message.content, str) else "text/plain",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message.id,
            type=message.type or None,
            correlation_id=message.correlation_id or None,
            app_id=message.source or None,
            timestamp=message.timestamp,
        )
        try:
            async with asyncio.timeout(self._within):
                for pause in pauses(0.05, 1.0):
                    await self._up.wait()
                    assert self._target is not None, "it is up"
                    try:
                        await self._target.publish(sent, topic, mandatory=self._mandatory, timeout=5)
                    except failures.PublishError as error:
                        raise Refused(f"no queue takes messages of {topic}", code="AMQP_UNROUTABLE") from error
                    except AGAIN as error:
                        self._why = _text(error)
                        await asyncio.sleep(pause)
                    else:
                        return
        except TimeoutError:
            why = f"not confirmed within {self._within:g} s: {self._why}"
            raise Waiting(why, code="AMQP_UNREACHABLE") from None

    async def subscribe(self, subscription: Subscription, deliver: Deliver) -> None:
        """A durable queue of the instance gets its messages; one replica takes each, and acknowledges it afterwards."""
        unkept = pauses(0.2, 10.0)
        while True:
            try:
                async with self._connected() as (channel, exchange):
                    await channel.set_qos(prefetch_count=PREFETCH)
                    queue = await self._queue(channel, exchange, subscription)
                    unkept = pauses(0.2, 10.0)
                    self._log.info("receiving %s through the queue %s", subscription.topic, queue.name)
                    async with queue.iterator() as messages:
                        async for found in messages:
                            await self._handle(found, subscription, deliver)
                    self._log.warning("receiving from %s ended, beginning again", subscription.topic)
            except AGAIN as error:
                self._refused(error)
                self._log.warning("receiving from %s broke off, trying again: %s", subscription.topic, _text(error))
            await asyncio.sleep(next(unkept))

    async def _queue(
        self, channel: aio_pika.abc.AbstractChannel, exchange: AbstractExchange, wanted: Subscription
    ) -> AbstractQueue:
        if not self._exchange:  # messages go to the queue of that name directly
            return await channel.declare_queue(wanted.topic, durable=True)
        instance = self.name.partition(".")[0]
        readable = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{instance}.{wanted.topic}")[:150]
        name = f"{readable}.{derived_id(instance, wanted.topic, wanted.type)[:8]}"
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind(exchange, wanted.topic)
        return queue

    async def _handle(self, found: AbstractIncomingMessage, wanted: Subscription, deliver: Deliver) -> None:
        message = decoded(found.body, found.routing_key or wanted.topic, found.message_id or "")
        if wanted.type and message.type != wanted.type:
            await found.ack()
            return
        for attempt, pause in enumerate(pauses(0.5, 10.0), start=1):
            try:
                await deliver(message)
            except Exception:  # noqa: BLE001 - the host has said why
                await asyncio.sleep(pause)
                if attempt >= ATTEMPTS_HERE:
                    await found.nack(requeue=True)
                    return
            else:
                await found.ack()
                return

    async def _stay_connected(self) -> None:
        unkept = pauses(0.2, 10.0)
        while True:
            try:
                async with self._connected() as (channel, self._target):
                    self._up.set()
                    unkept = pauses(0.2, 10.0)
                    self._log.info("connected to %s:%d", self._host, self._port)
                    await channel.closed()
                self._why = "the connection is lost"
                self._log.warning("the connection to %s:%d is lost, connecting again", self._host, self._port)
            except AGAIN as error:
                self._refused(error)
                self._why = _text(error)
                self._log.warning("no connection to %s:%d, trying again: %s", self._host, self._port, self._why)
            finally:
                self._up.clear()
            await asyncio.sleep(next(unkept))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[aio_pika.abc.AbstractChannel, AbstractExchange]]:
        """A channel of a connection of its own, with publisher confirms, and the exchange."""
        connection = await aio_pika.connect(
            host=self._host,
            port=self._port,
            login=self._user,
            password=self._password,
            virtualhost=self._vhost,
            ssl=self._secure,
            ssl_context=self._trusted,
            timeout=10,
            heartbeat=HEARTBEAT,
            client_properties={"connection_name": self.name},
        )
        try:
            channel = await connection.channel(on_return_raises=True)
            if self._exchange:
                kind = aio_pika.ExchangeType.TOPIC
                exchange: AbstractExchange = await channel.declare_exchange(self._exchange, kind, durable=True)
            else:
                exchange = channel.default_exchange
            yield channel, exchange
        finally:
            await connection.close()

    def _refused(self, error: Exception) -> None:
        """Credentials that are wrong now are wrong later: the replica fails, and its restart policy applies."""
        if isinstance(error, DENIED) or "ACCESS_REFUSED" in str(error):
            denied = Denied(f"{self._host}:{self._port} refuses these credentials", code="AMQP_DENIED")
            self.fail(denied)
            raise denied from error


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
