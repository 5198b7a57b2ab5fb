"""Large bodies and answers in a worker, with what can go wrong told by code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from fabric_client.offer.admission import NotOffered
from fabric_client.proxy.preparation import end_filter
from fabric_client.proxy.prepared import Prepared
from fabric_client.proxy.request_body import RequestBody
from fabric_client.proxy.response_body import ResponseBody
from fabric_client.translation import Headers
from fabric_client.translation.local_reply import error_reply
from protocol.errors import Code
from runtime.worker_process import Work
from runtime.workers import TooMuchWork, WorkerLost, Workers

log = logging.getLogger("fabric.forward")


class Failed(Exception):
    """The work was not done; the server is told why."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


async def prepare_in_worker(
    workers: Workers, body: RequestBody, work: Work
) -> tuple[Prepared, list[bytes]]:
    """Return what ``prepare_whole`` does; a body that takes too much is the user's mistake.

    Raises ``Failed``.
    """
    try:
        return await _run(workers, work, body.take(), body.received, "request")
    except TooMuchWork as error:
        message = f"The request can't be read, because {error}. Send less at once."
        return Prepared(error_reply(body.head.path, 413, message)), []
    except WorkerLost as error:  # the engine was not asked: another node may be
        raise Failed(Code.REFUSED, f"the worker that read the request is lost: {error}") from None


async def end_in_worker(
    workers: Workers, response: ResponseBody
) -> tuple[tuple[int, Headers] | None, list[bytes]]:
    """End the filter of an answer; return what it decides and the rest.  Raises ``Failed``."""
    translate, response.filter = response.filter, None
    assert translate is not None
    try:
        return await _run(workers, partial(end_filter, translate), (), response.held, "answer")
    except TooMuchWork as error:
        reason = f"the engine's answer can't be read, because {error}"
        raise Failed(Code.TOO_LARGE, reason) from None
    except WorkerLost as error:
        raise Failed(Code.INTERNAL, f"the worker that read the answer is lost: {error}") from None


async def _run(
    workers: Workers, work: Work, pieces: Sequence[bytes], size: int, what: str
) -> tuple[Any, list[bytes]]:
    try:
        return await workers.run(work, pieces, size)
    except NotOffered as error:  # its server knows what is offered: the offer has just changed
        raise Failed(Code.REFUSED, str(error)) from None
    except (TooMuchWork, WorkerLost):
        raise
    except Exception:
        log.exception("a large %s can't be translated", what)
        raise Failed(Code.INTERNAL, f"the {what} can't be translated") from None
