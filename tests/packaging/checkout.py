"""This checkout: its files as Git would have them, its packages, and wheels built from a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.version import VERSION

ROOT = Path(__file__).parents[2]

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]

_MADE = {"__pycache__", "dist", "build", "node_modules"}


def files(*suffixes: str) -> Iterator[Path]:
    """Yield the files of the checkout with one of these endings, or names: all without any.

    Directories that begin with a dot (.git, .venv, .cache, .fabric) and those that tools make are
    left out, except .ci.
    """
    for directory, names, found in os.walk(ROOT):
        names[:] = [n for n in names if n == ".ci" or not (n.startswith(".") or n in _MADE)]
        for name in found:
            if not suffixes or name.endswith(suffixes):
                yield Path(directory, name)


def build_wheel(
    work: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    more: Mapping[str, str] | None = None,
    compiled: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Path:
    """Build a wheel of a copy of this checkout in ``work``, under another name if one is given.

    ``more`` has the texts of files that the checkout does not have; ``compiled`` names the modules
    that mypyc compiles, instead of those of release/compiled.py.
    ``sys.executable`` builds it with the hatchling that is installed; nothing is fetched.
    """
    source, wheels = work / "source", work / "wheels"
    source.mkdir(parents=True)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("pyproject.toml", "README.md", "LICENSE", "release/compiled.py"):
        (source / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, source / file)
    for file, text in (more or {}).items():
        (source / file).write_text(text, "utf-8")
    if name is not None:
        _replace(source / "pyproject.toml", f'name = "{PROJECT["project"]["name"]}"', name)
    if version is not None:
        _replace(source / "runtime" / "version.py", f'VERSION = "{VERSION}"', version)
    hook = source / "release" / "compiled.py"
    hook.write_text(
        hook.read_text("utf-8").replace(
            "\ndef wanted", f"\nMODULES = {tuple(compiled)}\ndef wanted"
        ),
        "utf-8",
    )
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    environ = {**os.environ, "FABRIC_COMPILE": "1" if compiled else "", **(environ or {})}
    run([*command, str(wheels)], cwd=source, env=environ)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def _replace(file: Path, assignment: str, value: str) -> None:
    text = file.read_text("utf-8")
    assert text.count(assignment) == 1
    left = assignment.partition(" = ")[0]
    file.write_text(text.replace(assignment, f'{left} = "{value}"'), "utf-8")


def run(command: list[str] | str, **options: Any) -> str:
    """Run a command to its end and return what it printed; fail with that if it failed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        shell=isinstance(command, str),
        timeout=120,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout
