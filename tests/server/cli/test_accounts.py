"""``fabric-server accounts``, and what ``keys`` has to do with them, as an operator types it."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.commands import Shell
from tests.server.cli.outcomes import refused


@pytest.fixture(autouse=True)
def data(shell: Shell) -> None:
    """The data of a server."""
    shell.ok("fabric-server", "init")


def made(shell: Shell, name: str, *flags: str) -> Any:
    return shell.json("fabric-server", "keys", "create", name, *flags)


def states(shell: Shell, *flags: str) -> dict[str, str]:
    keys = shell.json("fabric-server", "keys", "list", *flags)
    return {one["name"]: one["state"] for one in keys}


def test_accounts_are_made_and_listed(shell: Shell) -> None:
    before = time.time()
    said = shell.ok("fabric-server", "accounts", "create", "acme", "--note", "Ada [ops], x@y.org")
    assert said == "Created account “acme”.\n"
    other = shell.json("fabric-server", "accounts", "create", "Big {Co}/Lab")
    first, second = shell.json("fabric-server", "accounts", "list")
    assert first.pop("created_at") >= before
    assert first == {"name": "acme", "note": "Ada [ops], x@y.org", "enabled": True}
    assert second == other
    table = shell.ok("fabric-server", "accounts", "list").splitlines()
    assert re.match(r"acme +good +\d{4}-\d\d-\d\d \d\d:\d\d +Ada \[ops\], x@y.org", table[1])
    assert re.match(r"Big \{Co\}/Lab +good ", table[2])


def test_a_key_makes_its_account(shell: Shell) -> None:
    made(shell, "laptop")
    made(shell, "shop", "--account=acme")
    made(shell, "till", "--account=acme")
    listed = shell.json("fabric-server", "accounts", "list")
    assert [one["name"] for one in listed] == ["default", "acme"]
    assert list(states(shell, "--account=acme")) == ["shop", "till"]
    assert list(states(shell, "--account=default")) == ["laptop"]
    assert states(shell, "--account=nobody") == {}


def test_accounts_that_make_no_sense_are_refused(shell: Shell) -> None:
    shell.ok("fabric-server", "accounts", "create", "acme")
    again = refused(shell, "accounts", "create", "acme")
    assert again == ("the account “acme” exists already: 'fabric-server accounts list' shows all.")
    assert "name must have 1 to 256 printable" in refused(shell, "accounts", "create", "a\tb")
    assert "can't be “..”" in refused(shell, "accounts", "create", "..")
    assert "can't be “.”" in refused(shell, "keys", "create", "laptop", "--account=.")
    assert "note may have" in refused(shell, "accounts", "create", "b", "--note=" + "x" * 1001)
    for command in ("disable", "enable"):
        assert "there is no account “b”" in refused(shell, "accounts", command, "b")
        assert "no such key" in refused(shell, "keys", command, "key_0")
    assert len(shell.json("fabric-server", "accounts", "list")) == 1


def test_a_key_is_disabled_and_enabled_by_its_id_its_prefix_or_itself(shell: Shell) -> None:
    keys = [made(shell, name) for name in "abc"]
    names = (keys[0]["key"]["id"], keys[1]["key"]["prefix"], keys[2]["text"])
    for one, name in zip(keys, names, strict=True):
        named = f"{one['key']['id']}, “{one['key']['name']}”.\n"
        assert shell.ok("fabric-server", "keys", "disable", name) == f"Disabled {named}"
        assert states(shell)[one["key"]["name"]] == "disabled"
        assert shell.ok("fabric-server", "keys", "enable", name) == f"Enabled {named}"
    assert states(shell) == dict.fromkeys("abc", "good")
    told = shell.json("fabric-server", "keys", "disable", names[0])
    assert (told["state"], told["enabled"]) == ("disabled", False)
    assert shell.json("fabric-server", "keys", "enable", names[0])["state"] == "good"


def test_a_revoked_key_can_not_be_enabled_again(shell: Shell) -> None:
    key = made(shell, "laptop")["key"]
    shell.ok("fabric-server", "keys", "revoke", key["id"])
    assert "was already revoked on " in shell.ok("fabric-server", "keys", "disable", key["id"])
    said = refused(shell, "keys", "enable", key["id"])
    assert "was revoked for good on" in said
    assert states(shell) == {"laptop": "revoked"}


def test_whoever_enables_or_makes_a_key_hears_what_still_keeps_it_from_working(
    shell: Shell,
) -> None:
    key = made(shell, "laptop", "--account=acme")["key"]
    said = shell.ok("fabric-server", "accounts", "disable", "acme")
    assert said == "Disabled account “acme”.\n"
    done = shell.call("fabric-server", "keys", "enable", key["id"])
    assert done.returncode == 0
    assert done.stderr == "It is refused while the account “acme” is disabled.\n"
    done = shell.call("fabric-server", "keys", "create", "late", "--account=acme")
    assert re.fullmatch(r"sk-fab-\S{43}\n", done.stdout)
    assert "It is refused while the account “acme” is disabled.\n" in done.stderr
    brief = made(shell, "brief", "--expires=0.000001")["key"]
    while states(shell)["brief"] != "expired":
        time.sleep(0.05)
    done = shell.call("fabric-server", "keys", "enable", brief["id"])
    assert "it expired on " in done.stderr


def test_the_list_shows_every_state(shell: Shell) -> None:
    for name in ("good", "off", "gone"):
        made(shell, name)
    made(shell, "theirs", "--account=acme")
    brief = made(shell, "brief", "--expires=0.000001")
    listed = {one["name"]: one["id"] for one in shell.json("fabric-server", "keys", "list")}
    shell.ok("fabric-server", "keys", "disable", listed["off"])
    shell.ok("fabric-server", "keys", "revoke", listed["gone"])
    account = shell.json("fabric-server", "accounts", "disable", "acme")
    assert (account["name"], account["enabled"]) == ("acme", False)
    assert time.time() > brief["key"]["expires_at"]
    assert states(shell) == {
        "good": "good",
        "off": "disabled",
        "gone": "revoked",
        "theirs": "account_disabled",
        "brief": "expired",
    }
    table = shell.ok("fabric-server", "keys", "list")
    for name, state in {"off": "disabled", "theirs": "account disabled"}.items():
        assert re.search(rf" {name} .* {state} *$", table, re.MULTILINE)
    assert re.search(r"^acme +disabled ", shell.ok("fabric-server", "accounts", "list"), re.M)


def test_a_running_server_obeys_within_a_second(shell: Shell) -> None:
    with shell.server() as server:
        url = server.ready()["local_url"] + "/models"
        new = made(shell, "laptop", "--account=acme")
        for words, code in {
            ("accounts", "disable", "acme"): "account_deactivated",
            ("accounts", "enable", "acme"): "",
            ("keys", "disable", new["key"]["id"]): "invalid_api_key",
            ("keys", "enable", new["key"]["id"]): "",
        }.items():
            shell.ok("fabric-server", *words)
            done = time.monotonic()
            while answer(url, new["text"]) != code:
                assert time.monotonic() - done < 1.0, words
                time.sleep(0.02)  # the server tells nobody that it has noticed
        server.process.terminate()
        log = "".join(server.rest_of_log())
    assert new["text"] not in log


def answer(url: str, key: str) -> str:
    """The code of the error; empty when there is none."""
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(asked, timeout=10):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error)["error"]["code"])
