"""The commands of ``fabric-server``, a module for each group of them.

Each works on the store, whether the server runs or not; ``up`` and ``serve`` run the server.  May
import every other room of the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Annotated, Any, TypeVar

import typer

from fabric_server.config import PREFIX, Config
from fabric_server.data_directory import has_authority
from fabric_server.storage.connect import open_cache, open_store
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError, NoStore
from runtime.flags import takes_settings
from runtime.output import Failure

T = TypeVar("T")

NOTIFY_SECONDS = 1.0
"""Timeout for the notice to running servers, which poll the store anyway."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

store_command = takes_settings(Config, PREFIX, only=("data", "store"))
"""Decorates commands that work on the store of a server."""

data_command = takes_settings(Config, PREFIX, only=("data",))
"""Decorates commands that need the directory of a server."""


def with_store(settings: Config, work: Callable[[SqlStore], Coroutine[Any, Any, T]]) -> T:
    """Return what ``work`` does with the store; running servers are notified of changes.

    A store that no server has made is not made here either: what is written there would never
    work.  Raises ``BackendError``, or ``Failure`` for such a store.
    """

    async def opened() -> T:
        store = await open_store(settings.store_url, create=False)
        try:
            done = await work(store)
            if settings.cache != "memory://" and await store.revision() != store.revision_at_open:
                await _notify_servers(settings.cache)
            return done
        finally:
            await store.close()

    return run_on_store(settings, opened())


def run_on_store(settings: Config, work: Coroutine[Any, Any, T]) -> T:
    """Run work that opens an existing store.  Raises ``Failure`` when there is none."""
    try:
        return asyncio.run(work)
    except NoStore as error:
        raise Failure(
            f"there is no server's store here: {error}. Set --data (now {settings.data}) or "
            "--store as the server has them; 'fabric-server init' or 'up' makes new ones."
        ) from None


def require_data(settings: Config, advice: str = "") -> None:
    """Raise ``Failure`` if no server was ever started with ``data``; ``advice`` is another way."""
    if not has_authority(settings.data):
        raise Failure(
            f"there are no certificates in {settings.data / 'certs'}, so no server was started "
            f"with this directory: set --data as the server has it{advice}; 'fabric-server init' "
            "or 'up' makes a new one."
        )


async def _notify_servers(url: str) -> None:
    """Have running servers read the changes now; they do so anyway, twice a second."""
    with suppress(BackendError, TimeoutError):
        async with asyncio.timeout(NOTIFY_SECONDS):
            cache = await open_cache(url)
            try:
                await cache.notify()
            finally:
                await cache.close()
