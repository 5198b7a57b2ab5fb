"""``fabric-client doctor`` finds what is wrong, with real ports, engines, certificates, clocks."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fabric_client.identity import Facts
from tests.client.cli.test_offered_models import engine
from tests.commands import PATIENCE, Program, Shell
from tests.lab.wrong_clock import wrong_clock

Found = dict[str, dict[str, Any]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def server(shell: Shell) -> Iterator[Program]:
    with shell.server() as server:
        server.ready()
        yield server


@pytest.fixture
def joined(shell: Shell, server: Program) -> Shell:
    token = shell.ok("fabric-server", "nodes", "invite").strip()
    shell.ok("fabric-client", "join", "-", stdin=token)
    return shell


def doctor(shell: Shell, *words: str, environ: Any = None) -> tuple[int, Found]:
    """Return the exit code, and the findings by their code or, when all is well, their check."""
    words = words or ("--no-discover",)
    done = shell.call("fabric-client", "doctor", "--json", *words, environ=environ)
    assert done.stderr == ""
    told = json.loads(done.stdout)
    return done.returncode, {one["code"] or one["check"]: one for one in told}


def change_facts(shell: Shell, **changes: Any) -> None:
    path = shell.node_data / "node.json"
    facts = msgspec.json.decode(path.read_bytes(), type=Facts)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(facts, **changes)))


@contextmanager
def closed_port() -> Iterator[int]:
    """Keep a port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def silent_port() -> Iterator[int]:
    """Keep a port whose queue is full, so that it looks as behind a firewall that drops."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            yield port


def test_a_node_that_works_has_good_findings(joined: Shell) -> None:
    with engine() as url:
        code, found = doctor(joined, f"--engine={url}")
    assert code == 0, found
    for check in ("identity", "dns", "control port", "proxy port", "api port", "clock", "disk"):
        assert found[check]["level"] == "ok", found
    assert "open, my-private" in found["engine"]["what"]
    assert found["not_running"]["remedy"] == "start it with 'fabric-client run'"


def test_a_machine_that_has_not_joined_is_told_how(shell: Shell) -> None:
    code, found = doctor(shell)
    assert code == 1
    assert "fabric-client join" in found["not_joined"]["remedy"]
    assert found["no_engine"]["level"] == "FAIL"
    assert found["disk"]["level"] == "ok"


@pytest.mark.parametrize("name", ["control", "proxy", "api"])
def test_each_closed_port_is_told_by_itself(joined: Shell, name: str) -> None:
    with closed_port() as port, engine() as url:
        change_facts(joined, **{f"{name}_port": port})
        code, found = doctor(joined, f"--engine={url}")
    assert code == 1
    assert found["port_refused"]["check"] == f"{name} port"
    assert str(port) in found["port_refused"]["what"]
    others = {"control", "proxy", "api"} - {name}
    assert all(found[f"{other} port"]["level"] == "ok" for other in others), found


def test_a_port_that_drops_packets_is_a_firewall(joined: Shell) -> None:
    with silent_port() as port:
        change_facts(joined, host="127.0.0.1", proxy_port=port)
        code, found = doctor(joined)
    assert code == 1
    assert found["port_silent"]["check"] == "proxy port"
    assert f"allow TCP {port}" in found["port_silent"]["remedy"]


def test_a_name_without_an_address_is_told_once(joined: Shell) -> None:
    change_facts(joined, host="nowhere.invalid")
    code, found = doctor(joined)
    assert code == 1
    assert found["dns_failed"]["level"] == "FAIL"
    assert found["not_checked"]["level"] == "warn"


def test_one_good_name_is_enough(joined: Shell) -> None:
    change_facts(joined, hosts=["nowhere.invalid", "localhost"])
    code, found = doctor(joined, "--engine=http://127.0.0.1:1")
    assert code == 1, "the engine"
    assert found["dns_failed"]["level"] == "warn"
    for check in ("control port", "proxy port", "api port"):
        assert found[check]["level"] == "ok", found


def test_another_authority_is_told(joined: Shell, tmp_path: Path) -> None:
    other = tmp_path / "other"
    joined.ok("fabric-server", "init", f"--data={other}")
    shutil.copy(other / "certs" / "ca.pem", joined.node_data / "ca.pem")
    code, found = doctor(joined)
    assert code == 1
    assert "another authority" in found["not_joined"]["what"]
    assert "--replace" in found["not_joined"]["remedy"]


def test_a_server_that_was_set_up_anew_is_told(joined: Shell, server: Program) -> None:
    server.signal(15)
    server.exit_code()
    again = Shell(joined.home / "again")
    again.home.mkdir()
    with again.server() as new:
        ports = new.ready()["ports"]
        changes = {f"{name}_port": ports[name] for name in ("control", "proxy", "api")}
        change_facts(joined, **changes)
        code, found = doctor(joined)
    assert code == 1
    assert "not issued by the authority that this node joined" in found["port_wrong"]["what"]


def test_an_engine_that_is_stopped_is_told(joined: Shell) -> None:
    with closed_port() as port:
        code, found = doctor(joined, f"--engine=http://127.0.0.1:{port}")
    assert code == 1
    assert found["engine_down"]["level"] == "FAIL"
    assert "Nothing listens" in found["engine_down"]["what"]


@pytest.mark.parametrize(("offset", "way"), [("+2h", "ahead of"), ("-3d", "behind")])
def test_a_wrong_clock_is_told(joined: Shell, offset: str, way: str) -> None:
    code, found = doctor(joined, environ=wrong_clock(offset))
    assert code == 1
    assert way in found["clock_differs"]["what"]
    assert found["clock_differs"]["level"] == "FAIL"


def test_an_expired_certificate_is_told(joined: Shell) -> None:
    code, found = doctor(joined, environ=wrong_clock("+40d"))
    assert code == 1
    assert found["certificate_expired"]["check"] == "identity"


def becomes(shell: Shell, wanted: Callable[[Any], bool]) -> Any:
    give_up = time.monotonic() + PATIENCE
    while not wanted(told := json.loads(shell.call("fabric-client", "status", "--json").stdout)):
        assert time.monotonic() < give_up, told
        time.sleep(0.1)  # seen from outside: there is no event for it
    return told


def test_it_works_beside_the_running_node_and_leaves_it_alone(joined: Shell) -> None:
    with engine() as url, joined.start("fabric-client", "run", f"--engine={url}") as node:
        before = becomes(joined, lambda told: told["tunnels"] >= 2)
        code, found = doctor(joined, f"--engine={url}")
        assert code == 0, found
        assert found["link"]["what"].startswith("linked, 2 tunnels")
        after = becomes(joined, lambda told: told["linked"])
        assert (after["since"], after["tunnels"]) == (before["since"], 2)
        node.signal(15)
        node.exit_code()


def refusing(answer: bytes) -> Iterator[int]:
    """Answer every connection in the same way, as a bad proxy does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:  # closed: the test is over
                    return
                with sock:
                    sock.recv(4096)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize(
    ("answer", "code", "remedy"),
    [
        (b"HTTP/1.1 407 x\r\n\r\n", "proxy_login", "write them into the setting proxy"),
        (b"HTTP/1.1 403 x\r\n\r\n", "proxy_refuses", "--one-port 443"),
        (b"HTTP/1.1 503 x\r\n\r\n", "proxy_no_way", "check that the server runs"),
        (b"hello\r\n\r\n", "proxy_wrong", "correct the setting proxy"),
    ],
)
def test_a_proxy_is_checked_by_itself(joined: Shell, answer: bytes, code: str, remedy: str) -> None:
    with contextmanager(refusing)(answer) as port:
        proxy = f"--proxy=http://owner:geheim@127.0.0.1:{port}"
        done = joined.call("fabric-client", "doctor", "--json", "--no-discover", proxy)
    told = json.loads(done.stdout)
    (found,) = [one for one in told if one["check"] == "proxy"]
    assert (found["level"], found["code"]) == ("FAIL", code), told
    assert remedy in found["remedy"]
    ports = {one["check"]: one["code"] for one in told if one["check"].endswith(" port")}
    assert ports == dict.fromkeys(("control port", "proxy port", "api port"), code)
    assert "looked up by the proxy" in str(told)
    assert "geheim" not in done.stdout + done.stderr


def test_a_proxy_that_is_away_or_not_used_is_told(joined: Shell) -> None:
    with closed_port() as port:
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{port}"}
        code, found = doctor(joined, environ=environ)
        assert "not used for localhost" in found["proxy"]["what"]
        assert found["control port"]["level"] == "ok"
        change_facts(joined, host="gpu.example.org")
        code, found = doctor(joined, environ=environ)
        assert code == 1
        assert "connection refused" in found["proxy_away"]["what"]
        code, found = doctor(joined, environ={**environ, "NO_PROXY": "example.org"})
        assert "not used for gpu.example.org" in found["proxy"]["what"]


def test_a_variable_that_names_no_proxy_is_refused_without_its_password(joined: Shell) -> None:
    done = joined.call(
        "fabric-client", "doctor", environ={"https_proxy": "socks5://u:geheim@proxy:1080"}
    )
    assert done.returncode == 2
    assert "https_proxy names a proxy of another kind than HTTP" in done.stderr
    assert "geheim" not in done.stderr
    for text in ("ftp://u:geheim@proxy", "u:geheim@proxy:3128"):
        done = joined.call("fabric-client", "run", f"--proxy={text}")
        assert done.returncode == 2 and "geheim" not in done.stderr
        assert "begins with http:// or https://" in done.stderr


def test_a_service_does_not_get_the_proxy_of_the_shell(joined: Shell) -> None:
    environ = {
        "HTTPS_PROXY": "http://u:geheim@proxy:3128",
        "FABRIC_NODE_PAUSE_ON_BATTERY": "",
        "FABRIC_NODE_DATA": "",
    }
    words = ("fabric-client", "install-service", "--user", "--dry-run")
    done = joined.call(*words, environ=environ)
    assert done.returncode == 2
    assert "would not get HTTPS_PROXY" in done.stderr
    (joined.node_data / "fabric.toml").write_text('proxy = "http://u:geheim@proxy:3128"\n')
    done = joined.call(*words, environ=environ)
    assert done.returncode == 0, done.stderr
    assert "geheim" not in done.stdout


def test_a_hanging_engine_ends_with_the_check(joined: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        began = time.monotonic()
        code, found = doctor(joined, f"--engine=http://127.0.0.1:{hanging.getsockname()[1]}")
    assert code == 1
    assert "did not respond" in found["engine_down"]["what"]
    assert time.monotonic() - began < PATIENCE


def test_lines_are_for_people_and_one_for_each_finding(shell: Shell) -> None:
    done = shell.call("fabric-client", "doctor", "--no-discover")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("FAIL  identity: ")
    assert all(line.startswith(("ok  ", "warn", "FAIL")) for line in lines[:-1]), lines
    assert lines[-1].endswith("good.")
