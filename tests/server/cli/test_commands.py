"""``fabric-server`` as an operator types it."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import signal
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric_server.config import Config
from protocol import join
from tests.commands import FREE_PORTS, PATIENCE, Program, Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def server(shell: Shell) -> Iterator[Program]:
    with shell.server() as server:
        yield server


def refused(shell: Shell, *words: str, stdin: str = "", **environ: str) -> str:
    """The one sentence with which a command that can't be done ends."""
    done = shell.call("fabric-server", *words, stdin=stdin, environ=environ)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert re.fullmatch(r"fabric-server: [^\n]+\.\n|fabric-server: [^\n]+\n", done.stderr)
    return done.stderr.removeprefix("fabric-server: ").strip()


# ── settings ──────────────────────────────────────────────────────────────────────────────────


def test_help_names_every_command(shell: Shell) -> None:
    text = shell.ok("fabric-server", "--help")
    for command in ("up", "check-config", "keys", "nodes", "certs"):
        assert f"\n  {command} " in text
    done = shell.call("fabric-server")
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: fabric-server")


def test_up_has_a_flag_for_every_setting_and_tells_what_it_prints(shell: Shell) -> None:
    text = shell.ok("fabric-server", "up", "--help")
    for field in dataclasses.fields(Config):
        assert f"\n  --{field.name.replace('_', '-')} " in text
    assert "FABRIC_SERVER_LOG_LEVEL" in text
    assert '"event": "ready"' in text


def test_the_version_is_printed(shell: Shell) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", shell.ok("fabric-server", "--version"))


def test_check_config_tells_each_value_and_where_it_came_from(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('queue_length = 7\nqueue_timeout = 7\nstore = "postgresql://u:secret@db/f"\n')
    done = shell.call(
        *("fabric-server", "check-config", "--config", str(file), "--queue-timeout=9", "--json"),
        environ={"FABRIC_SERVER_BODY_LIMIT": "1MiB", "FABRIC_SERVER_QUEUE_TIMEOUT": "8"},
    )
    told = {one["name"]: (one["value"], one["source"]) for one in json.loads(done.stdout)}
    assert list(told) == [field.name for field in dataclasses.fields(Config)]
    assert told["queue_length"] == ("7", str(file))
    assert told["queue_timeout"] == ("9 s", "--queue-timeout")
    assert told["body_limit"] == ("1 MiB", "FABRIC_SERVER_BODY_LIMIT")
    assert told["tunnels"] == ("2", "default")
    assert told["store"] == ("postgresql://u:***@db/f", str(file))
    table = shell.ok("fabric-server", "check-config")
    assert re.search(r"^public_port +18080 +default *$", table, re.MULTILINE)


def test_a_settings_file_beside_the_data_is_read_without_being_named(shell: Shell) -> None:
    shell.server_data.mkdir(parents=True)
    (shell.server_data / "fabric.toml").write_text("queue_length = 3\n")
    assert re.search(r"queue_length +3 ", shell.ok("fabric-server", "check-config"))
    elsewhere = shell.ok("fabric-server", "check-config", "--data", str(shell.home / "other"))
    assert not re.search(r"queue_length +3 ", elsewhere)


def test_lists_are_given_by_commas_or_again(shell: Shell) -> None:
    text = shell.ok("fabric-server", "check-config", "--address=a.org,b.org", "--address=c.org")
    assert "a.org, b.org, c.org" in text


def test_settings_that_do_not_exist_are_refused_wherever_they_stand(
    shell: Shell, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("publik_port = 1\n")
    for command in ("up", "check-config"):
        said = refused(shell, command, "--config", str(file))
        assert said.startswith("publik_port in ")
        assert "did you mean public_port?" in said
        said = refused(shell, command, FABRIC_SERVER_PUBLIK_PORT="1")
        assert "did you mean FABRIC_SERVER_PUBLIC_PORT?" in said
        said = refused(shell, command, "--publik-port=1")
        assert said.startswith("No such option: --publik-port")
        assert said.endswith(f"See 'fabric-server {command} --help'.")


def test_values_that_do_not_fit_are_refused(shell: Shell) -> None:
    assert refused(shell, "up", "--public-port=http").startswith(
        "public_port is 'http' in --public-port, but it must be a whole number from 0 to 65535"
    )
    assert "are both 18081" in refused(shell, "check-config", "--public-port=18081")
    assert refused(shell, "up", "--config=nowhere.toml").startswith("There is no settings file")


# ── up ────────────────────────────────────────────────────────────────────────────────────────


def test_up_says_in_one_line_how_it_is_reached(shell: Shell, server: Program) -> None:
    ready = server.ready()
    assert list(ready["ports"]) == ["control", "proxy", "public", "api"]
    assert len({*ready["ports"].values(), 0}) == 5
    assert ready["event"] == "ready"
    assert ready["pid"] == server.process.pid
    assert ready["data"] == str(shell.server_data)
    assert ready["addresses"] == ["localhost"]
    assert ready["public_url"] == f"https://localhost:{ready['ports']['public']}/v1"
    assert ready["local_url"] == f"http://localhost:{ready['ports']['public']}/v1"
    assert ready["api_url"] == f"https://localhost:{ready['ports']['api']}"
    facts = shell.json("fabric-server", "certs", "show")
    assert ready["ca_sha256"] == facts[0]["sha256"]
    assert status_of(ready["local_url"] + "/models") == 401
    trust = ssl.create_default_context(cafile=facts[0]["path"])
    assert status_of(ready["public_url"] + "/models", context=trust) == 401
    assert status_of(ready["api_url"] + "/health/live", context=trust) == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_up_ends_by_signals(server: Program, number: int, code: int) -> None:
    ready = server.ready()
    server.signal(number)
    assert server.exit_code() == code
    assert server.logged("stopped")
    with pytest.raises(urllib.error.URLError):
        status_of(ready["local_url"] + "/models")


def test_up_loads_certificates_again_when_hung_up_on(server: Program) -> None:
    server.ready()
    server.signal(signal.SIGHUP)
    assert server.logged("certificates loaded")
    server.signal(signal.SIGTERM)
    assert server.exit_code() == 0


def test_up_names_the_port_that_is_taken(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        flags = [*FREE_PORTS, "--host=127.0.0.1", f"--api-port={number}"]
        done = shell.call("fabric-server", "up", *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"fabric-server: api_port {number} on 127.0.0.1 is taken by another program: stop that "
        "one, or set api_port to another number (0 takes any free one)."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--store=postgresql://u:secret@127.0.0.1:1/f", "store: PostgreSQL at "),
        ("--cache=redis://:secret@127.0.0.1:1", "cache: Redis at "),
        ("--bus=kafka://127.0.0.1:1", "bus: Kafka at "),
    ],
)
def test_up_names_the_back_end_that_is_not_there(shell: Shell, flag: str, said: str) -> None:
    done = shell.call("fabric-server", "up", *FREE_PORTS, flag)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"fabric-server: {said}")
    assert "can't be reached" in last
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_up_names_the_directory_that_can_not_be_made(shell: Shell) -> None:
    (shell.home / "file").touch()
    assert "file/server can't be written to" in refused(shell, "up", "--data=file/server")
    assert "file/server" in refused(shell, "keys", "list", "--data=file/server")
    assert "file/server" in refused(shell, "nodes", "invite", "--data=file/server")


def test_up_names_the_certificate_that_is_broken(shell: Shell) -> None:
    certs = shell.server_data / "certs"
    certs.mkdir(parents=True)
    (certs / "ca.pem").write_text("no certificate")
    done = shell.call("fabric-server", "up", *FREE_PORTS)
    assert done.returncode == 2
    assert str(certs) in done.stderr
    assert "Traceback" not in done.stderr


def test_up_tells_people_on_a_terminal_what_to_do_next(shell: Shell) -> None:
    pid, terminal = pty.fork()
    if not pid:
        program = Path(sys.executable).with_name("fabric-server")
        words = [str(program), "up", *FREE_PORTS, "--address=fabric.example.org"]
        os.execve(program, words, {**shell.environ, "FABRIC_SERVER_DATA": str(shell.home / "s")})
    said = read_to(terminal, r"There is no node yet.*\r\n")
    assert re.search(r"public +https://fabric\.example\.org:\d+/v1 ", said)
    assert re.search(r"http://localhost:\d+/v1 .*on this machine", said)
    assert re.search(r"CA +sha256 [0-9a-f]{64}\b", said)
    assert re.search(r"no key yet: .*fabric-server keys create NAME --data \S+/s\b", said)
    assert re.search(r"no node yet: .*fabric-server nodes invite --data \S+/s\b", said)
    os.write(terminal, b"\x03")  # Ctrl-C
    read_to_end(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_up_leaves_when_its_terminal_is_closed(shell: Shell) -> None:
    pid, terminal = pty.fork()
    if not pid:
        program = Path(sys.executable).with_name("fabric-server")
        os.execve(program, [str(program), "up", *FREE_PORTS], shell.environ)
    read_to(terminal, "There is no node yet")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


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
    assert "or 'none'; not 'many'" in refused(shell, *set_[1:], "--requests-per-minute=many")
    assert "1 to" in refused(shell, *set_[1:], "--requests-per-minute=0")
    assert "nothing is to be changed" in refused(shell, *set_[1:])
    assert "no such key" in refused(shell, "keys", "set", "key_0", "--reasoning=raw")
    shell.ok("fabric-server", "keys", "revoke", made["key"]["id"])
    assert "can't be taken back" in refused(shell, *set_[1:], "--reasoning=none")


def test_a_key_is_revoked_by_its_id_its_prefix_or_itself(shell: Shell) -> None:
    made = [shell.json("fabric-server", "keys", "create", name) for name in "abc"]
    names = (made[0]["key"]["id"], made[1]["key"]["prefix"], made[2]["text"])
    for one, name in zip(made, names, strict=True):
        assert shell.ok("fabric-server", "keys", "revoke", name).startswith("Revoked key_")
        again = shell.ok("fabric-server", "keys", "revoke", one["key"]["id"])
        assert "was revoked already" in again
    assert {one["state"] for one in shell.json("fabric-server", "keys", "list")} == {"revoked"}
    assert shell.json("fabric-server", "keys", "revoke", names[0])["state"] == "revoked"


def test_keys_that_make_no_sense_are_refused(shell: Shell) -> None:
    assert "no such key" in refused(shell, "keys", "revoke", "key_0")
    assert "name is 1 to 256" in refused(shell, "keys", "create", "")
    assert "continue" in refused(shell, "keys", "create", "x", "--failover=always")
    told = refused(shell, "keys", "create", "x", "--management", "--reasoning=raw")
    assert "management keys call no models" in told
    assert "expired already" in refused(shell, "keys", "create", "x", "--expires=-1")
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


# ── nodes ─────────────────────────────────────────────────────────────────────────────────────


def test_an_invitation_can_be_made_before_the_server_has_ever_run(shell: Shell) -> None:
    done = shell.call("fabric-server", "nodes", "invite", "--address=fabric.example.org")
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


# ── certificates ──────────────────────────────────────────────────────────────────────────────


def test_certificates_are_shown_once_there_are_some(shell: Shell) -> None:
    assert "no certificates" in refused(shell, "certs", "show")
    shell.ok("fabric-server", "nodes", "invite", "--address=fabric.example.org")
    authority, own = shell.json("fabric-server", "certs", "show")
    assert authority["path"] == str(shell.server_data / "certs" / "ca.pem")
    assert "fabric.example.org" in own["names"]
    assert own["issuer"] == authority["subject"]
    assert own["ends"] > time.time()
    text = shell.ok("fabric-server", "certs", "show")
    assert f"sha256   {authority['sha256']}" in text


# ── helpers ───────────────────────────────────────────────────────────────────────────────────


def status_of(url: str, key: str = "", context: ssl.SSLContext | None = None) -> int:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def read_to(terminal: int, pattern: str) -> str:
    said = ""
    while not re.search(pattern, said):
        readable, _, _ = select.select([terminal], [], [], PATIENCE)
        assert readable, said
        said += os.read(terminal, 4096).decode()
    return said


def read_to_end(terminal: int) -> None:
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # Linux says so when the other side has gone
        pass
    os.close(terminal)
