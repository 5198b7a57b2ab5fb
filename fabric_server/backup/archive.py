"""The parts of a backup in one stream: a tar archive with a beginning and an end of its own.

fabric-backup.json    what the backup is of (``About``): first, so that it can be refused at once
data/…                files of the data directory
store/…               the store
manifest.json         name, size and SHA-256 of each part before it
end.sha256            SHA-256 of all bytes before it; after it there are only the zeros of tar

Nothing is compressed: what a backup unpacks to is no larger than the file.  Only plain files are
read from it, under names that lead nowhere else.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, TypeVar

import msgspec
from msgspec import Struct

from fabric_server.backup.age import CUT, DAMAGED, MAGIC, Decryption, Target
from fabric_server.backup.age_keys import Identity
from fabric_server.backup.problem import BackupProblem

T = TypeVar("T")

FORMAT = 1
ABOUT, MANIFEST, END = "fabric-backup.json", "manifest.json", "end.sha256"
DATA, STORE = "data", "store"
BLOCK = tarfile.BLOCKSIZE
COPY_BYTES = 262_144
MAX_DOCUMENT = 64 * 2**20
"""Bytes of one of the JSON documents."""
MAX_PARTS = 1_000_000

NO_BACKUP = (
    "it is no backup of fabric-server: name a file that 'fabric-server backup' wrote "
    "(encrypted ones begin with 'age-encryption.org/v1', and armoured ones must be decoded first)."
)


class Migrated(Struct, frozen=True):
    """A migration that was applied to the store."""

    number: int
    name: str
    sha256: str


class About(Struct, frozen=True):
    """The server and the moment of a backup.  Times are Unix seconds."""

    format: int
    version: str
    """Of Fabric."""
    at: float
    store: str
    """``sqlite``, ``postgresql``, or ``none``: it was left out."""
    schema: list[Migrated]
    addresses: list[str]
    given: list[str]
    """Settings that were given by flags or the environment, by name."""
    left_out: list[str]
    """Files that the server needs or has, and that are not in the backup."""


class Entry(Struct, frozen=True):
    """One part, in the manifest."""

    name: str
    size: int
    sha256: str


class Counts(Struct, frozen=True):
    """Numbers of what the store of a backup holds."""

    keys: int = 0
    """That were neither revoked nor expired."""
    nodes: int = 0
    """That were not revoked."""


class Manifest(Struct, frozen=True):
    parts: list[Entry]
    counts: Counts


class Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


# ── writing ───────────────────────────────────────────────────────────────────────────────────


class ArchiveWriter:
    """Writes parts one after another; ``finish`` writes manifest and end."""

    def __init__(self, target: Target, about: About, advance: Callable[[int], None]) -> None:
        """``advance`` is called with the number of bytes of each piece written."""
        self._target = target
        self._advance = advance
        self._all = hashlib.sha256()
        self.parts: list[Entry] = []
        self.add_bytes(ABOUT, msgspec.json.format(msgspec.json.encode(about), indent=2))

    def add_bytes(self, name: str, data: bytes) -> None:
        self._begin(name, len(data))
        self._write(data)
        self._end(name, len(data), hashlib.sha256(data).hexdigest())

    def add_file(self, name: str, file: BinaryIO, size: int) -> None:
        """Add the next ``size`` bytes of a file.  Raises ``BackupProblem`` if it has fewer."""
        self._begin(name, size)
        digest, left = hashlib.sha256(), size
        while left:
            data = file.read(min(COPY_BYTES, left))
            if not data:
                raise BackupProblem(f"{name} became shorter while it was read: start again.")
            digest.update(data)
            self._write(data)
            left -= len(data)
        self._end(name, size, digest.hexdigest())

    def finish(self, counts: Counts) -> None:
        manifest = msgspec.json.encode(Manifest(list(self.parts), counts))
        self.add_bytes(MANIFEST, msgspec.json.format(manifest, indent=2))
        self.add_bytes(END, f"{self._all.hexdigest()}\n".encode())
        self._write(bytes(2 * BLOCK))

    def _begin(self, name: str, size: int) -> None:
        header = _header(name, size)
        if len(header) != BLOCK:
            raise BackupProblem(f"{name} has a name that is too long: move it out of data.")
        self._write(header)

    def _end(self, name: str, size: int, sha256: str) -> None:
        self._write(bytes(-size % BLOCK))
        self.parts.append(Entry(name, size, sha256))

    def _write(self, data: bytes) -> None:
        self._all.update(data)
        self._target.write(data)
        self._advance(len(data))


# ── reading ───────────────────────────────────────────────────────────────────────────────────


class Part:
    """One part of an archive that is being read; it must be read to its end before the next."""

    def __init__(self, name: str, size: int, source: _Source) -> None:
        self.name = name
        self.size = size
        self.digest = hashlib.sha256()
        self._source = source
        self._left = size
        self._padding = -size % BLOCK

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes that are left of it.  Raises ``BackupProblem``."""
        while self._left:
            data = self._source.some(min(COPY_BYTES, self._left))
            self._left -= len(data)
            self.digest.update(data)
            yield data
        padding, self._padding = self._padding, 0
        if self._source.exactly(padding) != bytes(padding):
            raise BackupProblem(DAMAGED)

    def document(self) -> bytes:
        if self.size > MAX_DOCUMENT:
            raise BackupProblem(DAMAGED)
        return b"".join(self.pieces())


class ArchiveReader:
    """Reads the parts that ``ArchiveWriter`` wrote, and holds them against the manifest.

    Nothing is complete, and for a file that is not encrypted nothing is certain, before ``parts``
    has ended without an error.
    """

    def __init__(self, source: Reader, advance: Callable[[int], None]) -> None:
        """Read the first part.  Raises ``BackupProblem``."""
        self._source = _Source(source, advance)
        self._seen: list[Entry] = []
        first = self._next()
        if first.name != ABOUT:
            raise BackupProblem(NO_BACKUP)
        self.about = _about(first.document())
        self.counts = Counts()
        """As of the manifest, once ``parts`` has ended."""
        self._note(first)

    def parts(self) -> Iterator[Part]:
        """Yield the parts; what the caller does not read of one is skipped.

        Raises ``BackupProblem``, at the latest at the end, if anything differs from what was
        written.
        """
        names = {ABOUT}
        while (part := self._next()).name != MANIFEST:
            if part.name in names or len(names) == MAX_PARTS:
                raise BackupProblem(DAMAGED)
            names.add(part.name)
            if not is_safe(part.name):
                raise BackupProblem(
                    f"it has a part named '{part.name}', which 'fabric-server backup' never "
                    "writes: somebody has made or changed this file, so don't use it."
                )
            yield part
            for _ in part.pieces():
                pass
            self._note(part)
        manifest = _decoded(part.document(), Manifest)
        self._note(part)
        if manifest.parts != self._seen[:-1]:
            raise BackupProblem(DAMAGED)
        self._check_end()
        self.counts = manifest.counts

    def _check_end(self) -> None:
        expected = self._source.all.hexdigest()
        end = self._next()
        if end.name != END or end.document() != f"{expected}\n".encode():
            raise BackupProblem(DAMAGED)
        if self._source.exactly(2 * BLOCK) != bytes(2 * BLOCK) or self._source.more():
            raise BackupProblem(DAMAGED)

    def _note(self, part: Part) -> None:
        self._seen.append(Entry(part.name, part.size, part.digest.hexdigest()))

    def _next(self) -> Part:
        block = self._source.exactly(BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError):  # UnicodeDecodeError is one
            raise BackupProblem(DAMAGED if self._seen else NO_BACKUP) from None
        # Whatever else tar knows, such as links, is in none of ours.
        if info.size < 0 or block != _written_header(info.name, info.size):
            raise BackupProblem(DAMAGED if self._seen else NO_BACKUP)
        return Part(info.name, info.size, self._source)


class _Source:
    """Reads exact numbers of bytes and keeps the digest of all."""

    def __init__(self, source: Reader, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance
        self.all = hashlib.sha256()

    def some(self, most: int) -> bytes:
        data = self._source.read(most)
        if not data:
            raise BackupProblem(CUT)
        self.all.update(data)
        self._advance(len(data))
        return data

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.some(size - len(data))
        return data

    def more(self) -> bool:
        return bool(self._source.read(1))


def _about(document: bytes) -> About:
    class _Format(Struct):
        format: int

    if (found := _decoded(document, _Format).format) != FORMAT:
        raise BackupProblem(
            f"it has the format {found}, and this release knows only {FORMAT}: restore it with the "
            "release that wrote it, or a newer one."
        )
    return _decoded(document, About)


def _decoded(document: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(document, type=kind)
    except (ValueError, RecursionError):  # msgspec's errors are among the former
        raise BackupProblem(DAMAGED) from None


# ── names ─────────────────────────────────────────────────────────────────────────────────────


def is_safe(name: str) -> bool:
    """Return whether a part of this name can be stored, and leads to no other place anywhere."""
    steps = name.split("/")
    if len(steps) < 2 or steps[0] not in (DATA, STORE) or not name.isprintable():
        return False
    if any(step in ("", ".", "..") or step.strip() != step for step in steps):
        return False
    # What Windows reads as a drive, a stream, another separator or a pattern.
    return not any(character in name for character in '\\:*?"<>|') and _fits(name)


def _fits(name: str) -> bool:
    return len(_written_header(name, 0)) == BLOCK


def _written_header(name: str, size: int) -> bytes:
    """Return the header of a part; empty for a name that can't be written."""
    try:
        return _header(name, size)
    except (ValueError, UnicodeError):
        return b""


def _header(name: str, size: int) -> bytes:
    """Return the header of a part.  Raises ``ValueError`` for a name that is too long."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    # The older form has room for longer names, the newer one for larger sizes.
    if size < 8**11:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


# ── opening ───────────────────────────────────────────────────────────────────────────────────


class _Plain:
    """A file that is not encrypted, with the bytes at its beginning that were read already."""

    def __init__(self, begun: bytes, source: BinaryIO) -> None:
        self._begun = begun
        self._source = source

    def read(self, size: int) -> bytes:
        if self._begun:
            data, self._begun = self._begun[:size], self._begun[size:]
            return data
        return self._source.read(size)


def open_archive(
    source: BinaryIO, identity: Callable[[], Identity], advance: Callable[[int], None]
) -> tuple[ArchiveReader, bool]:
    """Open a backup; return it, and whether it is encrypted.  Raises ``BackupProblem``.

    ``identity`` is asked only if it is.
    """
    begun = source.read(len(MAGIC))
    if not begun:
        raise BackupProblem("it is empty: take another copy of the file, or an older backup.")
    if begun == MAGIC:
        return ArchiveReader(Decryption(source, identity()), advance), True
    if MAGIC.startswith(begun) or ABOUT.encode().startswith(begun):
        raise BackupProblem(CUT)
    if not ABOUT.encode().startswith(begun[: len(ABOUT)]):
        raise BackupProblem(NO_BACKUP)
    return ArchiveReader(_Plain(begun, source), advance), False
