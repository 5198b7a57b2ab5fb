"""What the programs import before they do something: a short command doesn't wait for the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import sys
sys.argv = sys.argv[1:]
name = sys.argv[0].replace("-", "_")
main = __import__(f"{name}.__main__", fromlist=["main"]).main
try:
    main()
finally:
    print("modules:", *sys.modules, file=sys.stderr)
"""

CLIENTS = {"acme", "aiohttp", "aiokafka", "asyncpg", "prometheus_client", "redis", "requests"}
"""Packages that take long to import, and that talk with others."""
SLOW = {*CLIENTS, "asyncio", "cryptography", "rich", "ssl"}


def imported(*words: str, home: Path, code: int = 0) -> set[str]:
    """Run a command, and return the modules that it has imported."""
    data = {"FABRIC_SERVER_DATA": str(home / "server"), "FABRIC_NODE_DATA": str(home / "node")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"HOME": str(home), **data},
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.rpartition("modules:")[2].split())


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("program", ["fabric-server", "fabric-client"])
@pytest.mark.parametrize("words", [("--help",), ("--version",), ("no-such-command",)])
def test_a_program_lists_its_commands_without_importing_them(
    tmp_path: Path, program: str, words: tuple[str, ...]
) -> None:
    modules = imported(program, *words, home=tmp_path, code=2 if words[0][0] != "-" else 0)
    name = program.replace("-", "_")
    assert not packages(modules) & SLOW
    assert {one for one in modules if one.startswith(name)} == {name, f"{name}.__main__"}


def test_a_short_command_of_the_node_imports_no_client(tmp_path: Path) -> None:
    modules = imported("fabric-client", "status", home=tmp_path, code=3)
    assert "fabric_client.cli.status" in modules
    assert not packages(modules) & CLIENTS
    assert not {"fabric_client.engines.probes", "fabric_client.supervisor"} & modules


def test_a_command_that_works_on_the_store_imports_what_that_needs(tmp_path: Path) -> None:
    imported("fabric-server", "init", "--address", "localhost", home=tmp_path)
    modules = imported("fabric-server", "keys", "list", "--json", home=tmp_path)
    assert "sqlite3" in modules
    assert not packages(modules) & {*CLIENTS, "cryptography", "rich"}
