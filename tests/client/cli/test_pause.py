"""``fabric-client pause``, ``resume`` and ``drain`` as the owner of a node types them."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.commands import PATIENCE, Program, Shell

ALONE = "--no-discover"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def server(shell: Shell) -> Iterator[Program]:
    with shell.server() as server:
        server.ready()
        yield server


@pytest.fixture
def joined(shell: Shell, server: Program) -> None:
    token = shell.ok("fabric-server", "nodes", "invite").strip()
    shell.ok("fabric-client", "join", token)


@pytest.fixture
def node(shell: Shell, joined: None) -> Iterator[Program]:
    with shell.start("fabric-client", "run", ALONE) as node:
        becomes(shell, lambda told: told["linked"])
        yield node


def status(shell: Shell) -> Any:
    return json.loads(shell.call("fabric-client", "status", "--json").stdout)


def becomes(shell: Shell, wanted: Callable[[Any], bool]) -> Any:
    give_up = time.monotonic() + PATIENCE
    while not wanted(told := status(shell)):
        assert time.monotonic() < give_up, told
        time.sleep(0.1)  # seen from outside: there is no event for it
    return told


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert re.fullmatch(r"fabric-client: [^\n]+\n", done.stderr)
    return done.stderr


def test_pause_and_resume_take_effect_before_they_return(shell: Shell, node: Program) -> None:
    assert status(shell)["paused"] is None
    assert shell.ok("fabric-client", "pause") == "Paused until 'fabric-client resume'.\n"
    assert status(shell)["paused"] == "by its owner"
    assert "Paused  by its owner\n" in shell.ok("fabric-client", "status")
    assert status(shell)["linked"] is True
    control = shell.node_data / "control.json"
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    assert shell.ok("fabric-client", "resume") == "Resumed.\n"
    assert status(shell)["paused"] is None
    assert "Paused" not in shell.ok("fabric-client", "status")


def test_a_pause_may_have_an_end(shell: Shell, node: Program) -> None:
    before = time.time()
    told = shell.json("fabric-client", "pause", "--for=2h")
    assert before + 7200 <= told["until"] <= time.time() + 7200
    assert told["running"] is True
    assert told["paused"].startswith("by its owner until ")
    shell.ok("fabric-client", "pause", "--for=2s")
    becomes(shell, lambda told: told["paused"] is None)


def test_times_that_make_no_sense_are_refused(shell: Shell, joined: None) -> None:
    for wrong in ("soon", "0", "-1h", "9999d", "2 weeks"):
        assert "such as 90m, 2h or 1d" in refused(
            shell.call("fabric-client", "pause", f"--for={wrong}")
        )


def test_a_node_that_does_not_run_remembers_it(shell: Shell, joined: None) -> None:
    assert "not running" in shell.ok("fabric-client", "pause")
    with shell.start("fabric-client", "run", ALONE):
        told = becomes(shell, lambda told: told["linked"])
        assert told["paused"] == "by its owner"
        assert shell.json("fabric-client", "resume")["paused"] is None


def test_resuming_does_not_undo_what_was_set(shell: Shell, joined: None) -> None:
    begin, end = (datetime.now() + timedelta(hours=ahead) for ahead in (2, 4))
    hours = f"{begin:%H:%M}-{end:%H:%M}"
    with shell.start("fabric-client", "run", ALONE, f"--schedule={hours}"):
        becomes(shell, lambda told: told["linked"])
        assert "still paused: outside its hours" in shell.ok("fabric-client", "resume")


def test_settings_about_pausing_are_checked(shell: Shell, joined: None) -> None:
    def wrong(flag: str) -> str:
        return refused(shell.call("fabric-client", "run", flag))

    assert "like 22:00-08:00" in wrong("--schedule=at night")
    assert "from 1 to 99" in wrong("--pause-gpu-percent=100")
    assert "upload_limit" in wrong("--upload-limit=1KiB")


def test_drain_ends_the_node_with_exit_code_0(shell: Shell, node: Program) -> None:
    assert shell.ok("fabric-client", "drain") == "Drained. The node has stopped.\n"
    assert node.exit_code() == 0
    assert status(shell)["running"] is False
    # It was said to that run, not to the next.
    with shell.start("fabric-client", "run", ALONE):
        told = becomes(shell, lambda told: told["linked"])
        assert (told["draining"], told["paused"]) == (False, None)


def test_what_is_not_there_is_not_told(shell: Shell, server: Program) -> None:
    for command in ("pause", "resume", "drain"):
        assert "has not joined" in refused(shell.call("fabric-client", command))
    token = shell.ok("fabric-server", "nodes", "invite").strip()
    shell.ok("fabric-client", "join", token)
    assert "not running" in refused(shell.call("fabric-client", "drain"))


def test_a_control_file_that_is_not_ours_is_one_sentence(shell: Shell, joined: None) -> None:
    (shell.node_data / "control.json").write_text("{")
    assert "delete it" in refused(shell.call("fabric-client", "pause"))


def test_a_name_comes_from_the_invitation_unless_the_owner_gives_one(
    shell: Shell, server: Program
) -> None:
    def joined(*words: str) -> Any:
        token = shell.ok("fabric-server", "nodes", "invite", "--name=attic").strip()
        return shell.json("fabric-client", "join", "--replace", token, *words)

    assert joined("--name=mine")["name"] == "mine"
    assert joined()["name"] == "attic"
    names = [node["name"] for node in shell.json("fabric-server", "nodes", "list")]
    assert names == ["mine", "attic"]
    with shell.start("fabric-client", "run", ALONE):
        assert becomes(shell, lambda told: told["linked"])["name"] == "attic"
    wrong = shell.call("fabric-server", "nodes", "invite", "--name=")
    assert wrong.returncode == 2
    assert "--name must be" in wrong.stderr
