"""The fields of forms: read strictly, so that nobody reads them otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.dialects.body import parse_body
from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.forms import MAX_PARTS
from fabric_server.dialects.large_body import LargeForm
from fabric_server.routing.aliases import rename

AUDIO = ENDPOINTS["/v1/audio/transcriptions"]
TYPE = b"multipart/form-data; boundary=b"


def part(name: str, value: bytes = b"x", more: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


FILE = part("file", b"RIFF\x00\xff", '; filename="a.wav"\r\nContent-Type: audio/wav')
MODEL = part("model", b"tiny")
END = b"--b--\r\n"


def model(body: bytes, content_type: bytes = TYPE) -> str:
    return parse_body(body, AUDIO, content_type).model


def refusal(body: bytes, content_type: bytes = TYPE) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_body(body, AUDIO, content_type)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "content_type",
    [
        TYPE,
        b'multipart/form-data; boundary="b"',
        b"Multipart/Form-Data;boundary=b",
        TYPE + b" ",
        b"multipart/form-data; charset=utf-8; boundary=b",
        TYPE + b'; charset="utf-8"',
    ],
)
def test_the_model_is_found_before_and_behind_the_file(content_type: bytes) -> None:
    assert model(MODEL + FILE + END, content_type) == "tiny"
    assert model(FILE + MODEL + END, content_type) == "tiny"
    assert not parse_body(FILE + MODEL + END, AUDIO, content_type).stream
    streamed = parse_body(MODEL + part("stream", b"true") + FILE + END, AUDIO, content_type)
    assert streamed.stream


def test_what_stands_in_a_file_is_no_field() -> None:
    trick = part("file", MODEL.replace(b"--b", b"--c").replace(b"tiny", b"other"))
    assert model(trick + MODEL + END) == "tiny"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (FILE + END, "model"),
        (part("model", b"") + END, "model"),
        (part("model", b"\xff") + END, "model"),
        (part("model", b"x" * 2000) + END, "model"),
        (MODEL + MODEL + END, "model"),
        (MODEL + part("Model", b"other") + END, "model"),
        (MODEL + part(" model", b"other") + END, "model"),
        (part("Model", b"tiny") + END, "model"),
    ],
)
def test_a_model_is_there_once_in_small_letters(body: bytes, param: str) -> None:
    assert refusal(body).param == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        END[:3],
        MODEL,
        MODEL[:-2] + END,
        b"preamble\r\n" + MODEL + END,
        b"--bx\r\n" + MODEL + END,
        b"--b\r\nno: head\r\n",
        b"--b\r\nx: y\r\n\r\nvalue\r\n" + END,
        part("model", b"tiny", '; name="other"') + END,
        part("model", b"tiny", "; name*=utf-8''other") + END,
        part("model", b"tiny", '\r\nContent-Disposition: form-data; name="x"') + END,
        part("file", b"x", "; filename*=utf-8''a%0D%0Ab") + MODEL + END,
        part('mod\\"el', b"tiny") + MODEL + END,
        b"--b\r\nContent-Disposition: form-data; name=mod el\r\n\r\ntiny\r\n" + END,
        b'--b\r\nContent-Disposition: form-data; name=mod"el"\r\n\r\ntiny\r\n' + END,
        b"--b\r\nContent-Disposition: form-data; name=x; name=model\r\n\r\ntiny\r\n" + END,
        part("model", b"tiny", "\r\nContent-Type: text/plain; charset=utf-7") + END,
        b"--b\r\n" + b"x: y\r\n" * 2000 + b"\r\n" + END,
        part("x") * (MAX_PARTS + 1) + MODEL + END,
    ],
)
def test_what_two_readers_could_read_differently_is_refused(body: bytes) -> None:
    assert refusal(body).code == "invalid_body"


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary=b; boundary=c",
        b"multipart/form-data; boundary=" + b"b" * 71,
    ],
)
def test_a_form_says_what_it_is(content_type: bytes) -> None:
    assert refusal(MODEL + END, content_type).code == "invalid_body"


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_raise_anything_else(noise: bytes, at: int) -> None:
    body = FILE + MODEL + END
    try:
        parse_body(body[:at] + noise + body[at:], AUDIO, TYPE)
    except ApiError as refused:
        assert refused.status == 400


def test_a_model_can_be_renamed() -> None:
    place = parse_body(FILE + MODEL + END, AUDIO, TYPE).place
    assert place is not None
    renamed = rename(FILE + MODEL + END, place, "a/b", form=True)
    assert renamed == FILE + part("model", b"a/b") + END


def dotnet(name: str, value: bytes, more: str = "") -> bytes:
    """Return a part as .NET's HttpClient writes it."""
    text = "Content-Type: text/plain; charset=utf-8\r\n"
    head = f"--b\r\n{text}Content-Disposition: form-data; name={name}{more}\r\n\r\n"
    return head.encode() + value + b"\r\n"


NET_FILE = dotnet("file", b"RIFF name=x", "; filename=na.wav; filename*=utf-8''na%C3%AF.wav")


@pytest.mark.parametrize("parts", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_names_without_quotes_get_quotes_for_the_engine(parts: tuple[int, ...]) -> None:
    given = (dotnet("model", b"tiny"), NET_FILE, dotnet("stream", b"true"))
    body = b"".join(given[one] for one in parts) + END
    parsed = parse_body(body, AUDIO, TYPE)
    assert (parsed.model, parsed.stream) == ("tiny", True)
    quoted = body
    for name in (b"model", b"file", b"stream"):
        quoted = quoted.replace(b" name=" + name, b' name="' + name + b'"', 1)
    assert parsed.patch == (0, len(body), quoted)
    assert parsed.place is not None
    renamed = rename(quoted, parsed.place, "other", form=True)
    assert renamed == quoted.replace(b"\r\n\r\ntiny\r\n", b"\r\n\r\nother\r\n")


def test_a_large_form_gets_quotes_too() -> None:
    body = dotnet("file", b"x" * 300_000, "; filename=a") + dotnet("model", b"tiny") + END
    form = LargeForm(TYPE)
    for at in range(0, len(body), 10_000):
        form.feed(body[at : at + 10_000])
    parsed = form.end()
    quoted = body.replace(b"name=file", b'name="file"').replace(b"name=model", b'name="model"')
    assert form.take() == quoted
    assert parsed.place is not None
    assert quoted[slice(*parsed.place)] == b"tiny"


def test_a_field_may_have_another_charset() -> None:
    latin = part("model", b"ti\xf1y", "\r\nContent-Type: text/plain; charset=iso-8859-1")
    assert model(latin + END) == "ti\xf1y"


HOME = b"http://192.168.1.1/a.wav"


@pytest.mark.parametrize(
    "field",
    [
        part("url", HOME),
        part("URL ", HOME),
        part("file_url", b"file:///etc/passwd"),
        part("audio_url", b"data:audio/wav,a"),
        part("lora_path", b"adapter"),
        part("file", HOME),
        part("file", b" /etc/passwd"),
        part("file", b"file:/etc/passwd", "\r\nContent-Type: text/plain"),
    ],
)
def test_a_form_has_the_file_and_does_not_say_where_it_is(field: bytes) -> None:
    for body in (MODEL + field + END, MODEL + field + FILE + END, FILE + MODEL + field + END):
        error = refusal(body)
        assert error.code == "media_refused"
        assert error.message.isascii()


def test_files_may_begin_like_urls_and_other_fields_may_have_them() -> None:
    file = part("file", HOME, '; filename="http.txt"')
    assert model(MODEL + file + part("prompt", HOME) + part("url", b"") + END) == "tiny"
