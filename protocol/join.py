"""Joining: the token, which names a server and lets one machine in, and what is said with it.

    fjt1_  base64url( msgpack [ host, api port, sha256 of the CA's certificate, secret ] )
    kind                        str   1..65535  32 bytes                        32 bytes

A node that has one fetches the CA's certificate (``CA_PATH``), compares its hash, and
over a connection verified with it sends ``Enrol`` to ``ENROL_PATH``; the answer is ``Enrolled``.

The CA's hash is what the node trusts before it knows anything else, so whoever can change the
token can name another server; whoever can read it can join in the node's place until it is used.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from protocol.errors import FabricError

KIND = "fjt1_"
SECRET_BYTES = 32
LONGEST = 1024
"""Characters of the longest token that is looked at."""

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Token(Struct, frozen=True, array_like=True):
    host: Annotated[str, Meta(min_length=1, max_length=253, pattern=r"^[^\s/\\@?#\[\]]+$")]
    """A name or an address, IPv6 without brackets."""
    api_port: Annotated[int, Meta(ge=1, le=65535)]
    ca_sha256: Digest
    """SHA-256 of the CA's certificate (DER)."""
    secret: Digest

    def __repr__(self) -> str:
        return f"<Token for {self.host}:{self.api_port} ca={self.ca_sha256.hex()[:16]}…>"


CA_PATH = "/api/v1/ca"
ENROL_PATH = "/api/v1/enrol"
LONGEST_BODY = 16_384
"""Bytes of the longest ``Enrol`` or ``Enrolled``, as JSON."""


class Enrol(Struct, frozen=True):
    secret: Annotated[str, Meta(max_length=64)]
    """The token's secret, as ``to_text`` writes it."""
    csr: Annotated[str, Meta(max_length=8192)]
    """A certificate signing request, PEM; its key is ECDSA P-256."""
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    """What people call the node."""
    platform: Annotated[str, Meta(max_length=256)] = ""
    version: Annotated[str, Meta(max_length=256)] = ""
    named: bool = True
    """Whether its owner chose ``name``; if not, a name that the invitation wishes goes first."""

    def __repr__(self) -> str:
        return f"<Enrol {self.name!r}>"


class Enrolled(Struct, frozen=True):
    node_id: Annotated[str, Meta(min_length=1, max_length=256)]
    certificate: str
    """PEM, for clients only, good for some weeks."""
    ca: str
    """PEM."""
    control_port: Annotated[int, Meta(ge=1, le=65535)]
    proxy_port: Annotated[int, Meta(ge=1, le=65535)]
    name: Annotated[str, Meta(max_length=256)] = ""
    """What the node is called from now on; servers of the release before do not say."""


def is_name(text: str) -> bool:
    """Whether a node may be called that."""
    return 0 < len(text) <= 256 and text.isprintable()


class BadToken(FabricError):
    """The text is no join token that this release can use; the message says why and what to do."""


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Token)

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")
_KEYS = ("sk-fab-", "mk-fab-")


def encode(token: Token) -> str:
    return KIND + to_text(_encode(token))


def parse(text: str) -> Token:
    """White space anywhere is ignored: terminals wrap long lines, and chat programs break them.

    Raises ``BadToken``.
    """
    text = "".join(text.split())
    if not text:
        raise BadToken("The join token is empty.")
    if text.startswith(_KEYS):
        raise BadToken(
            "This is an API key, for asking models. A node joins with a join token, which begins "
            f"with '{KIND}': on the server, 'fabric-server nodes invite' prints one."
        )
    if not text.startswith(KIND):
        if text.startswith("fjt"):
            raise BadToken(
                "This join token was made by another release of the server: update this node, "
                "or ask for a token from a server of the same release."
            )
        raise BadToken(
            f"This is no join token: those begin with '{KIND}'. On the server, "
            "'fabric-server nodes invite' prints one."
        )
    if len(text) > LONGEST:
        raise BadToken(
            "This is longer than any join token: something was pasted along with it, "
            "or it was pasted twice."
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
    """Whether msgpack, which says beforehand how much comes, wants more than is there."""
    if not _ALPHABET.fullmatch(body):
        return False
    try:
        _decoder.decode(from_text(body[: len(body) // 4 * 4]))
    except msgspec.DecodeError as error:
        return "truncated" in str(error)
    return False


def to_text(data: bytes) -> str:
    """Base64url without padding, as secrets travel in JSON."""
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def from_text(text: str) -> bytes:
    """Raises ``ValueError`` for anything but base64url without padding."""
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"not base64url: {error}") from None
    # The standard library skips characters that it does not know.
    if to_text(data) != text:
        raise ValueError("not base64url")
    return data
