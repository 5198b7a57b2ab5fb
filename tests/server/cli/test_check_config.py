"""Settings on the command line, in the environment and in files; ``check-config`` and help."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from fabric_server.config import Config
from runtime.version import VERSION
from tests.commands import Shell
from tests.server.cli.outcomes import refused


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
    assert shell.ok("fabric-server", "--version") == f"{VERSION}\n"


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


def test_check_config_shows_the_connections_that_this_machine_allows(shell: Shell) -> None:
    done = shell.call("fabric-server", "check-config", "--api-connections=9", "--json")
    told = {one["name"]: (one["value"], one["source"]) for one in json.loads(done.stdout)}
    assert told["api_connections"] == ("9", "--api-connections")
    for name in ("connections", "connections_per_address", "node_connections"):
        value, source = told[name]
        assert int(value) > 0
        assert source.startswith("ulimit -n ")
    huge = shell.ok("fabric-server", "check-config", "--connections=999999999")
    assert re.search(r"^connections +\d{1,8} +ulimit -n \d+ *$", huge, re.MULTILINE)


def test_proxies_and_origins_are_checked(shell: Shell) -> None:
    for flag, reason in (
        ("--trusted-proxies=example.org", "use one such as 10.0.0.0/8"),
        ("--proxy-protocol=public", "trusted_proxies is empty"),
        ("--plaintext-from-proxies", "trusted_proxies is empty"),
        ("--cors-origins=chat.example.org", "use one such as https://"),
    ):
        assert reason in refused(shell, "check-config", flag)
    both = ("--trusted-proxies=10.0.0.0/8", "--proxy-protocol=publik")
    assert "'publik' is no port" in refused(shell, "check-config", *both)


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
