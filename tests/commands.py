"""The programs as processes, each with a command line, an environment and a home."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0
"""Timeout for a program to print or do something, in seconds."""

FREE_PORTS = tuple(f"--{name}-port=0" for name in ("control", "proxy", "public", "api"))


class Shell:
    """Runs our programs with a home of its own and default settings."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.server_data = home / ".fabric" / "server"
        self.node_data = home / ".fabric" / "node"
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
        self.environ.pop("XDG_CONFIG_HOME", None)
        for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
            self.environ.pop(name, None)
        self.environ |= {"HOME": str(home), "COLUMNS": "80"}
        # By default they would be those of a service that is installed on this machine.
        self.environ["FABRIC_SERVER_DATA"] = str(self.server_data)
        self.environ["FABRIC_NODE_DATA"] = str(self.node_data)
        # The machine that runs the tests may be on battery.
        self.environ["FABRIC_NODE_PAUSE_ON_BATTERY"] = "false"

    def call(
        self, *words: str, stdin: str = "", environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end: ``call("fabric-server", "keys", "list")``."""
        return subprocess.run(
            _command(words),
            input=stdin,
            capture_output=True,
            text=True,
            env={**self.environ, **(environ or {})},
            cwd=self.home,
            timeout=PATIENCE,
        )

    def ok(self, *words: str, stdin: str = "") -> str:
        """Run a command that must succeed, and return its output."""
        done = self.call(*words, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def start(self, *words: str, environ: Mapping[str, str] | None = None) -> Program:
        return Program(_command(words), {**self.environ, **(environ or {})}, self.home)

    def server(self, *flags: str) -> Program:
        """Start a server on free ports of loopback; ``ready`` returns them."""
        return self.start(
            "fabric-server",
            "up",
            *FREE_PORTS,
            "--host=::1,127.0.0.1",
            "--address=localhost",
            *flags,
        )


class Program:
    """A running program; killed at the end of the block if it still runs."""

    def __init__(self, command: list[str], environ: Mapping[str, str], directory: Path) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=directory,
        )
        self._lines: dict[str, queue.SimpleQueue[str]] = {}
        self._readers = []
        for name, stream in (("out", self.process.stdout), ("error", self.process.stderr)):
            lines = self._lines[name] = queue.SimpleQueue()
            reader = threading.Thread(target=_read, args=(stream, lines))
            reader.start()
            self._readers.append(reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def line(self) -> str:
        """Return the next line of standard output; empty at its end."""
        return self._lines["out"].get(timeout=PATIENCE)

    def ready(self) -> Any:
        """Return the server's ready message."""
        line = self.line()
        assert line, "".join(self.rest_of_log())
        return json.loads(line)

    def logged(self, event: str) -> Any:
        """Return the next log line with that event."""
        while line := self._lines["error"].get(timeout=PATIENCE):
            if line.startswith("{") and (fields := json.loads(line))["event"] == event:
                return fields
        raise AssertionError(f"the log ended without '{event}'")

    def rest_of_log(self) -> list[str]:
        """Return the rest of standard error, once the program has ended."""
        return list(iter(lambda: self._lines["error"].get(timeout=PATIENCE), ""))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def exit_code(self) -> int:
        return self.process.wait(timeout=PATIENCE)


def _command(words: tuple[str, ...]) -> list[str]:
    program, *rest = words
    return [str(Path(sys.executable).with_name(program)), *rest]


def _read(stream: Any, lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")
