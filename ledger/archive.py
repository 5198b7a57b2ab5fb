"""Archives of the ledger: a compressed file of JSON Lines for each month."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import NamedTuple

import msgspec

from ledger.months import name_of
from ledger.records import LedgerEntry
from runtime.errors import StoreError

ABANDONED_SECONDS = 3600.0
_READ = 2**20
_encode = msgspec.json.Encoder().encode


class Archived(NamedTuple):
    name: str
    """The name of the file in its directory."""
    entries: int
    sha256: str
    """Of the file, in hexadecimal digits."""


async def archive_month(
    directory: Path, month: int, pages: AsyncIterator[Sequence[LedgerEntry]]
) -> Archived:
    """Write the entries to ``ledger-2026-01.jsonl.gz``, read the file again, and return it.

    The file has its name only once it is complete, checked, and on the disk.  No archive is ever
    replaced: one with other entries has ``-2`` and so on in its name.  Raises ``StoreError``.
    """
    temporary = directory / f".ledger-{name_of(month)}.{os.getpid()}.part"
    try:
        file = await asyncio.to_thread(_Writer, temporary)
        try:
            async for page in pages:
                await asyncio.to_thread(file.add, page)
            await asyncio.to_thread(file.finish)
            sha256 = await asyncio.to_thread(_check, temporary, file.entries, file.text.digest())
            name = await asyncio.to_thread(_name, temporary, month, sha256)
        finally:
            await asyncio.to_thread(file.discard)
    except OSError as error:
        raise StoreError(
            f"the archive of {name_of(month)} can't be written to {directory}"
            f" ({error.strerror or error}): make room, or set ledger_archive to another directory"
        ) from error
    return Archived(name, file.entries, sha256)


class _Writer:
    """A file that is being written, for its owner's eyes only.  Every method may raise OSError."""

    def __init__(self, path: Path) -> None:
        self.entries = 0
        self.text = hashlib.sha256()
        """Of all lines, before compression."""
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file: BufferedWriter = os.fdopen(descriptor, "wb")
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # as the directory's owner runs the server
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        # Without a name and a time the same entries make the same file.
        self._zip = gzip.GzipFile("", "wb", 6, self._file, mtime=0)

    def add(self, entries: Sequence[LedgerEntry]) -> None:
        lines = b"".join(_encode(entry) + b"\n" for entry in entries)
        self.entries += len(entries)
        self.text.update(lines)
        self._zip.write(lines)

    def finish(self) -> None:
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it has got its name."""
        try:
            self._file.close()
        finally:
            self._path.unlink(missing_ok=True)


def _remove_abandoned(directory: Path) -> None:
    """Remove files that a server had not finished when it was killed."""
    for path in directory.glob(".ledger-*.part"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def _check(path: Path, entries: int, text: bytes) -> str:
    """Read the file again; return its SHA-256.  Raises OSError if it is not what was written."""
    found, lines = hashlib.sha256(), 0
    try:
        with gzip.open(path) as unzipped:
            while part := unzipped.read(_READ):
                found.update(part)
                lines += part.count(b"\n")
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path.name} is damaged: {error}") from error
    if lines != entries or found.digest() != text:
        raise OSError(f"{path.name} has {lines} of {entries} entries, or damaged ones")
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(temporary: Path, month: int, sha256: str) -> str:
    """Give the file the first name that is free, or keep one that has the same entries."""
    number = 1
    while True:
        name = f"ledger-{name_of(month)}{'' if number == 1 else f'-{number}'}.jsonl.gz"
        path = temporary.with_name(name)
        if not path.exists():
            break
        if _sha256(path) == sha256:
            return name
        number += 1
    temporary.rename(path)
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return name
