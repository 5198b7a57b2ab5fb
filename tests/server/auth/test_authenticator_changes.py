"""Authentication with a real store whose changes are followed."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import mint
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.connect import open_store
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.store import SqlStore
from tests.server.auth.fakes import refusal

# ── with the real store, watched ──────────────────────────────────────────────────────────────


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    await store.close()


async def test_a_key_revoked_by_another_process_is_refused_within_a_second(
    store: SqlStore, tmp_path: Path
) -> None:
    new, other = mint("laptop", now=time.time()), mint("other", now=time.time())
    await store.create_key(new.row)
    await store.create_key(other.row)
    authenticator = KeyAuthenticator(store, MemoryCache())
    running = asyncio.create_task(ChangeFeed(store, [authenticator.on_changes]).run())
    await authenticator.authenticate(new.text)
    await authenticator.authenticate(other.text)

    program = (
        "import asyncio, sys, time\n"
        "from fabric_server.storage.connect import open_store\n"
        "async def main():\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await store.revoke_key(sys.argv[2], time.time())\n"
        "    print(time.monotonic(), flush=True)\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    url = f"sqlite:///{tmp_path / 'store.db'}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, url, new.row.id), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        while authenticator.cached(new.text) is not None:  # noqa: ASYNC110 - what is measured
            await asyncio.sleep(0.005)
    refused_at = time.monotonic()
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert refused_at - float(said) < 1.0
    assert (await refusal(authenticator, new.text)).status == 401
    assert authenticator.cached(other.text) is not None
    running.cancel()
    await asyncio.wait([running])


async def test_a_change_between_opening_and_watching_is_not_missed(store: SqlStore) -> None:
    new = mint("laptop", now=time.time())
    await store.create_key(new.row)
    authenticator = KeyAuthenticator(store, MemoryCache())
    await authenticator.authenticate(new.text)
    await store.revoke_key(new.row.id, time.time())
    watch = ChangeFeed(store, [authenticator.on_changes])
    await watch.sync()
    assert authenticator.cached(new.text) is None
    assert (await refusal(authenticator, new.text)).status == 401
