"""A real engine for tests: llama-server answering from a tiny model that speaks word salad.

    with LlamaServer() as engine:
        engine.url, engine.model           # chat, completions, embeddings, /v1/models, /props, …

The first use on a machine builds llama-server, which takes minutes; see llama_server.sh.  An
answer ends by itself after 20 tokens or so; with ``{"ignore_eos": true}`` in the request and no
``max_tokens`` it goes on for ever, at some thousand tokens a second, which is what a test of
cancelling wants.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.make_tiny_gguf import tiny_gguf

LISTENING = re.compile(rb"listening on http://[\d.]+:(\d+)")
START_SECONDS = 30
STOP_SECONDS = 2


class LlamaServer:
    """Runs while entered; `stop` and `start` keep the port.  Reports `slots` slots in /props."""

    model = "tiny"

    def __init__(
        self,
        slots: int = 4,
        options: Sequence[str] = (),
        *,
        alias: bool = True,
        embeddings: bool = True,
    ) -> None:
        """Without ``alias`` the engine's name for the model is its file's path."""
        self.embeddings = embeddings
        self.slots = slots
        self.alias = alias
        self.options = options
        """More of the program's own."""
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def busy(self) -> int:
        """Slots that are generating now."""
        with urllib.request.urlopen(f"{self.url}/slots", timeout=5) as answer:
            return sum(slot["is_processing"] for slot in json.load(answer))

    async def idle(self, timeout: float = 5) -> None:
        """Returns when no slot is generating, or raises TimeoutError after `timeout` seconds."""
        await asyncio.to_thread(self._wait_until_idle, time.monotonic() + timeout)

    def _wait_until_idle(self, deadline: float) -> None:
        while self.busy():  # polled: there is no notification
            if time.monotonic() > deadline:
                raise TimeoutError("llama-server is still generating")
            time.sleep(0.01)

    def start(self) -> None:
        command = [program(), "--model", str(tiny_gguf()), "--no-webui"]
        command += ["--alias", self.model] if self.alias else []
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--metrics", "--slots"]
        command += ["--parallel", str(self.slots), "--ctx-size", str(self.slots * 4096)]
        command += ["--threads", "1", "--context-shift"]
        command += ["--embeddings", "--pooling", "mean"] if self.embeddings else []
        command += self.options
        with tempfile.NamedTemporaryFile(prefix="llama-server-") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            self._wait_until_healthy(Path(log.name))

    def _wait_until_healthy(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := LISTENING.search(log.read_bytes()):
                self.port = int(found[1])
                try:
                    with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                        return
                except urllib.error.URLError:
                    pass  # listening, but still loading the model
            time.sleep(0.01)
        self.stop()
        raise RuntimeError(f"llama-server did not start; its log:\n{log.read_text()[-2000:]}")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


def program() -> str:
    """The path of llama-server, built if need be; RuntimeError when that does not succeed."""
    script = Path(__file__).with_name("llama_server.sh")
    done = subprocess.run(
        [script], env={**os.environ, "PYTHON": sys.executable}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError("llama-server could not be built; the reason is above")
    return done.stdout.strip()
