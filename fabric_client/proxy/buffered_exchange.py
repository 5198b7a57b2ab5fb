"""A request that is read whole on the node, and asked of the engine in another dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric_client.engines.discovery import Engine
from fabric_client.proxy.exchange import EngineRequest
from fabric_client.proxy.slots import RegistrationSlots
from fabric_client.proxy.upstream import Pool
from fabric_client.reasoning import HEADER, RAW
from fabric_client.translation import (
    FilterChain,
    LocalReply,
    RequestTranslator,
    ResponseFilter,
    TranslatedRequest,
    TranslationError,
)
from fabric_client.translation.local_reply import refusal
from protocol.aio.tunnel import Stream
from protocol.errors import Code
from protocol.messages import RequestHead

if TYPE_CHECKING:
    from fabric_client.proxy.forwarder import Forwarder

MAX_BODY = 64 * 2**20
"""Bytes of a question that a node reads whole.  A server's own limit is mostly lower."""

CHAT = "/v1/chat/completions"


class BufferedEngineRequest(EngineRequest):
    """The engine is asked when the question is whole; what is the same is ``EngineRequest``'s."""

    __slots__ = ("_gathered", "_question", "_translate")

    def __init__(
        self,
        forwarder: Forwarder,
        stream: Stream,
        head: RequestHead,
        engine: Engine,
        pool: Pool,
        ended: bool,
        share: RegistrationSlots,
        translate: RequestTranslator,
    ) -> None:
        super().__init__(forwarder, stream, head, engine, pool, ended, share)
        self._chunked = False
        self._translate = translate
        self._gathered: list[bytes] = []
        self._question: TranslatedRequest

    def _reach(self) -> None:
        if (self._head.body_size or 0) > MAX_BODY:
            self._refuse_size()
        elif self._ended:
            self._ask_translated()

    def on_data(self, data: bytes, ended: bool) -> None:
        if self._over or self._answered:
            return
        self._ended = ended
        self._sent += len(data)
        if self._head.body_size is not None and self._sent > self._head.body_size:
            self.fail(Code.PROTOCOL, "the body is longer than announced")
            return
        if self._sent > MAX_BODY:
            self._refuse_size()
            return
        self._gathered.append(data)
        self._stream.consumed(len(data))
        if ended and self.begun:  # otherwise when it begins
            self._ask_translated()

    def on_answer_head(self, status: int, headers: list[tuple[str, str]]) -> None:
        if self._answer is not None:
            if self._question.path != self._head.path:
                # How long it is in the other dialect will be known at its end.
                headers = [one for one in headers if one[0] != "content-length"]
            status, headers = self._answer.head(status, headers)
        super().on_answer_head(status, headers)

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _ask_translated(self) -> None:
        body = b"".join(self._gathered)
        self._gathered.clear()
        try:
            asked = self._translate(body)
        except TranslationError as error:
            asked = refusal(self._head.path, 400, error.message, error.param)
        if isinstance(asked, LocalReply):
            self._say(asked)
            return
        self._question = asked
        self._replay = [asked.body]
        self._answer = self._through_reasoning(asked)
        super()._reach()

    def _through_reasoning(self, asked: TranslatedRequest) -> ResponseFilter | None:
        """What becomes of the engine's answer on its way to the user."""
        make = self._forwarder.reasoning
        if make is None or asked.path != CHAT:
            return asked.response_filter
        for name, value in self._head.headers:
            if name == HEADER and value.strip().lower() == RAW:
                return asked.response_filter
        return (
            make() if asked.response_filter is None else FilterChain(make(), asked.response_filter)
        )

    def _request(self) -> bytes:
        path, body, _ = self._question
        translated = path != self._head.path
        passed = [("content-type", "application/json")] if translated else self._passed()
        return self._request_head(path, passed, len(body))

    def _refuse_size(self) -> None:
        self._gathered.clear()
        message = f"The body is larger than {MAX_BODY >> 20} MiB, the most that is read here."
        self._say(refusal(self._head.path, 413, message))

    def _say(self, reply: LocalReply) -> None:
        """What the node answers by itself."""
        size = ("content-length", str(len(reply.body)))
        self.on_answer_head(reply.status, [*reply.headers, size])
        self.on_answer_data(reply.body)
        self.on_answer_end()
