"""The server's log of the engines of its nodes."""

from __future__ import annotations

import logging

import pytest

from protocol.messages import Engines, ModelReport
from tests.server.admin.server import Server, connected, engine, until


async def test_an_engine_that_is_lost_and_comes_back_is_said_once_each_way(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sound = engine("ollama", ModelReport("tiny"))
    down = engine("ollama", healthy=False, slots=0, problem="refuses connections")
    async with connected(server, "node_here", [sound]) as machine:
        for reports in ([sound], [down], [down], [sound], [sound]):
            machine.link.send(Engines(reports))
        await until(lambda: len(said(caplog)) == 2)
    first, second = said(caplog)
    assert (first.message, first.__dict__["node"]) == ("engine out of use", "node_here")
    assert first.__dict__["reason"] == "refuses connections"
    assert (second.message, second.__dict__["models"]) == ("engine in use again", ["tiny"])


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "engine" in record.message]
