"""Two servers in one process, joined by a real socket: what one is asked, the nodes of both answer.

async with Pair(tmp_path) as pair:
    await pair.home.join(engine.url)       # a node of the one
    async with pair.edge.user() as user:   # a client of the other
        ...
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fabric_server.mesh.mesh import Mesh
from tests.fabric import Fabric

EDGE, HOME = "edge", "home"


async def until(met: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is so, of which nobody tells."""
    async with asyncio.timeout(seconds):
        while not met():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Pair:
    """``edge`` is asked; ``home`` has the nodes, unless the test joins some to ``edge``, too."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.edge = Fabric(directory / EDGE, **settings)
        self.home = Fabric(directory / HOME, **settings)
        self.lost: list[str] = []
        """Connections that were reported as lost, by both."""
        self._exits = AsyncExitStack()
        self.meshes: dict[str, Mesh] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as exits:
            for name, fabric in ((EDGE, self.edge), (HOME, self.home)):
                await exits.enter_async_context(fabric)
                self.meshes[name] = fabric.app.open_mesh(name, self.lost.append)
            self.connect()
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    def connect(self) -> None:
        one, other = socket.socketpair()
        self.meshes[EDGE].connect(HOME, one)
        self.meshes[HOME].connect(EDGE, other)

    async def knows(self, model: str, *, slots: int | None = None) -> None:
        """Wait until the edge knows the model, with so many slots at the home."""

        def known() -> bool:
            found = [
                engine
                for engine in self.edge.app.control_plane.registry.candidates(model)
                if engine.node.remote
            ]
            return bool(found) and slots in (None, sum(engine.slots for engine in found))

        await until(known)

    def cut(self) -> None:
        """Cut the connection, as when the home's process is killed."""
        for peer in list(self.meshes[EDGE].peers.values()):
            assert peer.opening is not None
            peer.opening.hang_up()

    @property
    def active(self) -> int:
        """Return how many slots of the home's engines are taken."""
        return sum(node.active for node in self.home.app.control_plane.registry.nodes())
