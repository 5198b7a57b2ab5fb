"""Chat completions, whole or streamed, as far as the filters of reasoning read them.

Not compiled, as no class of msgspec can be (docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

from msgspec import Raw, Struct
from msgspec.json import Decoder

from fabric_client.reasoning.token_shares import Usage


class Message(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Raw] | None = None


class Choice(Struct, gc=False):
    message: Message


class Completion(Struct, gc=False):
    choices: list[Choice]
    usage: Usage | None = None


class Delta(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Raw] | None = None


class ChunkChoice(Struct, gc=False):
    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None


class Chunk(Struct, gc=False):
    choices: list[ChunkChoice]
    usage: Usage | None = None


decode_completion = Decoder(Completion).decode
decode_chunk = Decoder(Chunk).decode
decode_fields = Decoder(dict[str, Raw]).decode
decode_fields_or_none = Decoder(dict[str, Raw] | None).decode
decode_list_of_fields = Decoder(list[dict[str, Raw]]).decode
