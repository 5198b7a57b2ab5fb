"""Messages inside frames and on the link: msgpack, checked against these types on arrival.

Structs sent per request are arrays (``array_like``): a newer peer may append fields, which an older
one ignores; fields are never removed or reordered.  The others are maps with a ``type`` tag.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from protocol import regions, weights

VERSION = 1
"""The protocol version of this release.  Peers send theirs first and refuse unknown ones."""

MAX_LOST = 16
"""Maximum number of lost tunnels in one HELLO."""

MAX_HOSTS = 8
"""Maximum number of names that a server tells a node."""

MAX_COUNT = 2**63 - 1
MAX_SECONDS = 366 * 86_400.0
MAX_MOMENT = 253_402_300_799.0
"""The end of the year 9999, in Unix seconds: later times have no date."""
MIN_HEARTBEAT_SECONDS, MAX_HEARTBEAT_SECONDS = 0.1, 86_400.0

# No field has a bare number, text or list: what a peer sends is bounded here, and nowhere else has
# to be.  A bound that NaN and infinity do not meet excludes them, too.
Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=1024)]
Host = Annotated[
    str, Meta(min_length=1, max_length=253, pattern=r"^[^\s\x00-\x1f\x7f/\\@?#\[\]]+\Z")
]
"""Host name or IP address, IPv6 without brackets."""
Region = Annotated[str, Meta(max_length=regions.MAX_LENGTH, pattern=regions.PATTERN)]
Digest = Annotated[str, Meta(max_length=128, pattern=weights.DIGEST)]
Label = Annotated[str, Meta(max_length=weights.MAX_LABEL, pattern=weights.LABEL)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Version = Annotated[int, Meta(ge=0, le=65_535)]
ErrorCode = Annotated[int, Meta(ge=0, le=65_535)]
Session = Annotated[bytes, Meta(max_length=64)]
Figure = Annotated[float, Meta(ge=0, le=1e18)]
"""A measurement: neither NaN nor infinite, which no database and no JSON would take."""
Reading = Annotated[float, Meta(ge=-1e18, le=1e18)]
"""A measurement that may be below zero: a temperature, a clock."""
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
"""A time that the sender grants."""
Moment = Annotated[float, Meta(ge=0, le=MAX_MOMENT)]
"""A point in time, Unix seconds; 0 when it is not known."""

Headers = Annotated[
    list[tuple[Annotated[str, Meta(max_length=1024)], Annotated[str, Meta(max_length=49_152)]],],
    Meta(max_length=100),
]


# ── tunnel ────────────────────────────────────────────────────────────────────────────────────


class Hello(Struct, frozen=True, array_like=True):
    """Payload of HELLO, a node's first frame: the registration that the tunnel belongs to."""

    version: Version
    session: Session
    """``Registered.session``; binds the tunnel to one epoch."""
    tunnel: Count = 0
    """Number chosen by the node, new for each of its tunnels; RESUME refers to it.
    0: the streams of this tunnel end with it."""
    lost: Annotated[list[Count], Meta(max_length=MAX_LOST)] = []
    """Numbers of tunnels that the node has lost recently, the newest last: the server may not have
    noticed, and can resume their streams here."""


class RequestHead(Struct, frozen=True, array_like=True, gc=False):
    """Payload of OPEN."""

    request_id: Name
    engine: Name
    """Name of an engine that the node has reported; the node alone knows its address."""
    method: Annotated[str, Meta(max_length=16)]
    path: Annotated[str, Meta(max_length=2048)]
    headers: Headers
    body_size: Count | None
    """Bytes of body that follow; None when unknown."""
    deadline_ms: Count
    """Milliseconds after which the answer is not needed any more."""
    attempt: Count = 1


class ResponseHead(Struct, frozen=True, array_like=True, gc=False):
    """Payload of HEAD."""

    status: Annotated[int, Meta(ge=200, le=599)]
    headers: Headers


class Figures(Struct, frozen=True, array_like=True, gc=False):
    """Payload of END: the node's measurements at its engine."""

    first_byte_ms: Figure
    """Time from sending the request to the engine until the first byte of its answer."""
    total_ms: Figure
    body_bytes: Count


class Resume(Struct, frozen=True, array_like=True, gc=False):
    """Payload of RESUME: continue a stream here, from the state of the server's side."""

    tunnel: Count
    """``Hello.tunnel`` of the tunnel that opened the stream."""
    stream: Count
    """Id of the stream on that tunnel."""
    attempt: Count
    """Counts up from 1 for each stream; of two claims the higher one wins."""
    head: bool
    """HEAD was received."""
    received: Count
    """Bytes of the answer that were received."""
    allowed: Count
    """Offset up to which the answer may be sent, as in WINDOW."""
    sent: Count
    """Bytes of the request that were sent."""
    ended: bool
    """The request is complete with the bytes sent."""


class Drain(Struct, frozen=True, array_like=True):
    """Payload of DRAIN: no new streams here; running ones may finish."""

    reason: Text
    seconds: Seconds
    """Time that the sender gives running streams."""


# ── link: node to server ──────────────────────────────────────────────────────────────────────


class ModelReport(Struct, frozen=True, omit_defaults=True):
    name: Name
    size: Count | None = None
    """Bytes on disk."""
    context_length: Count | None = None
    """Tokens."""
    loaded: bool | None = None
    """The model is in the accelerator's memory now; None when the engine does not report it."""
    capabilities: Annotated[list[Name], Meta(max_length=32)] = []
    digest: Digest = ""
    """SHA-256 of the model by its engine, in hex; empty when the engine does not tell it."""
    quantization: Label = ""
    """As the engine names it, such as ``Q4_K_M``."""
    family: Label = ""
    parameter_size: Label = ""
    """Such as ``8.0B``."""
    format: Label = ""
    """``gguf``, ``safetensors`` or ``mlx``."""


class EngineReport(Struct, frozen=True, omit_defaults=True):
    name: Name
    """Unique on its node; ``RequestHead.engine`` refers to it."""
    kind: Name
    """``ollama``, ``vllm``, ``llama-server``, ``lm-studio``, or ``openai`` for any other."""
    healthy: bool
    slots: Annotated[int, Meta(ge=0, le=4096)]
    """Requests that the engine answers at once."""
    models: Annotated[list[ModelReport], Meta(max_length=512)]
    problem: Text | None = None
    """Reason why the engine is not healthy."""
    paths: Annotated[list[Name], Meta(max_length=64)] = []
    """Paths of the public API that the engine serves, natively or translated on its node; a node
    that reports none serves OpenAI's chat, completions and embeddings."""
    elsewhere: Count = 0
    """Slots held by requests of the node's other registration, which this server does not see:
    a node has two while it changes from a server to its successor."""
    paused: bool = False
    """The owner's command, hours or settings keep requests away; ``healthy`` is False then."""
    back_at: Moment = 0.0
    """Earliest time at which a paused engine takes requests again, by the node's clock."""


class Register(Struct, frozen=True, tag="register", omit_defaults=True):
    version: Version
    release: Name
    name: Name
    platform: Name
    engines: Annotated[list[EngineReport], Meta(max_length=16)]
    region: Region = ""
    """Region that the node reports; may be empty."""
    instance: Annotated[str, Meta(max_length=64)] = ""
    """Random id of this run of the node: it tells a restart from a second machine with the key."""


class Engines(Struct, frozen=True, tag="engines"):
    """Complete list of the node's engines; one that is missing is gone."""

    engines: Annotated[list[EngineReport], Meta(max_length=16)]


class Gpu(Struct, frozen=True, omit_defaults=True):
    name: Name
    memory_bytes: Count | None = None
    memory_used_bytes: Count | None = None
    utilisation_percent: Reading | None = None
    temperature_celsius: Reading | None = None
    power_watts: Reading | None = None


class Heartbeat(Struct, frozen=True, tag="heartbeat", omit_defaults=True):
    seq: Count
    """Counts up from 1 in each registration."""
    at: Reading
    """Time of the node's clock, Unix seconds."""
    cpu_percent: Reading
    memory_bytes: Count
    memory_used_bytes: Count
    disk_bytes: Count
    disk_used_bytes: Count
    network_in_bytes_per_second: Reading
    network_out_bytes_per_second: Reading
    slots: Count
    active: Count
    """Streams running now."""
    engines_healthy: Count
    engines: Count
    loaded_models: Annotated[list[Name], Meta(max_length=512)] = []
    gpus: Annotated[list[Gpu], Meta(max_length=64)] = []


class Renew(Struct, frozen=True, tag="renew"):
    request: Annotated[str, Meta(max_length=8192)]
    """Certificate signing request (PEM), for the key of the node's certificate, or for a new one if
    ``Registered.new_keys`` is set."""


# ── link: server to node ──────────────────────────────────────────────────────────────────────


class Registered(Struct, frozen=True, tag="registered"):
    node_id: Name
    epoch: Count
    session: Session
    proxy_port: Annotated[int, Meta(ge=1, le=65535)]
    tunnels: Annotated[int, Meta(ge=1, le=16)]
    heartbeat_seconds: Annotated[float, Meta(ge=MIN_HEARTBEAT_SECONDS, le=MAX_HEARTBEAT_SECONDS)]
    resume: bool = False
    """The server resumes streams of a lost tunnel on another one if ``Hello.tunnel`` is set."""
    new_keys: bool = False
    """The server renews a certificate also for a new key of the node."""
    hosts: Annotated[list[Host], Meta(max_length=MAX_HOSTS)] = []
    """Names and addresses of the server now: the node dials them, too, from now on."""
    at: Reading = 0.0
    """Time of the server's clock, Unix seconds; 0 when it does not tell."""
    release: Name = ""
    """Version of the server's program; empty when it does not tell."""
    control_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port for links now, if it is another one than the node knows; 0 when it does not tell."""
    api_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Port for joining now; 0 when it does not tell."""
    server_name: Name = ""
    """Name for the TLS of this registration's tunnels: that of the worker that has its link.
    Anything else stands for ``server.fabric``."""


class Tunnels(Struct, frozen=True, tag="tunnels"):
    """Order to keep ``count`` tunnels open from now on."""

    count: Annotated[int, Meta(ge=1, le=16)]


class Renewed(Struct, frozen=True, tag="renewed"):
    certificate: Annotated[str, Meta(max_length=16384)]
    """PEM."""


# ── link: both ways ───────────────────────────────────────────────────────────────────────────


class Refused(Struct, frozen=True, tag="refused"):
    """Last message on a link.  ``code`` is one of ``errors.Code``."""

    code: ErrorCode
    reason: Text
    again: bool
    """Whether the same attempt may succeed later."""


class Leaving(Struct, frozen=True, tag="leaving"):
    """Notice that the sender closes the link when its running streams have ended.

    From a node: open no new streams on it.  From a server: register with its successor, which
    answers on the same port, and serve this server's tunnels until it closes the link.
    """

    reason: Text
    seconds: Seconds


class Ping(Struct, frozen=True, tag="ping"):
    token: Count


class Pong(Struct, frozen=True, tag="pong"):
    token: Count


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
"""Exceptions of decoders on hostile input: wrong types and syntax, bad UTF-8, depth."""


def decoder(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    """Return a reusable decoder, which raises one of ``UNREADABLE``."""
    return msgspec.msgpack.Decoder(kind)
