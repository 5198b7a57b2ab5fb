"""``fabric-server install-service``, without installing: its dry run and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fabric_server.__main__ import app
from fabric_server.data_directory import has_authority
from fabric_server.pki.certificates import Certificates
from runtime.output import Failure
from tests.commands import Shell


@pytest.fixture
def environ(shell: Shell) -> dict[str, str | None]:
    return {"HOME": str(shell.home), "XDG_CONFIG_HOME": None, "FABRIC_SERVER_DATA": None}


def call(environ: dict[str, str | None], *words: str) -> Result:
    return CliRunner().invoke(app, words, env=environ)


def planned(environ: dict[str, str | None], *words: str) -> dict[str, str]:
    done = call(environ, "install-service", "--dry-run", "--json", *words)
    assert done.exit_code == 0, done
    plan = json.loads(done.stdout)
    assert plan["commands"][0].endswith("daemon-reload")
    return {Path(path).name: text for path, text in plan["files"].items()}


def test_a_unit_has_the_data_and_a_privilege_only_for_low_ports(
    environ: dict[str, str | None],
) -> None:
    files = planned(environ, "--system", "--data=/var/lib/fabric-test")
    assert set(files) == {"fabric-server.service", "fabric-server.data"}
    unit = files["fabric-server.service"]
    assert 'Environment="FABRIC_SERVER_DATA=/var/lib/fabric-test"' in unit
    assert "AmbientCapabilities" not in unit
    assert files["fabric-server.data"] == "/var/lib/fabric-test\n"


@pytest.mark.parametrize("name", ["public_port", "one_port"])
def test_the_settings_file_decides_on_the_privilege_and_its_secrets_stay_there(
    environ: dict[str, str | None], tmp_path: Path, name: str
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(f'{name} = 443\nstore = "postgresql://u:geheim@db/f"\n')
    files = planned(environ, "--system", "--data=/var/lib/fabric-test", f"--config={file}")
    unit = files["fabric-server.service"]
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in unit
    assert f'Environment="FABRIC_SERVER_CONFIG={file}"' in unit
    assert "geheim" not in unit


def test_a_user_s_service_keeps_the_user_s_data(
    shell: Shell, environ: dict[str, str | None]
) -> None:
    files = planned(environ, "--user")
    assert files["fabric-server.data"] == f"{shell.server_data}\n"
    assert "WantedBy=default.target" in files["fabric-server.service"]
    assert not shell.server_data.exists()


def test_variables_that_the_service_would_not_get_are_refused_by_name(
    environ: dict[str, str | None],
) -> None:
    secret = {"FABRIC_SERVER_STORE": "postgresql://u:geheim@db/f"}
    done = call({**environ, **secret}, "install-service", "--dry-run", "--user")
    assert isinstance(done.exception, Failure)
    assert "FABRIC_SERVER_STORE" in str(done.exception)
    assert "geheim" not in str(done.exception)


def test_data_that_a_system_service_can_not_use_are_not_left_behind(
    shell: Shell, environ: dict[str, str | None]
) -> None:
    Certificates.open(shell.server_data / "certs", now=1.8e9)
    done = call(environ, "install-service", "--dry-run", "--system")
    assert isinstance(done.exception, Failure)
    assert f"mv {shell.server_data} /var/lib/fabric-server" in str(done.exception)


def test_a_user_has_no_say_in_a_user_s_service(environ: dict[str, str | None]) -> None:
    done = call(environ, "install-service", "--dry-run", "--user", "--run-as=fabric")
    assert "--run-as" in str(done.exception)


def test_commands_find_the_data_of_the_installed_service(shell: Shell) -> None:
    del shell.environ["FABRIC_SERVER_DATA"]
    service = shell.home / "service"
    pointer = shell.home / ".config" / "fabric" / "fabric-server.data"
    pointer.parent.mkdir(parents=True)
    pointer.write_text(f"{service}\n")
    shell.environ["XDG_CONFIG_HOME"] = ""
    assert shell.json("fabric-server", "init")["data"] == str(service)
    assert shell.ok("fabric-server", "keys", "create", "alice")
    assert has_authority(service)
    assert not shell.server_data.exists()
    pointer.write_text("nowhere")
    done = shell.call("fabric-server", "keys", "list")
    assert done.returncode == 2
    assert str(pointer) in done.stderr
