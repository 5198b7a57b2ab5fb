"""A node whose network goes away and comes back, in network namespaces with a real kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.lab.netlab import NatLab, run
from tests.programs import CLIENT, SERVER, Program, ready, running, told

BACK_SECONDS = 2.0
"""Time in which a node must be back once its network is; a busy machine gets as much again."""


@pytest.fixture
def lab() -> Iterator[NatLab]:
    if reason := NatLab.why_not():
        pytest.fail(
            "NOT RUN: the only tests of a network that goes away need network namespaces: "
            f"{reason}. Run the tests as root on Linux with iproute2 and nftables."
        )
    with NatLab(delay_ms=25) as lab:
        yield lab


@pytest.fixture
def server(lab: NatLab, tmp_path: Path) -> Iterator[Program]:
    """A server, which a node has joined."""
    data = ["--data", str(tmp_path / "server")]
    up = [*SERVER, "up", *data, "--address", lab.server_address, "--json"]
    with running(up, lab.server_exec) as server:
        ready(server)
        token = told([*SERVER, "nodes", "invite", *data, "--json"])["token"]
        lab.node_run([*CLIENT, "join", token, "--data", str(tmp_path / "node")])
        yield server


def node_of(lab: NatLab, directory: Path) -> AbstractContextManager[Program]:
    data = ["--data", str(directory / "node")]
    return running([*CLIENT, "run", *data, "--no-discover", "--log-json"], lab.node_exec)


@pytest.fixture
def node(lab: NatLab, server: Program, tmp_path: Path) -> Iterator[Program]:
    with node_of(lab, tmp_path) as node:
        node.line_with('"registered"')
        yield node


def seconds_until_registered(node: Program) -> float:
    began = time.monotonic()
    node.line_with('"registered"')
    return time.monotonic() - began


def test_connections_of_an_address_that_is_gone_are_given_up_at_once(
    lab: NatLab, node: Program
) -> None:
    run(["ip", "-n", lab.node, "address", "del", f"{lab.node_address}/24", "dev", "lan"])
    run(["ip", "-n", lab.node, "address", "add", "10.77.1.77/24", "dev", "lan"])
    run(["ip", "-n", lab.node, "route", "add", "default", "via", "10.77.1.1"])
    # Keepalive would take 36 s and more; a second is for the old connections to answer.
    assert seconds_until_registered(node) < 2 * BACK_SECONDS
    assert any("the network has changed" in line for line in node.lines)


def test_connections_that_still_work_are_kept(lab: NatLab, node: Program) -> None:
    cut(lab)
    mend(lab)
    node.line_with("the network has changed")
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        time.sleep(0.1)  # that nothing happens has no event
    with pytest.raises(AssertionError, match="no '\"registered\"' in time"):
        node.line_with('"registered"', timeout=0.1)


def test_a_node_that_waits_for_its_network_registers_when_it_is_there(
    lab: NatLab, server: Program, tmp_path: Path
) -> None:
    cut(lab)
    with node_of(lab, tmp_path) as node:
        node.line_with('"not connected"')
        time.sleep(3.0)  # for the back-off to grow
        mend(lab)
        assert seconds_until_registered(node) < 2 * BACK_SECONDS
        said = [line for line in node.lines if '"not connected"' in line]
        assert len(said) == 1, "one outage, told once"


def cut(lab: NatLab) -> None:
    run(["ip", "-n", lab.node, "link", "set", "lan", "down"])


def mend(lab: NatLab) -> None:
    run(["ip", "-n", lab.node, "link", "set", "lan", "up"])
    run(["ip", "-n", lab.node, "route", "add", "default", "via", "10.77.1.1"])
