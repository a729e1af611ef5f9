"""Publishes to NATS and delivers from it, plainly or through JetStream."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Callable

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, StreamConfig

from agent.errors import Denied, Refused, Waiting
from agent.sdk import Message, MessagePublisher, Settings, Subscription, Topics, decoded, derived_id, encoded, pauses

FETCH = 5.0  # seconds that one request for messages waits
ACKNOWLEDGE = 30.0  # seconds until the server believes a receiver dead; renewed while one works
LONGEST_PAUSE = 60.0
AGAIN = (nats.errors.Error, TimeoutError, OSError)

Deliver = Callable[[Message], Awaitable[None]]


class Nats(MessagePublisher):
    """A message is published once the server has confirmed it: a flush, or JetStream's acknowledgement."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        servers = settings.get("servers", "nats://127.0.0.1:4222")
        self._servers = [servers] if isinstance(servers, str) else list(settings.sequence("servers"))
        self._topics = Topics(settings)
        self._whole = settings.choice("body", ("message", "content"), "message") == "message"
        self._within = settings.seconds("publishWithin", 30.0)
        self._stream = settings.text("stream", "TDIE") if settings.flag("jetStream", False) else ""
        self._creates = settings.flag("createStream", True)
        self._keep = settings.seconds("keepFor", 7 * 86400.0)
        self._user, self._password = settings.text("user", None), settings.secret("password", None)
        self._token = settings.secret("token", None)
        self._authorities = settings.path("caFile", None)
        self._log = log
        self._client = Client()
        self._up = asyncio.Event()
        self._why = "not connected yet"

    async def start(self) -> None:
        """Connecting is under way; a server that is away is waited for, one that refuses us fails this publisher."""
        trusted = None
        if self._authorities is not None:
            trusted = await asyncio.to_thread(ssl.create_default_context, cafile=str(self._authorities))
        self.spawn(self._connect(trusted), name="connect")

    async def publish(self, message: Message) -> None:
        subject, payload = self._topics.of(message), encoded(message, self._whole)
        try:
            async with asyncio.timeout(self._within):
                for pause in pauses(0.05, 1.0):
                    await self._up.wait()
                    try:
                        await self._send(subject, payload, message)
                    except (
                        nats.errors.MaxPayloadError,
                        nats.errors.BadSubjectError,
                        nats.errors.BadHeaderError,
                    ) as error:
                        raise Refused(f"{subject}: {error}", code="NATS_REFUSED") from error
                    except AGAIN as error:
                        self._why = _text(error)
                        await asyncio.sleep(pause)
                    else:
                        return
        except TimeoutError:
            why = f"not confirmed within {self._within:g} s: {self._why}"
            raise Waiting(why, code="NATS_UNREACHABLE") from None

    async def subscribe(self, subscription: Subscription, deliver: Deliver) -> None:
        """One replica of the instance gets each message: its name and the subscription make the group."""
        await self._up.wait()
        if self._stream:
            await self._pull(subscription, deliver)
        else:
            await self._listen(subscription, deliver)

    async def close(self) -> None:
        if not self._client.is_closed and self._up.is_set():
            await self._client.close()

    # --------------------------------------------------------------------------------------------------- connection

    async def _connect(self, trusted: ssl.SSLContext | None) -> None:
        async def failed(error: Exception) -> None:
            self._why = _text(error)
            if isinstance(error, nats.errors.AuthorizationError) or "authorization" in self._why.lower():
                self.fail(Denied(f"{self._shown()} refuses these credentials", code="NATS_DENIED"))
            elif isinstance(error, nats.errors.SlowConsumerError):
                self._log.warning("messages were lost: this replica is too slow for what it subscribes to")

        async def lost() -> None:
            self._up.clear()
            self._log.warning("the connection to %s is lost, connecting again", self._shown())

        async def back() -> None:
            self._up.set()
            self._log.info("connected to %s again", self._shown())

        await self._client.connect(
            self._servers,
            name=self.name,
            error_cb=failed,
            disconnected_cb=lost,
            reconnected_cb=back,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            user=self._user,
            password=self._password,
            token=self._token,
            tls=trusted,
        )
        for pause in pauses(0.2, 10.0):
            try:
                await self._ensure_streams(*self._topics.all)
            except AGAIN as error:
                self._log.warning("the stream %s is not ready: %s", self._stream, _text(error))
                await asyncio.sleep(pause)
            else:
                break
        self._up.set()
        self._log.info("connected to %s", self._shown())

    async def _ensure_streams(self, *subjects: str) -> None:
        """A stream holds each of these subjects; those that none holds are added to the one of the settings."""
        if not self._stream:
            return
        context = self._client.jetstream()
        missing = []
        for subject in subjects:
            try:
                await context.find_stream_name_by_subject(subject)
            except nats.js.errors.NotFoundError:
                missing.append(subject)
        if not missing:
            return
        if not self._creates:
            raise nats.js.errors.Error(description=f"no stream holds {', '.join(missing)}, and createStream is false")
        try:
            config = (await context.stream_info(self._stream)).config
        except nats.js.errors.NotFoundError:
            await context.add_stream(StreamConfig(name=self._stream, subjects=missing, max_age=self._keep))
        else:
            config.subjects = sorted({*(config.subjects or ()), *missing})
            await context.update_stream(config)

    async def _send(self, subject: str, payload: bytes, message: Message) -> None:
        if not self._stream:
            await self._client.publish(subject, payload)
            await self._client.flush(timeout=5)
            return
        try:
            await self._client.jetstream().publish(subject, payload, timeout=5, headers={"Nats-Msg-Id": message.id})
        except (nats.js.errors.NoStreamResponseError, nats.js.errors.NotFoundError):
            await self._ensure_streams(subject)
            raise

    def _shown(self) -> str:
        return ", ".join(server.rpartition("@")[2].removeprefix("nats://") for server in self._servers)

    # ------------------------------------------------------------------------------------------------------ receiving

    async def _listen(self, wanted: Subscription, deliver: Deliver) -> None:
        """Plain NATS keeps nothing: what a component cannot take now is tried again here, and lost with this process."""
        subscription = await self._client.subscribe(wanted.topic, queue=self._group(wanted))
        try:
            async for found in subscription.messages:
                message = decoded(found.data, found.subject)
                if not wanted.type or message.type == wanted.type:
                    await _until_taken(message, deliver)
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _pull(self, wanted: Subscription, deliver: Deliver) -> None:
        """JetStream keeps each message until it is acknowledged, whatever happens to this process or to the server."""
        source: JetStreamContext.PullSubscription | None = None
        unkept = pauses(0.1, 5.0)
        while not _cancelled():
            await self._up.wait()
            try:
                if source is None:
                    source = await self._source(wanted)
                for found in await source.fetch(1, timeout=FETCH):
                    await self._handle(found, wanted, deliver)
                unkept = pauses(0.1, 5.0)
            except nats.errors.TimeoutError:
                continue  # nothing came
            except AGAIN as error:
                source = None
                self._log.warning("receiving from %s broke off, trying again: %s", wanted.topic, _text(error))
                await asyncio.sleep(next(unkept))
        raise asyncio.CancelledError

    async def _source(self, wanted: Subscription) -> JetStreamContext.PullSubscription:
        await self._ensure_streams(wanted.topic)
        context = self._client.jetstream()
        stream = await context.find_stream_name_by_subject(wanted.topic)
        config = ConsumerConfig(ack_wait=ACKNOWLEDGE, max_deliver=-1)
        return await context.pull_subscribe(wanted.topic, durable=self._group(wanted), stream=stream, config=config)

    async def _handle(self, found: Msg, wanted: Subscription, deliver: Deliver) -> None:
        about = found.metadata
        message = decoded(found.data, found.subject, derived_id(about.stream, str(about.sequence.stream)))
        if wanted.type and message.type != wanted.type:
            await found.ack()
            return
        working = asyncio.create_task(_keep_alive(found), name="keep-alive")
        try:
            await deliver(message)
        except Exception:  # noqa: BLE001 - the host has said why; the message comes again
            await found.nak(delay=min(LONGEST_PAUSE, 0.5 * 2.0 ** min(10, about.num_delivered - 1)))
        else:
            await found.ack()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    def _group(self, wanted: Subscription) -> str:
        """The name under which the replicas of this instance share what comes: letters, digits, - and _."""
        instance = self.name.partition(".")[0]
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", f"{instance}-{wanted.topic}-{wanted.type}")[:40]
        return f"{readable}-{derived_id(instance, wanted.topic, wanted.type)[:12]}"


async def _keep_alive(found: Msg) -> None:
    while True:
        await asyncio.sleep(ACKNOWLEDGE / 3)
        await found.in_progress()


def _cancelled() -> bool:
    """This task was cancelled, also if nats-py lost that: it waits with `asyncio.wait_for` (CPython issue 86296)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _until_taken(message: Message, deliver: Deliver) -> None:
    for pause in pauses(0.5, LONGEST_PAUSE):
        try:
            await deliver(message)
        except Exception:  # noqa: BLE001 - the host has said why
            await asyncio.sleep(pause)
        else:
            return


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
