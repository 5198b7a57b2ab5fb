"""Continues a streamed chat on another node when its own is lost.

The text that the client has got is appended to the conversation as the assistant's last message,
and another engine is asked to continue it.  Answers that can't be continued without repeating or
losing something are not: tool calls, several choices, log probabilities, answers held to a grammar
(which would begin anew), and reasoning without an answer yet.

    ChatBody       the request's body, and the bodies that ask for the rest
    Continuation   a request's answer, from however many nodes (``Transcript``: its text so far)
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Raw, Struct

from fabric_server.metering.openai import Meter
from fabric_server.proxy.transcript import NotContinued, Splice, Transcript

_NEED_FLAGS = frozenset({"vllm", "llama-server"})
"""Engine kinds that continue a message only with flags: without them vLLM begins another message,
and llama-server (of 2026) repeats the text that it was given."""
CONTINUING_KINDS = _NEED_FLAGS | {"ollama"}
"""Engine kinds that are known to continue a conversation's last message."""

_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
_WHOLE_ONLY = frozenset(
    {"continue_final_message", "echo", "function_call", "functions", "grammar", "json_schema"}
    | {"guided_choice", "guided_grammar", "guided_json", "guided_regex", "structured_outputs"}
)
"""Fields that constrain an answer as a whole, so that its second half can't be asked for."""
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Message(Struct, gc=False):
    role: str


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_messages = msgspec.json.Decoder(list[Raw]).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


class ChatBody:
    """A chat request's body, of which an engine has answered a part."""

    def __init__(self, body: bytes) -> None:
        """Parse the body.  Raises ``ValueError`` when the rest of its answer can't be asked for."""
        try:
            self._fields = _decode_fields(body)
            self._messages = _decode_messages(self._fields["messages"])
            last = _decode_message(self._messages[-1])
            self._limits = self._read_limits()
        except (*_UNREADABLE, KeyError, IndexError):
            raise ValueError("not a conversation") from None
        if last.role == "assistant" or not self._is_plain():
            raise ValueError("not to be continued")

    def _read_limits(self) -> dict[str, int]:
        given = {name: _decode_any(self._fields[name]) for name in _LIMITS if name in self._fields}
        return {
            name: value for name, value in given.items() if isinstance(value, int) and value > 0
        }

    def _is_plain(self) -> bool:
        def value(name: str) -> Any:
            return _decode_any(self._fields.get(name, b"null"))

        form = value("response_format")
        return (
            not any(value(name) for name in _WHOLE_ONLY & self._fields.keys())
            and value("n") in (None, 1)
            and not value("logprobs")
            and value("tool_choice") in (None, "auto", "none")
            and (form is None or (isinstance(form, dict) and form.get("type") == "text"))
        )

    def tokens_left(self, spent: int) -> float:
        """Return how many of the tokens it allows are left; ``inf`` without a limit."""
        return min(self._limits.values(), default=math.inf) - spent

    def rest(self, text: str, spent: int, kind: str) -> bytes:
        """Return the body that asks an engine of this kind to continue ``text``."""
        message = Raw(_encode({"role": "assistant", "content": text}))
        fields: dict[str, Any] = {**self._fields, "messages": [*self._messages, message]}
        fields |= {name: limit - spent for name, limit in self._limits.items()}
        if kind in _NEED_FLAGS:
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return _encode(fields)


class Continuation:
    """One request's answer, from however many nodes."""

    def __init__(self, body: bytes) -> None:
        """``body`` is whole, and as engines get it."""
        self._body = body
        self._transcript = Transcript()

    @property
    def possible(self) -> bool:
        """Another engine can be asked to continue the answer now."""
        before = self._transcript.catch_up()
        if not before.possible or (before.reasoning_tokens and not before.stripped_text):
            return False
        if not before.stripped_text:
            return True
        chat = self._chat()
        return chat is not None and chat.tokens_left(before.spent) > 0

    @property
    def has_text(self) -> bool:
        """The client has text that the next engine must continue; else it answers anew."""
        return bool(self._transcript.catch_up().stripped_text)

    def body(self, kind: str) -> bytes:
        """Return the body that asks an engine of this kind for the rest, when that is possible."""
        before = self._transcript.catch_up()
        if not before.stripped_text:
            return self._body
        return ChatBody(self._body).rest(
            before.stripped_text, before.spent - before.trailing_blanks, kind
        )

    def meter(self, meter: Meter, kind: str, *, splice: bool) -> Meter:
        """Wrap ``meter`` to follow the next stream; ``splice`` joins it to the one before."""
        before = self._transcript.catch_up()
        return _ContinuedMeter(meter, before, Splice(before, kind) if splice else None)

    def final_chunk(self) -> bytes:
        """Return the last events of an answer that has all the tokens it may have; empty if not."""
        before, chat = self._transcript.catch_up(), self._chat()
        if not before.possible or chat is None:
            return b""
        if chat.tokens_left(before.spent) != 0:
            return b""
        chunk = {
            "id": before.id,
            "object": "chat.completion.chunk",
            "created": before.created,
            "model": before.model,
            "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}],
        }
        return b"data: " + _encode(chunk) + b"\n\ndata: [DONE]\n\n"

    def _chat(self) -> ChatBody | None:
        try:
            return ChatBody(self._body)
        except ValueError:
            return None


class _ContinuedMeter:
    """Meters a stream, notes its events in the transcript, and splices it to the one before."""

    def __init__(self, meter: Meter, transcript: Transcript, splice: Splice | None) -> None:
        self._meter = meter
        self._transcript = transcript
        self._splice = splice
        self.usage = meter.usage
        self.events = 0
        self.before = 0 if splice is None else splice.spent
        self.complete = self.done = self.failed = self.torn = False

    @property
    def sample(self) -> bytes:
        return self._meter.sample

    @property
    def aside(self) -> int:
        return self._meter.aside

    def feed(self, data: bytes) -> bytes:
        """Raises ``NotContinued``, and then has passed nothing on."""
        return self._join(self._meter.feed(data))

    def end(self) -> bytes:
        rest = self._meter.end()
        if not self._meter.complete:
            self._update()
            return rest  # perhaps half an event
        return self._join(rest)

    def _update(self) -> None:
        meter, splice = self._meter, self._splice
        self.complete, self.done = meter.complete, meter.done
        self.failed, self.torn = meter.failed, meter.torn
        self.usage = meter.usage if splice is None else splice.total(meter.usage)
        self.events = meter.events + self.before

    def _join(self, events: bytes) -> bytes:
        if events:
            if self._meter.torn:
                self._transcript.give_up()
                if self._splice is not None:
                    raise NotContinued("an event of the continuation is too large")
            if self._splice is not None:
                events = self._splice.feed(events)
            self._transcript.add(events)
        self._update()  # only now: a terminal marker counts once it is passed on
        return events
