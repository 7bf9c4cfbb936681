"""Delivery of detections to the webhooks of their metrics.

One POST of JSON a detection, at least once. It is signed as the Standard Webhooks specification has it, so that its
libraries check it: `webhook-id` (the detection's, for dropping repeats), `webhook-timestamp` (Unix time, seconds;
receivers refuse old ones) and `webhook-signature`, `v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`
with the project's secret.

2xx is delivered. Anything else, a redirect too, is tried again, `ATTEMPTS` times over some nine hours; 410 and a host
that is not allowed are final. What waits is in the store alone: a crash loses nothing, and any shard's `Webhooks` goes
on with it.
"""

import asyncio
import hmac
import logging
import random
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from analytics_actors.patterns.view import PatternView, fields_of
from analytics_actors.webhook_hosts import CheckedResolver, Refused, WebhookHosts
from storage.errors import StorageError
from storage.pattern_store import PatternStore, PendingWebhook
from storage.patterns import Detection

BACKOFF_S = (10.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 21600.0)
ATTEMPTS = len(BACKOFF_S) + 1

AT_ONCE = 8
"""Attempts at the same time: a receiver that hangs holds up the others for one deadline at most."""

POLL_S = 5.0
LEASE_MARGIN_S = 30.0
SECRET_PREFIX = "whsec_"  # noqa: S105 (what every secret begins with)

_log = logging.getLogger(__name__)


class Final(Exception):
    """An answer that another attempt would not change."""


class Delivered(msgspec.Struct, rename="camel"):
    """The body of a webhook."""

    type: str
    timestamp: datetime
    data: PatternView


class Webhooks:
    """`run` delivers until it is cancelled; `wake` when something was stored, or within `POLL_S`."""

    def __init__(
        self,
        store: PatternStore,
        hosts: WebhookHosts,
        *,
        deadline_s: float,
        clock: Callable[[], float] = time.time,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._deadline_s = deadline_s
        self._clock = clock
        self._rand = rand
        self._woken = asyncio.Event()
        self._counts = {"delivered": 0, "retried": 0, "given_up": 0}
        self._trouble = ""

    def wake(self) -> None:
        self._woken.set()

    def observe(self) -> dict[str, Any]:
        return {**self._counts, "trouble": self._trouble}

    async def run(self) -> None:
        while True:
            self._woken.clear()
            try:
                while await self.deliver_due():
                    pass
                self._trouble = ""
            except StorageError as error:
                self._trouble = str(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL_S)

    async def deliver_due(self) -> int:
        """Make the attempts that are due, up to `AT_ONCE`; returns how many. Raises what the store raises."""
        due = await self._store.due(limit=AT_ONCE, lease_s=self._deadline_s + LEASE_MARGIN_S)
        if due:
            async with self._session() as session:
                ends = await asyncio.gather(*(self._attempt(session, one) for one in due), return_exceptions=True)
            for end in ends:
                if isinstance(end, BaseException):
                    raise end
        return len(due)

    def _session(self) -> aiohttp.ClientSession:
        # A connection a request: none outlives the check of its address.
        connector = aiohttp.TCPConnector(
            resolver=CheckedResolver(self._hosts), use_dns_cache=False, force_close=True, limit=AT_ONCE
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._deadline_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "analytics-actors", "Content-Type": "application/json"},
            trust_env=False,
        )

    async def _attempt(self, session: aiohttp.ClientSession, webhook: PendingWebhook) -> None:
        detection = webhook.detection
        try:
            await self._post(session, webhook)
        except (Refused, Final) as error:
            await self._failed(webhook, str(error), retry_in_s=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            refused = _refusal(error)
            if refused is not None:
                await self._failed(webhook, str(refused), retry_in_s=None)
                return
            words = str(error) or f"no answer within {self._deadline_s:g} s"
            last = webhook.attempt >= ATTEMPTS
            await self._failed(webhook, words, retry_in_s=None if last else self._backoff_s(webhook.attempt))
        else:
            await self._store.delivered(detection.id)
            self._counts["delivered"] += 1

    async def _post(self, session: aiohttp.ClientSession, webhook: PendingWebhook) -> None:
        url = URL(webhook.url)
        self._hosts.check(url)
        detection = webhook.detection
        body = body_of(detection)
        secret = await self._store.signing_secret(detection.project_id)
        headers = signature_headers(secret, detection.id, int(self._clock()), body)
        async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            if response.status == 410:
                raise Final("the receiver answered 410: it wants no more")
            if not 200 <= response.status < 300:
                raise aiohttp.ClientError(f"the receiver answered {response.status}")

    async def _failed(self, webhook: PendingWebhook, error: str, *, retry_in_s: float | None) -> None:
        self._counts["given_up" if retry_in_s is None else "retried"] += 1
        fields = {"id": webhook.detection.id, "attempt": webhook.attempt, "retry_in_s": retry_in_s, "error": error}
        _log.warning("a webhook was not delivered", extra={"action": "webhook_failed", **fields})
        await self._store.failed(webhook.detection.id, webhook.attempt, error, retry_in_s=retry_in_s)

    def _backoff_s(self, attempt: int) -> float:
        """A fifth more or less, so that those that failed together do not come together again."""
        return BACKOFF_S[attempt - 1] * (0.8 + 0.4 * self._rand())


def body_of(detection: Detection) -> bytes:
    view = PatternView(**fields_of(detection))
    return msgspec.json.encode(Delivered("pattern.detected", view.detected_at, view))


def signature_headers(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    signed = hmac.digest(secret, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{b64encode(signed).decode()}",
    }


def secret_text(secret: bytes) -> str:
    """As receivers' libraries take it."""
    return SECRET_PREFIX + b64encode(secret).decode()


def _refusal(error: BaseException | None) -> Refused | None:
    """aiohttp may wrap what the resolver raises."""
    while error is not None:
        if isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None
