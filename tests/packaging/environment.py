"""Virtual environments that borrow packages from that of the tests: nothing is fetched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.packaging.checkout import PACKAGES, ROOT, build_wheel, run

PINNED = re.compile(r"^([a-z0-9][\w.-]*)(?:\[[^]]*])?==", re.MULTILINE)


def environment(path: Path, lock: str | None = None) -> Path:
    """Make a virtual environment without the project; return the directory of its programs.

    It has what a lock file of this checkout pins, as far as this platform needs it; without
    ``lock`` pip and all that the tests have.
    """
    venv.create(path, with_pip=lock is None, symlinks=True)
    dependencies = path / "dependencies"
    dependencies.mkdir()
    for entry in _all() if lock is None else _pinned(lock):
        (dependencies / entry.name).symlink_to(entry)
    (purelib,) = path.glob("lib/python*/site-packages")
    (purelib / "dependencies.pth").write_text(f"{dependencies}\n")
    return path / "bin"


def environ(home: Path) -> dict[str, str]:
    """Return variables of an environment with nothing of ours, in which pip fetches nothing."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "FABRIC_"))}
    kept |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_COMPILE": "1"}
    return kept | {"HOME": str(home), "COLUMNS": "80"}


class Installed:
    """An environment into which the wheel was installed beside what a lock file pins."""

    def __init__(self, home: Path, lock: str, wheel: Path | None = None) -> None:
        self.home = home
        self.programs = environment(home / "venv", lock)
        self.environ = environ(home)
        self.pip("install", "--quiet", "--no-deps", str(wheel or build_wheel(home / "built")))

    def pip(self, *words: str) -> None:
        """Run the tests' pip on this environment."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.programs / "python")]
        run([*pip, *words], env=self.environ)

    def command(self, *words: str) -> list[str]:
        return [str(self.programs / words[0]), *words[1:]]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            env=self.environ,
            cwd=self.home,
            timeout=60,
        )

    def start(self, command: Sequence[str], **pipes: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=self.environ, cwd=self.home, **pipes)

    def refusal(self, *words: str) -> str:
        """Return the one line with which a command refuses."""
        done = self.call(*words)
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        return line


def _all() -> Iterable[Path]:
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.name not in PACKAGES and not re.match(
            r"(inference_)?fabric-|pip\b|.*\.pth$", entry.name
        ):
            yield entry


def _pinned(lock: str) -> Iterable[Path]:
    entries = set()
    for name in PINNED.findall((ROOT / lock).read_text("utf-8")):
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        for file in found.files or ():
            if file.parts[0] not in ("..", "__pycache__"):
                entries.add(Path(str(found.locate_file(file.parts[0]))))
    assert entries, f"{sys.executable} has nothing of {lock}"
    return entries
