"""``make run``: its printed commands work as pasted, and Ctrl-C ends all that it started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fabric_client.owner.process_lock import is_running
from tests.commands import FREE_PORTS, PATIENCE
from tests.engine import ScriptedEngine

HERE = Path(__file__).resolve().parents[2]
PORTS = {
    f"FABRIC_SERVER_{flag[2:-7].upper()}_PORT": "0"
    for flag in FREE_PORTS  # --public-port=0
}
ALONE = {"FABRIC_NODE_DISCOVER": "false"}
"""The machine that runs the tests may have an engine."""


@contextmanager
def make_run(data: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Start it in a process group of its own, as a shell does."""
    virtual = Path(sys.prefix)
    clean = {name: text for name, text in os.environ.items() if not name.startswith("FABRIC_")}
    # What is installed is what the tests run with: nothing is to be installed now.
    installed = f"{virtual}/.installed"
    command = ["make", "-o", installed, "run", f"VENV={virtual}", f"DATA={data}"]
    run = subprocess.Popen(
        command,
        cwd=HERE,
        env={**clean, **PORTS, **ALONE, "PYTHONUNBUFFERED": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGTERM)
        run.communicate(timeout=PATIENCE)


def startup_output(run: subprocess.Popen[str]) -> str:
    """Return its output until everything runs."""
    assert run.stdout is not None
    lines = []
    for line in run.stdout:
        lines.append(line)
        if line.startswith("Running until Ctrl-C"):
            return "".join(lines)
    raise AssertionError("".join(lines))


def interrupt(run: subprocess.Popen[str], data: Path) -> None:
    """Send Ctrl-C, and wait until all processes are gone."""
    pid = json.loads((data / "server" / "ready.json").read_bytes())["pid"]
    assert psutil.pid_exists(pid)
    assert is_running(data / "node")
    os.killpg(run.pid, signal.SIGINT)
    run.wait(timeout=PATIENCE)
    assert not psutil.pid_exists(pid)
    assert not is_running(data / "node")


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert match, text
    return match[1]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is what the printed line is for")
def test_make_run_answers_with_the_demo_and_prints_a_curl_line_that_works(tmp_path: Path) -> None:
    with make_run(tmp_path) as run:
        text = startup_output(run)
        assert "a demo, and\nno language model" in text
        assert found(r"URL +(\S+)$", text).startswith("http://localhost:")
        key = found(r"Key +(sk-fab-\S{43})$", text)
        assert "> Say hello in one short sentence.\nThis is the fabric's built-in echo" in text
        curl = found(r"^  (curl .*?)\n\n", text)
        pasted = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
        assert pasted.stdout.rstrip().endswith("data: [DONE]")
        assert pasted.stdout.count("\ndata: ") > 10
        interrupt(run, tmp_path)
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "key").read_text().strip() == key


def test_make_run_uses_again_what_it_made_before(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with make_run(tmp_path) as run:
            keys.append(found(r"Key +(\S+)$", startup_output(run)))
            interrupt(run, tmp_path)
    assert keys[0] == keys[1]
    # Made anew because what it belonged to is gone:
    shutil.rmtree(tmp_path / "server")
    with make_run(tmp_path) as run:
        assert found(r"Key +(\S+)$", startup_output(run)) != keys[0]
        interrupt(run, tmp_path)


async def test_make_run_asks_the_engine_that_there_is(tmp_path: Path) -> None:
    async with ScriptedEngine() as engine:
        with make_run(tmp_path, FABRIC_NODE_ENGINE=engine.url) as run:
            text = await asyncio.to_thread(startup_output, run)
            assert "demo" not in text
            assert found(r"Model +(\S+)$", text) == "tiny"
            request = await engine.started()
            assert request.json["messages"][0]["content"].startswith("Say hello")
            interrupt(run, tmp_path)


def test_make_run_names_a_port_that_is_taken_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        number = str(other.getsockname()[1])
        with make_run(tmp_path, FABRIC_SERVER_PUBLIC_PORT=number) as run:
            said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 2
    assert f"public_port {number} on 0.0.0.0 is taken by another program" in said
    assert "Traceback" not in said


def test_make_says_what_it_can_do(tmp_path: Path) -> None:
    said = subprocess.run(["make", "help"], cwd=HERE, capture_output=True, text=True, check=True)
    for word in ("run", "test", "check", "fuzz", "bench", "certs", "lock", "clean"):
        assert f"make {word} " in said.stdout


def test_make_says_which_python_it_needs_when_there_is_none(tmp_path: Path) -> None:
    words = ["make", f"VENV={tmp_path / 'venv'}", "PYTHONS=python-there-is-none", "check"]
    done = subprocess.run(words, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("Python 3.11 or newer is needed")
