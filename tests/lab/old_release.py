"""Fabric of an earlier commit, out of the history of this checkout, for tests of compatibility.

Its programs run with this Python and its packages, which have all that the old code imports:

    Process(("fabric_client", "run", …), {**environ, **old_release.environ()}, "registered")
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

from tests.lab.backends import cache, locked

COMMIT = "6c317516fe21edc982d7911901d2b21e829794d1"
"""A commit of 2026-11-21: nodes don't say which process they are, nor what names they can dial."""
ROOT = Path(__file__).parents[2]


class NoHistory(Exception):
    """The commit is not in this checkout; the message says how it gets there."""


def tree() -> Path:
    """Return the folder with the commit's files, from the cache of the tests if it is there.

    Raises ``NoHistory``.
    """
    home = cache() / f"fabric-{COMMIT[:10]}"
    if home.exists():
        return home
    with locked(home.name):
        if not home.exists():
            files = _archive()
            with tempfile.TemporaryDirectory(dir=cache()) as directory:
                work = Path(directory) / "work"
                work.mkdir()
                subprocess.run(("tar", "-x"), cwd=work, input=files, check=True)
                _describe(work)
                work.rename(home)
    return home


def environ() -> dict[str, str]:
    """Return the variables with which ``python -m`` finds the old programs, and no newer ones."""
    return {"PYTHONPATH": str(tree()), "PYTHONSAFEPATH": "1"}


def _archive() -> bytes:
    if shutil.which("git") is None:
        raise NoHistory(f"git is missing, which has to take {COMMIT[:7]} out of the history.")
    done = subprocess.run(("git", "cat-file", "-e", f"{COMMIT}^{{commit}}"), cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip() or "git does not have it"
        raise NoHistory(
            f"commit {COMMIT[:7]} is not in this checkout ({reason}). In a shallow clone, "
            "'git fetch --unshallow' gets it; an unpacked archive has no history, so test in a "
            "clone of the repository."
        )
    return subprocess.run(
        ("git", "archive", COMMIT), cwd=ROOT, capture_output=True, check=True
    ).stdout


def _describe(home: Path) -> None:
    """Write what an installation would know: the old programs look their version up."""
    project = tomllib.loads((home / "pyproject.toml").read_text("utf-8"))["project"]
    name, version = project["name"], project["version"]
    about = home / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8"
    )
