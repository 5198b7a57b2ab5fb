"""The real programs as processes of their own, as an operator and a node's owner start them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue
from typing import Any

SERVER = (sys.executable, "-m", "fabric_server")
CLIENT = (sys.executable, "-m", "fabric_client")

Start = Callable[..., "subprocess.Popen[bytes]"]


class Program:
    """A running program whose output is read line by line; ended when left."""

    def __init__(self, command: Sequence[str], start: Start = subprocess.Popen) -> None:
        self.process = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines: list[str] = []
        self._queue: Queue[str | None] = Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.decode(errors="replace").rstrip())
        self._queue.put(None)

    def line_with(self, text: str, timeout: float = 30) -> str:
        """The first line from now on that contains ``text``; AssertionError with the output."""
        while True:
            try:
                line = self._queue.get(timeout=timeout)
            except Empty:
                raise AssertionError(f"no {text!r} in time in {self.lines}") from None
            if line is None:
                raise AssertionError(f"ended without {text!r}: {self.lines}")
            self.lines.append(line)
            if text in line:
                return line

    def stop(self) -> int:
        self.process.terminate()
        try:
            code = self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._thread.join(timeout=5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def running(command: Sequence[str], start: Start = subprocess.Popen) -> Iterator[Program]:
    program = Program(command, start)
    try:
        yield program
    finally:
        program.stop()


def ready(server: Program) -> dict[str, Any]:
    """What ``fabric-server up`` says when its ports are open."""
    found: dict[str, Any] = json.loads(server.line_with('"ports"'))
    return found


def told(command: Sequence[str], timeout: float = 60) -> dict[str, Any]:
    """What a command prints with ``--json``."""
    done = subprocess.run(command, capture_output=True, timeout=timeout)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found
