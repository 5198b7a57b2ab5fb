"""``fabric-server nodes``: invitations, the list, drain and revoke."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from protocol import join
from tests.commands import PATIENCE, Program, Shell
from tests.server.cli.outcomes import refused

ALONE = "--no-discover"


def listed(shell: Shell, wanted: Callable[[Any], bool]) -> Any:
    """The only node, once it is as wanted."""
    give_up = time.monotonic() + PATIENCE
    while True:
        (node,) = shell.json("fabric-server", "nodes", "list")
        if wanted(node):
            return node
        assert time.monotonic() < give_up, node
        time.sleep(0.1)  # seen from outside: there is no event for it


def test_nodes_are_drained_and_undrained_and_the_list_says_so(shell: Shell) -> None:
    with shell.server() as server:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite").strip()
        shell.ok("fabric-client", "join", token)
        node = listed(shell, lambda node: True)
        assert shell.json("fabric-server", "nodes", "show", node["id"]) == {**node, "models": []}
        assert (node["state"], node["online"], node["problem"]) == ("good", False, "offline")
        with shell.start("fabric-client", "run", ALONE):
            listed(shell, lambda node: node["problem"] == "no engine")
            drained = shell.json("fabric-server", "nodes", "drain", node["id"])
            assert (drained["id"], drained["state"]) == (node["id"], "draining")
            assert server.logged("node drained")["node"] == node["id"]
            assert " draining " in shell.ok("fabric-server", "nodes", "list")
            said = shell.ok("fabric-server", "nodes", "undrain", node["id"])
            assert said.endswith("gets requests again.\n")
            server.logged("node undrained")
        assert "gets no new requests" in shell.ok("fabric-server", "nodes", "drain", node["id"])
    assert node["id"] in shell.ok("fabric-server", "nodes", "show", node["id"])
    for command in ("show", "drain", "undrain"):
        wrong = shell.call("fabric-server", "nodes", command, "node_0")
        assert wrong.returncode == 2
        assert "there is no node node_0" in wrong.stderr


def test_an_invitation_can_be_made_before_the_server_has_ever_run(shell: Shell) -> None:
    shell.ok("fabric-server", "init", "--address=fabric.example.org")
    done = shell.call("fabric-server", "nodes", "invite")
    assert done.returncode == 0
    token = join.parse(done.stdout)
    assert (token.host, token.api_port) == ("fabric.example.org", 18081)
    assert "fabric-client join" in done.stderr
    authority = shell.json("fabric-server", "certs", "show")[0]
    assert token.ca_sha256.hex() == authority["sha256"]


def test_an_invitation_names_the_server_as_it_was_last_started(
    shell: Shell, server: Program
) -> None:
    ready = server.ready()
    before = shell.json("fabric-server", "certs", "show")
    made = shell.json("fabric-server", "nodes", "invite", "--name=attic", "--valid=2")
    token = join.parse(made["token"])
    assert (token.host, token.api_port) == ("localhost", ready["ports"]["api"])
    assert (made["host"], made["api_port"]) == (token.host, token.api_port)
    assert made["ca_sha256"] == token.ca_sha256.hex() == ready["ca_sha256"]
    assert made["name"] == "attic"
    assert made["id"].startswith("inv_")
    assert abs(made["expires_at"] - time.time() - 7200) < PATIENCE
    other = shell.json("fabric-server", "nodes", "invite", "--address=10.0.0.9", "--api-port=1")
    assert (other["host"], other["api_port"]) == ("10.0.0.9", 1)
    # The server goes on showing the certificate with the names that it was given.
    assert shell.json("fabric-server", "certs", "show") == before


def test_invitations_that_make_no_sense_are_refused(shell: Shell) -> None:
    shell.ok("fabric-server", "init")
    assert "--valid" in refused(shell, "nodes", "invite", "--valid=0")
    assert "start the server first" in refused(shell, "nodes", "invite", "--api-port=0")


def test_nodes_are_listed_and_revoked(shell: Shell, server: Program) -> None:
    server.ready()
    assert shell.json("fabric-server", "nodes", "list") == []
    token = shell.ok("fabric-server", "nodes", "invite")
    shell.ok("fabric-client", "join", "-", "--name=attic", stdin=token)
    (node,) = shell.json("fabric-server", "nodes", "list")
    assert node["id"].startswith("node_")
    assert (node["name"], node["state"], node["revoked_at"]) == ("attic", "good", None)
    table = shell.ok("fabric-server", "nodes", "list").splitlines()
    assert re.match(rf"{node['id']} +attic +good ", table[1])
    assert shell.ok("fabric-server", "nodes", "revoke", node["id"]).startswith("Revoked")
    assert "already" in shell.ok("fabric-server", "nodes", "revoke", node["id"])
    assert shell.json("fabric-server", "nodes", "list")[0]["state"] == "revoked"
    assert "there is no node node_0" in refused(shell, "nodes", "revoke", "node_0")
