"""``fabric-server nodes drain`` and ``undrain``, and what ``nodes list`` says of nodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import PATIENCE, Shell

ALONE = "--no-discover"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


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
        assert (node["state"], node["online"], node["problem"]) == ("good", False, "offline")
        with shell.start("fabric-client", "run", ALONE):
            listed(shell, lambda node: node["problem"] == "no engine")
            drained = shell.json("fabric-server", "nodes", "drain", node["id"])
            assert (drained["id"], drained["state"]) == (node["id"], "draining")
            assert server.logged("node drained")["node"] == node["id"]
            assert " draining " in shell.ok("fabric-server", "nodes", "list")
            said = shell.ok("fabric-server", "nodes", "undrain", node["id"])
            assert said.endswith("gets work again.\n")
            server.logged("node undrained")
        assert "gets nothing new" in shell.ok("fabric-server", "nodes", "drain", node["id"])
    for command in ("drain", "undrain"):
        wrong = shell.call("fabric-server", "nodes", command, "node_0")
        assert wrong.returncode == 2
        assert "there is no node node_0" in wrong.stderr
