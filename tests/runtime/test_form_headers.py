"""Headers of forms, as clients write them, and those that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runtime.form_headers import (
    MAX_HEADER,
    FormError,
    read_boundary,
    read_charset,
    read_disposition,
)


@pytest.mark.parametrize(
    ("text", "name", "filename"),
    [
        ('form-data; name="model"', "model", None),
        ("form-data; name=model", "model", None),
        ('Form-Data; Name="file"; FileName="a.wav"', "file", "a.wav"),
        ("form-data; name=file; filename=a; filename*=utf-8''na%C3%AFve.wav", "file", "naïve.wav"),
        ("form-data; name=file; filename*=iso-8859-1''na%EFve.wav", "file", "naïve.wav"),
        ('form-data; name="file"; filename="a \\"b\\".wav"', "file", 'a "b".wav'),
        ("form-data; name=file; filename*=utf-8''a%E2%80%AFPM.png", "file", "a\u202fPM.png"),
        ('form-data; name="file"; filename=""', "file", ""),
        ('form-data; name="expires_after[seconds]"', "expires_after[seconds]", None),
        ('form-data; name="file"; filename="ünï.wav"', "file", "ünï.wav"),
    ],
)  # fmt: skip
def test_a_part_has_a_name_and_perhaps_a_file_s(text: str, name: str, filename: str | None) -> None:
    assert read_disposition(text) == (name, filename)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "form-data",
        "attachment; name=x",
        'form-data; name="a"; name=b',
        "form-data; name*=utf-8''a",
        "form-data; name=a b",
        'form-data; name="a\\"b"',
        'form-data; name="a\x00"',
        'form-data; filename="; name=a"; name=b',
        "form-data; name=" + "a" * MAX_HEADER,
        "form-data; name=file; filename*=utf-8''a%0D%0Ab",
        "form-data; name=file; filename*=utf-8''a%0Ab",
        "form-data; name=file; filename*=utf-8''a%00",
        "form-data; name=file; filename*=iso-8859-1''a%85b",
        "form-data; name=file; filename*=utf-8''a%E2%80%A8b",
        "form-data; name=file; filename=a; filename*=utf-8''a%0D%0Ab",
        "form-data; name=file; filename*0*=utf-8''a%0D; filename*1*=%0Ab",
        "form-data; name*0*=utf-8''a%0D; name*1*=%0Ab",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(FormError):
        read_disposition(text)


def test_a_boundary_stands_alone_or_beside_a_charset() -> None:
    for text in (
        "multipart/form-data; boundary=xx",
        'Multipart/Form-Data;Boundary="xx"',
        "multipart/form-data; charset=utf-8; boundary=xx",
    ):
        assert read_boundary(text) == "xx"
    for text in (
        "",
        "text/plain; boundary=xx",
        "multipart/form-data",
        "multipart/form-data; boundary=a; boundary=b",
    ):
        with pytest.raises(FormError):
            read_boundary(text)


def test_a_charset_is_one_of_a_few() -> None:
    found = [read_charset(text) for text in ("", "text/plain", "text/plain; charset=ISO-8859-1")]
    assert found == ["utf-8", "utf-8", "latin-1"]
    with pytest.raises(FormError):
        read_charset("text/plain; charset=utf-7")


@given(some.text(max_size=60), some.sampled_from([read_disposition, read_boundary, read_charset]))
def test_any_text_is_read_or_refused(text: str, read: object) -> None:
    for header in (text, f"form-data; name={text}", f"multipart/form-data; boundary={text}"):
        try:
            read(header)  # type: ignore[operator]
        except FormError as error:
            assert str(error)
