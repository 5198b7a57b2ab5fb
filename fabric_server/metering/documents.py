"""Documents as far as meters read them: figures in answers, marks of errors, limits in requests.

Not compiled, as no class of msgspec can be (docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct
from msgspec.json import Decoder

from fabric_server.metering.usage import Count

# ── answers ───────────────────────────────────────────────────────────────────────────────────


class Figures(Struct, gc=False):
    """Token counts under all the names that engines use."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    total_tokens: Count | None = None


class Counts(Struct, gc=False):
    """Token counts in events of the Responses and Messages APIs."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    """Anthropic's, apart from ``input_tokens``; all three together are the prompt."""
    cache_read_input_tokens: Count | None = None

    @property
    def prompt(self) -> int | None:
        if self.input_tokens is None:
            return None
        cached = (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)
        return self.input_tokens + cached


class Response(Struct, gc=False):
    usage: Counts | None = None


class ResponseEvent(Struct, gc=False):
    type: str = ""
    response: Response | None = None


class Message(Struct, gc=False):
    usage: Counts | None = None


class MessageEvent(Struct, gc=False):
    type: str = ""
    message: Message | None = None
    usage: Counts | None = None


class AudioEvent(Struct, gc=False):
    type: str = ""
    usage: Counts | None = None


class Line(Struct, gc=False):
    """A line of Ollama's."""

    done: bool = False
    prompt_eval_count: Count | None = None
    eval_count: Count | None = None


class Marks(Struct, gc=False):
    """The fields that show that an event is an error."""

    type: Any = None
    error: Any = None
    object: Any = None

    @property
    def told(self) -> bool:
        error = self.error
        if isinstance(error, dict):
            error = any(error.values())
        return bool(error) or self.object == "error" or self.type in ("error", "response.failed")


decode_figures = Decoder(Figures).decode
decode_response = Decoder(ResponseEvent).decode
decode_message = Decoder(MessageEvent).decode
decode_audio = Decoder(AudioEvent).decode
decode_line = Decoder(Line).decode
decode_marks = Decoder(Marks).decode

# ── requests ──────────────────────────────────────────────────────────────────────────────────


NULL = Raw(b"null")


class Options(Struct, gc=False):
    """The limit in the options of Ollama's requests."""

    num_predict: int | None = None


class Limits(Struct, gc=False):
    """The fields of a request that limit its answer."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n_predict: int | None = None
    n: int | None = None
    best_of: int | None = None
    options: Options | None = None


class RawLimits(Struct, gc=False):
    """The same for bodies in which one is no number: the others limit all the same."""

    max_tokens: Raw = NULL
    max_completion_tokens: Raw = NULL
    max_output_tokens: Raw = NULL
    n_predict: Raw = NULL
    n: Raw = NULL
    best_of: Raw = NULL
    options: Raw = NULL


decode_limits = Decoder(Limits).decode
decode_raw_limits = Decoder(RawLimits).decode
decode_options = Decoder(dict[str, Raw]).decode
