"""Takeover: a successor on the same machine gets the listening sockets of a running server.

    successor                                   server that runs
        ── {"want": "takeover"} ────────────────▶
        ◀─ {"pid", "ports"} + the sockets ──────    both hold them, only the old one accepts
        … opens its back ends …
        ── {"want": "nodes"} ───────────────────▶   pauses the node ports, notifies the nodes
        ◀─ {"nodes": 17} ───────────────────────
        … accepts on them, until as many are connected …
        … accepts users …
        ── {"want": "users"} ───────────────────▶   pauses, drains, exits
        ◀─ {} ──────────────────────────────────

Both use ``<data>/server.sock``, which only the server's own user can open.  If the successor fails
before the end, the old server continues unchanged.

The sockets are passed on instead of opened twice with SO_REUSEPORT, because there each socket has
a queue of its own, and connections in it, or in the TCP handshake, are reset when it closes.
Measured on loopback (Linux 6.18, 2026-11-21), 200 changes at 20 connections at a time, the queue
emptied right before: 23 of 165,000 connections lost, none of 153,000 with sockets passed on.
Over the internet every TCP handshake in progress is lost.  And a second server started by mistake
would take half of the users.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from runtime.background import log_failure
from runtime.errors import Problem

log = logging.getLogger("fabric.takeover")

T = TypeVar("T")

NAME = "server.sock"
MAX_SOCKETS = 64
LINE_BYTES = 65_536
ANSWER_SECONDS = 10.0
"""Timeout of a command that needs no work."""
SHORT_ENOUGH = 100
"""Longest socket path in bytes; the limit is 108 on Linux, 104 elsewhere."""


class TakenPort(Struct, frozen=True):
    """One port, and how many of the passed sockets belong to it."""

    host: list[str]
    number: int
    """The actual port number."""
    sockets: int


class Offer(Struct, frozen=True):
    pid: int
    ports: dict[str, TakenPort]


class Command(Struct, frozen=True):
    want: str


class WorkerStatus(Struct, frozen=True):
    """One of several processes that are one server."""

    name: str
    pid: int
    state: str
    """The status of ``/health/ready``, or ``starting`` or ``away``."""
    since: float
    """The time of the state's last change, Unix seconds."""
    restarts: int
    nodes: int
    """Nodes that it has, and can send requests to."""
    connections: dict[str, int]
    """Open connections by port."""


class About(Struct, frozen=True):
    """The server that runs, for another one that would be the second."""

    pid: int = 0
    """0: of an older release, which does not know the command."""
    workers: list[WorkerStatus] = []
    """Its workers; none if it is one process."""


class Refused(Struct, frozen=True):
    error: str


class TakeoverProblem(Problem):
    """The running server can't be taken over or contacted; the message says why."""


class NotRunning(TakeoverProblem):
    """No server runs with this data directory."""


class Listener(Protocol):
    @property
    def port(self) -> int: ...
    @property
    def sockets(self) -> Sequence[socket.socket]: ...


class RunningServer(Protocol):
    """The parts of the running server that commands use."""

    @property
    def listeners(self) -> Mapping[str, Listener]: ...
    def yield_nodes(self) -> int: ...
    def keep_nodes(self) -> None: ...
    def yield_users(self) -> None: ...
    def status(self) -> list[WorkerStatus]: ...


# ── the running server ────────────────────────────────────────────────────────────────────────


class TakeoverServer:
    """Serves commands at ``<data>/server.sock``; ``open`` it, and ``close`` it at the end."""

    def __init__(
        self,
        data: Path,
        running: RunningServer,
        host: Sequence[str],
        reload: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        """``reload`` runs for ``fabric-server reload``; its result is returned as JSON."""
        self._path = data / NAME
        self._running = running
        self._host = list(host)
        self._reload = reload
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._taken = False
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open the socket; if that fails, log it: the server runs without takeover and reload."""
        new = self._path.with_suffix(".new")
        try:
            sock = socket.socket(socket.AF_UNIX)
            try:
                new.unlink(missing_ok=True)
                with _short_path(new) as name:
                    sock.bind(name)
                new.chmod(0o600)
                self._inode = new.stat().st_ino
                self._server = await asyncio.start_unix_server(
                    self._on_connection, sock=sock, limit=LINE_BYTES
                )
                new.replace(self._path)
            except BaseException:
                sock.close()
                raise
        except (OSError, AttributeError) as error:  # AttributeError: Windows has no such sockets
            fields = {"path": str(self._path), "reason": str(error)}
            log.warning("takeover and reload are not available", extra=fields)

    async def close(self) -> None:
        for task in self._connections:
            task.cancel()
        if self._server is None:
            return
        self._server.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # not a successor's by now
                self._path.unlink()

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(log_failure)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _is_own_user(writer):
                return
            command = await _read(reader, Command, ANSWER_SECONDS)
            if command.want == "reload":
                await _write(writer, await self._reload())
            elif command.want == "about":
                await _write(writer, About(os.getpid(), self._running.status()))
            elif command.want != "takeover":
                await _write(writer, Refused(f"unknown command '{command.want}'"))
            elif self._taken:
                await _write(writer, Refused("another server is already taking over"))
            else:
                self._taken = True
                try:
                    await self._serve_takeover(reader, writer)
                finally:
                    self._taken = False
        except (OSError, TimeoutError, ValueError, EOFError, msgspec.MsgspecError) as error:
            log.warning("a takeover connection broke off", extra={"reason": str(error)})
        finally:
            writer.close()

    async def _serve_takeover(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        running = self._running
        listeners = running.listeners
        ports = {
            name: TakenPort(self._host, listener.port, len(listener.sockets))
            for name, listener in listeners.items()
        }
        sockets = [one for listener in listeners.values() for one in listener.sockets]
        # A duplicate, because asyncio's socket can't send descriptors; its buffer is empty.
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
            line = msgspec.json.encode(Offer(os.getpid(), ports)) + b"\n"
            socket.send_fds(own, [line], [one.fileno() for one in sockets])
        log.info("a successor takes over")
        yielded = False
        try:
            await _expect(reader, "nodes")
            yielded = True
            await _write(writer, {"nodes": running.yield_nodes()})
            await _expect(reader, "users")
        except BaseException:
            if yielded:
                running.keep_nodes()
            log.error("the successor failed; this server keeps running")
            raise
        running.yield_users()
        await _write(writer, {})


async def _expect(reader: asyncio.StreamReader, want: str) -> None:
    """Wait for a command without a timeout: the successor may have to wait for its store.

    If it dies, its end of the connection closes.
    """
    command = await _read(reader, Command, None)
    if command.want != want:
        raise ValueError(f"got the command '{command.want}' instead of '{want}'")


def _is_own_user(writer: asyncio.StreamWriter) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the file's mode has to suffice
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
        fields = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", fields)
    return user in (os.getuid(), 0)


# ── its clients ───────────────────────────────────────────────────────────────────────────────


class Predecessor:
    """The running server, from its successor's side.

    ``find`` it, and ``close`` it at the end or when something fails: then it continues.
    """

    def __init__(
        self,
        offer: Offer,
        sockets: Mapping[str, Sequence[socket.socket]],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = offer.pid
        self._offer = offer
        self._sockets = dict(sockets)
        self._reader = reader
        self._writer = writer

    @classmethod
    async def find(cls, data: Path) -> Predecessor | None:
        """Connect to the running server; None if there is none.  Raises ``TakeoverProblem``."""
        try:
            sock = await asyncio.to_thread(_dial, data)
        except NotRunning:
            return None
        try:
            offer, received = await asyncio.to_thread(_receive, sock)
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_BYTES)
        except BaseException:
            sock.close()
            raise
        sockets: dict[str, list[socket.socket]] = {}
        rest = iter(received)
        for name, port in offer.ports.items():
            sockets[name] = [next(rest) for _ in range(port.sockets)]
        return cls(offer, sockets, reader, writer)

    def sockets(self, name: str, host: Sequence[str], number: int) -> Sequence[socket.socket]:
        """Return its sockets of that port, now ours; none when host or number differ."""
        port = self._offer.ports.get(name)
        if port is None or port.host != list(host) or number not in (0, port.number):
            return ()
        return self._sockets.pop(name, ())

    async def yield_nodes(self) -> int:
        """Make its nodes register here; return how many it has, 0 when it is gone."""
        answer = await self._ask("nodes")
        return int(answer.get("nodes", 0))

    async def yield_users(self) -> None:
        """Make it stop accepting users, drain and exit."""
        await self._ask("users")

    def close(self) -> None:
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()
        self._writer.close()

    async def _ask(self, want: str) -> dict[str, Any]:
        try:
            await _write(self._writer, Command(want))
            return await _read(self._reader, dict[str, Any], ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError, EOFError, msgspec.MsgspecError) as error:
            fields = {"pid": self.pid, "reason": str(error) or "no response"}
            log.warning("the previous server does not respond", extra=fields)
            return {}


def _dial(data: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise TakeoverProblem(
            "this system has no Unix sockets: stop the old server, then start the new one."
        )
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(ANSWER_SECONDS)
    try:
        with _short_path(data / NAME) as name:
            sock.connect(name)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        sock.close()
        raise NotRunning(
            f"no server runs with {data}: start it, or set --data as it has it."
        ) from error
    except OSError as error:
        sock.close()
        raise TakeoverProblem(f"{data / NAME} can't be used: {error.strerror or error}.") from error
    return sock


def _receive(sock: socket.socket) -> tuple[Offer, list[socket.socket]]:
    sockets: list[socket.socket] = []
    try:
        sock.sendall(msgspec.json.encode(Command("takeover")) + b"\n")
        line, descriptors, _, _ = socket.recv_fds(sock, LINE_BYTES, MAX_SOCKETS)
        sockets = [socket.socket(fileno=one) for one in descriptors]
        if b'"error"' in line[:10]:
            raise TakeoverProblem(f"{msgspec.json.decode(line, type=Refused).error}.")
        offer = msgspec.json.decode(line, type=Offer)
        if sum(port.sockets for port in offer.ports.values()) != len(sockets):
            raise TakeoverProblem("not all sockets of the running server arrived.")
        for one in sockets:
            one.setblocking(False)
    except BaseException as error:
        for one in sockets:
            one.close()
        if isinstance(error, OSError | msgspec.MsgspecError):
            raise TakeoverProblem(f"the running server can't be taken over: {error}.") from error
        raise
    return offer, sockets


@asynccontextmanager
async def _connection(
    data: Path,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    sock = await asyncio.to_thread(_dial, data)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_BYTES)
    try:
        yield reader, writer
    finally:
        writer.close()


def running_server(data: Path) -> About | None:
    """Return what runs with this directory, None if nothing does.  Raises ``TakeoverProblem``."""
    if not hasattr(socket, "AF_UNIX"):
        return None
    try:
        with _dial(data) as sock:
            sock.sendall(msgspec.json.encode(Command("about")) + b"\n")
            return msgspec.json.decode(sock.recv(LINE_BYTES), type=About)
    except NotRunning:
        return None
    except (OSError, msgspec.MsgspecError):  # it is there, and hung or ending
        return About()


async def ask_to_reload(data: Path) -> dict[str, Any]:
    """Send ``reload`` to the running server; return its result.  Raises ``TakeoverProblem``."""
    async with _connection(data) as (reader, writer):
        try:
            await _write(writer, Command("reload"))
            return await _read(reader, dict[str, Any], ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError, EOFError, msgspec.MsgspecError) as error:
            reason = str(error) or "it does not respond"
            raise TakeoverProblem(f"the running server can't reload: {reason}.") from error


# ── messages ──────────────────────────────────────────────────────────────────────────────────


async def _read(reader: asyncio.StreamReader, kind: type[T], seconds: float | None) -> T:
    async with asyncio.timeout(seconds):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the other side has gone")
    return msgspec.json.decode(line, type=kind)


async def _write(writer: asyncio.StreamWriter, message: object) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")
    await writer.drain()


@contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Yield a name of ``path`` that is short enough for a socket address."""
    if len(os.fsencode(path)) <= SHORT_ENOUGH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
