"""What every store does with keys, invitations and nodes."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from consumer.errors import RecordError, StoreError
from fabric_server.backends import open_store
from fabric_server.backends.rows import Redeemed
from fabric_server.backends.store import AmbiguousKey, SqlStore
from tests.contracts.samples import NOON, digest, invitation, key, node


async def test_a_key_is_found_by_its_hash_with_all_its_properties(store: SqlStore) -> None:
    row = key(expires_at=NOON + 5, models=["llama3.2:3b", "qwen/qwen3:8b"])
    await store.create_key(row)

    assert await store.key_by_hash(row.hash) == row
    assert await store.key_by_hash(digest("another")) is None


async def test_truth_values_come_back_as_such(store: SqlStore) -> None:
    await store.create_key(key("a", management=True))
    found = await store.key_by_hash(digest("a"))
    assert found is not None and found.management is True


async def test_keys_are_listed_oldest_first(store: SqlStore) -> None:
    await store.create_key(key("young", created_at=NOON + 9))
    await store.create_key(key("old"))
    assert [row.name for row in await store.keys()] == ["old", "young"]


async def test_a_key_that_exists_already_is_refused_and_changes_nothing(store: SqlStore) -> None:
    await store.create_key(key())
    before = await store.revision()
    with pytest.raises(RecordError):
        await store.create_key(key())
    assert await store.revision() == before
    assert len(await store.keys()) == 1


@pytest.mark.parametrize("name", ["key_laptop", "sk-fab-laptop"])
async def test_a_key_is_revoked_by_id_or_prefix(store: SqlStore, name: str) -> None:
    await store.create_key(key())
    revoked = await store.revoke_key(name, NOON + 1)
    assert revoked == key(revoked_at=NOON + 1)
    assert await store.key_by_hash(key().hash) == revoked


async def test_revoking_twice_keeps_the_first_time(store: SqlStore) -> None:
    await store.create_key(key())
    await store.revoke_key("key_laptop", NOON + 1)
    assert await store.revoke_key("key_laptop", NOON + 2) == key(revoked_at=NOON + 1)


async def test_revoking_what_does_not_exist_gives_nothing(store: SqlStore) -> None:
    assert await store.revoke_key("key_nobody", NOON) is None
    assert await store.revoke_node("node_nobody", NOON) is None


async def test_a_prefix_of_two_keys_revokes_neither(store: SqlStore) -> None:
    await store.create_key(key("one", prefix="sk-fab-same"))
    await store.create_key(key("two", prefix="sk-fab-same"))
    with pytest.raises(AmbiguousKey, match="key_one, key_two"):
        await store.revoke_key("sk-fab-same", NOON)
    assert [row.revoked_at for row in await store.keys()] == [None, None]


async def test_changes_tell_what_is_new_since_a_revision(store: SqlStore) -> None:
    start = await store.revision()
    assert start == store.revision_at_open
    await store.create_key(key("first"))
    middle = await store.revision()
    await store.create_key(key("second"))
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)

    changes = await store.changes(middle)
    assert changes.keys == [key("second")]
    assert changes.nodes == [node()]
    assert not changes.everything
    again = await store.changes(changes.revision)
    assert (again.revision, again.keys, again.nodes) == (changes.revision, (), ())
    assert len((await store.changes(start)).keys) == 2


async def test_a_revocation_is_a_change(store: SqlStore) -> None:
    await store.create_key(key())
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    before = await store.revision()
    await store.revoke_key("key_laptop", NOON + 1)
    await store.revoke_node("node_attic", NOON + 2)

    changes = await store.changes(before)
    assert changes.keys == [key(revoked_at=NOON + 1)]
    assert changes.nodes == [node(revoked_at=NOON + 2)]


async def test_a_store_put_back_from_a_backup_changes_everything(store: SqlStore) -> None:
    await store.create_key(key())
    changes = await store.changes(await store.revision() + 10)
    assert changes.everything
    assert changes.keys == [key()]


async def test_an_invitation_makes_one_node_once(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    secret = digest("secret")
    assert await store.redeem_invitation(secret, node(), NOON + 1) is Redeemed.OK
    assert await store.redeem_invitation(secret, node("other"), NOON + 2) is Redeemed.USED
    assert await store.nodes() == [node()]
    assert await store.node("node_attic") == node()


async def test_invitations_unknown_or_too_old_make_no_node(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    assert await store.redeem_invitation(digest("x"), node(), NOON) is Redeemed.UNKNOWN
    late = await store.redeem_invitation(digest("secret"), node(), NOON + 3600)
    assert late is Redeemed.EXPIRED
    assert await store.nodes() == []
    assert await store.node("node_attic") is None


async def test_an_invitation_is_not_used_up_by_a_node_that_can_not_be_made(store: SqlStore) -> None:
    await store.create_invitation(invitation("one"))
    await store.create_invitation(invitation("two"))
    await store.redeem_invitation(digest("one"), node(), NOON)
    with pytest.raises(RecordError):
        await store.redeem_invitation(digest("two"), node(), NOON)
    assert await store.redeem_invitation(digest("two"), node("b"), NOON) is Redeemed.OK


async def test_each_registration_gets_the_next_epoch(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    assert [await store.next_epoch("node_attic") for _ in range(3)] == [1, 2, 3]
    found = await store.node("node_attic")
    assert found is not None and found.epoch == 3


async def test_unknown_and_revoked_nodes_get_no_epoch(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    await store.revoke_node("node_attic", NOON + 1)
    assert await store.next_epoch("node_attic") is None
    assert await store.next_epoch("node_nobody") is None


async def test_a_node_that_was_seen_says_with_what(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    await store.node_seen("node_attic", NOON + 7, platform="windows", version="0.2.0")
    assert await store.node("node_attic") == replace(
        node(), last_seen_at=NOON + 7, platform="windows", version="0.2.0", online=True
    )


async def test_models_once_served_stay_known_while_their_node_may_come_back(
    store: SqlStore,
) -> None:
    for id in ("node_first", "node_second"):
        await store.create_invitation(replace(invitation(), id=f"inv_{id}", secret_hash=digest(id)))
        await store.redeem_invitation(digest(id), replace(node(), id=id), NOON)
    await store.served("node_first", ["a", "b"])
    await store.served("node_first", ["b"])
    await store.served("node_second", ["b", "c"])
    await store.node_seen("node_first", 1000.0, platform="", version="")
    await store.node_seen("node_second", 2000.0, platform="", version="")
    assert await store.known_models(since=500.0) == ["a", "b", "c"]
    assert await store.known_models(since=1500.0) == ["b", "c"]
    await store.revoke_node("node_second", 3.0)
    assert await store.known_models(since=500.0) == ["a", "b"]


async def test_a_cancelled_change_is_undone_and_the_store_goes_on(store: SqlStore) -> None:
    for loops in range(12):  # cancelled at each of its waits in turn
        task = asyncio.create_task(store.create_key(key(f"k{loops}")))
        for _ in range(loops):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await store.create_key(key("last"))
    for row in await store.keys():
        assert await store.key_by_hash(row.hash) == row
    assert "last" in {row.name for row in await store.keys()}


async def test_a_closed_store_says_so(store: SqlStore) -> None:
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.keys()
    with pytest.raises(StoreError, match="closed"):
        await store.create_key(key())


async def test_what_was_written_is_there_when_opened_again(shared_url: str) -> None:
    store = await open_store(shared_url)
    await store.create_key(key())
    await store.close()
    store = await open_store(shared_url)
    assert await store.keys() == [key()]
    assert store.revision_at_open == 1
    await store.close()


async def test_of_two_nodes_with_one_invitation_one_wins(shared_url: str) -> None:
    stores = [await open_store(shared_url) for _ in range(4)]
    await stores[0].create_invitation(invitation())
    results = await asyncio.gather(
        *(
            store.redeem_invitation(digest("secret"), node(f"n{number}"), NOON)
            for number, store in enumerate(stores)
        )
    )
    assert sorted(results) == [Redeemed.USED] * 3 + [Redeemed.OK]
    assert len(await stores[0].nodes()) == 1
    for store in stores:
        await store.close()


async def test_no_two_registrations_share_an_epoch(shared_url: str) -> None:
    stores = [await open_store(shared_url) for _ in range(3)]
    await stores[0].create_invitation(invitation())
    await stores[0].redeem_invitation(digest("secret"), node(), NOON)
    epochs = await asyncio.gather(
        *(store.next_epoch("node_attic") for store in stores for _ in range(10))
    )
    assert sorted(epoch or 0 for epoch in epochs) == list(range(1, 31))
    for store in stores:
        await store.close()
