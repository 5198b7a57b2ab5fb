"""``fabric-server keys``."""

from __future__ import annotations

import re
import time

import pytest

from tests.commands import Program, Shell
from tests.server.cli.outcomes import refused, status_of


@pytest.fixture(autouse=True)
def data(shell: Shell) -> None:
    """The data of a server."""
    shell.ok("fabric-server", "init")


def test_a_new_key_is_all_that_standard_output_gets(shell: Shell) -> None:
    done = shell.call("fabric-server", "keys", "create", "laptop")
    assert done.returncode == 0
    assert re.fullmatch(r"sk-fab-[A-Za-z0-9_-]{43}\n", done.stdout)
    assert "laptop" in done.stderr
    assert "not shown again" in done.stderr
    (listed,) = shell.json("fabric-server", "keys", "list")
    assert done.stdout.startswith(listed["prefix"])


def test_keys_are_listed_with_what_they_may_do(shell: Shell) -> None:
    before = time.time()
    made = shell.json(
        *("fabric-server", "keys", "create", "shop [red]", "--account=acme"),
        *("--model=tiny", "--model=qwen3:8b", "--expires=2"),
        *("--requests-per-minute=60", "--tokens-per-minute=1000"),
    )
    assert made["text"].startswith(made["key"]["prefix"])
    management = shell.json("fabric-server", "keys", "create", "boss", "--management")
    assert management["text"].startswith("mk-fab-")
    first, second = shell.json("fabric-server", "keys", "list")
    assert first == made["key"]
    assert second == management["key"]
    assert first["id"].startswith("key_")
    assert first["name"] == "shop [red]"
    assert first["account"] == "acme"
    assert first["models"] == ["tiny", "qwen3:8b"]
    assert (first["requests_per_minute"], first["tokens_per_minute"]) == (60, 1000)
    assert first["management"] is False
    assert first["state"] == "good"
    assert first["created_at"] >= before
    assert abs(first["expires_at"] - first["created_at"] - 2 * 86_400) < 1
    assert first["revoked_at"] is None
    assert (first["failover"], first["reasoning"]) == ("", "")
    assert "hash" not in first
    table = shell.ok("fabric-server", "keys", "list").splitlines()
    assert re.match(
        rf"{first['id']} .*shop \[red\] .*acme .*user .*tiny, qwen3:8b .*good", table[1]
    )
    assert re.match(rf"{second['id']} .*boss .*management .*all .*good", table[2])


def test_a_key_s_policy_is_made_with_it_and_listed(shell: Shell) -> None:
    create = ("fabric-server", "keys", "create", "shop")
    made = shell.json(*create, "--failover", "continue", "--reasoning", "raw")
    assert (made["key"]["failover"], made["key"]["reasoning"]) == ("continue", "raw")
    assert shell.json("fabric-server", "keys", "list") == [made["key"]]
    table = shell.ok("fabric-server", "keys", "list").splitlines()
    assert " failover continue, reasoning raw " in table[1]
    assert (made["key"]["priority"], made["key"]["requests_at_once"]) == ("medium", None)
    more = shell.json(*create, "--priority=low", "--requests-at-once=2")
    assert (more["key"]["priority"], more["key"]["requests_at_once"]) == ("low", 2)


def test_limits_and_policies_of_a_key_that_exists_are_set_and_listed(shell: Shell) -> None:
    made = shell.json("fabric-server", "keys", "create", "shop", "--tokens-per-minute", "9")
    set_ = ("fabric-server", "keys", "set", made["key"]["id"])
    said = shell.ok(*set_, "--requests-per-minute", "60", "--failover", "continue")
    assert said.strip().endswith(": 60 requests/min, 9 tokens/min, failover continue.")
    table = shell.ok("fabric-server", "keys", "list").splitlines()
    assert " 60 requests/min, 9 tokens/min, failover continue " in table[1]
    off = ("--requests-per-minute=none", "--tokens-per-minute=none", "--failover=none")
    shown = shell.json(*set_, *off, "--reasoning=raw")
    assert (shown["requests_per_minute"], shown["tokens_per_minute"]) == (None, None)
    assert (shown["failover"], shown["reasoning"]) == ("", "raw")
    assert "or 'none', not 'many'" in refused(shell, *set_[1:], "--requests-per-minute=many")
    assert "1 to" in refused(shell, *set_[1:], "--requests-per-minute=0")
    assert "nothing to change" in refused(shell, *set_[1:])
    assert "no such key" in refused(shell, "keys", "set", "key_0", "--reasoning=raw")
    said = shell.ok(*set_, "--priority", "high", "--requests-at-once", "4", "--reasoning=none")
    assert said.strip().endswith(": 4 at once, priority high.")
    shown = shell.json(*set_, "--priority=medium", "--requests-at-once=none")
    assert (shown["priority"], shown["requests_at_once"]) == ("medium", None)
    assert "1 to" in refused(shell, *set_[1:], "--requests-at-once=0")
    assert "urgent" in refused(shell, *set_[1:], "--priority=urgent")
    shell.ok("fabric-server", "keys", "revoke", made["key"]["id"])
    assert "was revoked for good" in refused(shell, *set_[1:], "--reasoning=none")


def test_a_key_is_revoked_by_its_id_its_prefix_or_itself(shell: Shell) -> None:
    made = [shell.json("fabric-server", "keys", "create", name) for name in "abc"]
    names = (made[0]["key"]["id"], made[1]["key"]["prefix"], made[2]["text"])
    for one, name in zip(made, names, strict=True):
        assert shell.ok("fabric-server", "keys", "revoke", name).startswith("Revoked key_")
        again = shell.ok("fabric-server", "keys", "revoke", one["key"]["id"])
        assert "was already revoked" in again
    assert {one["state"] for one in shell.json("fabric-server", "keys", "list")} == {"revoked"}
    assert shell.json("fabric-server", "keys", "revoke", names[0])["state"] == "revoked"


def test_keys_that_make_no_sense_are_refused(shell: Shell) -> None:
    assert "no such key" in refused(shell, "keys", "revoke", "key_0")
    assert "name must have 1 to 256" in refused(shell, "keys", "create", "")
    assert "continue" in refused(shell, "keys", "create", "x", "--failover=always")
    told = refused(shell, "keys", "create", "x", "--management", "--reasoning=raw")
    assert "management keys call no models" in told
    assert "lies in the past" in refused(shell, "keys", "create", "x", "--expires=-1")
    assert "management" in refused(shell, "keys", "create", "x", "--management", "--model=m")
    assert "Missing argument 'NAME'" in refused(shell, "keys", "create")
    assert "store: PostgreSQL at postgresql://127.0.0.1:1/fabric can't be reached" in refused(
        shell, "keys", "list", "--store=postgresql://127.0.0.1:1/fabric"
    )
    assert "use sqlite://… or postgresql://…" in refused(shell, "keys", "list", "--store=mysql://x")
    assert shell.json("fabric-server", "keys", "list") == []


def test_a_running_server_knows_new_keys_at_once_and_revoked_ones_no_more_within_a_second(
    shell: Shell, server: Program
) -> None:
    url = server.ready()["local_url"] + "/models"
    made = shell.json("fabric-server", "keys", "create", "short-lived")
    assert status_of(url, made["text"]) == 200
    shell.ok("fabric-server", "keys", "revoke", made["key"]["id"])
    revoked = time.monotonic()
    while status_of(url, made["text"]) == 200:
        assert time.monotonic() - revoked < 1.0
        time.sleep(0.02)  # the server tells nobody that it has noticed
    assert status_of(url, made["text"]) == 401


def test_a_management_key_may_be_for_metrics_only(shell: Shell) -> None:
    create = ("fabric-server", "keys", "create", "prometheus")
    made = shell.json(*create, "--management", "--scope", "metrics")
    assert made["text"].startswith("mk-fab-")
    assert made["key"]["scopes"] == ["metrics"]
    assert shell.json("fabric-server", "keys", "list") == [made["key"]]
    assert " management: metrics " in shell.ok("fabric-server", "keys", "list")
    said = refused(shell, *create[1:], "--management", "--scope", "admin")
    assert said == "there is no scope 'admin', only: metrics."
    assert "management keys only" in refused(shell, *create[1:], "--scope", "metrics")
