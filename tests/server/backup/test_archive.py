"""The parts of a backup in one stream: what was written is read, and no damage to it passes."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import Any

import pytest

from fabric_server.backup.age_keys import Passphrase
from fabric_server.backup.archive import (
    ABOUT,
    BLOCK,
    END,
    MANIFEST,
    About,
    ArchiveWriter,
    Counts,
    is_safe,
    open_archive,
)
from fabric_server.backup.problem import BackupProblem

PARTS = {"data/server.json": b"{}", "data/certs/ca.key": b"k" * 600, "store/fabric.sqlite": b""}


def about(**others: Any) -> About:
    fields: dict[str, Any] = {"format": 1, "version": "1.2.3", "at": 1_800_000_000.0}
    fields |= {"store": "sqlite", "schema": [], "addresses": ["gpu.example.org"]}
    fields |= {"given": [], "left_out": []}
    return About(**{**fields, **others})


def nothing(_: int) -> None:
    pass


def no_secret() -> Passphrase:
    raise AssertionError("the file is not encrypted")


def written(parts: dict[str, bytes] | None = None, **others: Any) -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter(file, about(**others), nothing)
    for name, data in (PARTS if parts is None else parts).items():
        writer.add_bytes(name, data)
    writer.finish(Counts(keys=3, nodes=2))
    return file.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    archive, encrypted = open_archive(io.BytesIO(data), no_secret, nothing)
    assert not encrypted
    found = {part.name: b"".join(part.pieces()) for part in archive.parts()}
    assert archive.counts == Counts(keys=3, nodes=2)
    return found


def refusal(data: bytes) -> str:
    with pytest.raises(BackupProblem) as refused:
        read(data)
    return str(refused.value)


def test_what_was_written_is_read() -> None:
    assert read(written()) == PARTS


def test_what_is_skipped_is_checked_all_the_same() -> None:
    archive, _ = open_archive(io.BytesIO(written()), no_secret, nothing)
    assert [part.name for part in archive.parts()] == list(PARTS)
    damaged = written().replace(b"kkk", b"kkj", 1)
    archive, _ = open_archive(io.BytesIO(damaged), no_secret, nothing)
    with pytest.raises(BackupProblem, match="damaged"):
        list(archive.parts())


def test_tar_reads_it_as_well() -> None:
    with tarfile.open(fileobj=io.BytesIO(written())) as tar:
        assert tar.getnames() == [ABOUT, *PARTS, MANIFEST, END]
        file = tar.extractfile("data/certs/ca.key")
        assert file is not None
        assert file.read() == PARTS["data/certs/ca.key"]


def test_each_byte_that_is_changed_is_noticed() -> None:
    whole = written()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        refusal(bytes(changed))


def test_each_end_that_is_missing_is_noticed() -> None:
    whole = written()
    for cut in range(len(whole)):
        refusal(whole[:cut])
    for cut in range(BLOCK, len(whole), BLOCK):
        assert "missing" in refusal(whole[:cut])


def test_what_follows_the_end_is_noticed() -> None:
    assert "damaged" in refusal(written() + b"\0")
    assert "damaged" in refusal(written() + written())


def test_a_part_of_another_backup_is_noticed() -> None:
    one, other = written(), written({**PARTS, "data/server.json": b"[]"})
    assert len(one) == len(other)
    for at in range(0, len(one), BLOCK):
        if (mixed := one[:at] + other[at : at + BLOCK] + one[at + BLOCK :]) != one:
            assert "damaged" in refusal(mixed)


BAD_NAMES = [
    "../../etc/passwd",
    "data/../../etc/passwd",
    "data/..",
    "data/.",
    "data//x",
    "/etc/passwd",
    "data/",
    "data",
    "other/x",
    "store/../data/x",
    "data/a\\..\\..\\b",
    "data/C:x",
    "data/x\n",
    "data/ x",
    "data/x\u202e",
    "data/nul*",
]


def with_member(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """Return a backup that somebody has made, with a member that ``backup`` never writes.

    It has a manifest and an end that fit.
    """
    file = io.BytesIO()
    writer = ArchiveWriter(file, about(), nothing)
    writer._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
    writer._write(content)
    writer._end(info.name, len(content), "")
    writer.finish(Counts(keys=3, nodes=2))
    return file.getvalue()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert not is_safe(name)
    said = refusal(with_member(tarfile.TarInfo(name)))
    assert "never writes" in said or "damaged" in said


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
    ],
)
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("data/x")
    info.type, info.linkname = kind, "/etc/passwd"
    assert "damaged" in refusal(with_member(info))


def test_a_size_that_is_only_claimed_needs_no_memory() -> None:
    info = tarfile.TarInfo("data/x")
    info.size = 2**62
    assert "damaged" in refusal(with_member(info)) or "missing" in refusal(with_member(info))
    whole = written()
    first = tarfile.TarInfo(ABOUT)
    first.size, first.mode = 2**40, 0o600
    header = first.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
    assert "damaged" in refusal(header + whole[BLOCK:])


def test_two_parts_of_one_name_are_refused() -> None:
    file = io.BytesIO()
    writer = ArchiveWriter(file, about(), nothing)
    writer.add_bytes("data/x", b"1")
    writer.add_bytes("data/x", b"2")
    writer.finish(Counts(keys=3, nodes=2))
    assert "damaged" in refusal(file.getvalue())


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data/server.json", "{}")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("data/server.json"))
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        bytes(2000),
        b"SQLite format 3\0" + bytes(4096),
        b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n",
        b"fabric-backup.txt" + bytes(1000),
        zipped(),
        tarred(),
    ],
)
def test_what_is_no_backup_is_told_so(data: bytes) -> None:
    assert "no backup of fabric-server" in refusal(data)


def test_an_empty_file_is_told_so() -> None:
    assert "empty" in refusal(b"")


def test_a_newer_format_names_the_remedy() -> None:
    assert "newer" in refusal(written(format=2))


def test_a_file_that_shrinks_while_it_is_read_is_no_backup() -> None:
    writer = ArchiveWriter(io.BytesIO(), about(), nothing)
    with pytest.raises(BackupProblem, match="shorter"):
        writer.add_file("data/x", io.BytesIO(b"abc"), 4)


def test_long_names_are_stored_whole() -> None:
    name = f"data/{'a' * 90}/{'b' * 90}"
    assert is_safe(name)
    assert read(written({name: b"x"})) == {name: b"x"}
    assert not is_safe(f"data/{'a' * 101}")
    assert not is_safe(f"data/{'a' * 155}/{'b' * 99}/c")
