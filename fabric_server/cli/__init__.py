"""What an operator types: one module for each group of ``fabric-server`` commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import typer

from fabric_server.config import PREFIX, Config
from fabric_server.storage.connect import open_cache, open_store
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError
from runtime.flags import takes_settings

T = TypeVar("T")

TELL_SECONDS = 1.0

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

of_the_store = takes_settings(Config, PREFIX, only=("data", "store"))
"""For commands that need to know which server they are about, and no more."""

of_the_directory = takes_settings(Config, PREFIX, only=("data",))


def with_store(settings: Config, work: Callable[[SqlStore], Coroutine[Any, Any, T]]) -> T:
    """Do it on the server's store, whether or not that server runs.  Raises ``BackendError``."""

    async def opened() -> T:
        store = await open_store(settings.store_url)
        try:
            done = await work(store)
            if settings.cache != "memory://" and await store.revision() != store.revision_at_open:
                await _tell_servers(settings.cache)
            return done
        finally:
            await store.close()

    return asyncio.run(opened())


async def _tell_servers(url: str) -> None:
    """That they should look at the store now.  They do so anyway, twice a second."""
    with suppress(BackendError, TimeoutError):
        async with asyncio.timeout(TELL_SECONDS):
            cache = await open_cache(url)
            try:
                await cache.notify()
            finally:
                await cache.close()
