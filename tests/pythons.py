"""``make test-pythons``: tests of what differs between Pythons, with the oldest and newest found.

Looked for are ``python3`` to ``python3.14`` in PATH and /usr/bin, and the Pythons of pyenv and uv;
``--python`` names others.  A newer Python is passed over: not all packages of the lock file have a
wheel for it.  Each of the two gets a virtual environment in .cache/pythons, with the
versions of the lock file, and runs the rooms below: signals, cancellation and groups of tasks, TLS,
and whole programs.  ``make test`` runs everything with the project's own Python.

Exit codes: 0 all passed, or no other Python was found, which is said; else pytest's of the last one
that failed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
HOMES = ROOT / ".cache" / "pythons"
OLDEST, NEWEST = 11, 14
ROOMS = (
    "tests/runtime/test_background.py",
    "tests/runtime/test_run.py",
    "tests/ledger/test_batch_writer.py",
    "tests/protocol/aio",
    "tests/client/registration",
    "tests/client/cli/test_commands.py::test_a_revoked_node_ends_with_the_reason_and_its_own_exit_code",
    "tests/server/dialects/test_json_scanner.py",
    "tests/server/jobs/test_webhooks.py",
    "tests/end_to_end/test_trust.py",
    "tests/end_to_end/test_node_life.py",
)
ABOUT = "import platform as p; print(p.python_implementation(), p.python_version())"


class Python(NamedTuple):
    path: Path
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


def candidates(home: Path) -> Iterator[Path]:
    """Yield programs that may be a Python, each perhaps more than once."""
    names = ["python3", *(f"python3.{minor}" for minor in range(OLDEST, NEWEST + 1))]
    for name in names:
        found = shutil.which(name)
        if found is not None:
            yield Path(found)
        yield Path("/usr/bin", name)
    for folder in (".pyenv/versions", ".local/share/uv/python"):
        yield from sorted(home.glob(f"{folder}/*/bin/python3"))


def pythons(paths: Iterable[Path]) -> list[Python]:
    """Return the CPythons among ``paths`` from ``OLDEST`` to ``NEWEST``, one of each version."""
    found: dict[tuple[int, ...], Python] = {}
    for path in paths:
        try:
            done = subprocess.run([path, "-c", ABOUT], capture_output=True, text=True, timeout=30)
        except OSError:
            continue  # pyenv's stand-in for a version that is not chosen, or nothing at all
        kind, _, version = done.stdout.strip().partition(" ")
        numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
        fits = (3, OLDEST) <= numbers[:2] <= (3, NEWEST)
        if done.returncode == 0 and kind == "CPython" and fits:
            found.setdefault(numbers, Python(path, numbers))
    return sorted(found.values(), key=lambda python: python.version)


def ends(sorted_pythons: Iterable[Python]) -> list[Python]:
    """Return the oldest and the newest: what differs between Pythons differs between these."""
    every = list(sorted_pythons)
    return every[:1] + every[1:][-1:]


def environment(python: Python) -> Path:
    """Return the interpreter of this Python's environment, made or renewed where necessary."""
    home = HOMES / python.name
    inside = home / "bin" / "python"
    lock = ROOT / "requirements-dev.lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = home / "lock.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return inside
    _run(UV, "venv", "--quiet", "--clear", "--python", python.path, home)
    install = (UV, "pip", "install", "--quiet", "--python", inside)
    _run(*install, "--only-binary", ":all:", "--require-hashes", "-r", lock)
    _run(*install, "--no-index", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    stamp.write_text(wanted)
    return inside


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pythons", description=__doc__)
    parser.add_argument("--python", action="append", type=Path, help="one to use, and no others")
    parser.add_argument("rooms", nargs="*", default=ROOMS, help="what to run instead")
    options = parser.parse_args(words)
    own = tuple(sys.version_info[:3])
    found = pythons(options.python or candidates(Path.home()))
    others = found if options.python else ends(one for one in found if one.version != own)
    minors = {one.version[1] for one in (*found, Python(Path(sys.executable), own))}
    missing = [f"3.{minor}" for minor in range(OLDEST, NEWEST + 1) if minor not in minors]
    if missing:
        print(f"NOT RUN with Python {', '.join(missing)}: not found on this machine.")
    worst = 0
    for python in others:
        print(f"── Python {python.name}, {python.path} ──", flush=True)
        command = [environment(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        parallel = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
        worst = subprocess.run([*command, *parallel, *options.rooms], cwd=ROOT).returncode or worst
    return worst


def _run(*command: str | Path) -> None:
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
