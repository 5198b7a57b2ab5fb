"""A streamed chat that goes on at another node when its own is lost.

What the user has got is put behind the conversation as the assistant's last message, and another
engine is asked to go on with it.  What can't be continued without repeating or losing something is
not: tool calls, several choices, log probabilities, answers held to a grammar (which would begin
anew), and thoughts without an answer.

    Question       what was asked, and how to ask for the rest
    Continuation   a request's answer, at however many nodes it is given (transcript.py: its text)
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Raw, Struct

from fabric_server.metering.openai import Meter
from fabric_server.proxy.transcript import NotContinued, Splice, Transcript

_SAY_SO = frozenset({"vllm", "llama-server"})
"""Kinds that have to be told to go on: of themselves vLLM would begin another message, and
llama-server (of 2026) says the text that it was given once more."""
_ABLE = _SAY_SO | {"ollama"}
"""Kinds that are known to go on with a conversation's last message."""

_LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
_WHOLE_ONLY = frozenset(
    {"continue_final_message", "echo", "function_call", "functions", "grammar", "json_schema"}
    | {"guided_choice", "guided_grammar", "guided_json", "guided_regex", "structured_outputs"}
)
"""Fields that hold for an answer as a whole, so that its second half can't be asked for."""
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class _Message(Struct, gc=False):
    role: str


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_messages = msgspec.json.Decoder(list[Raw]).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.encode


class Question:
    """A body that has been asked once."""

    def __init__(self, body: bytes) -> None:
        """Raises ``ValueError`` when the rest of its answer can't be asked for."""
        try:
            self._fields = _decode_fields(body)
            self._messages = _decode_messages(self._fields["messages"])
            last = _decode_message(self._messages[-1])
            self._limits = self._read_limits()
        except (*_UNREADABLE, KeyError, IndexError):
            raise ValueError("not a conversation") from None
        if last.role == "assistant" or not self._plain():
            raise ValueError("not to be continued")

    def _read_limits(self) -> dict[str, int]:
        given = {name: _decode_any(self._fields[name]) for name in _LIMITS if name in self._fields}
        return {
            name: value for name, value in given.items() if isinstance(value, int) and value > 0
        }

    def _plain(self) -> bool:
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

    def left(self, spent: int) -> float:
        """Of the tokens that it allows, which may be any number."""
        return min(self._limits.values(), default=math.inf) - spent

    def rest(self, text: str, spent: int, kind: str) -> bytes:
        """The body that asks an engine of this kind to go on behind ``text``."""
        said = Raw(_encode({"role": "assistant", "content": text}))
        fields: dict[str, Any] = {**self._fields, "messages": [*self._messages, said]}
        fields |= {name: limit - spent for name, limit in self._limits.items()}
        if kind in _SAY_SO:
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return _encode(fields)


class Continuation:
    """One request's answer, at however many nodes it is given."""

    def __init__(self, body: bytes) -> None:
        """``body`` is whole, and as engines are asked it."""
        self._body = body
        self._transcript = Transcript()

    @property
    def possible(self) -> bool:
        """Whether another engine can be asked to go on now."""
        before = self._transcript.catch_up()
        if not before.possible or (before.thoughts and not before.said):
            return False
        if not before.said:
            return True
        question = self._question()
        return question is not None and question.left(before.spent) > 0

    @property
    def kinds(self) -> frozenset[str] | None:
        """Of engines that can; None is all."""
        return _ABLE if self._transcript.catch_up().said else None

    def body(self, kind: str) -> bytes:
        """What asks an engine of this kind; only when it is possible."""
        before = self._transcript.catch_up()
        if not before.said:
            return self._body
        return Question(self._body).rest(before.said, before.spent - before.blanks, kind)

    def meter(self, meter: Meter, kind: str, *, splice: bool) -> Meter:
        """Wrap ``meter`` to follow the next stream; ``splice`` joins it to the one before."""
        before = self._transcript.catch_up()
        return _ContinuedMeter(meter, before, Splice(before, kind) if splice else None)

    def final_chunk(self) -> bytes:
        """The end of an answer that has all the tokens it may have; empty when it has not."""
        before, question = self._transcript.catch_up(), self._question()
        if not before.possible or question is None:
            return b""
        if question.left(before.spent) != 0:
            return b""
        chunk = {
            "id": before.id,
            "object": "chat.completion.chunk",
            "created": before.created,
            "model": before.model,
            "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}],
        }
        return b"data: " + _encode(chunk) + b"\n\ndata: [DONE]\n\n"

    def _question(self) -> Question | None:
        try:
            return Question(self._body)
        except ValueError:
            return None


class _ContinuedMeter:
    def __init__(self, meter: Meter, transcript: Transcript, splice: Splice | None) -> None:
        self._meter = meter
        self._transcript = transcript
        self._splice = splice
        self.usage = meter.usage
        self.complete = self.done = self.failed = self.torn = False

    def feed(self, data: bytes) -> bytes:
        """Raises ``NotContinued``, and then has passed nothing on."""
        return self._joined(self._meter.feed(data))

    def end(self) -> bytes:
        rest = self._meter.end()
        if not self._meter.complete:
            self._heed()
            return rest  # half an event, perhaps
        return self._joined(rest)

    def _heed(self) -> None:
        meter, splice = self._meter, self._splice
        self.complete, self.done = meter.complete, meter.done
        self.failed, self.torn = meter.failed, meter.torn
        self.usage = meter.usage if splice is None else splice.total(meter.usage)

    def _joined(self, events: bytes) -> bytes:
        if events:
            if self._meter.torn:
                self._transcript.give_up()
                if self._splice is not None:
                    raise NotContinued("it says too much at once")
            if self._splice is not None:
                events = self._splice.feed(events)
            self._transcript.add(events)
        self._heed()  # not before: an end that is not passed on is none
        return events
