"""Time the README's commands, from a fresh clone to the first token, in ``make journeys``.

Each command is printed with its seconds.  ``make run`` makes the virtual environment first, which
is timed apart: how long that takes is up to the network and pip's cache.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.code_blocks import ROOT, blocks

MOST_SECONDS = 30


def main() -> int:
    commands = [block.text.strip() for block in blocks("README.md", "Try it")]
    assert commands[0] == "make run", commands
    with tempfile.TemporaryDirectory(prefix="fabric-first-token-") as directory:
        clone = Path(directory) / "fabric"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
        environ.pop("VIRTUAL_ENV", None)
        fetched = timed(
            ["git", "clone", "--quiet", str(ROOT), str(clone)], Path(directory), environ
        )
        made = timed(["make", "--silent", ".venv/.installed"], clone, environ)
        until_token = first_token(clone, environ)
    print(f"{fetched + until_token:.1f} s of commands, at most {MOST_SECONDS}; "
          f"and {made:.1f} s for the virtual environment")  # fmt: skip
    return int(fetched + until_token > MOST_SECONDS)


def timed(command: list[str], directory: Path, environ: dict[str, str]) -> float:
    """Run a command that must succeed, print its seconds, and return them."""
    began = time.monotonic()
    subprocess.run(command, cwd=directory, env=environ, check=True, stdout=subprocess.DEVNULL)
    return told(" ".join(command), began)


def told(what: str, began: float) -> float:
    seconds = time.monotonic() - began
    print(f"{seconds:6.1f} s  {what}", flush=True)
    return seconds


def first_token(clone: Path, environ: dict[str, str]) -> float:
    """Run ``make run`` until its answer's first token, print its seconds, and return them."""
    began = time.monotonic()
    run = subprocess.Popen(
        ["make", "run"], cwd=clone, env=environ, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert run.stdout is not None
        shown = b""
        while not re.search(rb"^> .*\n+.", shown, re.MULTILINE):
            more = os.read(run.stdout.fileno(), 4096)
            if not more:
                raise SystemExit(f"make run ended without an answer:\n{shown.decode()}")
            shown += more
        return told("make run", began)
    finally:
        os.killpg(run.pid, signal.SIGINT)
        run.communicate(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
