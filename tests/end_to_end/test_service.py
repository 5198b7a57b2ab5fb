"""Server and node as services of a machine with systemd, installed as the documents say."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from release import node_main, node_pex
from tests.lab.systemd_machine import SystemdMachine

PATIENCE = 60.0
CHECKOUT = b"""
import sys
def main():
    sys.path[:0] = ["/opt/checkout", "/opt/packages"]
    for name in [name for name in sys.modules if name.startswith("fabric_client")]:
        del sys.modules[name]
    from fabric_client.__main__ import main
    main()
"""
"""Stands for what the file has packed: the program of this checkout."""
ALICE = 4242
"""Id of a user who is made on that machine."""
pytestmark = pytest.mark.skipif(
    SystemdMachine.why_not() is not None, reason=str(SystemdMachine.why_not())
)


@pytest.fixture(scope="module")
def machine() -> Iterator[SystemdMachine]:
    with SystemdMachine() as machine:
        yield machine


def until(wanted: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not wanted():
        assert time.monotonic() < give_up
        time.sleep(0.2)  # seen from outside: there is no event for it


def is_ready(machine: SystemdMachine) -> bool:
    url = "https://localhost/v1/models"
    done = machine.call(
        *("curl", "--silent", "--cacert", "/var/lib/fabric-server/certs/ca.pem", url)
    )
    return "invalid_api_key" in done.stdout


def test_a_server_on_a_low_port_runs_with_one_capability_and_comes_back_when_it_is_killed(
    machine: SystemdMachine,
) -> None:
    data = "/var/lib/fabric-server"
    machine.run("fabric-server", "init", "--data", data, "--address", "localhost")
    machine.run("tee", f"{data}/fabric.toml", stdin="public_port = 443\n")
    assert "Installed the service" in machine.run("fabric-server", "install-service")
    until(lambda: is_ready(machine))
    assert "Already installed" in machine.run("fabric-server", "install-service")
    first = machine.show("fabric-server", "MainPID", "NRestarts")
    process = machine.run("cat", f"/proc/{first['MainPID']}/status")
    status = dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] != "0"
    assert {status[f"Cap{name}"] for name in ("Prm", "Eff", "Bnd", "Amb")} == {"0000000000000400"}
    assert status["NoNewPrivs"] == "1"
    # A shell finds the data, and what root writes there the service can read.
    key = machine.run("fabric-server", "keys", "create", "alice")
    assert key.startswith("sk-fab-")
    machine.run("systemctl", "kill", "--signal=KILL", "fabric-server")
    until(lambda: machine.show("fabric-server", "NRestarts")["NRestarts"] != first["NRestarts"])
    until(lambda: is_ready(machine))
    assert machine.show("fabric-server", "MainPID")["MainPID"] != first["MainPID"]


def test_a_node_obeys_root_and_is_not_started_again_once_it_is_revoked(
    machine: SystemdMachine,
) -> None:
    token = machine.run("fabric-server", "nodes", "invite")
    machine.run("fabric-client", "join", "-", "--data=/var/lib/fabric-client", stdin=token)
    machine.run("fabric-client", "install-service")
    until(lambda: machine.call("fabric-client", "status").returncode == 0)
    assert machine.run("fabric-client", "pause") == "Paused until 'fabric-client resume'."
    assert machine.run("fabric-client", "resume") == "Resumed."
    (node,) = json.loads(machine.run("fabric-server", "nodes", "list", "--json"))
    machine.run("fabric-server", "nodes", "revoke", node["id"])
    names = ("ActiveState", "NRestarts", "ExecMainStatus")
    until(lambda: machine.show("fabric-client", *names)["ActiveState"] == "failed")
    assert machine.show("fabric-client", *names) == {
        "ActiveState": "failed",
        "NRestarts": "0",
        "ExecMainStatus": "3",
    }


def test_a_user_s_node_is_a_service_of_the_user(machine: SystemdMachine) -> None:
    machine.run("useradd", "--create-home", f"--uid={ALICE}", "alice")
    machine.run("systemctl", "start", f"user@{ALICE}.service")
    # This interpreter may look for its library in a home directory.
    drop_in = "fabric-client.service.d"
    machine.run("cp", "-r", f"/etc/systemd/system/{drop_in}", f"/etc/systemd/user/{drop_in}")
    alice = (
        *("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", "env"),
        *("HOME=/home/alice", f"XDG_RUNTIME_DIR=/run/user/{ALICE}", "USER=alice"),
        "LD_LIBRARY_PATH=/opt/python/lib",
    )
    token = machine.run("fabric-server", "nodes", "invite")
    # The default is the machine's node, which is not hers.
    refused = machine.call(*alice, "fabric-client", "status")
    assert refused.returncode == 2
    assert "sudo" in refused.stderr
    own = "--data=/home/alice/.fabric/node"
    machine.run(*alice, "fabric-client", "join", "-", own, stdin=token)
    said = machine.run(*alice, "fabric-client", "install-service", own)
    assert "with its data in /home/alice/.fabric/node" in said
    until(lambda: machine.call(*alice, "fabric-client", "status").returncode == 0)
    assert machine.run(*alice, "systemctl", "--user", "is-active", "fabric-client") == "active"
    machine.run(*alice, "fabric-client", "uninstall-service")
    told = json.loads(machine.call(*alice, "fabric-client", "status", own, "--json").stdout)
    assert (told["joined"], told["running"]) == (True, False)
    assert machine.run("ls", "/home/alice/.config/fabric") == ""


def test_a_node_of_one_file_unpacks_itself_where_the_service_may_write(
    machine: SystemdMachine, tmp_path: Path
) -> None:
    version = f"Python {sys.version_info[0]}.{sys.version_info[1]}."
    if not machine.call("python3", "--version").stdout.startswith(version):
        pytest.skip("the system's Python is another one than that of the tests")
    file = tmp_path / "fabric-client.pyz"
    target = f"{sys.version_info[0]}.{sys.version_info[1]} {node_main.machine()}"
    names = {"fabric_client/__init__.py": "empty", "fabric_client/__main__.py": "checkout"}
    node_pex.write(file, {target: names}, {"empty": b"", "checkout": CHECKOUT})
    there = "/opt/fabric/fabric-client.pyz"
    text = base64.b64encode(file.read_bytes()).decode()
    machine.run("sh", "-c", f"base64 -d > {there} && chmod 755 {there}", stdin=text)
    token, data = machine.run("fabric-server", "nodes", "invite"), "--data=/var/lib/fabric-file"
    machine.run(there, "join", "-", data, stdin=token)
    machine.run(there, "install-service", data)
    until(lambda: machine.call(there, "status").returncode == 0)
    assert machine.show("fabric-client", "NRestarts") == {"NRestarts": "0"}
    (own,) = machine.run("ls", "/var/cache/fabric-client/").split()
    assert own == "fabric-client"


def test_what_is_uninstalled_leaves_its_data_and_nothing_else(machine: SystemdMachine) -> None:
    for program in ("fabric-client", "fabric-server"):
        assert "still in /var/lib/fabric-" in machine.run(program, "uninstall-service")
        assert "was not installed" in machine.run(program, "uninstall-service")
        assert machine.call("ls", f"/etc/systemd/system/{program}.service").returncode != 0
    assert machine.run("ls", "/etc/fabric") == ""
    assert machine.run("ls", "/var/lib/fabric-client/node.key")
    refused = machine.call("fabric-server", "keys", "list")
    assert refused.returncode == 2
    assert machine.run("fabric-server", "keys", "list", "--data=/var/lib/fabric-server")
