"""Paths and addresses in engines' texts, which users must not see."""

from __future__ import annotations

import pytest

from runtime.private_places import MAX_TEXT, hide_places


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"open C:\Users\Joe Smith\.ollama\models\x.gguf: not found", "open x.gguf: not found"),
        (r"open C:\\Users\\Joe Smith\\.ollama\\x.gguf failed", "open x.gguf failed"),
        (r"at c:\Documents and Settings\Joe Smith\x.gguf", "at x.gguf"),
        (r"C:\Program Files (x86)\Ollama\x.dll is missing", "x.dll is missing"),
        (r"open \\nas\My Share\joe\x.gguf", "open x.gguf"),
        ("can't load /Users/Joe Smith/models/x now", "can't load x now"),
        ("can't load /home/Joe M. Smith/models/x now", "can't load x now"),
        ("/Users/joe/Library/Application Support/LM Studio/x.gguf", "x.gguf"),
        ("load /mnt/c/Users/Joe Smith/x.gguf", "load x.gguf"),
        ("load /var/home/joe smith/x.gguf", "load x.gguf"),
        ("load /srv/My Models/joe/x.gguf", "load x.gguf"),
        ("load ~/My Models/joe/x.gguf", "load x.gguf"),
        (r"mkdir C:\Users\Joe Smith: Access is denied.", "mkdir (a path): Access is denied."),
        ("mkdir '/Users/Joe Smith' failed", "mkdir '(a path)' failed"),
        ("copy /home/joe and /home/ann/x", "copy (a path) and x"),
        ("model:/home/joe/x.gguf", "model:x.gguf"),
        ("error:file:///home/joe/x.gguf", "error:x.gguf"),
        (r"model:C:\joe\x.gguf", "model:x.gguf"),
        ("unix:/run/joe/x.sock", "unix:x.sock"),
        ("model:~/joe/x.gguf", "model:x.gguf"),
    ],
)  # fmt: skip
def test_of_a_path_only_its_last_part_is_shown(text: str, shown: str) -> None:
    assert hide_places(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("from http://10.0.0.1:80/home/joe/x to https://a/b", "from (an address) to (an address)"),
        ("[::1]:8080, [fe80::1%eth0] and ::1", "(an address), (an address) and (an address)"),
        ("[0:0:0:0:0:ffff:192.168.100.100]:80", "(an address)"),
        ("1.2.3.4:11434, localhost:80.", "(an address), (an address)."),
    ],
)
def test_an_address_is_left_out(text: str, shown: str) -> None:
    assert hide_places(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "GET:/v1/chat/completions",
        "/v1/models or /metrics",
        "and/or a/b",
        "3:/4",
        "[1:2]",
        "list[a:b]",
        "no model",
    ],
)
def test_what_is_no_place_stays(text: str) -> None:
    assert hide_places(text) == text


def test_a_long_text_ends_before_the_word_that_would_be_cut() -> None:
    begin = "a " * (MAX_TEXT // 2 - 3)
    assert hide_places(begin + "/home/joe/private/x.gguf") == begin.rstrip()
    assert len(hide_places("a" * 9 * MAX_TEXT)) == MAX_TEXT
