"""Join token, which names a server and lets one machine in, and the messages of enrolment.

    fjt1_  base64url( msgpack [ host, api port, sha256 of the CA's certificate, secret ] )
    kind                        str   1..65535  32 bytes                        32 bytes

A node with a token fetches the CA's certificate (``CA_PATH``), compares its hash, and over a
connection verified with it sends ``Enrol`` to ``ENROL_PATH``; the answer is ``Enrolled``.

The CA's hash is the node's first trust anchor: changing the token can send the node to another
server, and reading it is enough to join in the node's place until it is used.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol.errors import FabricError
from protocol.messages import Host
from runtime.errors import Problem

KIND = "fjt1_"
SECRET_BYTES = 32
LONGEST = 1024
"""Maximum length of a token in characters; longer texts are not parsed."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Token(Struct, frozen=True, array_like=True):
    host: Host
    api_port: Annotated[int, Meta(ge=1, le=65535)]
    ca_sha256: Digest
    """SHA-256 of the CA's certificate (DER)."""
    secret: Digest

    def __repr__(self) -> str:
        return f"<Token for {self.host}:{self.api_port} ca={self.ca_sha256.hex()[:16]}…>"


CA_PATH = "/api/v1/ca"
ENROL_PATH = "/api/v1/enrol"
BACKDATED_SECONDS = 86_400.0
"""Seconds by which the fabric's certificates are backdated, for machines whose clock is behind."""
LONGEST_BODY = 16_384
"""Maximum size of ``Enrol`` and ``Enrolled`` as JSON, in bytes."""


class Enrol(Struct, frozen=True):
    secret: Annotated[str, Meta(max_length=64)]
    """The token's secret, as ``to_text`` writes it."""
    csr: Annotated[str, Meta(max_length=8192)]
    """Certificate signing request (PEM); its key is ECDSA P-256."""
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    """Display name of the node."""
    platform: Annotated[str, Meta(max_length=256)] = ""
    version: Annotated[str, Meta(max_length=256)] = ""
    named: bool = True
    """The owner chose ``name``; otherwise a name in the invitation takes precedence."""

    def __repr__(self) -> str:
        return f"<Enrol {self.name!r}>"


class Enrolled(Struct, frozen=True):
    node_id: Annotated[str, Meta(min_length=1, max_length=256)]
    certificate: Annotated[str, Meta(max_length=LONGEST_BODY)]
    """PEM, for client authentication only, valid for some weeks."""
    ca: Annotated[str, Meta(max_length=LONGEST_BODY)]
    """PEM."""
    control_port: Annotated[int, Meta(ge=1, le=65535)]
    proxy_port: Annotated[int, Meta(ge=1, le=65535)]
    name: Annotated[str, Meta(max_length=256)] = ""
    """Display name that the server has given the node; empty from older servers."""


def is_name(text: str) -> bool:
    """Return whether ``text`` is a valid display name of a node."""
    return 0 < len(text) <= 256 and text.isprintable()


class BadToken(FabricError, Problem):
    """Text that is no join token of this release; ``str()`` gives the reason and the remedy."""


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Token)

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")
_KEYS = ("sk-fab-", "mk-fab-")


def encode(token: Token) -> str:
    return KIND + to_text(_encode(token))


def parse(text: str) -> Token:
    """Parse a join token; raise ``BadToken``.

    White space is ignored anywhere, because terminals and chat programs break long lines.
    """
    text = "".join(text.split())
    if not text:
        raise BadToken("The join token is empty.")
    if text.startswith(_KEYS):
        raise BadToken(
            "This is an API key, not a join token. A join token begins "
            f"with '{KIND}': create one on the server with 'fabric-server nodes invite'."
        )
    if not text.startswith(KIND):
        if text.startswith("fjt"):
            raise BadToken(
                "This join token was made by another release of the server. Update this node, "
                "or get a token from a server of the same release."
            )
        raise BadToken(
            f"This is not a join token; those begin with '{KIND}'. "
            "Create one on the server with 'fabric-server nodes invite'."
        )
    if len(text) > LONGEST:
        raise BadToken(
            "This is too long for a join token: it was pasted twice, or with other text. "
            "Copy the whole line again."
        )
    body = text[len(KIND) :]
    try:
        return _decoder.decode(from_text(body))
    except ValueError:  # msgspec's errors are among them
        raise BadToken(_CUT if _is_cut(body) else _DAMAGED) from None


_CUT = "The end of the join token is missing: copy the whole line again."
_DAMAGED = (
    "The join token is damaged: a character was lost, added or changed. Copy the whole line again."
)


def _is_cut(body: str) -> bool:
    """Return whether msgpack, whose lengths come first, expects more bytes than there are."""
    if not _ALPHABET.fullmatch(body):
        return False
    try:
        _decoder.decode(from_text(body[: len(body) // 4 * 4]))
    except ValueError as error:  # msgspec's errors are among them, and bad UTF-8
        return "truncated" in str(error)
    return False


def to_text(data: bytes) -> str:
    """Return base64url without padding, the form of secrets in JSON."""
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def from_text(text: str) -> bytes:
    """Decode base64url without padding; raise ``ValueError`` for anything else."""
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"not base64url: {error}") from None
    # The standard library skips characters that it does not know.
    if to_text(data) != text:
        raise ValueError("not base64url")
    return data
