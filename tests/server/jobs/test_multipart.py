"""Uploads as they arrive, in any pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.jobs.multipart import FileBegun, Multipart, MultipartError, boundary_of

BODY = (
    b'--xx\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--xx\r\nContent-Disposition: form-data; name="file"; filename="a \\"b\\".jsonl"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n"
    b"one\r\n--x\r\n--x y\r\n--x-\r\n"
    b"\r\n--xx\r\n"
    b'content-disposition: form-data; name="empty"\r\n\r\n\r\n'
    b"--xx--\r\nwhatever follows"
)


def read(pieces: list[bytes]) -> tuple[dict[str, str], list[FileBegun], bytes]:
    parts, begun, data = Multipart(b"xx"), [], b""
    for piece in pieces:
        for event in parts.feed(piece):
            if isinstance(event, FileBegun):
                begun.append(event)
            else:
                data += event
    assert parts.complete
    return parts.fields, begun, data


@given(st.lists(st.integers(0, len(BODY)), max_size=20))
def test_in_any_pieces_it_is_the_same(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[a:b] for a, b in pairwise(at)]
    fields, begun, data = read(pieces)
    assert fields == {"purpose": "batch", "empty": ""}
    assert begun == [FileBegun("file", 'a "b".jsonl')]
    assert data == b"one\r\n--x\r\n--x y\r\n--x-\r\n"


def test_what_dotnet_writes_is_read() -> None:
    text = b"Content-Type: text/plain; charset=iso-8859-1\r\n"
    body = (
        b"--xx\r\n" + text + b"Content-Disposition: form-data; name=purpose\r\n\r\nb\xe4tch\r\n"
        b"--xx\r\nContent-Disposition: form-data; name=file; filename=in.jsonl;"
        b" filename*=utf-8''%C3%A9in.jsonl\r\n\r\n{}\r\n--xx--"
    )
    fields, begun, data = read([body])
    assert (fields, begun, data) == (
        {"purpose": "b\xe4tch"},
        [FileBegun("file", "\xe9in.jsonl")],
        b"{}",
    )
    assert boundary_of(b"multipart/form-data; charset=utf-8; boundary=xx") == b"xx"


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(data: bytes, cut: int) -> None:
    parts = Multipart(b"xx")
    try:
        parts.feed(b"--xx\r\n" + data[:cut])
        parts.feed(data[cut:])
    except MultipartError as error:
        assert str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"something else\r\n--xx\r\n",
        b"--xxy\r\n",
        b"--xx\r\ncontent-type: text/plain\r\n\r\n",
        b"--xx\r\n" + b"a: b\r\n" * 5000,
        b'--xx\r\ncontent-disposition: form-data; name="a"\r\n\r\n' + b"x" * 9000,
        b'--xx\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n' * 20,
    ],
)
def test_what_can_not_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(MultipartError):
        Multipart(b"xx").feed(body)


def test_a_boundary_may_be_quoted() -> None:
    assert boundary_of(b'multipart/form-data; boundary="a b"') == b"a b"
    assert boundary_of(b"Multipart/Form-Data; charset=utf-8; boundary=ab") == b"ab"
    for wrong in (b"", b"application/json", b"multipart/form-data", b"text/plain; boundary=a"):
        with pytest.raises(MultipartError):
            boundary_of(wrong)
