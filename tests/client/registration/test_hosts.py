"""The server's names: what it tells, what a node keeps, and in which order the node tries them."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fabric_client.identity import Facts, Identity
from fabric_client.key_files import key_pem
from fabric_server.app.control_plane import dialable_hosts
from fabric_server.pki.ca import DAY, Authority
from protocol import messages
from protocol.messages import MAX_HOSTS, Registered
from runtime.files import write
from tests.client.cli.test_commands import ALONE, becomes
from tests.commands import FREE_PORTS, Shell
from tests.trust import new_key, request_for

GONE = "gone.invalid"
"""Stands for a name that was removed from DNS."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a node that joined at old.example.org."""
    now = time.time()
    authority, key = Authority.make(now), new_key()
    certificate = authority.sign_node(request_for(key), "node_1", now, 30 * DAY)
    write(tmp_path / "node.key", key_pem(key), secret=True)
    write(tmp_path / "node.pem", certificate)
    write(tmp_path / "ca.pem", authority.pem)
    facts = Facts("node_1", "old.example.org", 18081, 17000, 17001)
    write(tmp_path / "node.json", msgspec.json.encode(facts).decode())
    return tmp_path


# ── what a server may tell ────────────────────────────────────────────────────────────────────


def registered(**more: Any) -> dict[str, Any]:
    message = Registered("node_1", 1, b"s", 17001, 2, 15.0, hosts=["a.example.org"])
    return {**msgspec.to_builtins(message, builtin_types=(bytes,)), **more}


@pytest.mark.parametrize(
    "hosts",
    [
        [f"{n}.example.org" for n in range(MAX_HOSTS + 1)],
        ["a" * 254],
        [""],
        ["a b"],
        ["a/b"],
        ["user@a"],
        ["a\n"],
        ["a\0"],
        ["a\x1b[2J"],
        [1],
        "a",
    ],
)
def test_hosts_that_no_server_tells_are_refused(hosts: object) -> None:
    decode = messages.decoder(Registered).decode
    assert decode(msgspec.msgpack.encode(registered())).hosts == ["a.example.org"]
    with pytest.raises(msgspec.MsgspecError):
        decode(msgspec.msgpack.encode(registered(hosts=hosts)))


class Before(msgspec.Struct, frozen=True, tag="registered"):
    """``Registered`` as an earlier release knows it."""

    node_id: str
    epoch: int
    session: bytes
    proxy_port: int
    tunnels: int
    heartbeat_seconds: float


def test_earlier_releases_understand_each_other_and_this_one() -> None:
    new = messages.encode(Registered("node_1", 1, b"s", 17001, 2, 15.0, hosts=["a"]))
    assert msgspec.msgpack.decode(new, type=Before).node_id == "node_1"
    old = msgspec.msgpack.encode(Before("node_1", 1, b"s", 17001, 2, 15.0))
    assert messages.decoder(Registered).decode(old).hosts == []


def test_a_server_tells_the_names_that_its_certificate_has_and_no_more_than_it_may() -> None:
    names = ["GPU.Example.org.", "[2001:db8::1]", "*.example.org", "gpu.example.org", "bücher.de"]
    told = dialable_hosts(names)
    assert told == ("gpu.example.org", "2001:db8::1", "xn--bcher-kva.de")
    many = dialable_hosts([f"{n}.example.org" for n in range(20)])
    assert many == tuple(f"{n}.example.org" for n in range(MAX_HOSTS))
    for hosts in (told, many):
        message = Registered("node_1", 1, b"s", 17001, 2, 15.0, hosts=list(hosts))
        assert messages.decoder(Registered).decode(messages.encode(message)) == message


# ── what a node keeps ─────────────────────────────────────────────────────────────────────────


def test_a_node_keeps_where_it_reached_the_server_what_it_was_told_and_where_it_joined(
    directory: Path,
) -> None:
    identity = Identity.load(directory)
    assert identity.hosts == ("old.example.org",)
    assert identity.learn_hosts("old.example.org", ["new.example.org"]) is True
    assert identity.learn_hosts("old.example.org", ["new.example.org"]) is False
    assert identity.hosts == ("old.example.org", "new.example.org")
    # The old name is gone; then the operator mistypes the new one.
    identity = Identity.load(directory)
    assert identity.hosts == ("old.example.org", "new.example.org")
    identity.learn_hosts("new.example.org", ["typo.example.org"])
    for same in (identity, Identity.load(directory)):
        assert same.host == "new.example.org"
        assert same.hosts == ("new.example.org", "typo.example.org", "old.example.org")


def test_a_node_keeps_the_port_that_was_good_and_the_one_that_it_was_told(directory: Path) -> None:
    identity = Identity.load(directory)
    joined, api = identity.control_port, identity.api_port
    assert identity.control_ports == (joined,)
    assert identity.learn_ports(joined, joined, api) is False
    assert identity.learn_ports(joined, 443, 443) is True
    assert identity.learn_ports(joined, 0, 0) is False, "an older server tells nothing"
    for same in (identity, Identity.load(directory)):
        assert (same.control_ports, same.api_port) == ((joined, 443), 443)
    identity.learn_ports(443, 443, 443)
    for same in (identity, Identity.load(directory)):
        assert (same.control_ports, same.control_port) == ((443,), 443)


def test_a_server_that_tells_nothing_takes_nothing_away(directory: Path) -> None:
    before = (directory / "node.json").read_bytes()
    identity = Identity.load(directory)
    assert identity.learn_hosts("old.example.org", []) is False
    assert (directory / "node.json").read_bytes() == before
    identity.learn_hosts("old.example.org", ["new.example.org"])
    identity.learn_hosts("new.example.org", [])
    assert identity.hosts == ("new.example.org", "old.example.org")


def test_what_a_node_keeps_is_bounded(directory: Path) -> None:
    identity = Identity.load(directory)
    for change in range(30):
        told = [f"{change}-{n}.example.org" for n in range(MAX_HOSTS)]
        identity.learn_hosts(f"reached-{change}.example.org", told)
        assert len(identity.hosts) == MAX_HOSTS + 2
    assert len(json.loads((directory / "node.json").read_text())["hosts"]) == MAX_HOSTS + 1
    assert Identity.load(directory).hosts == identity.hosts


def test_a_host_where_nothing_useful_answers_is_tried_last(directory: Path) -> None:
    identity = Identity.load(directory)
    identity.learn_hosts("old.example.org", ["a", "b"])
    identity.put_last("old.example.org")
    assert identity.hosts == ("a", "b", "old.example.org")
    identity.put_last("forgotten.example.org")
    assert identity.hosts == ("a", "b", "old.example.org")


# ── a node and a server ───────────────────────────────────────────────────────────────────────


def test_a_node_finds_the_server_at_a_name_that_it_was_told(shell: Shell) -> None:
    flags = (*FREE_PORTS, "--host=127.0.0.1", "--address=127.0.0.1")
    with shell.start("fabric-server", "up", *flags) as server:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite", "--address=localhost").strip()
        shell.ok("fabric-client", "join", token)
        with shell.start("fabric-client", "run", ALONE) as node:
            becomes(shell, lambda told: told["linked"])
            node.signal(signal.SIGTERM)
            assert node.exit_code() == 0
        file = shell.node_data / "node.json"
        facts = json.loads(file.read_text())
        assert (facts["host"], facts["hosts"]) == ("localhost", ["localhost", "127.0.0.1"])
        file.write_text(file.read_text().replace("localhost", GONE))
        with shell.start("fabric-client", "run", ALONE) as node:
            told = becomes(shell, lambda told: told["linked"] and told["tunnels"] == 2)
            assert told["server"] == f"127.0.0.1:{facts['control_port']}"
        facts = json.loads(file.read_text())
        assert (facts["host"], facts["hosts"]) == (GONE, ["127.0.0.1"])


def test_a_node_says_of_each_name_why_it_leads_nowhere(shell: Shell) -> None:
    with shell.server() as server:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite").strip()
        shell.ok("fabric-client", "join", token)
    file = shell.node_data / "node.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "hosts": [GONE, "a..b", "a" * 64]}))
    with shell.start("fabric-client", "run", ALONE) as node:
        reason = node.logged("not connected")["reason"]
    assert f"{GONE}: the host name can't be resolved" in reason
    assert "; a..b: " in reason
    assert "localhost: connection refused" in reason
