"""What an operator types: one module for each group of ``fabric-server`` commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

from fabric_server.backends import open_store
from fabric_server.backends.store import SqlStore
from fabric_server.config import PREFIX, Config
from protocol.program.flags import takes_settings

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

of_the_store = takes_settings(Config, PREFIX, only=("data", "store"))
"""For commands that need to know which server they are about, and no more."""


def with_store(settings: Config, work: Callable[[SqlStore], Coroutine[Any, Any, T]]) -> T:
    """Do it on the server's store, whether or not that server runs.  Raises ``BackendError``."""

    async def opened() -> T:
        store = await open_store(settings.store_url)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(opened())
