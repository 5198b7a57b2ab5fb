"""``--one-port``, as operators see it: the banner, the ready message, invitations, doctor."""

from __future__ import annotations

import json
import ssl
import sys

from protocol import join
from tests.commands import Program, Shell
from tests.lab.backends import free_port
from tests.server.cli.outcomes import refused, status_of

LOOPBACK = ("--host=127.0.0.1", "--address=localhost")


def one_port(shell: Shell, *flags: str) -> Program:
    return shell.start("fabric-server", "up", "--one-port=0", *LOOPBACK, *flags)


def test_all_numbers_are_the_one_ports_and_nothing_else_is_opened(shell: Shell) -> None:
    with one_port(shell) as server:
        ready = server.ready()
        number = ready["ports"].pop("one")
        assert ready["ports"] == dict.fromkeys(("control", "proxy", "public", "api"), number)
        assert ready["public_url"] == f"https://localhost:{number}/v1"
        assert ready["api_url"] == f"https://server.fabric:{number}"
        assert status_of(f"http://localhost:{number}/v1/models") == 401
        trust = ssl.create_default_context(cafile=str(shell.server_data / "certs" / "ca.pem"))
        assert status_of(ready["public_url"] + "/models", context=trust) == 401
        invited = shell.json("fabric-server", "nodes", "invite")
        assert join.parse(invited["token"]).api_port == number
        assert shell.call("fabric-client", "join", invited["token"]).returncode == 0
        facts = json.loads((shell.node_data / "node.json").read_text())
        assert {facts[f"{name}_port"] for name in ("control", "proxy", "api")} == {number}
        for program in ("fabric-server", "fabric-client"):
            done = shell.call(program, "doctor", "--json")
            found = {one["check"]: one for one in json.loads(done.stdout)}
            for name in ("control port", "proxy port"):
                assert found[name]["level"] == "ok", found
                assert str(number) in found[name]["what"]
        done = shell.call("fabric-server", "doctor", "--json")
        checks = [one["check"] for one in json.loads(done.stdout)]
        assert [one for one in checks if one.endswith(" port")] == [
            *("one port", "control port", "proxy port")
        ]
        if sys.platform == "linux":
            assert listening_of(server.process.pid) == {number}


def listening_of(pid: int) -> set[int]:
    """Return the TCP ports of 127.0.0.1 that a process listens on."""
    import os
    from pathlib import Path

    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except FileNotFoundError:
            continue
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            found.add(int(fields[1].partition(":")[2], 16))
    return found


def test_a_port_that_is_set_too_is_opened_besides(shell: Shell) -> None:
    with one_port(shell, f"--api-port={free_port()}") as server:
        ready = server.ready()
        one, api = ready["ports"]["one"], ready["ports"]["api"]
        assert one != api
        assert ready["api_url"] == f"https://localhost:{api}"
        assert status_of(f"http://localhost:{api}/health/live") == 200
        invited = shell.json("fabric-server", "nodes", "invite")
        assert join.parse(invited["token"]).api_port == one, "where nodes are let out"


def test_check_config_says_which_ports_are_opened(shell: Shell) -> None:
    done = shell.call("fabric-server", "check-config", "--one-port=443", "--json")
    told = {one["name"]: one["value"] for one in json.loads(done.stdout)}
    assert told["one_port"] == "443"
    assert told["control_port"] == told["public_port"] == "none"
    assert "one_port are both 443" in refused(
        shell, "check-config", "--one-port=443", "--public-port=443"
    )
    flags = ("--one-port=443", "--trusted-proxies=10.0.0.0/8", "--proxy-protocol=public")
    assert "public_port is not opened" in refused(shell, "check-config", *flags)
    shell.ok("fabric-server", "check-config", *flags[:2], "--proxy-protocol=one")


def test_the_guard_knows_the_one_port(shell: Shell) -> None:
    text = shell.ok("fabric-server", "guard", "install", "--one-port=443", "--dry-run")
    assert "tcp dport { 443 }" in text
