"""Tells users of the end of their jobs and batches, by POST to a URL that they named.

Signed as the Standard Webhooks specification 1.0 says (https://www.standardwebhooks.com): the id,
the time and the body, by HMAC-SHA256.  A delivery is in the store before it is tried, and stays
there until it was taken or given up, so that it outlasts the server.
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
from fabric_server.jobs.egress import Forbidden, Target, parse_target, resolve
from fabric_server.jobs.internal_request import Answer
from fabric_server.jobs.results import answer_of, error_of
from fabric_server.jobs.submission import Webhook
from fabric_server.storage.batches import BatchRow
from fabric_server.storage.jobs import JobRow, JobState
from fabric_server.storage.webhooks import WebhookRow, WebhookStore
from runtime.errors import BackendError

log = logging.getLogger("fabric.webhooks")

RETRIES = (20.0, 120.0, 600.0, 2700.0)
"""Seconds from each try to the next: five tries in about an hour.  More than ``TRY_SECONDS``, so
that no two servers make one delivery at once."""
TRY_SECONDS = 15.0
"""For looking the name up, connecting, sending, and hearing the answer's first line."""
POLL_SECONDS = 1.0
LOOK_UPS = 4
AT_ONCE, AT_ONCE_EACH = 16, 4
"""Tries, everybody's and one account's: who never answers keeps others' waiting no longer."""
MAX_WAITING = 1000
"""Deliveries of one account that nobody has taken yet; then no more are promised."""
MAX_BODY = 256 * 1024
"""A result that is larger is left out, and can be fetched."""
_PREFIX = "whsec_"
_json = msgspec.json.Encoder().encode


def new_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def secret_bytes(secret: str) -> bytes:
    """Raises ValueError."""
    try:
        found = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        found = b""
    if not secret.startswith(_PREFIX) or not 24 <= len(found) <= 64:
        raise ValueError("a webhook's secret is 'whsec_' and 24 to 64 bytes in base64")
    return found


def sign(secret: str, id: str, at: int, body: bytes) -> str:
    signed = b"%b.%d.%b" % (id.encode(), at, body)
    digest = hmac.new(secret_bytes(secret), signed, sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Webhooks:
    def __init__(
        self,
        store: WebhookStore,
        *,
        plain: bool,
        private: bool,
        trust: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``plain`` allows http, ``private`` addresses that are not of the public internet."""
        self._store = store
        self._plain = plain
        self._private = private
        self._trust = trust or ssl.create_default_context()
        self._clock = clock
        self._wake = asyncio.Event()
        self._tries: dict[str, str] = {}
        """Deliveries under way: their accounts by their ids."""
        self.results: Counter[str] = Counter()
        """Of tries: ``delivered``, ``failed``; and ``given_up``, once for a delivery."""
        self._problem = ""
        # Not the loop's own, which looks up the back ends: names of users' may take long.
        self._names = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="names")

    # ── what is to be told ────────────────────────────────────────────────────────────────────

    async def check(self, account: str, wanted: Webhook) -> tuple[str, str]:
        """What to store of a user's wish, and the secret, if it is a new one.  Raises Refusal."""
        try:
            self._target(wanted.url)
            if wanted.secret is not None:
                secret_bytes(wanted.secret)
        except (Forbidden, ValueError) as error:
            raise errors.bad_field("webhook", f"webhook: {error}.") from None
        if await self._store.count(account) >= MAX_WAITING:
            raise _too_many()
        made = "" if wanted.secret is not None else new_secret()
        return _json({"url": wanted.url, "secret": wanted.secret or made}).decode(), made

    async def wanted(self, job: JobRow, webhook: Webhook) -> tuple[JobRow, str]:
        stored, made = await self.check(job.account, webhook)
        return replace(job, webhook=stored), made

    def of_job(self, job: JobRow, state: JobState, now: float, answer: Answer) -> WebhookRow | None:
        ended = replace(job, state=state, finished_at=now, status=answer.status, answer=answer.body)
        data: dict[str, Any] = {"id": job.name, "model": job.model, "status": state}
        event = {"done": "job.completed"}.get(state, f"job.{state}")
        if state == "done":
            data |= answer_of(ended)
        else:
            data["error"] = error_of(ended)
        return self._row(job.account, job.id, job.webhook, event, data, now)

    def of_batch(self, batch: BatchRow, view: dict[str, Any], now: float) -> WebhookRow | None:
        if not batch.webhook:
            return None
        event = f"batch.{view['status']}"
        return self._row(batch.account, batch.id, batch.webhook, event, view, now)

    def _row(
        self, account: str, id: str, webhook: str, event: str, data: dict[str, Any], now: float
    ) -> WebhookRow:
        told = {"type": event, "timestamp": int(now), "data": data}
        body = _json(told)
        if len(body) > MAX_BODY:
            short = {name: data[name] for name in ("id", "model", "status") if name in data}
            body = _json({**told, "data": {**short, "truncated": True}})
        requirements = msgspec.json.decode(webhook)
        self._wake.set()
        return WebhookRow(
            f"msg_{id}", account, requirements["url"], requirements["secret"], body, 0, now
        )

    def wake(self) -> None:
        """Something may be due."""
        self._wake.set()

    # ── telling it ────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Until cancelled; a delivery that is broken off is tried again."""
        try:
            await self._run()
        finally:
            self._names.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                try:
                    for webhook in await self._store.due(
                        self._clock(), limit=AT_ONCE, busy=self._busy()
                    ):
                        if self._may_try(webhook):
                            self._tries[webhook.id] = webhook.account
                            group.create_task(self._try(webhook))
                    self._problem = ""
                except BackendError as error:
                    self._trouble(error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._wake.wait()

    def _busy(self) -> list[str]:
        """Accounts that keep us waiting in as many places as one may."""
        return [
            one for one, count in Counter(self._tries.values()).items() if count >= AT_ONCE_EACH
        ]

    def _may_try(self, webhook: WebhookRow) -> bool:
        if len(self._tries) >= AT_ONCE or webhook.id in self._tries:
            return False
        return webhook.account not in self._busy()

    async def _try(self, webhook: WebhookRow) -> None:
        try:
            await self._deliver(webhook)
        except BackendError as error:
            self._trouble(error)
        except Exception:  # of one delivery, which must not end the others
            log.exception("webhook failed", extra={"webhook": webhook.id})
        finally:
            self._tries.pop(webhook.id, None)
            self._wake.set()

    def _trouble(self, error: BackendError) -> None:
        if str(error) != self._problem:
            self._problem = str(error)
            log.warning("webhooks wait for the store", extra={"reason": self._problem})

    async def _deliver(self, webhook: WebhookRow) -> None:
        now = self._clock()
        last = webhook.tries >= len(RETRIES)
        # As if it had failed: whatever ends this process, the next try comes.
        next_at = now + (TRY_SECONDS * 2 if last else RETRIES[webhook.tries])
        if webhook.tries > len(RETRIES):
            await self._give_up(webhook, "its last try was broken off")
            return
        if not await self._store.begin(webhook, next_at):
            return
        told = {"webhook": webhook.id, "try": webhook.tries + 1}
        try:
            async with asyncio.timeout(TRY_SECONDS):
                status = await self._post(webhook, int(now))
        except Forbidden as error:
            await self._give_up(webhook, str(error))
            return
        except TimeoutError:
            reason = f"no answer within {TRY_SECONDS:g} s"
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            reason = type(error).__name__  # their words may repeat the URL
        else:
            if 200 <= status < 300:
                self.results["delivered"] += 1
                await self._store.delete(webhook.id)
                return
            reason = f"answered {status}"
        self.results["failed"] += 1
        if last:
            await self._give_up(webhook, reason)
        else:
            log.info("webhook failed", extra={**told, "reason": reason})

    async def _give_up(self, webhook: WebhookRow, reason: str) -> None:
        self.results["given_up"] += 1
        log.warning("webhook given up", extra={"webhook": webhook.id, "reason": reason})
        await self._store.delete(webhook.id)

    async def _post(self, webhook: WebhookRow, at: int) -> int:
        """The answer's status; its body is not read, and no redirect followed."""
        target = self._target(webhook.url)
        reader, writer = await self._connect(target)
        try:
            head = (
                f"POST {target.path} HTTP/1.1\r\n"
                f"host: {_authority(target)}\r\n"
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
        return parse_target(url, plain=self._plain, private=self._private)

    async def _connect(self, target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To an address that was checked, under the name that was asked for."""
        problem: OSError | None = None
        secure = target.scheme == "https"
        for address in await resolve(target, self._names, private=self._private):
            try:
                return await asyncio.open_connection(
                    address,
                    target.port,
                    ssl=self._trust if secure else None,
                    server_hostname=target.host if secure else None,
                    limit=16 * 1024,
                )
            except OSError as error:
                problem = error
        raise problem or OSError("no address")


def _authority(target: Target) -> str:
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"{host}:{target.port}"


def _too_many() -> ApiError:
    words = f"{MAX_WAITING} webhooks of this account have not been taken yet: do they arrive?"
    return ApiError(429, "too_many_webhooks", words, type="rate_limit_error", retry_after=60.0)
