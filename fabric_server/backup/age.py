"""Encryption of a stream in the age format, version 1 (C2SP/age.md), in bounded memory.

A file is a header, with the file's key wrapped for each recipient and a code that authenticates it,
and the payload: pieces of 64 KiB, each authenticated together with its number and with whether it
is the last.  A byte that was changed, a piece that is missing, repeated or elsewhere, and an end
that was cut off are noticed.  The programs age and rage read the same.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fabric_server.backup.age_keys import (
    KEY_BYTES,
    Identity,
    Recipient,
    Stanza,
    from_unpadded,
    unpadded,
)
from fabric_server.backup.problem import BackupProblem

MAGIC = b"age-encryption.org/v1\n"
PIECE = 65_536
TAG = 16
NONCE = 16
LINE = 64
"""Characters of base64 in a line of the header."""
MAX_LINE = 1024
MAX_STANZAS = 64

DAMAGED = "it is damaged: take another copy of the file, or an older backup."
CUT = (
    "its end is missing or damaged: it was cut off while it was written or copied, or changed; "
    "take another copy of it."
)


class Target(Protocol):
    def write(self, data: bytes, /) -> int: ...


class Encryption:
    """A writer: what is written to it is encrypted into ``target``; ``finish`` marks the end."""

    def __init__(self, target: Target, recipients: Sequence[Recipient]) -> None:
        self._target = target
        file_key, nonce = os.urandom(16), os.urandom(NONCE)
        header = MAGIC + b"".join(_written(one.wrap(file_key)) for one in recipients) + b"---"
        target.write(header + b" " + unpadded(_code(file_key, header)).encode() + b"\n" + nonce)
        self._cipher = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
        self._number = 0
        self._waiting = bytearray()

    def write(self, data: bytes, /) -> int:
        self._waiting += data
        while len(self._waiting) > PIECE:  # one whole piece stays, because it may be the last
            self._encrypt(bytes(self._waiting[:PIECE]), last=False)
            del self._waiting[:PIECE]
        return len(data)

    def finish(self) -> None:
        """Write the last piece; the target stays open."""
        self._encrypt(bytes(self._waiting), last=True)
        self._waiting.clear()

    def _encrypt(self, piece: bytes, *, last: bool) -> None:
        self._target.write(self._cipher.encrypt(_nonce(self._number, last), piece, None))
        self._number += 1


class Decryption:
    """A reader of what ``Encryption`` wrote to ``source``; ``read`` gives authentic bytes only."""

    def __init__(self, source: BinaryIO, identity: Identity) -> None:
        """Read the header.  Raises ``BackupProblem``; ``source`` is after ``MAGIC``."""
        self._source = source
        header, stanzas, code = _header(source)
        file_key = identity.unwrap(stanzas)
        if file_key is None:
            raise BackupProblem(
                "the passphrase or the secret key is wrong, or the beginning of the file is "
                "damaged: try the other ones that you have, then another copy of the file."
            )
        if not hmac.compare_digest(code, _code(file_key, header)):
            raise BackupProblem(DAMAGED)
        nonce = _exactly(source, NONCE)
        self._cipher = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
        self._number = 0
        self._ahead = _up_to(source, PIECE + TAG)
        self._waiting = b""
        self._at = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, none at the end.  Raises ``BackupProblem``."""
        if self._at == len(self._waiting):
            self._waiting, self._at = self._decrypt(), 0
        data = self._waiting[self._at : self._at + size]
        self._at += len(data)
        return data

    def _decrypt(self) -> bytes:
        """Return the next piece, empty after the last."""
        if self._ended:
            return b""
        piece, self._ahead = self._ahead, _up_to(self._source, PIECE + TAG)
        last = not self._ahead
        try:
            plain = self._cipher.decrypt(_nonce(self._number, last), piece, None)
        except InvalidTag:
            raise BackupProblem(CUT if last and self._is_earlier(piece) else DAMAGED) from None
        if not plain and self._number:
            raise BackupProblem(DAMAGED)  # only an empty file has an empty last piece
        self._number += 1
        self._ended = last
        return plain

    def _is_earlier(self, piece: bytes) -> bool:
        """Return whether the file ends here with a piece that is not its last one, or in one."""
        if len(piece) < PIECE + TAG:
            return True
        try:
            self._cipher.decrypt(_nonce(self._number, False), piece, None)
        except InvalidTag:
            return False
        return True


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])


def _derived(file_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(file_key)


def _code(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derived(file_key, b"", b"header"), header, "sha256")


# ── the header ────────────────────────────────────────────────────────────────────────────────


def _written(stanza: Stanza) -> bytes:
    body = unpadded(stanza.body)
    lines = [body[at : at + LINE] for at in range(0, len(body) + 1, LINE)]  # the last is shorter
    return "\n".join((f"-> {' '.join(stanza.arguments)}", *lines, "")).encode()


def _header(source: BinaryIO) -> tuple[bytes, list[Stanza], bytes]:
    """Return the header up to its code, its stanzas, and the code."""
    header = MAGIC
    stanzas: list[Stanza] = []
    while True:
        line = _line(source)
        if line.startswith("--- "):
            if not stanzas:
                raise BackupProblem(DAMAGED)
            return header + b"---", stanzas, from_unpadded(line[4:])
        if not line.startswith("-> ") or len(stanzas) == MAX_STANZAS:
            raise BackupProblem(DAMAGED)
        header += line.encode() + b"\n"
        body = ""
        while True:
            part = _line(source)
            header += part.encode() + b"\n"
            body += part
            if len(part) < LINE:
                break
            if len(part) > LINE or len(body) > MAX_LINE:
                raise BackupProblem(DAMAGED)
        stanzas.append(Stanza(tuple(line[3:].split(" ")), from_unpadded(body)))


def _line(source: BinaryIO) -> str:
    line = source.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        raise BackupProblem(CUT if len(line) < MAX_LINE else DAMAGED)
    if not all(32 <= byte < 127 for byte in line[:-1]):
        raise BackupProblem(DAMAGED)
    return line[:-1].decode()


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = _up_to(source, size)
    if len(data) < size:
        raise BackupProblem(CUT)
    return data


def _up_to(source: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, less only at the end; pipes give less at a time."""
    parts, left = [], size
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
