"""The client: answers, streams and jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fabric_client.sdk.closable import Closable
from fabric_client.sdk.errors import FabricError
from fabric_client.sdk.events import StreamDecoder
from fabric_client.sdk.http import Http, Response
from fabric_client.sdk.types import Answer, Job, Message, Piece

_CHAT = "/v1/chat/completions"
_POLL_SECONDS = (0.1, 5.0)
"""First and longest pause between two polls of a job."""


class Streaming(Closable):
    """An iterator over the pieces of an answer; ``answer`` is the whole once it is exhausted.

    The engine stops if the ``with`` block is left early, or ``close`` is called.
    """

    def __init__(self, response: Response) -> None:
        self._response = response
        self._decoder = StreamDecoder(response.body(), response.request_id)
        self._pieces = self._decoder.pieces()

    @property
    def request_id(self) -> str:
        return self._decoder.request_id

    @property
    def answer(self) -> Answer:
        return self._decoder.answer

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        try:
            return next(self._pieces)
        except BaseException:  # StopIteration included
            self.close()
            raise

    def close(self) -> None:
        self._response.close()


class Client(Closable):
    """A client of one server with one key.  Thread-safe; close it, or use ``with``."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        ca: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
    ) -> None:
        """Take the server's URL and a key; the default key is ``FABRIC_API_KEY``.

        ``ca`` is a PEM file with the server's CA, if the system does not trust it.  ``timeout`` is
        the longest silence, in seconds.  Errors that the server marks as retryable are retried up
        to ``retries`` times, after the time that it names.  Raises ``ValueError``.
        """
        key = os.environ.get("FABRIC_API_KEY", "") if api_key is None else api_key
        key = key.strip()  # keys read from a file end with a line end
        if not key:
            raise ValueError("no key: pass api_key, or set FABRIC_API_KEY")
        if not (key.isascii() and key.isprintable()):  # http.client's error would show the key
            raise ValueError("the key contains invalid characters")
        self._http = Http(base_url, key, ca=ca, timeout=timeout, retries=retries)

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Return the models that this key may use and that can be used now."""
        listed = self._http.request("GET", "/v1/models").json()
        try:
            return [str(one["id"]) for one in listed["data"] if one.get("available", True)]
        except (LookupError, TypeError, AttributeError) as error:
            raise FabricError("The answer is no list of models of a Fabric server.") from error

    def infer(
        self, model: str, prompt: str | Sequence[Message], *, system: str = "", **options: Any
    ) -> Answer:
        """Return the whole answer to a prompt or a conversation.

        ``options`` are fields of OpenAI's chat API, such as ``max_tokens=100``; they are sent as
        they are.  Raises ``Refused`` or ``Unreachable``.
        """
        response = self._http.request("POST", _CHAT, _chat_body(model, prompt, system, options))
        return _answer(response.json(), response.request_id)

    def stream(
        self, model: str, prompt: str | Sequence[Message], *, system: str = "", **options: Any
    ) -> Streaming:
        """Return the answer piece by piece.

        Iterating raises ``Broken`` or ``Unreachable`` if the answer does not end.
        """
        body = _chat_body(model, prompt, system, options)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return Streaming(self._http.request("POST", _CHAT, body))

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        model: str,
        prompt: str | Sequence[Message],
        *,
        id: str | None = None,
        priority: str = "medium",
        webhook: str | None = None,
        **options: Any,
    ) -> Job:
        """Submit a job and return at once.

        With an ``id`` it is safe to submit the same job again, for example after a lost
        connection: it runs once.
        """
        body: dict[str, Any] = {"model": model, "async": True, "priority": priority}
        body["prompt" if isinstance(prompt, str) else "messages"] = prompt
        if options:
            body["options"] = options
        if id is not None:
            body["id"] = id
        if webhook is not None:
            body["webhook"] = {"url": webhook}
        return _job(self._http.request("POST", "/inference", body).json())

    def job(self, id: str) -> Job:
        """Return the job as it is now.  Raises ``Refused`` (404) if it is unknown or expired."""
        return _job(self._http.request("GET", f"/inference/{id}").json())

    def wait(self, job: Job, *, timeout: float = 600.0) -> Job:
        """Poll until the job is over.

        Raises ``FabricError`` after ``timeout`` seconds; the job continues all the same.
        """
        deadline = time.monotonic() + timeout
        pause, max_pause = _POLL_SECONDS
        while not job.over:
            if time.monotonic() >= deadline:
                raise FabricError(f"job {job.id} is still {job.status} after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, max_pause)
            job = self.job(job.id)
        return job

    def cancel(self, job: Job) -> Job:
        return _job(self._http.request("DELETE", f"/inference/{job.id}").json())


def _chat_body(
    model: str, prompt: str | Sequence[Message], system: str, options: dict[str, Any]
) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return {"model": model, "messages": messages, **options}


def _answer(document: dict[str, Any], request_id: str) -> Answer:
    choice = document["choices"][0]
    message = choice["message"]
    usage = document.get("usage") or {}
    return Answer(
        text=message.get("content") or "",
        reasoning=message.get("reasoning_content") or "",
        model=document.get("model", ""),
        finish_reason=choice.get("finish_reason") or "",
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        request_id=request_id,
        tool_calls=message.get("tool_calls") or [],
    )


def _job(document: dict[str, Any]) -> Job:
    error = document.get("error")
    return Job(
        id=document["id"],
        status=document.get("status") or "completed",
        position=document.get("position"),
        response=document.get("response"),
        error=error.get("message") if isinstance(error, dict) else error,
    )
