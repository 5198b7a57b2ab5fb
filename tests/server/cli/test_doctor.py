"""``fabric-server doctor`` finds what is wrong, with real ports, stores, certificates, clocks."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fabric_server.cli.endpoints import Ready, last_start, remember
from runtime.version import COMPILED, VERSION
from tests.commands import FREE_PORTS, Program, Shell
from tests.lab.wrong_clock import wrong_clock

Found = dict[str, dict[str, Any]]
PORTS = ("control", "proxy", "public", "api")


def doctor(shell: Shell, *words: str, environ: Any = None) -> tuple[int, Found]:
    """Return the exit code, and the findings by their code or, when all is well, their check."""
    given = ("--host=127.0.0.1,::1", "--address=localhost", *words)
    done = shell.call("fabric-server", "doctor", "--json", *given, environ=environ)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    return done.returncode, {one["code"] or one["check"]: one for one in told}


def test_a_server_that_runs_has_good_findings(shell: Shell, server: Program) -> None:
    server.ready()
    code, found = doctor(shell)
    assert code == 0, found
    for check in ("server", "dns", "store", "cache", "bus", "disk", "descriptors", "CA"):
        assert found[check]["level"] == "ok", found
    build = "compiled" if COMPILED else "not compiled"
    assert found["server"]["what"].endswith(f"version {VERSION}, {build}")
    for name in PORTS:
        assert found[f"{name} port"]["level"] == "ok", found
    assert "nodes invite" in found["no_nodes"]["remedy"]
    assert "users need" in found["certificate for users"]["what"]


def test_a_directory_without_a_server_is_told(shell: Shell) -> None:
    code, found = doctor(shell)
    assert code == 1
    assert "set --data" in found["no_server"]["remedy"]
    assert found["no_store"]["level"] == "FAIL"
    assert not shell.server_data.exists(), "the doctor must not make anything"


def test_a_port_that_another_program_has_is_told(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=localhost")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        code, found = doctor(shell, *FREE_PORTS[1:], f"--control-port={taken}")
    assert code == 1
    assert found["port_taken"]["check"] == "control port"
    assert found["not_running"]["level"] == "warn"
    assert all(found[f"{name} port"]["level"] == "ok" for name in PORTS[1:])


@pytest.mark.parametrize("name", PORTS)
def test_each_port_is_checked_by_itself(shell: Shell, server: Program, name: str) -> None:
    server.ready()
    ready = last_start(shell.server_data)
    assert isinstance(ready, Ready)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = {one: getattr(ready.ports, one) for one in PORTS}
        ports[name] = taken.getsockname()[1]
        remember(shell.server_data, _with_ports(ready, ports))
        code, found = doctor(shell)
    assert code == 1
    assert found["port_refused"]["check"] == f"{name} port"
    assert all(found[f"{one} port"]["level"] == "ok" for one in PORTS if one != name)


def _with_ports(ready: Ready, ports: dict[str, int]) -> Ready:
    return msgspec.structs.replace(ready, ports=type(ready.ports)(**ports))


def test_another_server_under_the_name_is_told(
    shell: Shell, server: Program, tmp_path: Path
) -> None:
    server.ready()
    other = Shell(tmp_path / "other")
    other.home.mkdir()
    with other.server() as second:
        second.ready()
        theirs, ours = last_start(other.server_data), last_start(shell.server_data)
        assert theirs is not None
        assert ours is not None
        ports = {one: getattr(theirs.ports, one) for one in PORTS}
        remember(shell.server_data, _with_ports(ours, ports))
        code, found = doctor(shell)
    assert code == 1
    assert "certificate is not of this server's CA" in found["port_wrong"]["what"]


def test_back_ends_that_are_away_are_told(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=localhost")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        words = (
            *FREE_PORTS,
            f"--store=postgresql://fabric:secret@{place}/fabric",
            f"--cache=redis://:secret@{place}",
            f"--bus=kafka://{place}",
        )
        code, found = doctor(shell, *words)
    assert code == 1
    for check in ("store", "cache", "bus"):
        one = found[f"{check}_away"]
        assert one["level"] == "FAIL", found
        assert "secret" not in json.dumps(one)


def test_a_name_without_an_address_or_certificate_is_told(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=localhost")
    code, found = doctor(shell, *FREE_PORTS, "--address=nowhere.invalid")
    assert code == 1
    assert found["dns_failed"]["level"] == "FAIL"
    assert "nowhere.invalid" in found["name_missing"]["what"]


def test_a_pattern_of_names_is_not_resolved(shell: Shell) -> None:
    names = "--address=localhost,*.nodes.invalid"
    shell.ok("fabric-server", "init", names)
    code, found = doctor(shell, *FREE_PORTS, names)
    assert code == 0, found
    assert "dns_failed" not in found


def test_an_expired_certificate_is_told(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=localhost")
    code, found = doctor(shell, *FREE_PORTS, environ=wrong_clock("+120d"))
    assert code == 1
    assert found["certificate_expired"]["check"] == "certificate for nodes"


def test_a_node_whose_clock_differs_is_told(shell: Shell, server: Program) -> None:
    server.ready()
    token = shell.ok("fabric-server", "nodes", "invite").strip()
    shell.ok("fabric-client", "join", "-", stdin=token)
    ahead = wrong_clock("+2h")
    with shell.start("fabric-client", "run", "--no-discover", environ=ahead) as node:
        node.logged("registered")
        found: Found = {}
        for _ in range(30):  # the heartbeat reaches the store with the next batch
            _, found = doctor(shell)
            if "clock_differs" in found:
                break
        node.signal(15)
        node.exit_code()
    assert "behind its nodes'" in found["clock_differs"]["what"]


def test_damaged_certificates_are_told(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=localhost")
    (shell.server_data / "certs" / "server.pem").write_text("nonsense")
    code, found = doctor(shell, *FREE_PORTS)
    assert code == 1
    assert "server.pem" in found["certificate_damaged"]["what"]
