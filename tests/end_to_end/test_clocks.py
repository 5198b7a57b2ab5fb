"""Machines whose clocks are wrong, in either direction: certificates heal by themselves."""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import Program, Shell
from tests.lab.backends import free_port
from tests.lab.wrong_clock import wrong_clock

RIGHT: dict[str, str] = {}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def ports() -> list[str]:
    """Return flags with ports that stay the same over restarts: nodes know them."""
    return [f"--{name}-port={free_port()}" for name in ("control", "proxy", "public", "api")]


@contextmanager
def server(shell: Shell, ports: list[str], clock: object = None) -> Iterator[Program]:
    environ = wrong_clock(clock) if isinstance(clock, str) else RIGHT
    words = ("fabric-server", "up", *ports, "--host=127.0.0.1", "--address=127.0.0.1", "--log-json")
    with shell.start(*words, environ=environ) as program:
        program.ready()
        yield program
        program.signal(15)
        program.exit_code()


@contextmanager
def node(shell: Shell, clock: object = None) -> Iterator[Program]:
    environ = wrong_clock(clock) if isinstance(clock, str) else RIGHT
    with shell.start("fabric-client", "run", "--no-discover", "--log-json", environ=environ) as run:
        yield run
        run.signal(15)
        run.exit_code()


def invite(shell: Shell, ports: list[str], clock: object = None) -> str:
    environ = wrong_clock(clock) if isinstance(clock, str) else RIGHT
    words = ("fabric-server", "nodes", "invite", "--json", ports[3], "--address=127.0.0.1")
    done = shell.call(*words, environ=environ)
    assert done.returncode == 0, done.stderr
    token: str = json.loads(done.stdout)["token"]
    return token


def join(shell: Shell, token: str, clock: object = None) -> None:
    environ = wrong_clock(clock) if isinstance(clock, str) else RIGHT
    done = shell.call("fabric-client", "join", token, environ=environ)
    assert done.returncode == 0, done.stderr


def api_works(shell: Shell, ports: list[str]) -> None:
    context = ssl.create_default_context(cafile=shell.server_data / "certs" / "ca.pem")
    url = f"https://localhost:{ports[3].partition('=')[2]}/api/v1/ca"
    with urllib.request.urlopen(url, context=context) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("offset", ["+70d"])
def test_after_a_start_with_the_clock_ahead_nodes_come_back_by_themselves(
    shell: Shell, ports: list[str], offset: str
) -> None:
    with server(shell, ports, offset):
        join(shell, invite(shell, ports, offset), offset)
        with node(shell, offset) as running:
            assert running.logged("registered")
    with server(shell, ports) as program:
        assert "not valid yet" in program.logged("made a server certificate")["because"]
        api_works(shell, ports)
        with node(shell) as running:
            assert running.logged("registered")
            assert running.logged("certificate renewed")


def test_after_a_start_with_the_clock_behind_the_server_is_right_and_an_old_node_is_told(
    shell: Shell, ports: list[str]
) -> None:
    """Its certificate has ended, which no server can tell from a node that was away so long."""
    with server(shell, ports, "-4000d"):
        join(shell, invite(shell, ports, "-4000d"), "-4000d")
    with server(shell, ports) as program:
        assert program.logged("made a server certificate")["because"] == "it had ended"
        api_works(shell, ports)
        with node(shell) as running:
            reason = running.logged("not connected")["reason"]
        assert "has expired" in reason
        assert "new invitation" in reason
        join_again = shell.call("fabric-client", "join", "--replace", invite(shell, ports))
        assert join_again.returncode == 0, join_again.stderr
        with node(shell) as running:
            assert running.logged("registered")


@pytest.mark.parametrize("offset", ["-4000d", "+70d"])
def test_a_node_whose_clock_is_wrong_serves(shell: Shell, ports: list[str], offset: str) -> None:
    with server(shell, ports):
        join(shell, invite(shell, ports))
        with node(shell, offset) as running:
            assert running.logged("registered")
