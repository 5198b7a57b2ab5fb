"""Programs started for a benchmark, and ended by the handle of each."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from tests.lab.netlab import NatLab, end, in_namespace

CACHE = Path(os.environ.get("FABRIC_TEST_CACHE") or Path.home() / ".cache" / "fabric-tests")
REPOSITORY = Path(__file__).parents[1]
READY_SECONDS = 30
WATCH_SECONDS = 0.5

T = TypeVar("T")
Command = Sequence[str | Path]


class Site:
    """Where programs run: all on this machine, or the server's and the node's apart in a NatLab.

    Everything started is ended on leaving, last one first, and every folder is removed.
    """

    def __init__(self, lab: NatLab | None = None) -> None:
        self.lab = lab
        self.server_address = lab.server_address if lab else "127.0.0.1"
        """What the node dials."""
        self._stack = ExitStack()

    def start(
        self,
        command: Command,
        *,
        at_node: bool = False,
        environ: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """`options` are Popen's; standard output is discarded unless they say otherwise.

        ``process_group=0`` is for programs that may leave processes behind: all are ended.
        """
        options.setdefault("stdout", subprocess.DEVNULL)
        process: subprocess.Popen[bytes] = subprocess.Popen(
            self._command(command, at_node),
            cwd=REPOSITORY,
            env={**os.environ, **(environ or {})},
            **options,
        )
        if options.get("process_group") == 0:
            self._stack.callback(end_group, process)  # after its leader
        self._stack.callback(end, process)
        return process

    def start_and_read(
        self, command: Command, *, at_node: bool = False
    ) -> tuple[subprocess.Popen[bytes], str]:
        """Starts a program and waits for the first line it prints."""
        process = self.start(command, at_node=at_node, stdout=subprocess.PIPE)
        assert process.stdout is not None
        line = process.stdout.readline().decode().strip()
        if not line:
            raise RuntimeError(f"{command[0]} ended before it was ready; the reason is above")
        return process, line

    def run(
        self,
        command: Command,
        *,
        at_node: bool = False,
        environ: Mapping[str, str] | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> str:
        """What a program prints; RuntimeError when it fails.  `watch` is called now and then."""
        process = self.start(command, at_node=at_node, environ=environ, stdout=subprocess.PIPE)
        while True:
            with suppress(subprocess.TimeoutExpired):
                printed, _ = process.communicate(timeout=WATCH_SECONDS)
                break
            watch()
        if process.returncode:
            named = " ".join([Path(command[0]).name, *map(str, command[1:4])])  # the rest: secrets
            raise RuntimeError(f"{named} failed; the reason is above")
        return printed.decode()

    def enter(self, server: AbstractContextManager[T]) -> T:
        """Something that starts and stops by itself, and before what was started later."""
        return self._stack.enter_context(server)

    def folder(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fabric-bench-")))

    def free_ports(self, count: int) -> list[int]:
        """Ports nobody listens on just now."""
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ports = [listener.getsockname()[1] for listener in listeners]
        for listener in listeners:
            listener.close()
        return ports

    def wait_for_answer(
        self,
        url: str,
        by: subprocess.Popen[bytes],
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        seconds: float = READY_SECONDS,
    ) -> None:
        """Returns when a GET (a POST, if there is a body) from the server's place is answered 200;
        RuntimeError when the process `by` that should answer has ended, or time is up."""

        def watch() -> None:
            if by.poll() is not None:
                program = Path(cast(list[str], by.args)[0]).name
                raise RuntimeError(f"{program} ended before it answered; the reason is above")

        waiter = [sys.executable, "-m", "benchmarks.processes", url]
        environ = {"WAIT_FOR": json.dumps([dict(headers or {}), body, seconds])}
        self.run(waiter, environ=environ, watch=watch)

    def _command(self, command: Command, at_node: bool) -> list[str]:
        words = [str(word) for word in command]
        if self.lab is None:
            return words
        return in_namespace(self.lab.node if at_node else self.lab.server, words)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stack.close()


def end_group(leader: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # none is left
        os.killpg(leader.pid, signal.SIGKILL)


def raise_file_limit() -> None:
    """A thousand streams are more files than a process may usually open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def wait_for_answer(url: str, headers: dict[str, str], body: str | None, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    request = urllib.request.Request(url, body.encode() if body else None, headers)
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError) as problem:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url}: {problem}") from None
            time.sleep(0.05)


if __name__ == "__main__":
    wait_for_answer(sys.argv[1], *json.loads(os.environ["WAIT_FOR"]))
