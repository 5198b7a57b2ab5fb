"""What ``join`` and the settings file say is offered, as ``run`` and ``status`` show it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.commands import PATIENCE, Shell

ROWS = [{"id": name, "object": "model"} for name in ("open", "my-private")]


class Engine(BaseHTTPRequestHandler):
    """Lists two models: a fake, because the commands run in processes of their own."""

    def do_GET(self) -> None:
        body = json.dumps({"object": "list", "data": ROWS}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"openai=http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def becomes(shell: Shell, wanted: Callable[[Any], bool]) -> Any:
    give_up = time.monotonic() + PATIENCE
    while not wanted(told := json.loads(shell.call("fabric-client", "status", "--json").stdout)):
        assert time.monotonic() < give_up, told
        time.sleep(0.1)  # seen from outside: there is no event for it
    return told


def models(told: Any) -> list[str]:
    return [model["name"] for engine in told["engines"] for model in engine["models"]]


def test_what_join_was_told_is_remembered_and_the_file_changes_it(shell: Shell) -> None:
    with shell.server() as server, engine() as url:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite").strip()
        shell.ok("fabric-client", "join", token, "--models", "nothing*", "--models", "!*-private")
        with shell.start("fabric-client", "run", "--no-discover", "--engine", url) as node:
            told = becomes(shell, lambda told: told["linked"] and told["engines"])
            assert told["offers"] == ["nothing*", "!*-private"]
            assert models(told) == []
            reasons = {one["name"]: one["reason"] for one in told["engines"][0]["held_back"]}
            assert set(reasons) == {"open", "my-private"}
            assert "'!*-private'" in reasons["my-private"]
            text = shell.ok("fabric-client", "status")
            assert "Offers  nothing*, !*-private" in text
            assert "no model of the engines matches" in text
            file = shell.node_data / "fabric.toml"
            file.write_text('models = ["*", "!*-private"]\n')
            assert models(becomes(shell, models)) == ["open"]
            file.write_text('models = ["[ab"]\n')
            assert "'[ab'" in node.logged("settings not read again: the ones before stay")["reason"]
            assert "'[ab'" in shell.call("fabric-client", "status").stderr
            file.write_text("models = []\n")
            assert becomes(shell, lambda told: not models(told))["offers"] == []
            assert "empty list" in shell.ok("fabric-client", "status")
            file.write_text("# nothing is set: what join was told counts\n")
            assert becomes(shell, lambda told: told["offers"])["offers"][0] == "nothing*"


def test_who_joins_anew_holds_back_what_was_held_back(shell: Shell) -> None:
    with shell.server() as server:
        server.ready()
        first, second = (shell.ok("fabric-server", "nodes", "invite").strip() for _ in range(2))
        shell.ok("fabric-client", "join", first, "--models", "!*-private")
        shell.ok("fabric-client", "join", second, "--replace")
        assert json.loads((shell.node_data / "node.json").read_text())["models"] == ["!*-private"]


def test_a_wrong_pattern_is_refused_before_the_token_is_used(shell: Shell) -> None:
    done = shell.call("fabric-client", "join", "fjt1_x", "--models", "{a,b}")
    assert done.returncode == 2
    assert "the pattern '{a' has a comma or braces" in done.stderr
