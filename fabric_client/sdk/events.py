"""A streamed answer: server-sent events decoded into pieces, and joined to an ``Answer``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct

from fabric_client.sdk.errors import Broken
from fabric_client.sdk.types import Answer, Piece
from fabric_client.sse import EventFramer, EventTooLong, decode_events


class _Delta(Struct, frozen=True, gc=False):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct, frozen=True, gc=False):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(Struct, frozen=True, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Error(Struct, frozen=True, gc=False):
    message: str = "The answer broke off."


class _Chunk(Struct, frozen=True, gc=False):
    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class StreamDecoder:
    """Decodes the body of a streamed chat completion.

    ``pieces`` yields what arrives; ``answer`` is the whole once the pieces are exhausted.
    """

    def __init__(self, body: Iterable[bytes], request_id: str) -> None:
        """``body`` yields the response's bytes, in any cut."""
        self.request_id = request_id
        self._body = body
        self._framer = EventFramer()
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._model = ""
        self._finish_reason = ""
        self._usage = _Usage()
        self._done = False

    @property
    def answer(self) -> Answer:
        """The answer as far as it has arrived."""
        return Answer(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            model=self._model,
            finish_reason=self._finish_reason,
            prompt_tokens=self._usage.prompt_tokens,
            completion_tokens=self._usage.completion_tokens,
            request_id=self.request_id,
        )

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces that have text or reasoning.

        Raises ``Broken`` if the answer ends early, or can't be read.
        """
        for event in self._events():
            data = event.strip()
            if data == b"[DONE]":
                self._done = True
                continue
            piece = self._read(data)
            if piece is not None:
                yield piece
        if not (self._done or self._finish_reason):
            raise self._broken("The answer broke off.")

    def _events(self) -> Iterator[bytes]:
        for data in self._body:
            try:
                events = self._framer.feed(data)
            except EventTooLong:
                raise self._broken("The answer can't be read: an event is too long.") from None
            yield from decode_events(events)
        yield from decode_events(self._framer.end())

    def _read(self, data: bytes) -> Piece | None:
        try:
            chunk = _decode(data)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"The answer can't be read: {error}.") from None
        if chunk.error is not None:
            raise self._broken(chunk.error.message)
        self._model = chunk.model or self._model
        self._usage = chunk.usage or self._usage
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        self._finish_reason = choice.finish_reason or self._finish_reason
        piece = Piece(choice.delta.content or "", choice.delta.reasoning_content or "")
        if not (piece.text or piece.reasoning):
            return None
        self._text.append(piece.text)
        self._reasoning.append(piece.reasoning)
        return piece

    def _broken(self, message: str) -> Broken:
        return Broken(message, "".join(self._text), self.request_id)
