"""What is said inside frames and on the link: msgpack, checked against these types on arrival.

Structs that travel per request are arrays (``array_like``): a newer peer may append fields, which
an older one ignores; fields are never removed or reordered.  The others are maps with a ``type``
tag.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from protocol import regions

VERSION = 1
"""The protocol version spoken here.  Peers name theirs first and refuse what they do not know."""

MAX_LOST = 16
"""Lost tunnels that one HELLO may name."""

Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=1024)]
Region = Annotated[str, Meta(max_length=regions.MAX_LENGTH, pattern=regions.PATTERN)]
Count = Annotated[int, Meta(ge=0)]
Figure = Annotated[float, Meta(ge=0, le=1e18)]
"""A measurement: neither NaN nor infinite, which no database and no JSON would take."""

Headers = Annotated[list[tuple[str, str]], Meta(max_length=100)]


# ── tunnel ────────────────────────────────────────────────────────────────────────────────────


class Hello(Struct, frozen=True, array_like=True):
    """First frame of a tunnel, from the node: which registration this connection belongs to."""

    version: int
    session: bytes
    """What ``Registered.session`` gave: binds the tunnel to one epoch."""
    tunnel: Count = 0
    """A number of the node's making that none of its tunnels has had before, by which the server
    may name a stream of this one later.  0: its streams end with it."""
    lost: Annotated[list[Count], Meta(max_length=MAX_LOST)] = []
    """Numbers of tunnels that the node has lost lately, the newest last: the server may not have
    noticed, and whatever ran there can go on here."""


class RequestHead(Struct, frozen=True, array_like=True, gc=False):
    """Payload of OPEN."""

    request_id: Name
    engine: Name
    """One of the engines the node reported.  The node maps it to an address; a server cannot."""
    method: Annotated[str, Meta(max_length=16)]
    path: Annotated[str, Meta(max_length=2048)]
    headers: Headers
    body_size: Count | None
    """Bytes of body that follow; None when not known beforehand."""
    deadline_ms: Count
    """After so many milliseconds nobody waits for the answer any more."""
    attempt: Count = 1


class ResponseHead(Struct, frozen=True, array_like=True, gc=False):
    """Payload of HEAD."""

    status: Annotated[int, Meta(ge=200, le=599)]
    headers: Headers


class Figures(Struct, frozen=True, array_like=True, gc=False):
    """Payload of END: what the node measured at its engine."""

    first_byte_ms: Figure
    """From handing the request to the engine until the first byte of its answer."""
    total_ms: Figure
    body_bytes: Count


class Resume(Struct, frozen=True, array_like=True, gc=False):
    """Payload of RESUME: go on with that stream here, as the server's side of it stands."""

    tunnel: Count
    """``Hello.tunnel`` of the tunnel that the stream was opened on."""
    stream: Count
    """Its id there."""
    attempt: Count
    """Counts up from 1 for each stream: of two claims the higher one holds."""
    head: bool
    """HEAD has come."""
    received: Count
    """Bytes of the answer that have come."""
    allowed: Count
    """The offset up to which the answer may be sent, as WINDOW says it."""
    sent: Count
    """Bytes of the question that were sent."""
    ended: bool
    """They were, or with what is queued will be, all of it."""


class Drain(Struct, frozen=True, array_like=True):
    """Payload of DRAIN: no new streams here; what runs may finish."""

    reason: Text
    seconds: Annotated[float, Meta(ge=0)]
    """How long the sender will wait for running streams."""


# ── link: node to server ──────────────────────────────────────────────────────────────────────


class ModelReport(Struct, frozen=True, omit_defaults=True):
    name: Name
    size: Count | None = None
    """Bytes on disk."""
    context_length: Count | None = None
    """Tokens."""
    loaded: bool | None = None
    """In the accelerator's memory now; None when the engine does not tell."""
    capabilities: Annotated[list[Name], Meta(max_length=32)] = []


class EngineReport(Struct, frozen=True, omit_defaults=True):
    name: Name
    """Unique on its node; names the engine in ``RequestHead.engine``."""
    kind: Name
    """``ollama``, ``vllm``, ``llama-server``, ``lm-studio``, or ``openai`` for any other."""
    healthy: bool
    slots: Annotated[int, Meta(ge=0, le=4096)]
    """Requests it answers at once."""
    models: Annotated[list[ModelReport], Meta(max_length=512)]
    problem: Text | None = None
    """Why it is not healthy."""
    paths: Annotated[list[Name], Meta(max_length=64)] = []
    """Paths of the public API that it can be asked, by itself or translated on its node; empty from
    nodes that don't tell, which serve OpenAI's chat, completions and embeddings."""
    elsewhere: Count = 0
    """Slots that requests of another registration of this node hold, of which its server knows
    nothing: while it changes from a server to its successor."""


class Register(Struct, frozen=True, tag="register", omit_defaults=True):
    version: int
    release: Name
    name: Name
    platform: Name
    engines: Annotated[list[EngineReport], Meta(max_length=16)]
    region: Region = ""
    """Where the node says it is; empty when it does not say."""


class Engines(Struct, frozen=True, tag="engines"):
    """The whole present list; what is missing is gone."""

    engines: Annotated[list[EngineReport], Meta(max_length=16)]


class Gpu(Struct, frozen=True, omit_defaults=True):
    name: Name
    memory_bytes: Count | None = None
    memory_used_bytes: Count | None = None
    utilisation_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class Heartbeat(Struct, frozen=True, tag="heartbeat", omit_defaults=True):
    seq: Count
    """Counts up from 1 within one registration."""
    at: float
    """The node's clock, Unix seconds."""
    cpu_percent: float
    memory_bytes: Count
    memory_used_bytes: Count
    disk_bytes: Count
    disk_used_bytes: Count
    network_in_bytes_per_second: float
    network_out_bytes_per_second: float
    slots: Count
    active: Count
    """Streams running now."""
    engines_healthy: Count
    engines: Count
    loaded_models: Annotated[list[Name], Meta(max_length=512)] = []
    gpus: Annotated[list[Gpu], Meta(max_length=64)] = []


class Renew(Struct, frozen=True, tag="renew"):
    request: Annotated[str, Meta(max_length=8192)]
    """A certificate signing request, PEM, over the key enrolled at joining."""


# ── link: server to node ──────────────────────────────────────────────────────────────────────


class Registered(Struct, frozen=True, tag="registered"):
    node_id: Name
    epoch: Count
    session: Annotated[bytes, Meta(max_length=64)]
    proxy_port: Annotated[int, Meta(ge=1, le=65535)]
    tunnels: Annotated[int, Meta(ge=1, le=16)]
    heartbeat_seconds: Annotated[float, Meta(gt=0)]
    resume: bool = False
    """Streams of a lost tunnel are asked for on another one, if ``Hello.tunnel`` names it."""


class Tunnels(Struct, frozen=True, tag="tunnels"):
    """Keep so many tunnels open from now on."""

    count: Annotated[int, Meta(ge=1, le=16)]


class Renewed(Struct, frozen=True, tag="renewed"):
    certificate: Annotated[str, Meta(max_length=16384)]
    """PEM."""


# ── link: both ways ───────────────────────────────────────────────────────────────────────────


class Refused(Struct, frozen=True, tag="refused"):
    """The last message on a link.  ``code`` is one of ``errors.Code``."""

    code: int
    reason: Text
    again: bool
    """Whether the same attempt may succeed later."""


class Leaving(Struct, frozen=True, tag="leaving"):
    """The link closes when what runs has ended.  From a node: no new streams for it.  From a
    server: register with its successor, which answers on the same port; until the link closes, what
    comes on its tunnels is served as before."""

    reason: Text
    seconds: Annotated[float, Meta(ge=0)]


class Ping(Struct, frozen=True, tag="ping"):
    token: int


class Pong(Struct, frozen=True, tag="pong"):
    token: int


Message = (
    Register
    | Engines
    | Heartbeat
    | Renew
    | Registered
    | Tunnels
    | Renewed
    | Refused
    | Leaving
    | Ping
    | Pong
)

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode

UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoders raise on hostile input: wrong types and syntax, bad UTF-8, depth."""


def decoder(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    """A reusable decoder; raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return msgspec.msgpack.Decoder(kind)
