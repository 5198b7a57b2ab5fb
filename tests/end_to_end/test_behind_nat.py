"""Server and node as processes in network namespaces of their own, with NAT and 50 ms between."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.netlab import NatLab
from tests.programs import CLIENT, SERVER, ready, running, told

ASK = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def lab() -> Iterator[NatLab]:
    if reason := NatLab.why_not():
        pytest.fail(
            "NOT RUN: the only test of a node behind a real NAT needs network namespaces: "
            f"{reason}. Run the tests as root on Linux with iproute2 and nftables."
        )
    with NatLab(delay_ms=25) as lab:
        yield lab


def test_a_node_behind_nat_serves_a_server_far_away(lab: NatLab, tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "server")]
    node_data = ["--data", str(tmp_path / "node")]
    up = [*SERVER, "up", *data, "--address", lab.server_address, "--json"]
    echo = [sys.executable, "-m", "fabric_client.engines.echo", "--port", "18999"]
    with running(up, lab.server_exec) as server, running(echo, lab.node_exec) as engine:
        ports = ready(server)["ports"]
        engine.line_with("18999")
        key = told([*SERVER, "keys", "create", "nat", *data, "--json"])["text"]
        token = told([*SERVER, "nodes", "invite", *data, "--json"])["token"]
        lab.node_run([*CLIENT, "join", token, *node_data])
        run = [*CLIENT, "run", *node_data, "--engine", "http://127.0.0.1:18999", "--log-json"]
        with running(run, lab.node_exec) as node:
            node.line_with('"registered"')
            answer, first_byte = ask(lab, ports["public"], key)
        assert "one two three" in answer
        assert "[DONE]" in answer
        # The node dialled out: seen from the server it has the router's address.
        server.line_with(lab.router_address)
        assert first_byte > 0.05  # one round trip at least: it did cross the lab


def ask(lab: NatLab, port: int, key: str) -> tuple[str, float]:
    """Return the streamed answer and the seconds until its first byte, on the server's machine."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["curl", "-sSN", "--fail-with-body", url, "-d", json.dumps(ASK)]
    deadline = time.monotonic() + 20
    while True:
        process = lab.server_exec(
            [*command, "-H", f"authorization: Bearer {key}", "-w", "\n%{time_starttransfer}"],
            stdout=subprocess.PIPE,
        )
        out, _ = process.communicate(timeout=30)
        if process.returncode == 0:
            text, _, seconds = out.decode().rpartition("\n")
            events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
            words = "".join(
                choice["delta"].get("content") or ""
                for event in events
                for choice in json.loads(event)["choices"]
            )
            return words + text[-20:], float(seconds)
        assert time.monotonic() < deadline, out.decode()
