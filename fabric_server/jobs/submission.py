"""The body of ``POST /inference``, and the chat request that is made of it."""

from __future__ import annotations

import re
from hashlib import sha256
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
"""Paths below ``/inference/`` that are no jobs."""
MAX_METADATA = 16 * 1024
"""Bytes, without white space."""
_MAX_RAW_METADATA = 64 * 1024
SYNC_SECONDS, ASYNC_SECONDS = 300.0, 86_400.0
"""Default timeouts, from a job's submission to its end."""

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
_encode = msgspec.json.Encoder().encode
_decode_metadata = msgspec.json.Decoder(dict[str, Any]).decode
_AT = re.compile(r" - at `\$\.?([^`]*)`$")

T = TypeVar("T")


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Ollama's options; those that OpenAI's API lacks are refused rather than ignored."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    num_predict: Annotated[int, Meta(ge=-1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=10)] | None = None
    seed: int | None = None


class Webhook(Struct, frozen=True, forbid_unknown_fields=True):
    """The URL to notify of a job's or batch's end."""

    url: Annotated[str, Meta(max_length=2048)]
    secret: str | None = None

    def __repr__(self) -> str:
        return "<Webhook>"  # its URL may hold a secret, too


class Submission(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
                 rename={"asynchronous": "async", "raw_metadata": "metadata"}):  # fmt: skip
    """The body of ``POST /inference``.

    What engines or clients will read stays as it is: millions of small objects take seconds.
    """

    model: Annotated[str, Meta(min_length=1, max_length=MAX_MODEL)]
    prompt: str | None = None
    messages: Raw = Raw(b"null")
    """A list that is not empty, or null."""
    stream: bool = False
    options: Options = Options()
    priority: Literal["high", "medium", "low"] = "medium"
    timeout: Annotated[float, Meta(ge=1000, le=86_400_000)] | None = None
    """Milliseconds."""
    raw_metadata: Raw = Raw(b"{}")
    """An object of bounded size."""
    id: Name | None = None
    asynchronous: bool = False
    webhook: Webhook | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        return _decode_metadata(self.raw_metadata)

    @property
    def rank(self) -> Priority:
        """The priority of its request."""
        return Priority[self.priority.upper()]

    @property
    def seconds(self) -> float:
        """The timeout, in seconds."""
        if self.timeout is not None:
            return self.timeout / 1000
        return ASYNC_SECONDS if self.asynchronous else SYNC_SECONDS

    def chat_request(self) -> bytes:
        """Return the body of the chat completion request for an engine."""
        messages: Any = self.messages
        if self.prompt is not None:
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
    """Read the whole body.  Raises ``ApiError``: 413."""
    pieces = bytearray()
    while True:
        pieces += body.take()
        if len(pieces) > most or (body.length or 0) > most:
            raise errors.body_too_large(most)
        if body.complete:
            return bytes(pieces)
        await body.more()


def parse(data: bytes, kind: type[T]) -> T:
    """Parse JSON as ``kind``.  Raises ``ApiError``: 400, which names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = _AT.search(text)
        param = where[1] if where else None
        text = _AT.sub("", text).replace("Object", "The request")
        message = f"{param}: {text}." if param else f"{text}."
        raise ApiError(400, "invalid_value", message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_json(str(error)) from None


def read_submission(data: bytes) -> Submission:
    """Parse and check a submission.  Raises ``ApiError``: 400, which names the field."""
    submission = parse(data, Submission)
    messages = bytes(submission.messages).strip()
    if (submission.prompt is None) == (messages == b"null"):
        raise errors.bad_field("prompt", "Give either 'prompt' or 'messages'.")
    if messages != b"null":
        if not messages.startswith(b"["):
            raise errors.bad_field("messages", "'messages' must be a list of messages.")
        if not messages[1:-1].strip():
            raise errors.bad_field("messages", "'messages' must have at least one message.")
    if submission.stream:
        text = "Jobs don't stream; use /v1/chat/completions for streams."
        raise errors.bad_field("stream", text)
    if submission.webhook is not None and not submission.asynchronous:
        text = "'webhook' needs 'async': true; other jobs respond when they have ended."
        raise errors.bad_field("webhook", text)
    if submission.id in RESERVED:
        text = f"'{submission.id}' can't be an id: /inference/{submission.id} is reserved."
        raise errors.bad_field("id", text)
    _check_metadata(submission)
    return submission


def _check_metadata(submission: Submission) -> None:
    too_large = len(submission.raw_metadata) > _MAX_RAW_METADATA  # not to be decoded at all
    try:
        too_large = too_large or len(_encode(submission.metadata)) > MAX_METADATA
    except msgspec.ValidationError:
        raise errors.bad_field("metadata", "'metadata' must be an object.") from None
    if too_large:
        raise errors.bad_field("metadata", f"'metadata' has more than {MAX_METADATA} bytes.")


def digest(data: bytes, more: bytes) -> bytes:
    """Return the SHA-256 of a submission without its white space, and of what was asked beside it:
    with one id, it tells whether this is the same job."""
    return sha256(msgspec.json.format(data, indent=-1) + more).digest()
