"""What a client that has part of an answer is told about its end."""

from __future__ import annotations

import pytest

from fabric_server.proxy.ending import Ending, incomplete
from protocol.errors import Code


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Ending("failed", Code.LOST), "The node was lost"),
        (Ending("failed", Code.ENGINE_FAILED), "The engine failed"),
        (Ending("failed", Code.ENGINE_DOWN), "The engine failed"),
        (incomplete(), "The engine failed"),
    ],
)
def test_a_broken_answer_says_what_was_lost(ending: Ending, words: str) -> None:
    assert ending.told.message == f"{words} in the middle of the answer."
    assert ending.told.code == "upstream_lost"
