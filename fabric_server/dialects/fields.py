"""The few fields that the fabric needs of a request's body, and what is made of them.

Not compiled, as no class of msgspec can be (docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder


class ParsedBody(Struct, frozen=True, gc=False):
    model: str
    stream: bool
    usage_requested: bool
    """The client wants the usage chunk of a stream; otherwise the meter takes it out."""
    patch: tuple[int, int, bytes] | None
    """Start, stop and text: the replacement of a range of the body's bytes."""
    token_ids: bool = False
    """The input to embed consists of token ids, which not every kind of engine takes."""
    options: bytes | None = None
    """The new value of ``stream_options``, which stands at a place that is still to be found."""
    place: tuple[int, int] | None = None
    """Start and stop of the model's name in the patched body; None: it is still to be found."""


class Fields(Struct, gc=False):
    """The fields that decide who may ask, who answers and what is billed."""

    model: str | UnsetType = UNSET
    stream: bool | None = None
    stream_options: Raw | UnsetType = UNSET
    priority: Raw | UnsetType = UNSET


class StreamOptions(Struct, gc=False):
    include_usage: bool | None = None


class Stateful(Struct, gc=False):
    """Fields that rely on what a server keeps."""

    previous_response_id: Raw | UnsetType = UNSET
    conversation: Raw | UnsetType = UNSET
    background: Raw | UnsetType = UNSET


class Input(Struct, gc=False):
    input: Raw | UnsetType = UNSET


decode_body = Decoder(Fields).decode
decode_options = Decoder(StreamOptions | None).decode
decode_stateful = Decoder(Stateful).decode
decode_input = Decoder(Input).decode
decode_keys = Decoder(dict[str, Raw]).decode
decode_raw_options = Decoder(dict[str, Raw] | None).decode
