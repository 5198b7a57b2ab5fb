"""A node that runs reads its settings again: by reload, by SIGHUP, and when its file changes."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.cli.test_offered_models import engine
from tests.client.cli.test_pause import becomes, refused, status
from tests.commands import Program, Shell

LATE = "fri 00:00-00:01"
"""A schedule that almost never is now."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def node(shell: Shell) -> Iterator[Program]:
    with shell.server() as server:
        server.ready()
        token = shell.ok("fabric-server", "nodes", "invite", "--name", "attic").strip()
        shell.ok("fabric-client", "join", token)
        set_to(shell, "discover = false")
        with shell.start("fabric-client", "run") as node:
            becomes(shell, lambda told: told["linked"])
            yield node


def set_to(shell: Shell, *lines: str) -> None:
    (shell.node_data / "fabric.toml").write_text("\n".join(lines) + "\n")


def test_reload_tells_what_it_has_applied(shell: Shell, node: Program) -> None:
    assert shell.ok("fabric-client", "reload") == "No setting has changed.\n"
    with engine() as url:
        set_to(
            shell,
            f'engine = ["{url}"]',
            "slots = 3",
            'upload_limit = "1 MiB"',
            'name = "cellar"',
            'region = "eu-west"',
            'log_level = "debug"',
        )
        told = shell.ok("fabric-client", "reload")
        assert told == "Applied: name, region, engine, discover, slots, upload_limit, log_level.\n"
        told = becomes(shell, lambda told: told["engines"] and told["engines"][0]["slots"])
        assert (told["name"], told["engines"][0]["slots"]) == ("cellar", 3)
        assert node.logged("settings loaded")["applied"] == []
        assert "region" in node.logged("settings loaded")["applied"]
        assert node.logged("registered")["epoch"] == 2
        set_to(shell, "discover = false")
        applied = json.loads(shell.ok("fabric-client", "reload", "--json"))["applied"]
        assert "engine" in applied
        assert (
            becomes(shell, lambda told: told["linked"] and not told["engines"])["name"] == "attic"
        )
    assert node.process.poll() is None


def test_a_hangup_reads_the_settings_and_ends_nothing(shell: Shell, node: Program) -> None:
    node.signal(signal.SIGHUP)
    assert node.logged("settings loaded")["applied"] == []
    set_to(shell, "discover = false", f'schedule = ["{LATE}"]')
    node.signal(signal.SIGHUP)
    assert node.logged("settings loaded")["applied"] == ["schedule"]
    assert LATE in becomes(shell, lambda told: told["paused"])["paused"]
    set_to(shell, "discover = false")
    node.signal(signal.SIGHUP)
    becomes(shell, lambda told: not told["paused"])


def test_a_file_with_an_error_changes_nothing_and_the_error_names_the_setting(
    shell: Shell, node: Program
) -> None:
    set_to(shell, "discover = false", 'name = "cellar"', "slots = 0")
    error = refused(shell.call("fabric-client", "reload"))
    assert re.match(r"fabric-client: slots is 0 in \S+fabric\.toml, but ", error)
    assert "slots is 0" in node.logged("settings not read again: the ones before stay")["reason"]
    set_to(shell, "discover = false")  # status reads the file, too
    assert status(shell)["name"] == "attic"


def test_without_a_node_that_runs_there_is_nothing_to_reload(shell: Shell, node: Program) -> None:
    node.signal(signal.SIGTERM)
    node.exit_code()
    assert "not running" in refused(shell.call("fabric-client", "reload"))


def test_the_unit_reloads_the_node_by_its_command(shell: Shell) -> None:
    del shell.environ["FABRIC_NODE_PAUSE_ON_BATTERY"]  # which the service would not get
    plan = shell.json("fabric-client", "install-service", "--dry-run", "--user")
    (unit,) = [text for path, text in plan["files"].items() if path.endswith(".service")]
    assert re.search(r'^ExecReload=.*"reload"$', unit, re.MULTILINE), unit
