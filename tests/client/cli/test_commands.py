"""``fabric-client`` as the owner of a node types it."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric_client.config import Config
from protocol import join
from tests.commands import PATIENCE, Program, Shell

ALONE = "--no-discover"
"""The machine that runs the tests may have an engine."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def server(shell: Shell) -> Iterator[Program]:
    with shell.server() as server:
        server.ready()
        yield server


@pytest.fixture
def token(shell: Shell, server: Program) -> str:
    return shell.ok("fabric-server", "nodes", "invite").strip()


@pytest.fixture
def joined(shell: Shell, token: str) -> None:
    shell.ok("fabric-client", "join", token)


def refused(shell: Shell, *words: str, stdin: str = "", code: int = 2, **environ: str) -> str:
    """The one sentence with which a command that can't be done ends."""
    done = shell.call("fabric-client", *words, stdin=stdin, environ=environ)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert re.fullmatch(r"fabric-client: [^\n]+\n", done.stderr)
    return done.stderr.removeprefix("fabric-client: ").strip()


def status(shell: Shell) -> tuple[int, Any]:
    done = shell.call("fabric-client", "status", "--json")
    return done.returncode, json.loads(done.stdout)


def becomes(shell: Shell, wanted: Callable[[Any], bool]) -> Any:
    """The status, once it is as wanted."""
    give_up = time.monotonic() + PATIENCE
    while not wanted(told := status(shell)[1]):
        assert time.monotonic() < give_up, told
        time.sleep(0.1)  # seen from outside: there is no event for it
    return told


# ── help and settings ─────────────────────────────────────────────────────────────────────────


def test_help_names_every_command_and_setting(shell: Shell) -> None:
    text = shell.ok("fabric-client", "--help")
    for command in ("join", "run", "status"):
        assert f"\n  {command} " in text
    for command in ("join", "run"):
        text = shell.ok("fabric-client", command, "--help")
        for field in dataclasses.fields(Config):
            assert f"\n  --{field.name.replace('_', '-')} " in text


def test_settings_that_do_not_exist_are_refused(shell: Shell) -> None:
    assert "did you mean FABRIC_NODE_SLOTS?" in refused(shell, "run", FABRIC_NODE_SLOT="1")
    assert "slots is '0' in --slots" in refused(shell, "run", "--slots=0")
    assert "nonsense" in refused(shell, "run", "--engine=ftp://nonsense")


# ── join ──────────────────────────────────────────────────────────────────────────────────────


def test_joining_keeps_an_identity_and_tells_what_is_next(shell: Shell, token: str) -> None:
    done = shell.call("fabric-client", "join", token, "--name=attic", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["node_id"].startswith("node_")
    assert told["name"] == "attic"
    assert re.fullmatch(r"localhost:\d+", told["server"])
    assert told["directory"] == str(shell.node_data)
    assert "Joined localhost as node_" in done.stderr
    assert "fabric-client run --name attic" in done.stderr
    assert stat.S_IMODE((shell.node_data / "node.key").stat().st_mode) == 0o600
    assert shell.json("fabric-server", "nodes", "list")[0]["id"] == told["node_id"]


def test_the_token_may_come_from_standard_input_or_the_environment(
    shell: Shell, server: Program
) -> None:
    def another() -> str:
        return shell.ok("fabric-server", "nodes", "invite")

    shell.ok("fabric-client", "join", "-", "--data=a", stdin=another())
    given = {"FABRIC_NODE_TOKEN": another().strip()}
    done = shell.call("fabric-client", "join", "--data=b", environ=given)
    assert done.returncode == 0, done.stderr
    # What is left in the environment is no misspelt setting to the commands after it.
    assert shell.call("fabric-client", "status", "--data=b", environ=given).returncode == 3


def test_a_machine_that_has_joined_joins_again_only_when_told_to(
    shell: Shell, server: Program, joined: None
) -> None:
    before = status(shell)[1]["node_id"]
    token = shell.ok("fabric-server", "nodes", "invite").strip()
    assert "use --replace" in refused(shell, "join", token)
    assert status(shell)[1]["node_id"] == before
    shell.ok("fabric-client", "join", "--replace", token)
    assert status(shell)[1]["node_id"] not in (None, before)


def test_tokens_that_can_not_be_used_are_refused_with_the_reason(
    shell: Shell, server: Program, token: str
) -> None:
    assert "not a join token" in refused(shell, "join", "hello")
    assert "an API key" in refused(shell, "join", "sk-fab-abc")
    assert "is missing" in refused(shell, "join", token[:-20])
    assert "is empty" in refused(shell, "join", "-", stdin="\n")
    assert "give the join token" in refused(shell, "join")
    shell.ok("fabric-client", "join", "--data=other", token)
    assert "already used" in refused(shell, "join", token)
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0
    assert "can't be reached at localhost" in refused(shell, "join", token)
    assert status(shell)[1]["joined"] is False


def test_a_directory_that_can_not_be_made_costs_no_token(shell: Shell, token: str) -> None:
    (shell.home / "file").touch()
    assert "file/node is not writable" in refused(shell, "join", "--data=file/node", token)
    shell.ok("fabric-client", "join", token)


def test_a_server_that_is_not_the_one_that_invited_is_refused(shell: Shell, token: str) -> None:
    right = join.parse(token)
    wrong = join.encode(join.Token(right.host, right.api_port, bytes(32), right.secret))
    assert "not the one that made this token" in refused(shell, "join", wrong)


# ── run and status ────────────────────────────────────────────────────────────────────────────


def test_before_joining_there_is_nothing_to_run(shell: Shell) -> None:
    assert "has not joined" in refused(shell, "run")
    code, told = status(shell)
    assert code == 3
    assert (told["joined"], told["running"], told["linked"]) == (False, False, False)
    assert "fabric-client join" in told["reason"]
    done = shell.call("fabric-client", "status")
    assert done.returncode == 3
    assert "fabric-client join" in done.stdout


def test_status_tells_of_a_node_that_is_linked(shell: Shell, joined: None) -> None:
    began = time.time()
    dead = "openai=http://127.0.0.1:9"
    with shell.start("fabric-client", "run", "--name=attic", f"--engine={dead}") as node:
        told = becomes(shell, lambda told: told["linked"] and told["tunnels"] == 2)
        assert status(shell)[0] == 0
        assert told["running"] is True
        assert told["pid"] == node.process.pid
        assert told["name"] == "attic"
        assert told["node_id"].startswith("node_")
        assert told["server"].startswith("localhost:")
        assert told["reason"] == ""
        assert told["since"] >= began
        assert told["certificate_ends"] > time.time()
        assert (told["active"], told["served"]) == (0, 0)
        (engine,) = told["engines"]
        assert engine["healthy"] is False
        assert engine["problem"]
        assert (engine["name"], engine["kind"], engine["models"]) == ("openai", "openai", [])
        text = shell.ok("fabric-client", "status")
        assert re.search(r"^State +linked for \d+ s, 2 tunnels$", text, re.MULTILINE)
        node.signal(signal.SIGTERM)
        assert node.exit_code() == 0
    code, told = status(shell)
    assert code == 3
    assert (told["joined"], told["running"], told["linked"]) == (True, False, False)


def test_a_node_that_was_killed_is_not_said_to_run(shell: Shell, joined: None) -> None:
    with shell.start("fabric-client", "run", ALONE) as node:
        becomes(shell, lambda told: told["linked"])
        node.process.kill()
        node.process.wait()
        assert status(shell)[1]["running"] is False


def test_status_says_why_a_node_is_not_linked(shell: Shell, server: Program, joined: None) -> None:
    with shell.start("fabric-client", "run", ALONE) as node:
        becomes(shell, lambda told: told["linked"])
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0
        told = becomes(shell, lambda told: not told["linked"])
        assert told["running"] is True
        assert told["reason"]
        done = shell.call("fabric-client", "status")
        assert done.returncode == 3
        assert re.search(r"^State +not linked for \d+ s: .", done.stdout, re.MULTILINE)
        node.signal(signal.SIGINT)
        assert node.exit_code() == 130


def test_one_directory_is_one_node(shell: Shell, joined: None) -> None:
    with shell.start("fabric-client", "run", ALONE):
        becomes(shell, lambda told: told["running"])
        assert "running" in refused(shell, "run")
        token = shell.ok("fabric-server", "nodes", "invite").strip()
        assert "stop it before replacing it" in refused(shell, "join", "--replace", token)


def test_a_revoked_node_ends_with_the_reason_and_its_own_exit_code(
    shell: Shell, joined: None
) -> None:
    with shell.start("fabric-client", "run", ALONE) as node:
        told = becomes(shell, lambda told: told["linked"])
        shell.ok("fabric-server", "nodes", "revoke", told["node_id"])
        assert node.exit_code() == 3
        last = node.rest_of_log()[-1]
        assert last.startswith("fabric-client: ")
        assert "this node was revoked" in last
    assert "this node was revoked" in shell.call("fabric-client", "run", ALONE).stderr


def test_join_and_run_in_one_may_be_repeated_as_containers_do(shell: Shell, token: str) -> None:
    seen = set()
    for _ in range(2):
        given = {"FABRIC_NODE_TOKEN": token}
        with shell.start("fabric-client", "join", "--run", "--json", ALONE, environ=given) as node:
            seen.add(json.loads(node.line())["node_id"])
            becomes(shell, lambda told: told["linked"])
            node.signal(signal.SIGTERM)
            assert node.exit_code() == 0
    assert len(seen) == 1


def test_a_server_that_can_not_be_reached_is_tried_again(shell: Shell, joined: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        number = closed.getsockname()[1]
    facts = json.loads((shell.node_data / "node.json").read_text())
    (shell.node_data / "node.json").write_text(json.dumps({**facts, "control_port": number}))
    with shell.start("fabric-client", "run", ALONE) as node:
        told = node.logged("not connected")
        assert told["reason"] and "again_in" in told  # which may be rounded to 0
        assert status(shell)[1]["linked"] is False


@pytest.mark.parametrize("words", [("pause",), ("resume",), ("drain",), ("run",)], ids=" ".join)
def test_a_command_makes_nothing_where_no_node_has_joined(
    shell: Shell, words: tuple[str, ...]
) -> None:
    said = refused(shell, *words, "--data=typo")
    assert "nothing in typo" in said
    assert "set --data" in said
    assert not (shell.home / "typo").exists()
    assert "nothing in typo" in shell.call("fabric-client", "status", "--data=typo").stdout
    assert not (shell.home / "typo").exists()


def test_a_service_that_is_refused_for_good_ends_with_success_where_that_is_asked(
    shell: Shell, joined: None
) -> None:
    with shell.start("fabric-client", "run", ALONE, "--as-service") as node:
        told = becomes(shell, lambda told: told["linked"])
        shell.ok("fabric-server", "nodes", "revoke", told["node_id"])
        assert node.exit_code() == 0
        assert "this node was revoked" in node.rest_of_log()[-1]
    assert shell.call("fabric-client", "run", "--as-service", "--data=typo").returncode == 0


def test_the_unit_of_a_node_has_its_data_and_a_bound_to_its_restarts(shell: Shell) -> None:
    del shell.environ["FABRIC_NODE_PAUSE_ON_BATTERY"]  # which the service would not get
    plan = shell.json("fabric-client", "install-service", "--dry-run", "--user")
    files = {Path(path).name: text for path, text in plan["files"].items()}
    unit = files["fabric-client.service"]
    assert f'Environment="FABRIC_NODE_DATA={shell.node_data}"' in unit
    assert "RestartPreventExitStatus=2 3" in unit
    assert files["fabric-client.data"] == f"{shell.node_data}\n"
    assert list(shell.home.iterdir()) == []
    said = refused(shell, "install-service", "--dry-run", FABRIC_NODE_SLOTS="3")
    assert "FABRIC_NODE_SLOTS" in said
    del shell.environ["FABRIC_NODE_DATA"]
    (shell.home / ".config" / "fabric").mkdir(parents=True)
    (shell.home / ".config" / "fabric" / "fabric-client.data").write_text(f"{shell.home}/n\n")
    assert f"nothing in {shell.home}/n" in refused(shell, "pause")


def test_a_node_that_is_a_service_is_started_as_one(shell: Shell, token: str) -> None:
    pointer = shell.home / ".config" / "fabric" / "fabric-client.data"
    pointer.parent.mkdir(parents=True)
    pointer.write_text(f"{shell.home}/service\n")
    del shell.environ["FABRIC_NODE_DATA"]
    joined = shell.call("fabric-client", "join", token)
    assert joined.stderr.endswith("Next:  fabric-client install-service\n")
    assert (shell.home / "service" / "node.key").exists()
    assert "'fabric-client install-service'" in shell.call("fabric-client", "status").stdout
    assert (
        "not running"
        not in shell.call("fabric-client", "status", f"--data={shell.node_data}").stdout
    )


def test_the_fingerprint_is_the_one_that_the_operator_sees(shell: Shell, joined: None) -> None:
    certs = json.loads(shell.ok("fabric-server", "certs", "show", "--json"))
    (ca,) = [one["sha256"] for one in certs if one["use"] == "CA of the fabric"]
    mine = json.loads(shell.ok("fabric-client", "fingerprint", "--json"))
    assert [(one["use"].partition(",")[0], len(one["sha256"])) for one in mine] == [
        ("CA of the fabric", 64),
        ("this node", 64),
    ]
    assert mine[0]["sha256"] == ca
    line = f"  sha256   {ca}"
    for program in (("fabric-server", "certs", "show"), ("fabric-client", "fingerprint")):
        assert line in shell.ok(*program).splitlines()
