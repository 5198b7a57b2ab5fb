"""Live views of the whole: this server's rows and those of the others that it is connected to.

Each server shows its own rows, here as a ``LiveView``; a request of the API port gathers them all.
A server without others is asked nothing, and its rows have no marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from fabric_server.admin.parameters import not_found
from fabric_server.dialects.errors import ApiError
from fabric_server.mesh.mesh import Mesh
from fabric_server.mesh.views import Question
from fabric_server.mesh.waiting import PeerLost
from protocol import messages
from protocol.messages import UNREADABLE

ASK_SECONDS = 0.8
"""Time in which the other servers must answer."""
MAX_ID = 256
"""Characters of an id that another server can be asked about: none has a longer one."""


class Row(Struct, frozen=True, kw_only=True):
    """A row of a view, marked with its server if there are others."""

    server: (
        Annotated[str, Meta(description="The server or worker that it is of, if there are others.")]
        | UnsetType
    ) = UNSET
    age_seconds: (
        Annotated[float, Meta(description="How old it is at most, if there are other servers.")]
        | UnsetType
    ) = UNSET


class ServerState(Struct, frozen=True, kw_only=True):
    """One of the servers or workers that a view is of."""

    name: str
    age_seconds: Annotated[
        float | None,
        Meta(description="How old its rows are at most; null: they are missing."),
    ]
    complete: Annotated[
        bool, Meta(description="false: some of its rows are left out, because there are too many.")
    ]
    problem: Annotated[str | None, Meta(description="Why its rows are missing.")]


States = (
    Annotated[
        list[ServerState], Meta(description="The servers that were asked, if there are several.")
    ]
    | UnsetType
)


class ServerQuery(Struct, frozen=True):
    server: Annotated[
        str | None, Meta(description="Only what this server or worker has; w1, for example.")
    ] = None


R = TypeVar("R", bound=Struct)
Own = Callable[[Question], Awaitable[Iterable[R]]]
"""Returns this server's rows."""


@dataclass(frozen=True, slots=True)
class Rows(Generic[R]):
    """The rows of one server."""

    server: str | UnsetType
    age: float | UnsetType
    rows: Iterable[R]


@dataclass(frozen=True, slots=True)
class Gathered(Generic[R]):
    """The rows of all servers that were asked."""

    parts: list[Rows[R]]
    states: list[ServerState] | UnsetType

    def __iter__(self) -> Iterator[R]:
        return (row for part in self.parts for row in part.rows)

    def marked(self) -> Iterator[R]:
        """Return the rows, each with its server and age; the type is that of a ``Row``."""
        for part in self.parts:
            for row in part.rows:
                if part.server is UNSET:
                    yield row
                else:
                    yield msgspec.structs.replace(row, server=part.server, age_seconds=part.age)

    @property
    def missing(self) -> list[str]:
        """Return the names of servers that have rows which are not here."""
        states = () if self.states is UNSET else self.states
        return [one.name for one in states if not one.complete]


class LiveView(Generic[R]):
    """One view: what this server shows of itself, and how the others are asked for theirs."""

    def __init__(self, servers: Servers, name: str, kind: type[R], own: Own[R]) -> None:
        self.own = own
        self._servers = servers
        self._name = name
        self._decode: Callable[[bytes | msgspec.Raw], R] = messages.decoder(kind).decode

    async def gather(
        self, server: str | None = None, about: str = "", by: str = "", *, own: bool = True
    ) -> Gathered[R]:
        """Return the rows of all servers, or of the one named; without ``own``, of the others.

        Servers that don't answer in time are named as such.  Raises ``ApiError``, 404, for a server
        that there is not.
        """
        question, mesh = Question(self._name, about, by), self._servers.mesh
        if mesh is None:
            if server is not None:
                raise not_found("server", server, param="server")
            return Gathered([Rows(UNSET, UNSET, await self.own(question))] if own else [], UNSET)
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        names = self._servers.names(mesh)
        if server is not None:
            if server not in names:
                raise not_found("server", server, param="server")
            names = [server]
        found = dict[str, tuple[Iterable[R], bool] | str]()
        if own and mesh.name in names:
            found[mesh.name] = await self.own(question), True
        others = [name for name in names if name != mesh.name and len(about) <= MAX_ID]
        answers = await asyncio.gather(*(self._ask(mesh, name, question) for name in others))
        found |= zip(others, answers, strict=True)
        age = round(loop.time() - asked_at, 3)
        parts, states = list[Rows[R]](), list[ServerState]()
        for name in sorted(found):
            answer = found[name]
            problem = answer if isinstance(answer, str) else None
            if not isinstance(answer, str):
                parts.append(Rows(name, age, answer[0]))
            states.append(
                ServerState(
                    name=name,
                    age_seconds=age if problem is None else None,
                    complete=not isinstance(answer, str) and answer[1],
                    problem=problem,
                )
            )
        return Gathered(parts, states)

    async def find(self, about: str, by: str = "") -> tuple[R | None, Gathered[R]]:
        """Return the row of the one server that has it, this one's first, and who was asked."""
        own = next(iter(await self.own(Question(self._name, about, by))), None)
        mesh = self._servers.mesh
        if own is not None or mesh is None:
            server = UNSET if mesh is None else mesh.name
            age = UNSET if mesh is None else 0.0
            return own, Gathered([] if own is None else [Rows(server, age, [own])], UNSET)
        gathered = await self.gather(about=about, by=by, own=False)
        return next(iter(gathered), None), gathered

    async def find_marked(self, about: str, by: str = "", *, where: str) -> R:
        """Return the row with its marks.  Raises ``ApiError``: 404, or 503 if it may be at a server
        that does not answer."""
        row, gathered = await self.find(about, by)
        if row is not None:
            return next(gathered.marked())
        if gathered.missing:
            raise silent(about, gathered.missing)
        raise not_found("request", about, where=where)

    async def _ask(
        self, mesh: Mesh, name: str, question: Question
    ) -> tuple[Iterable[R], bool] | str:
        """Return the rows of another server, and whether they are all; or why there are none."""
        peer = mesh.peers.get(name)
        if peer is None:
            return f"it is not connected; its last known state is {self._servers.state(name)}"
        try:
            view = await peer.ask(question, ASK_SECONDS)
            return [self._decode(row) for row in view.rows], view.complete
        except PeerLost as lost:
            return str(lost)
        except UNREADABLE as error:
            return f"its answer can't be read: {error}"


class Servers:
    """The views of this server, and the way to the others'."""

    def __init__(self, states: Callable[[], Mapping[str, str]] = dict) -> None:
        """``states`` has all servers that there should be, also those that are not connected."""
        self.mesh: Mesh | None = None
        self._states = states
        self._views: dict[str, LiveView[Any]] = {}

    def view(self, name: str, kind: type[R], own: Own[R]) -> LiveView[R]:
        """Make a view; ``own`` has this server's rows, of that kind."""
        view = self._views[name] = LiveView(self, name, kind, own)
        return view

    async def answer(self, question: Question) -> Iterable[Struct]:
        """Answer another server: ``mesh.views.Answer``."""
        view = self._views.get(question.view)
        return () if view is None else await view.own(question)

    def names(self, mesh: Mesh) -> list[str]:
        return sorted({mesh.name, *mesh.peers, *self._states()})

    def state(self, name: str) -> str:
        return self._states().get(name, "unknown")


class ChangeFeed(Protocol):
    async def sync(self) -> None: ...


class _Synced(Struct, frozen=True):
    """The row of a server that has applied what has changed; it has none to show."""


class ChangesEverywhere:
    """The change feeds of all servers: what one has changed is applied by each of them at once."""

    def __init__(self, servers: Servers, feed: ChangeFeed) -> None:
        self._feed = feed
        self._view = servers.view("sync", _Synced, self._sync)

    async def sync(self) -> None:
        """Apply changes here, then at the others; those that don't answer look by themselves."""
        await self._feed.sync()
        await self._view.gather(own=False)

    async def _sync(self, question: Question) -> Iterable[_Synced]:
        await self._feed.sync()
        return ()


def silent(id: str, missing: list[str]) -> ApiError:
    """Make a 503: what is asked for may be at servers that have not answered."""
    names = " and ".join(missing)
    return ApiError(
        503,
        "server_silent",
        f"'{id}' was not found, but may be at {names}, which did not answer. Ask again.",
    )
