"""A server whose file descriptors are used up by strangers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.programs import ready, running

DESCRIPTORS = 128


def test_strangers_that_use_up_all_descriptors_end_no_server(tmp_path: Path) -> None:
    limited = (sys.executable, "-m", "tests.attack.limited", str(DESCRIPTORS))
    flags = [f"--{name}-port=0" for name in ("control", "proxy", "public", "api")]
    own = ("up", "--json", "--host=127.0.0.1", "--data", str(tmp_path / "server"), "--log-json")
    with running((*limited, *own, *flags)) as server:
        ports = ready(server)["ports"]
        with ExitStack() as strangers:
            until = time.monotonic() + 3  # longer than any part of the housekeeping waits
            while time.monotonic() < until:
                with contextlib.suppress(OSError):
                    stranger = socket.create_connection(("127.0.0.1", ports["public"]), timeout=1)
                    strangers.enter_context(stranger)
                    stranger.send(b"GET")
                time.sleep(0.01)  # the attack lasts for as long as the loop does
            assert server.process.poll() is None, server.lines
        answer = None
        while answer is None:
            connection = http.client.HTTPConnection("127.0.0.1", ports["api"], timeout=10)
            with contextlib.closing(connection), contextlib.suppress(ConnectionError):
                connection.request("GET", "/health/live")
                answer = connection.getresponse().status
        assert answer == 200
        assert server.process.poll() is None
