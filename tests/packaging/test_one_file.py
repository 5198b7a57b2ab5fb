"""``fabric-client.pyz``: what runs first in it.  ``make install-test`` runs the whole of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from release import node_main, node_pex

PROGRAM = b"""
import os, sys
def main():
    print(sys.argv[1:], os.environ["PEX"])
    sys.exit(3)
"""
FILES = {"fabric_client/__init__.py": "empty", "fabric_client/__main__.py": "program"}
BLOBS = {"empty": b"", "program": PROGRAM}
OWN = f"{sys.version_info[0]}.{sys.version_info[1]} {node_main.machine()}"


def start(file: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PEX", "XDG_"))}
    command = [sys.executable, "-I", str(file), "run", "--help"]
    return subprocess.run(
        command, env={**environ, "HOME": str(home)}, capture_output=True, text=True, timeout=60
    )


def test_the_packages_of_this_python_are_unpacked_once_and_run(tmp_path: Path) -> None:
    file = tmp_path / "fabric-client.pyz"
    node_pex.write(file, {OWN: FILES, "3.99 elsewhere": {}}, BLOBS)
    cache = tmp_path / ".cache" / "fabric-client"
    for _ in range(2):
        done = start(file, tmp_path)
        assert (done.returncode, done.stderr) == (3, "")
        assert done.stdout == f"['run', '--help'] {file}\n"
        assert len(list(cache.iterdir())) == 1
    assert cache.stat().st_mode & 0o777 == 0o700


def test_another_release_has_files_of_its_own(tmp_path: Path) -> None:
    for number, program in enumerate((PROGRAM, PROGRAM.replace(b"3", b"4"))):
        file = tmp_path / "fabric-client.pyz"
        names = {**FILES, "fabric_client/__main__.py": f"program-{number}"}
        node_pex.write(file, {OWN: names}, {"empty": b"", f"program-{number}": program})
        assert start(file, tmp_path).returncode == 3 + number


def test_a_python_for_which_there_is_nothing_is_told_which_there_are(tmp_path: Path) -> None:
    file = tmp_path / "fabric-client.pyz"
    node_pex.write(file, {"3.99 elsewhere": FILES}, BLOBS)
    done = start(file, tmp_path)
    assert done.returncode == 2
    assert (
        f"nothing for Python {OWN}: it holds the packages for Python 3.99 elsewhere" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".cache").exists()


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    for name in ("one", "two"):
        node_pex.write(tmp_path / name, {OWN: FILES}, BLOBS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
