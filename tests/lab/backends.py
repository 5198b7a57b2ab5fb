"""Real back ends for tests: throwaway servers, and the fixtures that hand them out.

    def test_…(postgres, redis_server, kafka):        # one of each for the whole session

    with RedisServer(tmp_path) as redis:              # one of one's own: to kill, pause, restart
        redis.kill()
        redis.start()                                 # same port, same data

A server comes from the programs of this machine.  What is missing is installed where that is
possible (as root, with apt-get); where it is not, tests fail and say what to do.  Each of
``FABRIC_TEST_POSTGRES_URL``, ``FABRIC_TEST_REDIS_URL`` and ``FABRIC_TEST_KAFKA_URL`` names a server
that the fixtures hand out instead.  Tests that harm a server always start one of their own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import psutil
import pytest

if TYPE_CHECKING:  # they are made of what is here, so the fixtures import them when they run
    from tests.lab.kafka_server import KafkaServer
    from tests.lab.ollama import OllamaServer
    from tests.lab.postgres_server import GivenPostgres, PostgresServer
    from tests.lab.redis_server import RedisServer

POLL_SECONDS = 0.01
LOG_END = 3000
APT = ("apt-get", "-qy", "-o", "DPkg::Lock::Timeout=300")

# Linux gives outgoing connections ports from 32768 on.  A port below is not taken by one of them
# while its server is down, and a client that dials it repeatedly can't connect to itself.
# Above are Fabric's own ports; 10000 further, a Redis cluster has its bus.
PORTS = range(19000, 22700)

# The end of its input shows that its parent has ended, for whatever reason.
GUARD = """
import contextlib, sys, psutil
watched = {}
for line in sys.stdin:
    pid = int(line[1:])
    with contextlib.suppress(psutil.NoSuchProcess):
        watched.pop(pid, None) if line[0] == "-" else watched.update({pid: psutil.Process(pid)})
for process in watched.values():
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
"""


class MissingProgram(RuntimeError):
    """A server can't be started here; the text says what to install or to set."""


@dataclass(frozen=True)
class Given:
    """A server that runs already, outside of the tests."""

    url: str


def given(kind: str) -> str | None:
    """The URL of the server to use for ``postgres``, ``redis`` or ``kafka``, if one was named."""
    return os.environ.get(f"FABRIC_TEST_{kind.upper()}_URL") or None


class Daemon:
    """A server as a child process: runs while entered, and ends with this process at the latest.

    `start` returns when the server answers, or raises RuntimeError with the end of its log.  The
    port is the same from then on, and what is in the directory survives everything but the
    directory.  All calls block; none needs to come from the thread that made the other ones.
    """

    name: ClassVar[str]
    start_seconds: ClassVar[float] = 20
    stop_seconds: ClassVar[float] = 10
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    def __repr__(self) -> str:
        pid = self._process.pid if self._process else None
        return f"<{type(self).__name__} port={self.port} pid={pid} log={self.log}>"

    @property
    def log(self) -> Path:
        """What the server printed, in all its lives."""
        return self.directory / f"{self.name}.log"

    @property
    def running(self) -> bool:
        """Started, and neither stopped nor killed since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        assert not self.running, f"{self!r} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prepare()
        with self.log.open("ab") as log:
            self._log_begin = log.tell()
            self._process = self._spawn(stdout=log, stderr=subprocess.STDOUT)
        guard().watch(self._process.pid)
        self._wait_until_ready(time.monotonic() + self.start_seconds)

    def stop(self) -> None:
        """Ends it the polite way; nothing happens if it does not run."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        else:
            self._ended()

    def kill(self) -> None:
        """Ends it and its children with SIGKILL, all at one moment; returns when they are gone."""
        process = self._running()
        root, *children = family = self._halt()
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        # Its children now belong to init; a dead one holds no port and no memory.
        until(lambda: not any(map(alive, children)), 5, f"the children of {root} still live")
        self._ended()

    def pause(self) -> None:
        """Stops it and its children in the middle of what they do: ports open, no answers."""
        self._halt()

    def resume(self) -> None:
        root = psutil.Process(self._running().pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in (*root.children(recursive=True), root):
                one.resume()

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

    # ── what a server adds ──────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        """Comes before each start; makes what is missing in the directory."""

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _ready(self) -> bool:
        """Asked again and again from the start on, also when nothing listens yet."""
        raise NotImplementedError

    def _spawn(self, **options: Any) -> subprocess.Popen[bytes]:
        # In a session of its own, Ctrl-C in a terminal reaches the tests but not their servers.
        return subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, start_new_session=True, **options
        )

    # ── the rest ────────────────────────────────────────────────────────────────────────────────

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self!r} does not run"
        return self._process

    def _wait_until_ready(self, deadline: float) -> None:
        process = self._running()
        while process.poll() is None and time.monotonic() < deadline:
            if self._ready():
                return
            time.sleep(POLL_SECONDS)  # no server reports when it is ready, but Kafka in its log
        code = process.poll()
        if code is None:
            self.kill()
        else:
            self._ended()
        how = f"in {self.start_seconds:g} s" if code is None else f"and ended with {code}"
        raise RuntimeError(
            f"{self.name} did not start {how}; its output:\n{self._output()[-LOG_END:]}"
        )

    def _output(self) -> str:
        """The log since the latest start."""
        with self.log.open("rb") as log:
            log.seek(self._log_begin)
            return log.read().decode(errors="replace")

    def _halt(self) -> list[psutil.Process]:
        """Stops the parent, so that it makes no more children, then those; returns all in order."""
        root = psutil.Process(self._running().pid)
        halt(root)
        children = root.children(recursive=True)
        for child in children:
            halt(child)
        return [root, *children]

    def _ended(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        guard().forget(process.pid)


class Guard:
    """Ends the servers of a process that can't do so itself any more, because it was killed.

    Linux's PR_SET_PDEATHSIG would do with less, but is about the thread that started a server, not
    its process: a server started by a worker thread would end with that thread.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", GUARD], stdin=subprocess.PIPE, start_new_session=True
        )

    def watch(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends what is still watched."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def guard() -> Guard:
    """The one of this process."""
    guard = Guard()
    atexit.register(guard.close)
    return guard


def halt(process: psutil.Process) -> None:
    """Returns when the process has stopped, which takes it as long as its current system call."""
    stopped = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()
        until(lambda: process.status() in stopped, 5, f"{process} does not stop")


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Returns when `condition` holds; RuntimeError with `otherwise` when it won't in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise)
        time.sleep(POLL_SECONDS)


@functools.cache
def ports() -> Iterator[int]:
    """Goes round, from a place of this process, so that parallel runs don't meet."""
    begin = os.getpid() * 50 % len(PORTS)
    return itertools.cycle((*PORTS[begin:], *PORTS[:begin]))


def free_port(*beside: int) -> int:
    """Return a free port of 127.0.0.1, as are those `beside` it; never the same one twice."""
    for port in itertools.islice(ports(), len(PORTS)):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for offset in (0, *beside):
                stack.enter_context(socket.create_server(("127.0.0.1", port + offset)))
            return port
    raise RuntimeError(f"no port is free in {PORTS}")


def answers(port: int) -> bool:
    """Return whether connections are accepted there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# ── finding and installing ──────────────────────────────────────────────────────────────────────


def cache() -> Path:
    """The folder for what is fetched once for all runs."""
    named = os.environ.get("FABRIC_TEST_CACHE")
    folder = Path(named) if named else Path.home() / ".cache" / "fabric-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process of this user at a time."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def provide(kind: str, what: str, find: Callable[[], str | None], *packages: str) -> str:
    """The path that `find` finds, if need be after installing Debian's `packages`."""
    if found := find():
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        with locked("apt"):
            problem = "" if find() else install(packages)
        if found := find():
            return found
        because = f"; apt-get could not install {' '.join(packages)}:\n{problem[-LOG_END:]}"
    else:
        because = f" (Debian and Ubuntu: sudo apt install {' '.join(packages)})"
    raise MissingProgram(
        f"{what} is missing here. Install it, or set FABRIC_TEST_{kind.upper()}_URL to the URL of "
        f"a server for those tests that do it no harm{because}"
    )


def install(packages: Sequence[str]) -> str:
    """Run apt-get; return its output.

    Debian may start a server that it installs, on the server's usual port, which no test uses.
    """
    print(f"installing {' '.join(packages)}", file=sys.stderr, flush=True)
    output = ""
    # The lists are fetched only if it does not work with those that are there.
    for words in (("install",), ("update",), ("install",)):
        names = () if words == ("update",) else ("--no-install-recommends", *packages)
        done = subprocess.run(
            [*APT, *words, *names],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        output = done.stdout
        if words == ("install",) and done.returncode == 0:
            break
    return output


# ── fixtures ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def postgres(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PostgresServer | GivenPostgres]:
    """``url``, and ``new_database()`` for the URL of a fresh one."""
    from tests.lab.postgres_server import GivenPostgres, PostgresServer

    url = given("postgres")
    directory = tmp_path_factory.mktemp("postgres")
    with GivenPostgres(url) if url else PostgresServer(directory) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer | Given]:
    """``url``.  All tests share it, so each uses names of its own."""
    from tests.lab.redis_server import RedisServer

    if url := given("redis"):
        yield Given(url)
        return
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer | Given]:
    """``url``.  All tests share it, so each uses topics and groups of its own."""
    from tests.lab.kafka_server import KafkaServer

    if url := given("kafka"):
        yield Given(url)
        return
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    """``url`` and ``model``.  It loads the model when it is first asked, and keeps it."""
    from tests.lab.ollama import OllamaServer

    with OllamaServer(tmp_path_factory.mktemp("ollama")) as server:
        yield server
