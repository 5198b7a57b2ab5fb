"""What a program asks of the fabric."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from fabric_client.sdk.closing import Closing
from fabric_client.sdk.errors import FabricError
from fabric_client.sdk.events import StreamDecoder
from fabric_client.sdk.http import Http, Reply
from fabric_client.sdk.shapes import Answer, Job, Message, Piece

_CHAT = "/v1/chat/completions"
_LOOK_SECONDS = (0.1, 5.0)
"""How often a job is looked at while it is waited for: at first, and at last."""


class Streaming(Closing):
    """The pieces of an answer as they come; ``answer`` is the whole once they have.

    Leave a ``with`` block, or call ``close``, and the engine stops.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._stream = StreamDecoder(reply.body(), reply.request_id)
        self._pieces = self._stream.pieces()

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    @property
    def answer(self) -> Answer:
        return self._stream.answer

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        try:
            return next(self._pieces)
        except BaseException:  # the end, too
            self.close()
            raise

    def close(self) -> None:
        self._reply.close()


class Client(Closing):
    """One server and one key.  Safe to be used by several threads; close it, or use ``with``."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        ca: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
    ) -> None:
        """``api_key`` is taken from ``FABRIC_API_KEY`` when it is not given; ``ca`` is a file with
        the server's CA (PEM), where it is not one that every machine knows; ``timeout`` is the
        longest silence, in seconds; what the server calls worth trying again is tried again up to
        ``retries`` times, when and as often as it says.
        """
        key = os.environ.get("FABRIC_API_KEY", "") if api_key is None else api_key
        key = key.strip()  # of the line end of the file that it was read from
        if not key:
            raise ValueError("there is no key: pass api_key, or set FABRIC_API_KEY")
        if not (key.isascii() and key.isprintable()):  # http.client would show all of it
            raise ValueError("the key has characters that no key has")
        self._http = Http(base_url, key, ca=ca, timeout=timeout, retries=retries)

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Those that this key may use, and that somebody serves now."""
        listed = self._http.ask("GET", "/v1/models").json()
        return [model["id"] for model in listed["data"]]

    def infer(
        self, model: str, prompt: str | Sequence[Message], *, system: str = "", **options: Any
    ) -> Answer:
        """The whole answer to a prompt, or to a conversation.

        ``options`` go to the engine as they are: ``max_tokens=100``, ``temperature=0`` and all else
        that OpenAI's chat knows.  Raises ``Refused`` or ``Unreachable``.
        """
        reply = self._http.ask("POST", _CHAT, _question(model, prompt, system, options))
        return _answer(reply.json(), reply.request_id)

    def stream(
        self, model: str, prompt: str | Sequence[Message], *, system: str = "", **options: Any
    ) -> Streaming:
        """The same, piece by piece.  Iterating raises ``Broken`` or ``Unreachable`` when the answer
        does not come to its end."""
        question = _question(model, prompt, system, options)
        question |= {"stream": True, "stream_options": {"include_usage": True}}
        return Streaming(self._http.ask("POST", _CHAT, question))

    # ── jobs: work that may take its time ─────────────────────────────────────────────────────

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
        """Hand work in, and come back for it.  With an ``id`` of one's own the same work can be
        handed in again, after a lost connection say, and is done once."""
        asked: dict[str, Any] = {"model": model, "async": True, "priority": priority}
        asked["prompt" if isinstance(prompt, str) else "messages"] = prompt
        if options:
            asked["options"] = options
        if id is not None:
            asked["id"] = id
        if webhook is not None:
            asked["webhook"] = {"url": webhook}
        return _job(self._http.ask("POST", "/inference", asked).json())

    def job(self, id: str) -> Job:
        """How it stands.  Raises ``Refused`` (404) for one that is unknown, or was forgotten."""
        return _job(self._http.ask("GET", f"/inference/{id}").json())

    def wait(self, job: Job, *, timeout: float = 600.0) -> Job:
        """Until it is over.  Raises ``FabricError`` when it is not in ``timeout`` seconds; it goes
        on all the same."""
        until = time.monotonic() + timeout
        pause, most = _LOOK_SECONDS
        while not job.over:
            if time.monotonic() >= until:
                raise FabricError(f"job {job.id} is still {job.status} after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.5, most)
            job = self.job(job.id)
        return job

    def cancel(self, job: Job) -> Job:
        return _job(self._http.ask("DELETE", f"/inference/{job.id}").json())


def _question(
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
