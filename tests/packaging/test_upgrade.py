"""The upgrade from 0.1.0, whose distribution was called ``fabric``, as docs/operations.md says it.

What stands for 0.1.0 is this checkout, built under the old name and version: it owns the same
packages and commands.
"""

from __future__ import annotations

import re
from pathlib import Path

from runtime.version import VERSION
from tests.packaging.checkout import ROOT, build_wheel, run
from tests.packaging.environment import environ, environment

OWNERS = """
from importlib.metadata import distributions
for one in distributions():
    if any(str(file) == "fabric_server/__main__.py" for file in one.files or ()):
        print(one.metadata["Name"], one.version)
"""


def documented_upgrade() -> list[str]:
    """Return the commands of the section of docs/operations.md, in order."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = text.partition("\n### From 0.1.0\n")[2].partition("\n#")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def test_an_environment_with_0_1_0_is_upgraded_as_documented(tmp_path: Path) -> None:
    programs = environment(tmp_path / "venv")
    variables = environ(tmp_path)

    def call(*command: str) -> str:
        return run([str(programs / command[0]), *command[1:]], env=variables, cwd=tmp_path).strip()

    old = build_wheel(tmp_path / "old", name="fabric", version="0.1.0")
    call("pip", "install", str(old))
    assert call("python", "-c", OWNERS) == "fabric 0.1.0"
    assert call("fabric-server", "--version") == "0.1.0"

    new = build_wheel(tmp_path / "new")
    commands = documented_upgrade()
    assert len(commands) == 2
    for command in commands:
        command = command.replace("/opt/fabric/green/bin", str(programs))
        command = re.sub(r"\./inference_fabric-\S+\.whl", str(new), command)
        run(command, env=variables, cwd=tmp_path)

    assert call("python", "-c", OWNERS) == f"inference-fabric {VERSION}"
    for program in ("fabric-server", "fabric-client"):
        assert call(program, "--version") == VERSION
    assert "Usage: fabric-consumer" in call("fabric-consumer", "--help")
    call("pip", "check")
