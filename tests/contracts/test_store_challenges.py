"""The table of ACME challenges: one server orders for a name at a time, all of them answer."""

from __future__ import annotations

from fabric_server.storage.acme import ChallengeRow, ChallengeStore
from fabric_server.storage.connect import open_store
from fabric_server.storage.store import SqlStore

ROW = ChallengeRow("a.example.org", "http-01", "token", "token.thumb")


async def test_one_server_orders_for_a_name_at_a_time(store: SqlStore) -> None:
    table = ChallengeStore(store.database)
    assert await table.claim(["a.example.org", "b.example.org"], "one", seconds=60)
    assert not await table.claim(["b.example.org", "c.example.org"], "two", seconds=60)
    assert await table.claim(["c.example.org"], "three", seconds=60)
    assert await table.claim(["a.example.org"], "one", seconds=60), "its own it may renew"
    await table.release("one")
    assert await table.claim(["a.example.org", "b.example.org"], "two", seconds=60)


async def test_the_lease_of_a_server_that_was_killed_ends(store: SqlStore) -> None:
    table = ChallengeStore(store.database)
    assert await table.claim(["a.example.org"], "one", seconds=-1)
    await table.publish([ROW], "one")
    assert await table.answered() == []
    assert await table.claim(["a.example.org"], "two", seconds=60)
    await table.publish([ROW], "one")
    assert await table.answered() == [], "who lost the lease publishes nothing"


async def test_a_lease_longer_than_any_has_ended(store: SqlStore) -> None:
    table = ChallengeStore(store.database)
    assert await table.claim(["a.example.org"], "one", seconds=10_000)  # its clock was ahead
    assert await table.claim(["a.example.org"], "two", seconds=60)


async def test_other_servers_know_what_to_answer_while_one_orders(shared_url: str) -> None:
    one, two = await open_store(shared_url), await open_store(shared_url)
    here, there = ChallengeStore(one.database), ChallengeStore(two.database)
    assert await here.claim([ROW.name], "one", seconds=60)
    assert await there.answered() == []
    await here.publish([ROW], "one")
    assert await there.answered() == [ROW]
    assert not await there.claim([ROW.name], "two", seconds=60)
    await here.release("one")
    assert await there.answered() == []
    await one.close()
    await two.close()
