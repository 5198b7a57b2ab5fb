"""Join tokens: what is written is read back, and anything else is answered with a sentence."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import join
from protocol.join import BadToken, Token

TOKEN = Token("fabric.example.net", 18081, bytes(range(32)), bytes(range(100, 132)))


def refused(text: str) -> str:
    with pytest.raises(BadToken) as caught:
        join.parse(text)
    return str(caught.value)


@given(
    st.one_of(st.ip_addresses().map(str), st.from_regex(r"[a-z0-9.-]{1,253}", fullmatch=True)),
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_a_token_is_read_as_it_was_written(
    host: str, port: int, digest: bytes, secret: bytes
) -> None:
    token = Token(host, port, digest, secret)
    text = join.encode(token)
    assert text.startswith("fjt1_")
    assert text[5:].replace("-", "").replace("_", "").isalnum()
    assert join.parse(text) == token


def test_a_token_survives_being_wrapped_by_a_terminal() -> None:
    text = join.encode(TOKEN)
    assert join.parse(f"  {text[:40]}\n    {text[40:80]}\r\n{text[80:]} \n") == TOKEN


def test_every_truncated_paste_is_recognised_as_one() -> None:
    text = join.encode(TOKEN)
    for end in range(len("fjt1_") + 1, len(text)):
        message = refused(text[:end])
        assert "end of the join token is missing" in message, (end, message)


def test_a_lost_beginning_is_no_token() -> None:
    assert "begin with 'fjt1_'" in refused(join.encode(TOKEN)[3:])


@pytest.mark.parametrize("key", ["sk-fab-" + "A" * 43, "mk-fab-" + "A" * 43])
def test_an_api_key_is_called_an_api_key(key: str) -> None:
    message = refused(key)
    assert "API key" in message
    assert "nodes invite" in message
    assert "AAAA" not in message


def test_a_later_kind_of_token_asks_for_an_update() -> None:
    assert "Update this node" in refused("fjt2_" + join.encode(TOKEN)[5:])


def test_an_empty_token_is_called_empty() -> None:
    assert "empty" in refused(" \n")


def test_a_token_pasted_twice_or_with_something_else_is_refused() -> None:
    text = join.encode(TOKEN)
    assert "damaged" in refused(text + text[5:])
    assert "too long" in refused(text + "A" * 2000)
    assert "damaged" in refused(text + ".")
    assert "damaged" in refused(text[:30] + "/" + text[31:])


@pytest.mark.parametrize(
    "token",
    [
        Token("", 18081, bytes(32), bytes(32)),
        Token("a b", 18081, bytes(32), bytes(32)),
        Token("user@evil/", 18081, bytes(32), bytes(32)),
        Token("host", 0, bytes(32), bytes(32)),
        Token("host", 70000, bytes(32), bytes(32)),
        Token("host", 1, bytes(31), bytes(32)),
        Token("host", 1, bytes(32), bytes(33)),
    ],
)
def test_a_token_with_impossible_contents_is_damaged(token: Token) -> None:
    assert "damaged" in refused(join.encode(token))


@given(st.text(max_size=200))
def test_no_text_does_more_than_refuse(rest: str) -> None:
    for text in (rest, "fjt1_" + rest):
        with contextlib.suppress(BadToken):
            join.parse(text)


def test_a_token_shown_in_a_log_keeps_its_secret() -> None:
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert repr(TOKEN.secret) not in repr(TOKEN)
    assert "fabric.example.net:18081" in repr(TOKEN)


def test_a_field_appended_by_a_later_release_is_ignored() -> None:
    longer = msgspec.msgpack.encode(
        [TOKEN.host, TOKEN.api_port, TOKEN.ca_sha256, TOKEN.secret, "new"]
    )
    assert join.parse("fjt1_" + join.to_text(longer)) == TOKEN
