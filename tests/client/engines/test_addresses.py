"""Addresses of engines, as people write them."""

from __future__ import annotations

import pytest

from fabric_client.engines.addresses import AddressError, parse_address


@pytest.mark.parametrize(
    ("text", "url", "host", "kind"),
    [
        ("http://localhost:11434", "http://localhost:11434", "localhost:11434", None),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "localhost:8080", None),
        ("localhost:11434", "http://localhost:11434", "localhost:11434", None),
        ("http://host:1234/v1", "http://host:1234", "host:1234", None),
        ("http://host:1234/v1/", "http://host:1234", "host:1234", None),
        ("https://host/llm/v1", "https://host/llm", "host", None),
        ("vllm=http://10.0.0.5:8000", "http://10.0.0.5:8000", "10.0.0.5:8000", "vllm"),
        ("lm-studio=host:1234", "http://host:1234", "host:1234", "lm-studio"),
        ("http://[::1]:8080", "http://[::1]:8080", "localhost:8080", None),
        ("http://[fd00::5]:8080", "http://[fd00::5]:8080", "[fd00::5]:8080", None),
        ("0.0.0.0:11434", "http://127.0.0.1:11434", "localhost:11434", None),
        ("http://[::]:8080", "http://[::1]:8080", "localhost:8080", None),
        ("  http://HOST:1  ", "http://host:1", "host:1", None),
    ],
)
def test_an_address_may_be_written_in_several_ways(
    text: str, url: str, host: str, kind: str | None
) -> None:
    assert tuple(parse_address(text)) == (url, host, kind)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no host"),
        ("11434", "has no host"),
        ("http://", "has no host"),
        ("http:/localhost:11434", "has no host"),
        ("http://local host:1", "has no host"),
        ("ftp://localhost", "neither http nor https"),
        ("unix:///run/engine.sock", "neither http nor https"),
        ("http://localhost:99999", "is no engine address"),
        ("http://localhost:abc", "is no engine address"),
        ("http://localhost:0", "has no host"),
        ("http://[::1", "is no engine address"),
        ("http://localhost/v1/chat/completions", "the address of one endpoint"),
        ("http://joe:hunter2@localhost", "only a host, port and path prefix"),
        ("http://localhost/?key=hunter2", "only a host, port and path prefix"),
        ("llama=http://localhost", "'llama' is no kind of engine"),
    ],
)
def test_nonsense_addresses_are_explained(text: str, says: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
