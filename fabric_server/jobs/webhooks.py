"""Webhooks: the end of a job or batch is posted to a URL of the client's.

Signed by the Standard Webhooks specification 1.0 (https://www.standardwebhooks.com): HMAC-SHA256
of the id, the time and the body.  A delivery is stored before it is attempted, and until it has
succeeded or is given up, so it outlasts the server.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from typing import Any

import msgspec
from msgspec.structs import replace

from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.outage import OutageLog
from fabric_server.jobs.results import answer_of, error_of
from fabric_server.jobs.submission import Webhook
from fabric_server.net.egress import (
    Forbidden,
    Target,
    ThreadedLookUp,
    any_address,
    parse_target,
    resolve,
)
from fabric_server.net.special_addresses import is_public
from fabric_server.storage.batches import BatchRow
from fabric_server.storage.jobs import JobRow
from fabric_server.storage.webhooks import WebhookRow, WebhookStore
from runtime.background import is_cancelled
from runtime.errors import BackendError
from runtime.outage import Outage

log = logging.getLogger("fabric.webhooks")

RETRIES = (20.0, 120.0, 600.0, 2700.0)
"""Seconds from each attempt to the next: five attempts in about an hour.  Each is more than
``ATTEMPT_SECONDS``, so that no two servers attempt one delivery at once."""
ATTEMPT_SECONDS = 15.0
"""Timeout for the look-up of the name, connecting, sending, and the response's first line."""
POLL_SECONDS = 1.0
MAX_LOOK_UPS = 4
"""Look-ups of host names at once."""
MAX_ATTEMPTS, MAX_ACCOUNT_ATTEMPTS = 16, 4
"""Attempts at once, in all and of one account, whose slow receivers must not delay others'."""
MAX_WAITING = 1000
"""Pending deliveries of one account; with more, new webhooks are refused."""
MAX_BODY = 256 * 1024
"""Larger results are left out of the delivery; clients can fetch them."""
_PREFIX = "whsec_"
_json = msgspec.json.Encoder().encode


def new_secret() -> str:
    """Make a secret, in the specification's text form."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_bytes(secret: str) -> bytes:
    """Decode a secret.  Raises ``ValueError``."""
    try:
        found = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        found = b""
    if not secret.startswith(_PREFIX) or not 24 <= len(found) <= 64:
        raise ValueError("a webhook's secret must be 'whsec_' and 24 to 64 bytes in base64")
    return found


def sign(secret: str, id: str, at: int, body: bytes) -> str:
    """Return the ``webhook-signature`` header; ``at`` is Unix seconds."""
    signed = b"%b.%d.%b" % (id.encode(), at, body)
    digest = hmac.new(secret_bytes(secret), signed, sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Webhooks:
    """Checks, makes and delivers webhooks."""

    def __init__(
        self,
        store: WebhookStore,
        *,
        allow_http: bool,
        allow_private: bool,
        trust: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
        outage: Outage | None = None,
    ) -> None:
        """``allow_private`` allows addresses outside the public internet."""
        self._store = store
        self._allow_http = allow_http
        self._allowed = any_address if allow_private else is_public
        self._trust = trust
        self._clock = clock
        self._wake = asyncio.Event()
        self._attempts: dict[str, str] = {}
        """Deliveries under way: their accounts by their ids."""
        self.results: Counter[str] = Counter()
        """Attempts ``delivered`` or ``failed``, and deliveries ``given_up``."""
        self._outage = OutageLog(log, "webhooks wait for the store", outage)
        # Not the loop's executor, which looks up the back ends: clients' names may be slow.
        self._names = ThreadPoolExecutor(MAX_LOOK_UPS, thread_name_prefix="names")
        self._look_up = ThreadedLookUp(self._names)

    # ── making deliveries ────────────────────────────────────────────────────────────────────

    async def register(self, account: str, webhook: Webhook) -> tuple[str, str]:
        """Check a webhook; return what to store, and the secret if a new one was made.

        Raises ``ApiError``.
        """
        try:
            self._target(webhook.url)
            if webhook.secret is not None:
                secret_bytes(webhook.secret)
        except (Forbidden, ValueError) as error:
            raise errors.bad_field("webhook", f"webhook: {error}.") from None
        if await self._store.count(account) >= MAX_WAITING:
            raise _too_many()
        made = "" if webhook.secret is not None else new_secret()
        return _json({"url": webhook.url, "secret": webhook.secret or made}).decode(), made

    async def attach(self, job: JobRow, webhook: Webhook) -> tuple[JobRow, str]:
        """``register`` a job's webhook; return the job with it, and the secret if it is new."""
        stored, made = await self.register(job.account, webhook)
        return replace(job, webhook=stored), made

    def of_job(self, job: JobRow, now: float) -> WebhookRow:
        """Make the delivery about a job that has ended and has a webhook."""
        data: dict[str, Any] = {"id": job.name, "model": job.model, "status": job.state}
        event = {"done": "job.completed"}.get(job.state, f"job.{job.state}")
        if job.state == "done":
            data |= answer_of(job)
        else:
            data["error"] = error_of(job)
        return self._row(job.account, job.id, job.webhook, event, data, now)

    def of_batch(self, batch: BatchRow, view: dict[str, Any], now: float) -> WebhookRow | None:
        """Make the delivery about the end of a batch; None if it has no webhook."""
        if not batch.webhook:
            return None
        event = f"batch.{view['status']}"
        return self._row(batch.account, batch.id, batch.webhook, event, view, now)

    def _row(
        self, account: str, id: str, webhook: str, event: str, data: dict[str, Any], now: float
    ) -> WebhookRow:
        payload = {"type": event, "timestamp": int(now), "data": data}
        body = _json(payload)
        if len(body) > MAX_BODY:
            short = {name: data[name] for name in ("id", "model", "status") if name in data}
            body = _json({**payload, "data": {**short, "truncated": True}})
        stored = msgspec.json.decode(webhook)
        self._wake.set()
        return WebhookRow(f"msg_{id}", account, stored["url"], stored["secret"], body, 0, now)

    def wake(self) -> None:
        """Look for due deliveries now."""
        self._wake.set()

    # ── delivering ────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Deliver until cancelled; interrupted deliveries are attempted again later."""
        try:
            await self._run()
        finally:
            if is_cancelled():  # else it is run again, and needs its threads
                self._names.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                try:
                    for webhook in await self._store.due(
                        self._clock(), limit=MAX_ATTEMPTS, busy=self._busy()
                    ):
                        if self._may_attempt(webhook):
                            self._attempts[webhook.id] = webhook.account
                            group.create_task(self._attempt(webhook))
                    self._outage.recovered()
                except BackendError as error:
                    self._outage.failed(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()

    def _busy(self) -> list[str]:
        """Return the accounts that have as many attempts under way as allowed."""
        return [
            one
            for one, count in Counter(self._attempts.values()).items()
            if count >= MAX_ACCOUNT_ATTEMPTS
        ]

    def _may_attempt(self, webhook: WebhookRow) -> bool:
        if len(self._attempts) >= MAX_ATTEMPTS or webhook.id in self._attempts:
            return False
        return webhook.account not in self._busy()

    async def _attempt(self, webhook: WebhookRow) -> None:
        try:
            await self._deliver(webhook)
        except BackendError as error:
            self._outage.failed(error)
        except Exception:  # a defect in one delivery must not end the others
            log.exception("webhook failed", extra={"webhook": webhook.id})
        finally:
            self._attempts.pop(webhook.id, None)
            self._wake.set()

    async def _deliver(self, webhook: WebhookRow) -> None:
        now = self._clock()
        last = webhook.tries >= len(RETRIES)
        # Schedule the next attempt first: it comes even if this process is killed.
        next_at = now + (ATTEMPT_SECONDS * 2 if last else RETRIES[webhook.tries])
        if webhook.tries > len(RETRIES):
            await self._give_up(webhook, "its last attempt was interrupted")
            return
        if not await self._store.begin(webhook, next_at):
            return
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                status = await self._post(webhook, int(now))
        except Forbidden as error:
            await self._give_up(webhook, str(error))
            return
        except TimeoutError:
            reason = f"no response within {ATTEMPT_SECONDS:g} s"
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            reason = type(error).__name__  # the text may contain the URL
        else:
            if 200 <= status < 300:
                self.results["delivered"] += 1
                await self._store.delete(webhook.id)
                return
            reason = f"responded with status {status}"
        self.results["failed"] += 1
        if last:
            await self._give_up(webhook, reason)
        else:
            extra = {"webhook": webhook.id, "try": webhook.tries + 1, "reason": reason}
            log.info("webhook failed", extra=extra)

    async def _give_up(self, webhook: WebhookRow, reason: str) -> None:
        self.results["given_up"] += 1
        log.warning("webhook given up", extra={"webhook": webhook.id, "reason": reason})
        await self._store.delete(webhook.id)

    async def _post(self, webhook: WebhookRow, at: int) -> int:
        """Send a delivery; return the response's status.  Redirects are not followed."""
        target = self._target(webhook.url)
        reader, writer = await self._connect(target)
        try:
            head = (
                f"POST {target.path} HTTP/1.1\r\n"
                f"host: {target.authority}\r\n"
                "user-agent: fabric\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(webhook.body)}\r\n"
                f"webhook-id: {webhook.id}\r\n"
                f"webhook-timestamp: {at}\r\n"
                f"webhook-signature: {sign(webhook.secret, webhook.id, at, webhook.body)}\r\n"
                "connection: close\r\n\r\n"
            )
            writer.write(head.encode() + webhook.body)
            await writer.drain()
            while True:
                version, status = (await reader.readuntil(b"\r\n")).split(maxsplit=2)[:2]
                if not version.startswith(b"HTTP/1."):
                    raise ValueError("no HTTP")
                if not status.startswith(b"1"):
                    return int(status)
                while (await reader.readuntil(b"\r\n")).strip():  # 100 Continue
                    pass
        finally:
            writer.transport.abort()

    def _target(self, url: str) -> Target:
        return parse_target(url, allow_http=self._allow_http, allowed=self._allowed)

    async def _context(self) -> ssl.SSLContext:
        """Return the CAs that receivers are checked with: by default the public ones.

        These are read at the first need, in a thread: it takes 20 ms, which the start and the
        requests of others don't wait for.
        """
        if self._trust is None:
            self._trust = await asyncio.to_thread(ssl.create_default_context)
        return self._trust

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address that was checked; TLS verifies the host name."""
        problem: OSError | None = None
        secure = target.scheme == "https"
        context = await self._context() if secure else None
        for address in await resolve(target, self._look_up, self._allowed):
            try:
                return await asyncio.open_connection(
                    address,
                    target.port,
                    ssl=context,
                    server_hostname=target.host if secure else None,
                    limit=16 * 1024,
                )
            except OSError as error:
                problem = error
        raise problem or OSError("no address")


def _too_many() -> ApiError:
    text = (
        f"This account has {MAX_WAITING} undelivered webhooks already. Check that the receivers"
        " respond with 2xx."
    )
    return ApiError(429, "too_many_webhooks", text, type="rate_limit_error", retry_after=60.0)
