"""From a running server to its successor, on the same machine: the listening sockets themselves.

    successor                                   server that runs
        ── {"want": "takeover"} ────────────────▶
        ◀─ {"pid", "ports"} + the sockets ──────    both hold them, only the old one accepts
        … opens its back ends …
        ── {"want": "nodes"} ───────────────────▶   rests on the node ports, tells the nodes
        ◀─ {"nodes": 17} ───────────────────────
        … accepts on them, until so many are here …
        … accepts users …
        ── {"want": "users"} ───────────────────▶   rests, drains, ends
        ◀─ {} ──────────────────────────────────

They meet at ``<data>/server.sock``, which only the server's own user can open.  If the successor
goes before the end, the old server goes on as if nothing had been.

Why the sockets are handed over rather than opened twice by SO_REUSEPORT: there each has a queue of
its own, and what is in it, or still shaking hands, is reset when it closes.  Measured on loopback
(Linux 6.18, 2026-11-21), 200 changes at 20 connections at a time, the queue emptied right before:
23 of 165,000 connections lost, none of 153,000 with sockets handed over.  Over the internet it is
every handshake under way.  And a second server started by mistake would take half of the users.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

log = logging.getLogger("fabric.handover")

T = TypeVar("T")

NAME = "server.sock"
MAX_SOCKETS = 64
LINE_BYTES = 65_536
ANSWER_SECONDS = 10.0
"""For a question that needs no work."""
SHORT_ENOUGH = 100
"""Bytes of a path that a socket may have; the kernel's limit is 108, others' 104."""


class Handed(Struct, frozen=True):
    """One port: that many of the sockets that come along."""

    host: list[str]
    number: int
    """The real one."""
    sockets: int


class Offer(Struct, frozen=True):
    pid: int
    ports: dict[str, Handed]


class Ask(Struct, frozen=True):
    want: str


class Refused(Struct, frozen=True):
    error: str


class TakeoverProblem(Exception):
    """The running server hands nothing over, or can't be asked; the message says why."""


class NobodyThere(TakeoverProblem):
    """No server runs with this directory."""


class Listener(Protocol):
    @property
    def port(self) -> int: ...
    @property
    def sockets(self) -> Sequence[socket.socket]: ...


class Running(Protocol):
    """What a server that runs does for who asks here."""

    @property
    def listeners(self) -> Mapping[str, Listener]: ...
    def yield_nodes(self) -> int: ...
    def keep_nodes(self) -> None: ...
    def yield_users(self) -> None: ...


# ── the server that runs ──────────────────────────────────────────────────────────────────────


class Door:
    """Answers at ``<data>/server.sock``.  ``open``, and ``close`` at the end."""

    def __init__(
        self,
        data: Path,
        running: Running,
        host: Sequence[str],
        reload: Callable[[], Mapping[str, Any]],
    ) -> None:
        """``reload`` is what ``fabric-server reload`` asks for; its result goes back as JSON."""
        self._path = data / NAME
        self._running = running
        self._host = list(host)
        self._reload = reload
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._taken = False
        self._conversations: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """A directory that can hold no socket is no reason not to serve: the log says so."""
        new = self._path.with_suffix(".new")
        try:
            sock = socket.socket(socket.AF_UNIX)
            try:
                new.unlink(missing_ok=True)
                with _name(new) as name:
                    sock.bind(name)
                new.chmod(0o600)
                self._inode = new.stat().st_ino
                self._server = await asyncio.start_unix_server(
                    self._meet, sock=sock, limit=LINE_BYTES
                )
                new.replace(self._path)
            except BaseException:
                sock.close()
                raise
        except (OSError, AttributeError) as error:  # AttributeError: Windows has no such sockets
            said = {"path": str(self._path), "reason": str(error)}
            log.warning("takeover and reload are not available", extra=said)

    async def close(self) -> None:
        for task in self._conversations:
            task.cancel()
        if self._server is None:
            return
        self._server.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # not yet a successor's
                self._path.unlink()

    def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not _is_own_user(writer):
                return
            ask = await _read(reader, Ask, ANSWER_SECONDS)
            if ask.want == "reload":
                await _write(writer, self._reload())
            elif ask.want != "takeover":
                await _write(writer, Refused(f"'{ask.want}' is not known to this release"))
            elif self._taken:
                await _write(writer, Refused("another server is taking over already"))
            else:
                self._taken = True
                try:
                    await self._hand_over(reader, writer)
                finally:
                    self._taken = False
        except (OSError, TimeoutError, ValueError, EOFError, msgspec.MsgspecError) as error:
            log.warning("a takeover connection broke off", extra={"reason": str(error)})
        finally:
            writer.close()

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running = self._running
        listeners = running.listeners
        ports = {
            name: Handed(self._host, listener.port, len(listener.sockets))
            for name, listener in listeners.items()
        }
        sockets = [one for listener in listeners.values() for one in listener.sockets]
        # A duplicate, because asyncio's view of a socket can't send descriptors; nothing is queued.
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
    """Takes as long as the successor needs, which may have a store to wait for: if it dies, its
    end of the conversation closes."""
    ask = await _read(reader, Ask, None)
    if ask.want != want:
        raise ValueError(f"'{ask.want}' instead of '{want}'")


def _is_own_user(writer: asyncio.StreamWriter) -> bool:
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the file's mode has to do
    with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
        said = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", said)
    return user in (os.getuid(), 0)


# ── who asks it ───────────────────────────────────────────────────────────────────────────────


class Predecessor:
    """The server that runs with this directory, from its successor's side.  ``find``, use, and
    ``close`` at the end, or when something fails: then the predecessor goes on."""

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
        """None when no server runs with this directory.  Raises ``TakeoverProblem``."""
        try:
            sock = await asyncio.to_thread(_dial, data)
        except NobodyThere:
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
        """Its listening sockets of that port, now ours; none when ours is to be another one."""
        port = self._offer.ports.get(name)
        if port is None or port.host != list(host) or number not in (0, port.number):
            return ()
        return self._sockets.pop(name, ())

    async def yield_nodes(self) -> int:
        """Have its nodes sent over; returns how many there are, 0 when it is gone."""
        answer = await self._ask("nodes")
        return int(answer.get("nodes", 0))

    async def yield_users(self) -> None:
        """Have it end."""
        await self._ask("users")

    def close(self) -> None:
        for sockets in self._sockets.values():
            for sock in sockets:
                sock.close()
        self._writer.close()

    async def _ask(self, want: str) -> dict[str, Any]:
        try:
            await _write(self._writer, Ask(want))
            return await _read(self._reader, dict[str, Any], ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError, EOFError, msgspec.MsgspecError) as error:
            said = {"pid": self.pid, "reason": str(error) or "no answer"}
            log.warning("the previous server does not respond", extra=said)
            return {}


def _dial(data: Path) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise TakeoverProblem("this system has no Unix sockets: stop the server, then start it.")
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(ANSWER_SECONDS)
    try:
        with _name(data / NAME) as name:
            sock.connect(name)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        raise NobodyThere(f"no server runs with {data}.") from error
    except OSError as error:
        sock.close()
        raise TakeoverProblem(f"{data / NAME} can't be used: {error.strerror or error}.") from error
    return sock


def _receive(sock: socket.socket) -> tuple[Offer, list[socket.socket]]:
    sockets: list[socket.socket] = []
    try:
        sock.sendall(msgspec.json.encode(Ask("takeover")) + b"\n")
        line, descriptors, _, _ = socket.recv_fds(sock, LINE_BYTES, MAX_SOCKETS)
        sockets = [socket.socket(fileno=one) for one in descriptors]
        if b'"error"' in line[:10]:
            raise TakeoverProblem(f"{msgspec.json.decode(line, type=Refused).error}.")
        offer = msgspec.json.decode(line, type=Offer)
        if sum(port.sockets for port in offer.ports.values()) != len(sockets):
            raise TakeoverProblem("the running server's sockets did not all arrive.")
        for one in sockets:
            one.setblocking(False)
    except BaseException as error:
        for one in sockets:
            one.close()
        if isinstance(error, OSError | msgspec.MsgspecError):
            raise TakeoverProblem(f"the running server hands nothing over: {error}.") from error
        raise
    return offer, sockets


@asynccontextmanager
async def _conversation(
    data: Path,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    sock = await asyncio.to_thread(_dial, data)
    reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LINE_BYTES)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask_to_reload(data: Path) -> dict[str, Any]:
    """What the server with this directory says to ``reload``.  Raises ``TakeoverProblem``."""
    async with _conversation(data) as (reader, writer):
        try:
            await _write(writer, Ask("reload"))
            return await _read(reader, dict[str, Any], ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError, EOFError, msgspec.MsgspecError) as error:
            reason = str(error) or "it does not answer"
            raise TakeoverProblem(f"the running server can't be told: {reason}.") from error


# ── lines ─────────────────────────────────────────────────────────────────────────────────────


async def _read(reader: asyncio.StreamReader, kind: type[T], seconds: float | None) -> T:
    async with asyncio.timeout(seconds):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the other side has gone")
    return msgspec.json.decode(line, type=kind)


async def _write(writer: asyncio.StreamWriter, said: object) -> None:
    writer.write(msgspec.json.encode(said) + b"\n")
    await writer.drain()


@contextmanager
def _name(path: Path) -> Iterator[str]:
    """One for ``path`` that is short enough for a socket's address."""
    if len(os.fsencode(path)) <= SHORT_ENOUGH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
