"""What ``POST /inference`` takes, and what is asked of an engine for it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from fabric_server.dialects import errors
from fabric_server.dialects.body import MAX_MODEL
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Body
from fabric_server.routing.criteria import Priority

PATH = "/v1/chat/completions"
MAX_BODY = 4 * 2**20
RESERVED = ("models", "queue")
"""What is at ``/inference/…`` beside jobs."""
MAX_METADATA = 16 * 1024
SYNC_SECONDS, ASYNC_SECONDS = 300.0, 86_400.0
"""From a job's submission to its end, where it names no ``timeout``."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_encode = msgspec.json.Encoder().encode
_AT = re.compile(r" - at `\$\.?([^`]*)`$")

T = TypeVar("T")


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Ollama's words; what has none in OpenAI's API is refused rather than dropped."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    num_predict: Annotated[int, Meta(ge=-1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=10)] | None = None
    seed: int | None = None


class Webhook(Struct, frozen=True, forbid_unknown_fields=True):
    url: Annotated[str, Meta(max_length=2048)]
    secret: str | None = None

    def __repr__(self) -> str:
        return "<Webhook>"  # its URL may hold a secret, too


class Submission(Struct, frozen=True, kw_only=True, rename={"asynchronous": "async"},
                 forbid_unknown_fields=True):  # fmt: skip
    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL)]
    prompt: str | None = None
    messages: list[Raw] | None = None
    stream: bool = False
    options: Options = Options()
    priority: Literal["high", "medium", "low"] = "medium"
    timeout: Annotated[float, Meta(ge=1000, le=86_400_000)] | None = None
    """Milliseconds."""
    metadata: dict[str, Any] = {}
    id: Name | None = None
    asynchronous: bool = False
    webhook: Webhook | None = None

    @property
    def rank(self) -> Priority:
        return Priority[self.priority.upper()]

    @property
    def seconds(self) -> float:
        if self.timeout is not None:
            return self.timeout / 1000
        return ASYNC_SECONDS if self.asynchronous else SYNC_SECONDS

    def question(self) -> bytes:
        """What an engine is asked."""
        messages: Any = self.messages
        if messages is None:
            messages = [{"role": "user", "content": self.prompt}]
        options = self.options
        limit = options.num_predict
        fields = {
            "model": self.model,
            "messages": messages,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "max_tokens": None if limit == -1 else limit,
            "stop": options.stop,
            "seed": options.seed,
        }
        return _encode({name: value for name, value in fields.items() if value is not None})


async def read_body(body: Body, most: int) -> bytes:
    """All of it.  Raises Refusal: 413."""
    pieces = bytearray()
    while True:
        pieces += body.take()
        if len(pieces) > most or (body.length or 0) > most:
            raise errors.body_too_large(most)
        if body.complete:
            return bytes(pieces)
        await body.more()


def parse(data: bytes, kind: type[T]) -> T:
    """Raises Refusal: 400, naming the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = _AT.search(text)
        param = where[1] if where else None
        text = _AT.sub("", text).replace("Object", "The request")
        said = f"{param}: {text}." if param else f"{text}."
        raise ApiError(400, "invalid_value", said, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_json(str(error)) from None


def read_submission(data: bytes) -> Submission:
    """Raises Refusal: 400, naming the field."""
    asked = parse(data, Submission)
    if (asked.prompt is None) == (asked.messages is None):
        raise errors.bad_field("prompt", "Either 'prompt' or 'messages' must be given.")
    if asked.messages is not None and not asked.messages:
        raise errors.bad_field("messages", "'messages' must have at least one message.")
    if asked.stream:
        words = "A job's answer comes whole; streams are at /v1/chat/completions."
        raise errors.bad_field("stream", words)
    if asked.webhook is not None and not asked.asynchronous:
        words = "'webhook' is for jobs with 'async': true; others are answered at once."
        raise errors.bad_field("webhook", words)
    if asked.id in RESERVED:
        words = f"'{asked.id}' can't be an id: /inference/{asked.id} is something else."
        raise errors.bad_field("id", words)
    if len(_encode(asked.metadata)) > MAX_METADATA:
        raise errors.bad_field("metadata", f"'metadata' has more than {MAX_METADATA} bytes.")
    return asked
