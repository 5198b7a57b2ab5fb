"""Keys of the age format: a passphrase, or a pair of X25519 keys; each wraps the key of a file.

The format is age v1 (age-encryption.org/v1, C2SP/age.md).  A recipient can only encrypt, an
identity can decrypt.
"""

from __future__ import annotations

import binascii
import os
from base64 import b64encode
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fabric_server.backup.problem import BackupProblem

WORK = 17
"""Binary logarithm of scrypt's N: 128 MiB of memory and about half a second (OWASP, 2025)."""
MAX_WORK = 20
"""The most that is accepted: 1 GiB."""
WRAPPED_BYTES = 32
"""A wrapped file key: 16 bytes and the mark that authenticates them."""
KEY_BYTES = 32

_NONCE = bytes(12)  # each wrapping key is used once
_SCRYPT = b"age-encryption.org/v1/scrypt"
_X25519 = b"age-encryption.org/v1/X25519"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_PUBLIC, _SECRET = "age", "age-secret-key-"


class Stanza(NamedTuple):
    """One wrapped copy of the file's key, in its header."""

    arguments: tuple[str, ...]
    """The kind first."""
    body: bytes


class Recipient(Protocol):
    def wrap(self, file_key: bytes) -> Stanza:
        """Return the file's key, encrypted."""


class Identity(Protocol):
    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        """Return the file's key; None if none of the stanzas is for this identity."""


class Passphrase:
    """A recipient and an identity."""

    def __init__(self, text: str, work: int = WORK) -> None:
        self._text = text.encode()
        self._work = work

    def wrap(self, file_key: bytes) -> Stanza:
        salt = os.urandom(16)
        body = ChaCha20Poly1305(self._key(salt, self._work)).encrypt(_NONCE, file_key, None)
        return Stanza(("scrypt", unpadded(salt), str(self._work)), body)

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        kinds = [stanza.arguments[0] for stanza in stanzas]
        if "scrypt" not in kinds:
            raise BackupProblem(
                "it is encrypted to a public key, not with a passphrase: name the file with the "
                "secret key with --identity-file."
            )
        if len(stanzas) != 1:  # else the passphrase would not authenticate the file
            raise BackupProblem("its header is damaged: it has other keys beside a passphrase.")
        work = stanzas[0].arguments[2:]
        salt = from_unpadded(stanzas[0].arguments[1]) if len(work) == 1 else b""
        if len(salt) != 16 or not (work[0].isdecimal() and work[0][0] != "0"):
            raise BackupProblem("its header is damaged: take another copy of the file.")
        if len(work[0]) > 2 or int(work[0]) > MAX_WORK:
            raise BackupProblem(
                f"its passphrase would need more memory than the {2 ** (MAX_WORK - 20)} GiB that "
                "is allowed: decrypt it with the program age, and restore what that writes."
            )
        return _unwrapped(self._key(salt, int(work[0])), stanzas[0].body)

    def _key(self, salt: bytes, work: int) -> bytes:
        return Scrypt(_SCRYPT + salt, KEY_BYTES, 2**work, 8, 1).derive(self._text)


class PublicKey:
    """A recipient ``age1…``, as ``age-keygen`` prints it."""

    def __init__(self, text: str) -> None:
        """Raises ``BackupProblem``."""
        try:
            self._raw = _from_bech32(text.strip(), _PUBLIC)
        except ValueError as error:
            raise BackupProblem(
                f"'{text.strip()}' is no public key of age ({error}): it begins with age1, and "
                "'age-keygen -o KEYFILE' prints it."
            ) from None

    def wrap(self, file_key: bytes) -> Stanza:
        once = X25519PrivateKey.generate()
        share = once.public_key().public_bytes_raw()
        try:
            secret = once.exchange(X25519PublicKey.from_public_bytes(self._raw))
        except ValueError:
            raise BackupProblem(
                "the public key has a value that hides nothing: make another."
            ) from None
        key = _hkdf(secret, share + self._raw, _X25519)
        body = ChaCha20Poly1305(key).encrypt(_NONCE, file_key, None)
        return Stanza(("X25519", unpadded(share)), body)


class SecretKey:
    """An identity ``AGE-SECRET-KEY-1…``, as ``age-keygen`` writes it."""

    def __init__(self, text: str) -> None:
        """Raises ``ValueError``."""
        self._key = X25519PrivateKey.from_private_bytes(_from_bech32(text, _SECRET))

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        own = self._key.public_key().public_bytes_raw()
        for stanza in stanzas:
            if stanza.arguments[0] != "X25519":
                continue
            share = from_unpadded(stanza.arguments[1]) if len(stanza.arguments) == 2 else b""
            if len(share) != KEY_BYTES:
                raise BackupProblem("its header is damaged: take another copy of the file.")
            try:
                secret = self._key.exchange(X25519PublicKey.from_public_bytes(share))
            except ValueError:  # a share that hides nothing
                continue
            found = _unwrapped(_hkdf(secret, share + own, _X25519), stanza.body)
            if found is not None:
                return found
        return None


class SecretKeys:
    """All identities of a file that ``age-keygen`` wrote."""

    def __init__(self, text: str, where: str) -> None:
        """Raises ``BackupProblem``."""
        lines = [line.strip() for line in text.splitlines()]
        try:
            self._keys = [SecretKey(line) for line in lines if line and line[0] != "#"]
        except ValueError as error:
            raise BackupProblem(
                f"{where} has a line that is no secret key of age ({error}): it must be a file "
                "that 'age-keygen' wrote."
            ) from None
        if not self._keys:
            raise BackupProblem(f"{where} has no secret key: it must be what 'age-keygen' wrote.")

    def unwrap(self, stanzas: Sequence[Stanza]) -> bytes | None:
        if any(stanza.arguments[0] == "scrypt" for stanza in stanzas):
            raise BackupProblem(
                "it is encrypted with a passphrase: leave out --identity-file, and type it or name "
                "its file with --passphrase-file."
            )
        return next((key for one in self._keys if (key := one.unwrap(stanzas))), None)


def _unwrapped(key: bytes, body: bytes) -> bytes | None:
    if len(body) != WRAPPED_BYTES:
        raise BackupProblem("its header is damaged: take another copy of the file.")
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, body, None)
    except InvalidTag:
        return None


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt, info).derive(secret)


# ── encodings ─────────────────────────────────────────────────────────────────────────────────


def unpadded(data: bytes) -> str:
    """Return base64 as age writes it, without the signs at its end."""
    return b64encode(data).decode().rstrip("=")


def from_unpadded(text: str) -> bytes:
    """Return what ``unpadded`` encoded, empty if it is no such text."""
    try:
        data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return b""
    return data if unpadded(data) == text else b""  # one text for each value


def _from_bech32(text: str, kind: str) -> bytes:
    """Return the 32 bytes in a text of BIP 173.  Raises ``ValueError``."""
    if text not in (text.lower(), text.upper()):
        raise ValueError("it mixes capital and small letters")
    name, mark, rest = text.lower().rpartition("1")
    if not mark or name != kind or not set(rest) <= set(_BECH32):
        raise ValueError("it has another form")
    values = [_BECH32.index(letter) for letter in rest]
    expanded = [ord(letter) >> 5 for letter in name] + [0] + [ord(letter) & 31 for letter in name]
    if _polymod(expanded + values) != 1:
        raise ValueError("a letter is wrong")
    bits = int("".join(f"{value:05b}" for value in values[:-6]) or "0", 2)
    spare = 5 * (len(values) - 6) - 8 * KEY_BYTES
    if not 0 <= spare < 5 or bits & ((1 << spare) - 1):
        raise ValueError("its length is wrong")
    return (bits >> spare).to_bytes(KEY_BYTES)


def _polymod(values: Sequence[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, constant in enumerate(
            (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
        ):
            checksum ^= constant if top >> bit & 1 else 0
    return checksum
