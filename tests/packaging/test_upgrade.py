"""The upgrade from 0.1.0, whose distribution was called ``fabric``, as docs/operations.md says it.

What stands for 0.1.0 is this checkout, built under the old name and version: it owns the same
packages and commands.
"""

from __future__ import annotations

import os
import re
import sysconfig
import venv
from pathlib import Path

from runtime.version import VERSION
from tests.packaging.checkout import PACKAGES, ROOT, build_wheel, run

OWNERS = """
from importlib.metadata import distributions
for one in distributions():
    if any(str(file) == "fabric_server/__main__.py" for file in one.files or ()):
        print(one.metadata["Name"], one.version)
"""


def environment(path: Path) -> Path:
    """Make a virtual environment that sees what the tests' own has installed, but for the fabric.

    Returns the directory of its programs.
    """
    venv.create(path, with_pip=True, symlinks=True)
    ours = Path(sysconfig.get_paths()["purelib"])
    dependencies = path / "dependencies"
    dependencies.mkdir()
    for entry in ours.iterdir():
        if entry.name not in PACKAGES and not re.match(
            r"(inference_)?fabric-|pip\b|.*\.pth$", entry.name
        ):
            (dependencies / entry.name).symlink_to(entry)
    (purelib,) = path.glob("lib/python*/site-packages")
    (purelib / "dependencies.pth").write_text(f"{dependencies}\n")
    return path / "bin"


def documented_upgrade() -> list[str]:
    """Return the commands of the section of docs/operations.md, in order."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = text.partition("\n### From 0.1.0\n")[2].partition("\n#")[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


def test_an_environment_with_0_1_0_is_upgraded_as_documented(tmp_path: Path) -> None:
    programs = environment(tmp_path / "venv")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    environ |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}
    environ |= {"HOME": str(tmp_path)}

    def call(*command: str) -> str:
        return run([str(programs / command[0]), *command[1:]], env=environ, cwd=tmp_path).strip()

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
        run(command, env=environ, cwd=tmp_path)

    assert call("python", "-c", OWNERS) == f"inference-fabric {VERSION}"
    for program in ("fabric-server", "fabric-client"):
        assert call(program, "--version") == VERSION
    assert "Usage: fabric-consumer" in call("fabric-consumer", "--help")
    call("pip", "check")
