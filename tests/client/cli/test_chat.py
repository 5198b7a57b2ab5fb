"""What ``fabric-client chat`` refuses to send and to show, without a server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fabric_client.cli.chat import chat
from runtime.output import Failure
from runtime.shown import prose


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("fk_secret")
    return file


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu.example.org:18080",
        "HTTP://gpu.example.org",
        "http://192.0.2.1",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org/v1",
        "http://localhost@192.0.2.1",
        "http://[2001:db8::1]:18080",
    ],
)
def test_key_and_prompts_leave_the_machine_encrypted_only(url: str, key: Path) -> None:
    with pytest.raises(Failure, match=r"unencrypted: give the server's https:// address"):
        chat(url=url, key_file=key)


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[str]:
    """Give the URL of a web server that answers everything with 200 and the body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome</html>",
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"data": 7}',
        b'{"data": [7]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_fabric_server_is_one_sentence(body: bytes, key: Path) -> None:
    with answering(body) as url, pytest.raises(Failure, match=r"of a Fabric|no Fabric") as caught:
        chat(url=url, key_file=key)
    assert str(caught.value).endswith("check --url, and that the server runs.")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Vraiment\u00a0? 10\u202f000",
        "\u4f60\u597d\u3000\u4e16\u754c",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f4bb",
        "a\nb",
    ],
)
def test_languages_and_emoji_are_shown_as_they_are_written(text: str) -> None:
    assert prose(text) == text


@pytest.mark.parametrize("mark", "\x1b\r\x07\x9b\u202e\u2066\u200e\u200b\u2028\u2029\ufeff\ue000")
def test_what_moves_the_cursor_or_turns_text_around_is_escaped(mark: str) -> None:
    shown = prose(f"a{mark}\u00a0b")
    assert mark not in shown
    assert "\u00a0" in shown
