"""Encryption of backups: the same format as age's, and no damage to it passes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence

import pyrage
import pytest

from fabric_server.backup.age import MAGIC, PIECE, TAG, Decryption, Encryption
from fabric_server.backup.age_keys import (
    Identity,
    Passphrase,
    PublicKey,
    Recipient,
    SecretKeys,
)
from fabric_server.backup.problem import BackupProblem

QUICK = 4
"""Work of scrypt in tests of other things."""
SIZES = (0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 77)
WORDS = "correct horse battery"


def pair() -> tuple[PublicKey, SecretKeys]:
    made = pyrage.x25519.Identity.generate()
    text = f"# created: 2026-01-31\n# public key: {made.to_public()}\n{made}\n"
    return PublicKey(str(made.to_public())), SecretKeys(text, "key.txt")


def encrypted(data: bytes, *recipients: Recipient, at_once: int = 10_000) -> bytes:
    file = io.BytesIO()
    encryption = Encryption(file, recipients)
    for at in range(0, len(data), at_once):
        encryption.write(data[at : at + at_once])
    encryption.finish()
    return file.getvalue()


def decrypted(text: bytes, identity: Identity) -> bytes:
    file = io.BytesIO(text)
    assert file.read(len(MAGIC)) == MAGIC
    decryption = Decryption(file, identity)
    parts = []
    while part := decryption.read(30_000):
        parts.append(part)
    return b"".join(parts)


def refusal(text: bytes, identity: Identity) -> str:
    with pytest.raises(BackupProblem) as refused:
        decrypted(text, identity)
    return str(refused.value)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_encrypted_is_decrypted_and_age_reads_it(size: int) -> None:
    data = os.urandom(size)
    by_words = encrypted(data, Passphrase(WORDS, QUICK))
    assert decrypted(by_words, Passphrase(WORDS)) == data
    assert pyrage.passphrase.decrypt(by_words, WORDS) == data
    made = pyrage.x25519.Identity.generate()
    by_key = encrypted(data, PublicKey(str(made.to_public())))
    assert decrypted(by_key, SecretKeys(str(made), "key.txt")) == data
    assert pyrage.decrypt(by_key, [made]) == data
    assert decrypted(pyrage.encrypt(data, [made.to_public()]), SecretKeys(str(made), "")) == data


def test_several_keys_open_the_same_file() -> None:
    (one, first), (two, second), (_, stranger) = pair(), pair(), pair()
    text = encrypted(b"data", one, two)
    assert decrypted(text, first) == decrypted(text, second) == b"data"
    assert "wrong" in refusal(text, stranger)


def test_the_same_data_never_gives_the_same_file() -> None:
    both = [encrypted(bytes(100), Passphrase(WORDS, QUICK))[-100:] for _ in range(2)]
    assert both[0] != both[1]


def header_of(text: bytes) -> int:
    return text.index(b"\n--- ") + len(b"\n--- ") + 44


def test_a_changed_bit_is_noticed_wherever_it_is() -> None:
    text = encrypted(os.urandom(2 * PIECE + 500), Passphrase(WORDS, QUICK))
    header, piece = header_of(text), PIECE + TAG
    payload = header + 16
    # The whole header and nonce, both sides of each border of pieces, and all of the last one.
    places = {*range(len(MAGIC), payload + 40), *range(payload + 2 * piece - 40, len(text))}
    places |= {*range(payload + piece - 40, payload + piece + 40), *range(payload, len(text), 997)}
    for at in sorted(places):
        for bit in (1, 0x80):
            changed = bytearray(text)
            changed[at] ^= bit
            refusal(bytes(changed), Passphrase(WORDS, QUICK))


def test_an_end_that_is_missing_is_noticed_and_said() -> None:
    for size in (2 * PIECE, 2 * PIECE + 500):
        text = encrypted(os.urandom(size), Passphrase(WORDS, QUICK))
        payload, piece = header_of(text) + 16, PIECE + TAG
        borders = [payload, payload + piece, payload + 2 * piece]
        cuts = {*range(len(MAGIC), payload + 1), *range(payload, len(text), 5_003), len(text) - 1}
        cuts |= {border + offset for border in borders for offset in (-1, 0, 1, TAG)}
        for cut in sorted(cut for cut in cuts if cut < len(text)):
            assert "missing" in refusal(text[:cut], Passphrase(WORDS, QUICK)), (size, cut)


def moved(change: Callable[[list[bytes]], Sequence[bytes]]) -> str:
    text = encrypted(os.urandom(4 * PIECE), Passphrase(WORDS, QUICK))
    payload, piece = header_of(text) + 16, PIECE + TAG
    pieces = [text[at : at + piece] for at in range(payload, len(text), piece)]
    return refusal(text[:payload] + b"".join(change(pieces)), Passphrase(WORDS, QUICK))


def test_pieces_that_are_moved_repeated_or_left_out_are_noticed() -> None:
    assert "damaged" in moved(lambda all: [all[1], all[0], *all[2:]])
    assert "damaged" in moved(lambda all: [all[0], all[0], *all[1:]])
    assert "damaged" in moved(lambda all: [all[0], *all[2:]])
    assert "damaged" in moved(lambda all: [*all, all[-1]])
    assert "damaged" in moved(lambda all: [*all, b"more"])
    assert "damaged" in moved(lambda all: [all[-1]])


def test_pieces_of_another_file_are_noticed() -> None:
    one, other = (encrypted(os.urandom(3 * PIECE), Passphrase(WORDS, QUICK)) for _ in range(2))
    end = PIECE + TAG
    refusal(one[:-end] + other[-end:], Passphrase(WORDS, QUICK))


def test_the_wrong_secret_and_the_wrong_kind_of_secret_are_told() -> None:
    public, secret = pair()
    by_words, by_key = encrypted(b"data", Passphrase(WORDS, QUICK)), encrypted(b"data", public)
    assert "passphrase" in refusal(by_words, Passphrase("something else"))
    assert "--passphrase-file" in refusal(by_words, secret)
    assert "--identity-file" in refusal(by_key, Passphrase(WORDS))


def test_a_header_can_not_ask_for_much_memory() -> None:
    text = encrypted(b"data", Passphrase(WORDS, QUICK))
    for work in (b"21", b"60", b"4096", b"99999999999999999999"):
        changed = text.replace(b" 4\n", b" " + work + b"\n", 1)
        assert "memory" in refusal(changed, Passphrase(WORDS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age1",
        "alice",
        "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI",
        str(pyrage.x25519.Identity.generate()),
    ],
    ids=["empty", "short", "a name", "wrong sum", "ssh", "a secret key"],
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(BackupProblem, match="no public key of age"):
        PublicKey(text)


def test_a_letter_that_is_wrong_in_a_key_is_noticed() -> None:
    made = pyrage.x25519.Identity.generate()
    public, secret = str(made.to_public()), str(made)
    for at in range(4, len(public)):
        with pytest.raises(BackupProblem):
            PublicKey(public[:at] + ("q" if public[at] != "q" else "p") + public[at + 1 :])
    for text in (secret[:-1], secret.replace("AGE-SECRET", "AGE"), f"{secret}\nrubbish", "", "#"):
        with pytest.raises(BackupProblem) as refused:
            SecretKeys(text, "key.txt")
        assert "key.txt" in str(refused.value)
        assert secret[20:40] not in str(refused.value)
