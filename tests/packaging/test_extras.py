"""The wheel with what a node needs, the one with its extra ``server``, and missing extras."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from runtime import extras
from runtime.version import VERSION
from tests.commands import FREE_PORTS
from tests.packaging.checkout import PROJECT, ROOT
from tests.packaging.environment import PINNED, Installed
from tests.programs import ready, running

IMPORTS = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
LOCKS = {
    None: "requirements.lock",
    "server": "requirements-server.lock",
    "full": "requirements-full.lock",
}


def name_of(requirement: str) -> str:
    """Return the name in ``aiokafka[zstd]>=0.12``."""
    return re.split(r"[^\w.-]", requirement)[0]


def own_packages(extra: str) -> set[str]:
    """Return the packages that an extra adds to the smaller one, by the names that are imported."""
    requirements: list[str] = PROJECT["project"]["optional-dependencies"][extra]
    names = {name_of(requirement).replace("-", "_") for requirement in requirements}
    return names - {"inference_fabric"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("node"), LOCKS[None])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("server"), LOCKS["server"])


def test_the_table_of_extras_is_that_of_the_project() -> None:
    for extra in ("server", "acme", "full"):
        table = {package for package, where in extras.EXTRAS.items() if where == extra}
        assert table == own_packages(extra)
    base = {name_of(one).replace("-", "_") for one in PROJECT["project"]["dependencies"]}
    assert not base & set(extras.EXTRAS)


def test_the_lock_files_differ_by_the_extras_alone() -> None:
    pinned = {extra: (ROOT / lock).read_text("utf-8") for extra, lock in LOCKS.items()}
    names = {extra: set(PINNED.findall(text)) for extra, text in pinned.items()}
    assert names[None] < names["server"] < names["full"]
    assert names["server"] - names[None] == {"prometheus-client"}
    assert {"asyncpg", "redis", "aiokafka"} <= names["full"] - names["server"]
    versions = [
        dict(re.findall(r"^([\w.-]+)==([^ ;]+)", text, re.MULTILINE)) for text in pinned.values()
    ]
    for smaller in versions[:2]:
        assert smaller.items() <= versions[2].items()


def test_a_node_joins_and_runs_without_any_extra(node: Installed, server: Installed) -> None:
    assert node.call("python", "-c", IMPORTS, "fabric_client", "protocol").stderr == ""
    for words in (("--help",), ("join", "--help"), ("run", "--help"), ("--version",)):
        assert node.call("fabric-client", *words).returncode == 0
    up = server.command("fabric-server", "up", *FREE_PORTS, "--address=localhost", "--json")
    with running(up, server.start) as running_server:
        ready(running_server)
        invited = server.call("fabric-server", "nodes", "invite", "--json")
        token = json.loads(invited.stdout)["token"]
        joined = node.call("fabric-client", "join", token)
        assert joined.returncode == 0, joined.stderr
        run_node = node.command("fabric-client", "run", "--engine=http://127.0.0.1:1")
        with running(run_node, node.start) as running_node:
            running_node.line_with("registered")
            assert node.call("fabric-client", "status").returncode == 0
    node.pip("check")


@pytest.mark.parametrize(
    "words", [("up",), ("keys", "list"), ("nodes", "invite"), ("check-config",)]
)
def test_a_server_without_its_extra_is_told_the_command(
    node: Installed, words: Sequence[str]
) -> None:
    line = node.refusal("fabric-server", *words)
    assert "prometheus_client" in line
    assert f"-m pip install './inference_fabric-{VERSION}-py3-none-any.whl[server]'" in line
    assert str(node.programs / "python") in line
    assert not (node.home / ".fabric" / "server").exists()


def test_helps_and_versions_need_no_extra(node: Installed) -> None:
    for program in ("fabric-server", "fabric-client", "fabric-consumer"):
        assert node.call(program, "--help").returncode == 0
    for program in ("fabric-server", "fabric-client"):
        assert node.call(program, "--version").stdout.strip() == VERSION


@pytest.mark.parametrize("environment_of", ["node", "server"])
def test_the_consumer_without_its_extra_is_told_the_command(
    environment_of: str, request: pytest.FixtureRequest
) -> None:
    installed: Installed = request.getfixturevalue(environment_of)
    settings = ("--store=postgresql://localhost/fabric", "--bus=kafka://localhost:9092")
    assert ".whl[full]'" in installed.refusal("fabric-consumer", *settings)


@pytest.mark.parametrize(
    ("flag", "package", "what"),
    [
        ("--store=postgresql://fabric:secret@localhost/fabric", "asyncpg", "PostgreSQL"),
        ("--cache=redis://:secret@localhost", "redis", "Redis"),
        ("--cache=redis+cluster://localhost", "redis", "Redis"),
        ("--bus=kafka://localhost:9092", "aiokafka", "Kafka"),
        ("--acme", "acme", "acme"),
    ],
)
def test_what_lacks_its_client_is_named_with_the_extra(
    server: Installed, flag: str, package: str, what: str
) -> None:
    named = ("--acme-agree-terms", "--address=gpu.example.org")
    done = server.call("fabric-server", "up", *FREE_PORTS, flag, "--data=elsewhere", *named)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert line.startswith(f"fabric-server: {flag[2:].partition('=')[0]}")
    assert f"{what} needs the package {package}, which is not installed" in line
    assert f"whl[{extras.EXTRAS[package]}]'" in line


def test_a_command_that_needs_the_cache_only_to_notify_works_without_redis(
    server: Installed,
) -> None:
    server.environ["FABRIC_SERVER_CACHE"] = "redis://localhost"
    try:
        done = server.call("fabric-server", "keys", "create", "alice", "--json")
    finally:
        del server.environ["FABRIC_SERVER_CACHE"]
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key"]["name"] == "alice"


@pytest.mark.parametrize(
    ("receipt", "command"),
    [
        ("uv-receipt.toml", "uv tool install --force"),
        ("pipx_metadata.json", "pipx install --force"),
    ],
)
def test_the_command_is_that_of_the_installer(node: Installed, receipt: str, command: str) -> None:
    file = node.home / "venv" / receipt
    file.touch()
    try:
        assert f": {command} './inference_fabric-" in node.refusal("fabric-server", "up")
    finally:
        file.unlink()


def test_another_missing_module_is_a_defect_and_stays_one() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), extras.needed_by("Redis"):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def test_the_node_imports_no_package_of_an_extra() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["name"].startswith("The node needs no extra")]
    assert set(contract["forbidden_modules"]) == set(extras.EXTRAS)
