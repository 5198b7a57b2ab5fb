"""The request of a job: checks its key and deadline, and sends it through the gateway."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from fabric_server.auth.keys import Key, key_of
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError
from fabric_server.jobs.internal_request import (
    InternalClient,
    InternalRequest,
    InternalResponse,
    error_response,
)
from fabric_server.routing.criteria import Priority
from fabric_server.storage.jobs import JobRow
from fabric_server.storage.rows import KeyRow


class Keys(Protocol):
    async def key_by_id(self, id: str) -> KeyRow | None: ...


class Admission(Protocol):
    def position(self, request_id: str) -> int | None: ...


class JobExecutor:
    """Sends jobs' requests with the keys that the jobs were submitted with."""

    def __init__(
        self,
        keys: Keys,
        client: InternalClient,
        admission: Admission,
        must_wait: Callable[[Key], Awaitable[float]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``must_wait`` gives the seconds for which a key's rate limits refuse its requests."""
        self._keys = keys
        self._client = client
        self._admission = admission
        self._must_wait = must_wait
        self._clock = clock

    def new_request_id(self) -> str:
        return self._client.new_id()

    def is_queued(self, request_id: str) -> bool:
        """Return whether a request waits for a slot."""
        return self._admission.position(request_id) is not None

    async def execute(
        self, job: JobRow, request_id: str, *, respect_limits: bool
    ) -> InternalResponse:
        """Return the response of the gateway, or an error.  Raises ``BackendError``.

        With ``respect_limits``, a request that the key's rate limits would refuse is not sent, so
        that it is not in the ledger either.
        """
        row = await self._keys.key_by_id(job.key_id)
        state = "revoked" if row is None else row.state(self._clock())
        if row is None or state != "good" or row.management:
            return error_response(_key_withdrawn(state), request_id)
        left = job.expires_at - self._clock()
        if left <= 0:
            return error_response(job_timeout(), request_id)
        key = key_of(row)
        if respect_limits and (seconds := await self._must_wait(key)):
            return error_response(_rate_limited(seconds), request_id)
        return await self._client.send(
            InternalRequest(
                id=request_id,
                key=key,
                path=job.path,
                body=job.body,
                priority=Priority(job.priority),
                timeout=left,
                quantization=job.variant_quantization,
                digest=job.variant_digest,
            )
        )


def job_timeout() -> ApiError:
    """Make the error of a job whose deadline has passed."""
    return ApiError(504, "job_timeout", "The job did not finish in time.", type="server_error")


def _rate_limited(seconds: float) -> ApiError:
    text = f"The key's rate limits allow no request for {seconds:.3g} s."
    return ApiError(429, errors.RATE_LIMITED, text, retry_after=seconds)


def _key_withdrawn(state: str) -> ApiError:
    if state == "account_disabled":
        return errors.account_disabled()
    text = f"The API key that the job was submitted with is {state.replace('_', ' ')}."
    return ApiError(401, "key_withdrawn", text, type="authentication_error")
