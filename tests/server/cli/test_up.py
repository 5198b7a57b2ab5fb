"""``fabric-server up``: how it starts, what it prints, and how it ends."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import ssl
import sys
import urllib.error
from pathlib import Path

import pytest

from tests.commands import FREE_PORTS, PATIENCE, Program, Shell
from tests.server.cli.outcomes import refused, status_of


def test_up_says_in_one_line_how_it_is_reached(shell: Shell, server: Program) -> None:
    ready = server.ready()
    assert list(ready["ports"]) == ["control", "proxy", "public", "api"]
    assert len({*ready["ports"].values(), 0}) == 5
    assert ready["event"] == "ready"
    assert ready["pid"] == server.process.pid
    assert ready["data"] == str(shell.server_data)
    assert ready["addresses"] == ["localhost"]
    assert ready["public_url"] == f"https://localhost:{ready['ports']['public']}/v1"
    assert ready["local_url"] == f"http://localhost:{ready['ports']['public']}/v1"
    assert ready["api_url"] == f"https://localhost:{ready['ports']['api']}"
    facts = shell.json("fabric-server", "certs", "show")
    assert ready["ca_sha256"] == facts[0]["sha256"]
    assert status_of(ready["local_url"] + "/models") == 401
    trust = ssl.create_default_context(cafile=facts[0]["path"])
    assert status_of(ready["public_url"] + "/models", context=trust) == 401
    assert status_of(ready["api_url"] + "/health/live", context=trust) == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_up_ends_by_signals(server: Program, number: int, code: int) -> None:
    ready = server.ready()
    server.signal(number)
    assert server.exit_code() == code
    assert server.logged("stopped")
    with pytest.raises(urllib.error.URLError):
        status_of(ready["local_url"] + "/models")


def test_up_loads_certificates_again_when_hung_up_on(server: Program) -> None:
    server.ready()
    server.signal(signal.SIGHUP)
    assert server.logged("certificates loaded")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0


def test_up_names_the_port_that_is_taken(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        flags = [*FREE_PORTS, "--host=127.0.0.1", f"--api-port={number}"]
        done = shell.call("fabric-server", "up", *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"fabric-server: api_port {number} on 127.0.0.1 is taken by another program: stop that "
        "one, or set api_port to another number (0 takes any free one)."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--store=postgresql://u:secret@127.0.0.1:1/f", "store: PostgreSQL at "),
        ("--cache=redis://:secret@127.0.0.1:1", "cache: Redis at "),
        ("--bus=kafka://127.0.0.1:1", "bus: Kafka at "),
    ],
)
def test_up_names_the_back_end_that_is_not_there(shell: Shell, flag: str, said: str) -> None:
    done = shell.call("fabric-server", "up", *FREE_PORTS, flag)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"fabric-server: {said}")
    assert "can't be reached" in last
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_up_names_the_directory_that_can_not_be_made(shell: Shell) -> None:
    (shell.home / "file").touch()
    assert "file/server is not writable" in refused(shell, "up", "--data=file/server")
    assert "file/server" in refused(shell, "keys", "list", "--data=file/server")
    assert "file/server" in refused(shell, "nodes", "invite", "--data=file/server")


def test_up_names_the_certificate_that_is_broken(shell: Shell) -> None:
    certs = shell.server_data / "certs"
    certs.mkdir(parents=True)
    (certs / "ca.pem").write_text("no certificate")
    done = shell.call("fabric-server", "up", *FREE_PORTS)
    assert done.returncode == 2
    assert str(certs) in done.stderr
    assert "Traceback" not in done.stderr


def test_up_tells_people_on_a_terminal_what_to_do_next(shell: Shell) -> None:
    pid, terminal = pty.fork()
    if not pid:
        program = Path(sys.executable).with_name("fabric-server")
        words = [str(program), "up", *FREE_PORTS, "--address=fabric.example.org"]
        os.execve(program, words, {**shell.environ, "FABRIC_SERVER_DATA": str(shell.home / "s")})
    said = read_to(terminal, r"There is no node yet.*\r\n")
    assert re.search(r"public +https://fabric\.example\.org:\d+/v1 ", said)
    assert re.search(r"http://localhost:\d+/v1 .*on this machine", said)
    assert re.search(r"CA +sha256 [0-9a-f]{64}\b", said)
    assert "Users see the fabric's own certificate." in said
    assert re.search(r"curl +--cacert ca\.pem", said)
    assert re.search(r"no key yet: .*fabric-server keys create NAME --data \S+/s\b", said)
    assert re.search(r"no node yet: .*fabric-server nodes invite --data \S+/s\b", said)
    os.write(terminal, b"\x03")  # Ctrl-C
    read_to_end(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_up_leaves_when_its_terminal_is_closed(shell: Shell) -> None:
    pid, terminal = pty.fork()
    if not pid:
        program = Path(sys.executable).with_name("fabric-server")
        os.execve(program, [str(program), "up", *FREE_PORTS], shell.environ)
    read_to(terminal, "There is no node yet")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def read_to(terminal: int, pattern: str) -> str:
    said = ""
    while not re.search(pattern, said):
        readable, _, _ = select.select([terminal], [], [], PATIENCE)
        assert readable, said
        said += os.read(terminal, 4096).decode()
    return said


def read_to_end(terminal: int) -> None:
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # Linux says so when the other side has gone
        pass
    os.close(terminal)
