"""Going to a newer release and back, as docs/install.md says it.

What stands for the newer release is this checkout with another version and one more migration.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from runtime.version import VERSION
from tests.commands import FREE_PORTS
from tests.packaging.checkout import ROOT, build_wheel
from tests.packaging.environment import Installed
from tests.programs import ready, running

NUMBER = len(list((ROOT / "sql").glob("*.sql"))) + 1
LATER = f"{NUMBER:04}_later.sql"
LOCK = "requirements-server.lock"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("old"), LOCK)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("new")
    later = {f"sql/{LATER}": "CREATE TABLE later (id BIGINT NOT NULL PRIMARY KEY);\n"}
    return Installed(home, LOCK, build_wheel(home / "built", version="99.0.0", more=later))


def key_names(installed: Installed, data: Path) -> set[str]:
    done = installed.call("fabric-server", "keys", "list", "--json", f"--data={data}")
    assert done.returncode == 0, done.stderr
    return {key["name"] for key in json.loads(done.stdout)}


def test_an_old_server_refuses_a_newer_store_and_works_with_the_backup(
    old: Installed, new: Installed, tmp_path: Path
) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    assert old.call("fabric-server", "init", f"--data={data}").returncode == 0
    old.call("fabric-server", "keys", "create", "alice", f"--data={data}")
    shutil.copytree(data, backup)
    assert new.call("fabric-server", "db", "migrate", f"--data={data}").returncode == 0
    new.call("fabric-server", "keys", "create", "bob", f"--data={data}")
    assert key_names(new, data) == {"alice", "bob"}

    for words in (("keys", "list"), ("db", "status"), ("up", *FREE_PORTS, "--address=localhost")):
        done = old.call("fabric-server", *words, f"--data={data}")
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        line = done.stderr.splitlines()[-1]
        assert line.startswith("fabric-server: ")
        assert f"the store is of a newer release (migration {LATER}); upgrade this program" in line
        assert "Traceback" not in done.stderr
    assert key_names(new, data) == {"alice", "bob"}, "the refusals changed nothing"

    shutil.rmtree(data)
    shutil.copytree(backup, data)
    assert key_names(old, data) == {"alice"}


def test_a_node_goes_to_a_newer_release_and_back_with_its_key(
    old: Installed, new: Installed, tmp_path: Path
) -> None:
    data, node = tmp_path / "server", tmp_path / "node"
    up = [*FREE_PORTS, "--address=localhost", "--json", f"--data={data}"]
    with running(old.command("fabric-server", "up", *up), old.start) as server:
        ready(server)
        invited = old.call("fabric-server", "nodes", "invite", "--json", f"--data={data}")
        token = json.loads(invited.stdout)["token"]
        assert old.call("fabric-client", "join", token, f"--data={node}").returncode == 0
        for installed, version in ((old, VERSION), (new, "99.0.0"), (old, VERSION)):
            assert installed.call("fabric-client", "--version").stdout.strip() == version
            words = ("fabric-client", "run", "--engine=http://127.0.0.1:1", f"--data={node}")
            with running(installed.command(*words), installed.start) as program:
                program.line_with("registered")
