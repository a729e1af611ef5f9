"""Publishes messages as HTTP requests, signed if wanted."""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import hashlib
import hmac
import json
import logging
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import aiohttp

from agent.errors import Refused, Waiting
from agent.sdk import Message, MessagePublisher, Settings, SettingsError, Topics, pauses

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be another one later
STANDARD, GITHUB = "standard", "github"


class Webhook(MessagePublisher):
    """A message is published when the other side has answered with 2xx."""

    def __init__(self, settings: Settings, log: logging.Logger, now: Callable[[], float] = time.time) -> None:
        self._urls = Topics(settings, "url")
        for url in self._urls.all:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise SettingsError("the setting 'url' must be an address that begins with http:// or https://")
        self._attempts = settings.integer("attempts", 6)
        self._first, self._longest = settings.seconds("retryAfter", 0.5), settings.seconds("retryAtMost", 30.0)
        self._timeout = settings.seconds("timeout", 10.0)
        self._whole = settings.choice("body", ("message", "content"), "message") == "message"
        secret = settings.secret("secret", None)
        self._sign = _signer(secret, settings.choice("signature", (STANDARD, GITHUB), STANDARD)) if secret else None
        headers = settings.get("headers") or {}
        own = Settings(headers, settings.name)
        self._headers = {name: own.secret(name) for name in headers}
        self._authorities = settings.path("caFile", None)
        self._now, self._log = now, log
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        trusted: ssl.SSLContext | bool = True
        if self._authorities is not None:
            trusted = await asyncio.to_thread(ssl.create_default_context, cafile=str(self._authorities))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusted),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def publish(self, message: Message) -> None:
        """Tried again with growing pauses; Refused when the answer will not change, Waiting after the last attempt."""
        url = self._urls.of(message)
        body = (message.to_json() if self._whole else json.dumps(message.content, ensure_ascii=False)).encode()
        where = urlsplit(url).netloc.rpartition("@")[2]
        for attempt, pause in enumerate(pauses(self._first, self._longest), start=1):
            why, wait = await self._attempt(url, message, body, where)
            if not why:
                return
            if attempt >= self._attempts:
                raise Waiting(f"{why} after {attempt} attempts", code="WEBHOOK_UNREACHABLE", where=where)
            pause = min(self._longest, max(pause, wait))
            self._log.warning("attempt %d to reach %s failed, the next is in %.1f s: %s", attempt, where, pause, why)
            await asyncio.sleep(pause)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _attempt(self, url: str, message: Message, body: bytes, where: str) -> tuple[str, float]:
        """Why it failed for now (empty: it did not), and the seconds the other side asks us to wait."""
        assert self._session is not None, "started before it publishes"
        try:
            async with self._session.post(
                url, data=body, headers=self._all_headers(message, body), allow_redirects=False
            ) as answer:
                if 200 <= answer.status < 300:
                    return "", 0.0
                if answer.status not in AGAIN:
                    raise Refused(f"it answered {answer.status}", code="WEBHOOK_REFUSED", where=where)
                return f"it answered {answer.status}", _retry_after(answer.headers.get("Retry-After", ""), self._now())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"it cannot be reached: {type(error).__name__}", 0.0  # its text may hold the address with a password

    def _all_headers(self, message: Message, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.id, **self._headers}
        if message.correlation_id:
            headers["X-Correlation-ID"] = message.correlation_id
        return headers if self._sign is None else {**headers, **self._sign(message.id, int(self._now()), body)}


Signer = Callable[[str, int, bytes], dict[str, str]]


def _signer(secret: str, kind: str) -> Signer:
    """Headers that prove who sent it: as Standard Webhooks has them, or as GitHub does."""
    if kind == GITHUB:

        def github(_id: str, _at: int, body: bytes) -> dict[str, str]:
            return {"X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}

        return github
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise SettingsError(
            "the setting 'secret' must be base64 (with or without whsec_) for the standard signature",
            hint="or say signature: github",
        ) from error

    def standard(id_: str, at: int, body: bytes) -> dict[str, str]:
        digest = hmac.new(key, f"{id_}.{at}.".encode() + body, hashlib.sha256).digest()
        signature = "v1," + base64.b64encode(digest).decode()
        return {"webhook-id": id_, "webhook-timestamp": str(at), "webhook-signature": signature}

    return standard


def _retry_after(text: str, now: float) -> float:
    """Seconds that a Retry-After header asks for; 0 when it says nothing."""
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError):
        return 0.0
