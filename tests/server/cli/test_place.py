"""Commands in the wrong place, as a mistyped ``--data``: they make nothing and print no key."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from fabric_server.__main__ import app
from fabric_server.cli.endpoints import last_start, remember
from fabric_server.data_directory import remembered_addresses
from fabric_server.net.addresses import own_address
from fabric_server.net.takeover import TakeoverProblem
from fabric_server.pki.certificates import Certificates
from runtime.output import Failure
from runtime.settings import SettingsError
from tests.commands import FREE_PORTS, Shell
from tests.lab.postgres_server import PostgresServer
from tests.server.cli.outcomes import refused

LOOPBACK = ("--host=127.0.0.1",)
ON_THE_STORE = [
    ("keys", "create", "alice"),
    ("keys", "list"),
    ("keys", "set", "key_0", "--requests-per-minute=1"),
    ("keys", "disable", "key_0"),
    ("keys", "enable", "key_0"),
    ("keys", "revoke", "key_0"),
    ("accounts", "create", "acme"),
    ("accounts", "list"),
    ("accounts", "disable", "acme"),
    ("accounts", "enable", "acme"),
    ("nodes", "invite"),
    ("nodes", "list"),
    ("nodes", "drain", "node_0"),
    ("nodes", "undrain", "node_0"),
    ("nodes", "settle", "node_0"),
    ("nodes", "revoke", "node_0"),
    ("db", "status"),
    ("db", "migrate"),
]
ON_THE_DIRECTORY = [("certs", "show"), ("reload",), ("guard", "install", "--dry-run")]


def names(shell: Shell) -> set[str]:
    return set(shell.json("fabric-server", "certs", "show")[1]["names"])


def attempt(*words: str) -> str:
    """Run a command in this process, which is faster; return the sentence with which it ends."""
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, Failure | TakeoverProblem), (words, done)
    assert done.output == ""
    return str(done.exception)


@pytest.mark.parametrize("words", [*ON_THE_STORE, *ON_THE_DIRECTORY], ids=" ".join)
def test_a_command_makes_nothing_where_no_server_has_been(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    typo, empty = tmp_path / "typo", tmp_path / "empty"
    empty.mkdir()
    for directory in (typo, empty):
        said = attempt(*words, f"--data={directory}")
        assert str(directory) in said
        assert "--data" in said
    assert list(tmp_path.iterdir()) == [empty]
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("words", ON_THE_STORE, ids=" ".join)
def test_an_empty_file_is_no_store(tmp_path: Path, words: tuple[str, ...]) -> None:
    certificates = tmp_path / "certs"
    Certificates.open(certificates, now=time.time())
    file = tmp_path / "empty.sqlite"
    file.touch()
    for url in (f"sqlite:///{file}", "sqlite://"):
        said = attempt(*words, f"--store={url}", f"--data={tmp_path}")
        assert "no tables of a server" in said
    assert file.stat().st_size == 0
    assert {one.name for one in tmp_path.iterdir()} == {"certs", file.name}


def test_a_command_says_so_where_no_server_has_been(shell: Shell) -> None:
    assert "typo" in refused(shell, "keys", "create", "alice", "--data=typo")
    assert not (shell.home / "typo").exists()


def test_an_empty_database_of_postgresql_stays_empty(
    shell: Shell, postgres: PostgresServer
) -> None:
    url = postgres.new_database()
    password = url.partition("://")[2].partition("@")[0].partition(":")[2]
    shell.ok("fabric-server", "init", "--data=of-another-store")
    for words in (("keys", "create", "alice"), ("db", "migrate"), ("db", "status")):
        said = refused(shell, *words, f"--store={url}", "--data=of-another-store")
        assert "has no tables of a server" in said
        assert not password or password not in said
    shell.ok("fabric-server", "init", f"--store={url}")
    shell.ok("fabric-server", "keys", "create", "alice", f"--store={url}")


def test_the_consumer_waits_for_the_server_s_tables_and_makes_none(shell: Shell) -> None:
    (shell.home / "empty.sqlite").touch()
    words = ("fabric-consumer", "--store=sqlite:///empty.sqlite", "--bus=kafka://127.0.0.1:1")
    done = shell.call(*words)
    assert done.returncode == 2
    assert "no tables of a server: start the server first" in done.stderr.splitlines()[-1]
    assert (shell.home / "empty.sqlite").stat().st_size == 0
    with shell.start(*words, "--wait-for-backends") as consumer:
        assert "no tables of a server" in consumer.logged("waiting")["reason"]
        shell.ok("fabric-server", "init", "--store=sqlite:///empty.sqlite")
        reasons = (consumer.logged("waiting")["reason"] for _ in range(20))
        assert any("Kafka" in reason for reason in reasons)


def test_a_directory_that_can_not_be_looked_into_is_one_sentence(shell: Shell) -> None:
    said = refused(shell, "keys", "list", f"--data={'x' * 300}")
    assert "can't be read by this user (File name too long)" in said


def test_the_guard_needs_no_data_when_it_is_told_the_ports(shell: Shell) -> None:
    ports = ("--public-port=1", "--api-port=2")
    assert "fabric_guard" in shell.ok("fabric-server", "guard", "install", "--dry-run", *ports)
    assert "--api-port" in refused(shell, "guard", "install", "--dry-run", ports[0])


def test_data_are_made_once_and_kept(shell: Shell) -> None:
    made = shell.json("fabric-server", "init", "--address=fabric.example.org")
    assert made == {
        "data": str(shell.server_data),
        "addresses": ["fabric.example.org"],
        "created": True,
    }
    key = shell.ok("fabric-server", "keys", "create", "alice")
    before = shell.json("fabric-server", "certs", "show")
    assert shell.json("fabric-server", "init") == {**made, "created": False}
    assert shell.json("fabric-server", "certs", "show") == before
    (listed,) = shell.json("fabric-server", "keys", "list")
    assert key.startswith(listed["prefix"])


def test_a_start_beside_a_server_makes_no_data_that_would_mislead_other_commands(
    shell: Shell,
) -> None:
    with shell.server("--data=first") as server:
        ports = server.ready()["ports"]
        flags = [f"--{name}-port={number}" for name, number in ports.items()]
        assert "is taken by another program" in refused(shell, "up", *flags, *LOOPBACK)
        assert not shell.server_data.exists()
        refused(shell, "keys", "create", "alice")


def test_a_second_start_with_the_same_data_tells_what_runs_there(shell: Shell) -> None:
    with shell.server() as server:
        ready = server.ready()
        facts = shell.json("fabric-server", "certs", "show")
        said = refused(shell, "up", *FREE_PORTS, "--address=other.example.org")
        assert str(shell.server_data) in said
        assert f"process {ready['pid']}" in said
        assert ready["public_url"] in said
        assert "--takeover" in said
        assert shell.json("fabric-server", "certs", "show") == facts
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        assert not [line for line in server.rest_of_log() if "broke off" in line]


def test_the_addresses_of_a_start_are_those_of_the_next_one(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=a.example.org", "--address=b.example.org")
    facts = shell.json("fabric-server", "certs", "show")
    for flags, addresses in (
        ((), ["a.example.org", "b.example.org"]),
        (("--address=c.example.org",), ["c.example.org"]),
        ((), ["c.example.org"]),
    ):
        with shell.start("fabric-server", "up", *FREE_PORTS, *LOOPBACK, *flags) as server:
            assert server.ready()["addresses"] == addresses
            assert set(addresses) <= names(shell)
            token = shell.json("fabric-server", "nodes", "invite")
            assert token["host"] == addresses[0]
        if not flags and addresses[0].startswith("a"):
            assert shell.json("fabric-server", "certs", "show") == facts


def test_the_addresses_of_a_release_that_remembered_none_are_kept(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=a.example.org")
    with shell.start("fabric-server", "up", *FREE_PORTS, *LOOPBACK) as server:
        server.ready()
    facts = shell.json("fabric-server", "certs", "show")
    (shell.server_data / "server.json").unlink()
    shell.ok("fabric-server", "init")
    assert remembered_addresses(shell.server_data) == ("a.example.org",)
    assert shell.json("fabric-server", "certs", "show") == facts
    # This machine's own address was nobody's choice: the next start finds it again.
    ready = last_start(shell.server_data)
    assert ready is not None
    own = own_address()
    if own is not None:
        remember(shell.server_data, msgspec.structs.replace(ready, addresses=[own]))
        (shell.server_data / "server.json").unlink()
        shell.ok("fabric-server", "init")
        assert remembered_addresses(shell.server_data) == ()


def test_remembered_addresses_that_can_not_be_read_stop_a_start(
    shell: Shell, tmp_path: Path
) -> None:
    shell.ok("fabric-server", "init", "--address=a.example.org")
    facts = shell.json("fabric-server", "certs", "show")
    (shell.server_data / "server.json").write_text('{"address": "a')
    with pytest.raises(SettingsError, match=r"server\.json is damaged"):
        remembered_addresses(shell.server_data)
    assert "server.json is damaged" in refused(shell, "up", *FREE_PORTS)
    assert shell.json("fabric-server", "certs", "show") == facts
