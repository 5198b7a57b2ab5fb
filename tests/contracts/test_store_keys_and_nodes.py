"""What every store does with accounts, keys, invitations and nodes."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec.structs import asdict, replace

from fabric_server.auth.keys import KeyPolicyUpdate
from fabric_server.storage.connect import open_store
from fabric_server.storage.jobs import JobStore
from fabric_server.storage.keys import AmbiguousKey
from fabric_server.storage.nodes import MAX_SERVED
from fabric_server.storage.rows import Redeemed, ServedRow
from fabric_server.storage.store import SqlStore
from ledger.records import LedgerEntry
from runtime.errors import RecordError, StoreError
from sql import migrations
from sql.connect import open_database
from tests.contracts.samples import NOON, account, digest, entry, invitation, key, node


async def test_a_key_is_found_by_its_hash_with_all_its_properties(store: SqlStore) -> None:
    row = key(
        expires_at=NOON + 5,
        models=["llama3.2:3b", "qwen/qwen3:8b"],
        requests_per_minute=60,
        tokens_per_minute=10**12,
        failover="continue",
        reasoning="raw",
        priority="high",
        requests_at_once=7,
    )
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


@pytest.mark.parametrize("name", ["key_laptop", "sk-fab-laptop"])
async def test_a_key_is_disabled_and_enabled_by_id_or_prefix(store: SqlStore, name: str) -> None:
    await store.create_key(key())
    disabled = await store.set_key_enabled(name, False)
    assert disabled == key(enabled=False)
    assert not disabled.usable
    assert await store.key_by_hash(key().hash) == disabled
    assert await store.set_key_enabled(name, True) == key()
    assert await store.key_by_hash(key().hash) == key()


async def test_a_revoked_key_is_not_enabled_again(store: SqlStore) -> None:
    await store.create_key(key())
    await store.set_key_enabled("key_laptop", False)
    await store.revoke_key("key_laptop", NOON + 1)
    revoked = key(revoked_at=NOON + 1, enabled=False)
    assert await store.set_key_enabled("key_laptop", True) == revoked
    assert await store.keys() == [revoked]


async def test_enabling_what_does_not_exist_gives_nothing(store: SqlStore) -> None:
    assert await store.set_key_enabled("key_nobody", True) is None
    assert await store.set_account_enabled("nobody", True) is None
    assert await store.account("nobody") is None
    assert await store.accounts() == []


async def test_a_prefix_of_two_keys_disables_neither(store: SqlStore) -> None:
    await store.create_key(key("one", prefix="sk-fab-same"))
    await store.create_key(key("two", prefix="sk-fab-same"))
    before = await store.revision()
    with pytest.raises(AmbiguousKey, match="key_one, key_two"):
        await store.set_key_enabled("sk-fab-same", False)
    assert [row.enabled for row in await store.keys()] == [True, True]
    assert await store.revision() == before


async def test_accounts_are_listed_oldest_first(store: SqlStore) -> None:
    young, old = account("young", created_at=NOON + 9, note="Ada, ada@acme.example"), account("old")
    assert await store.create_account(young)
    assert await store.create_account(old)
    assert await store.accounts() == [old, young]
    assert await store.account("young") == young


async def test_an_account_that_exists_already_stays_as_it_is(store: SqlStore) -> None:
    await store.create_account(account(note="the first"))
    await store.set_account_enabled("acme", False)
    assert not await store.create_account(account(note="the second"))
    assert await store.accounts() == [account(note="the first", enabled=False)]


async def test_a_key_makes_its_account_when_there_is_none(store: SqlStore) -> None:
    await store.create_account(account(note="the first"))
    assert await store.create_key(key("a", account="acme")) == key("a", account="acme")
    await store.create_key(key("b", account="new", created_at=NOON + 1))
    assert await store.accounts() == [
        account(note="the first"),
        account("new", created_at=NOON + 1),
    ]


async def test_a_key_that_can_not_be_made_makes_no_account(store: SqlStore) -> None:
    await store.create_key(key())
    with pytest.raises(RecordError):
        await store.create_key(key(account="new"))
    assert [row.name for row in await store.accounts()] == ["default"]


async def test_keys_of_one_account_are_listed_alone(store: SqlStore) -> None:
    names = ("acme", "other/{co} ä", "acme")
    for number, name in enumerate(names):
        await store.create_key(key(f"k{number}", account=name, created_at=NOON + number))
    assert [row.name for row in await store.keys(account="acme")] == ["k0", "k2"]
    assert [row.name for row in await store.keys(account="other/{co} ä")] == ["k1"]
    assert await store.keys(account="nobody") == []


async def test_an_account_takes_its_keys_along_and_gives_them_back_as_they_were(
    store: SqlStore,
) -> None:
    good, off = key("good", account="acme"), key("off", account="acme", created_at=NOON + 1)
    other = key("other", created_at=NOON + 2)
    for row in (good, off, other):
        await store.create_key(row)
    await store.set_key_enabled("key_off", False)
    assert await store.set_account_enabled("acme", False) == account(enabled=False)
    assert await store.keys() == [
        replace(good, account_enabled=False),
        replace(off, enabled=False, account_enabled=False),
        other,
    ]
    found = await store.key_by_hash(good.hash)
    assert found is not None and not found.usable
    assert await store.set_account_enabled("acme", True) == account()
    assert await store.keys() == [good, replace(off, enabled=False), other]


async def test_a_key_made_for_a_disabled_account_says_so(store: SqlStore) -> None:
    await store.create_account(account())
    await store.set_account_enabled("acme", False)
    made = await store.create_key(key(account="acme"))
    assert made == key(account="acme", account_enabled=False)
    assert await store.keys() == [made]
    assert await store.revoke_key(made.id, NOON) == replace(made, revoked_at=NOON)


async def test_what_is_disabled_and_enabled_is_a_change_of_each_key_concerned(
    store: SqlStore,
) -> None:
    mine, other = key("mine", account="acme"), key("other")
    for row in (mine, other):
        await store.create_key(row)
    for enabled in (False, True):
        before = await store.revision()
        await store.set_account_enabled("acme", enabled)
        changes = await store.changes(before)
        assert changes.keys == [replace(mine, account_enabled=enabled)]
        await store.set_key_enabled("key_other", enabled)
        (changed,) = (await store.changes(changes.revision)).keys
        assert changed == replace(other, enabled=enabled)


async def test_accounts_are_made_of_what_keys_named_before_there_were_any(shared_url: str) -> None:
    database = await open_database(shared_url)
    await migrations.migrate(database, migrations.find(migrations.directory())[:1], NOON)
    async with database.transaction() as session:
        for number, name in enumerate(("acme", "a/b {c}", "acme"), 1):
            await session.execute(
                "INSERT INTO keys (id, account, name, prefix, hash, management, created_at,"
                " revision) VALUES ($1, $2, $1, $1, $3, FALSE, $4, $5)",
                f"key_{number}",
                name,
                digest(name + str(number)),
                NOON + number,
                number,
            )
    await database.close()
    store = await open_store(shared_url)
    assert await store.accounts() == [
        account("acme", created_at=NOON + 1),
        account("a/b {c}", created_at=NOON + 2),
    ]
    assert [row.usable for row in await store.keys()] == [True] * 3
    await store.close()


async def test_what_was_there_before_policies_jobs_and_limits_keeps_its_meaning(
    shared_url: str,
) -> None:
    database = await open_database(shared_url)
    await migrations.migrate(database, migrations.find(migrations.directory())[:6], NOON)
    old = {name: value for name, value in asdict(entry()).items() if name not in LATER}
    async with database.transaction() as session:
        await session.execute("UPDATE revision SET number = 7")
        await session.execute(
            "INSERT INTO accounts (name, note, created_at, enabled, revision)"
            " VALUES ('default', '', $1, TRUE, 7)",
            NOON,
        )
        await session.execute(
            "INSERT INTO keys (id, account, name, prefix, hash, management, created_at, models,"
            " enabled, revision) VALUES ($1, 'default', $2, $3, $4, FALSE, $5, $6, TRUE, 7)",
            key().id,
            key().name,
            key().prefix,
            key().hash,
            NOON,
            '["tiny"]',
        )
        places = ", ".join(f"${n}" for n in range(1, len(old) + 1))
        await session.execute(
            f"INSERT INTO ledger ({', '.join(old)}) VALUES ({places})",
            *old.values(),
        )
    await database.close()
    store = await open_store(shared_url)
    try:
        assert await store.keys() == [key(models=["tiny"])]
        assert store.revision_at_open == 7
        limited = await store.set_key_policy(
            key().id, KeyPolicyUpdate(requests_per_minute=5).apply_to
        )
        assert limited == key(models=["tiny"], requests_per_minute=5)
        assert (await store.changes(7)).keys == [limited]
        assert list(await store.requests(limit=9)) == [entry()]
        assert await JobStore(store.database).count_queued() == (0, 0)
        # What a server of the release before still puts into the ledger.
        await store.write((), [msgspec.json.decode(_told(entry(2)), type=LedgerEntry)])
        assert [one.request_id for one in await store.requests(limit=9)] == [
            entry(2).request_id,
            entry(1).request_id,
        ]
    finally:
        await store.close()


LATER = ("route", "continued", "usage_implausible", "estimated")
"""Columns of the ledger that came with policies."""


def _told(one: LedgerEntry) -> bytes:
    """As the release before wrote it into a spool, or to Kafka."""
    values = {name: value for name, value in asdict(one).items() if name not in LATER}
    return msgspec.json.encode(values)


async def test_a_key_whose_account_has_no_row_works(shared_url: str) -> None:
    """A server of the release before makes such keys, on a store that was upgraded meanwhile."""
    store = await open_store(shared_url)
    await store.create_key(key())
    database = await open_database(shared_url)
    async with database.transaction() as session:
        await session.execute("DELETE FROM accounts")
    await database.close()
    found = await store.key_by_hash(key().hash)
    assert found == key() and found.usable
    # And its account can be made, to be disabled.
    await store.create_account(account("default"))
    await store.set_account_enabled("default", False)
    assert await store.keys() == [key(account_enabled=False)]
    await store.close()


async def test_no_key_slips_past_the_disabling_of_its_account(shared_url: str) -> None:
    stores = [await open_store(shared_url) for _ in range(4)]
    await stores[0].create_account(account())
    before = await stores[0].revision()
    await asyncio.gather(
        *(
            store.create_key(key(f"k{number}-{turn}", account="acme"))
            for number, store in enumerate(stores[1:])
            for turn in range(5)
        ),
        stores[0].set_account_enabled("acme", False),
    )
    changes = await stores[0].changes(before)
    assert len(changes.keys) == 15
    assert not any(row.usable for row in changes.keys)
    for store in stores:
        await store.close()


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
    await store.mark_node_online(
        "node_attic", NOON + 7, platform="windows", version="0.2.0", region="eu"
    )
    assert await store.node("node_attic") == replace(
        node(), last_seen_at=NOON + 7, platform="windows", version="0.2.0", region="eu", online=True
    )


async def test_models_once_served_stay_known_while_their_node_may_come_back(
    store: SqlStore,
) -> None:
    for id in ("node_first", "node_second"):
        await store.create_invitation(replace(invitation(), id=f"inv_{id}", secret_hash=digest(id)))
        await store.redeem_invitation(digest(id), replace(node(), id=id), NOON)
    await store.add_served_models("node_first", ["a", "b"], NOON)
    await store.add_served_models("node_first", ["b"], NOON)
    await store.add_served_models("node_second", ["b", "c"], NOON)
    await store.mark_node_online("node_first", 1000.0, platform="", version="")
    await store.mark_node_online("node_second", 2000.0, platform="", version="")
    assert await store.known_models(since=500.0) == ["a", "b", "c"]
    assert await store.known_models(since=1500.0) == ["b", "c"]
    await store.revoke_node("node_second", 3.0)
    assert await store.known_models(since=500.0) == ["a", "b"]


async def test_the_weights_of_a_served_model_are_those_told_last(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    small, large = ("Q4_K_M", "a" * 64), ("Q8_0", "b" * 64)
    await store.add_served_models("node_attic", ["a", "b"], NOON, {"a": small})
    await store.add_served_models("node_attic", ["a"], NOON + 1, {"a": large, "c": small})
    assert await store.served_models("node_attic") == [
        ServedRow("a", *large, NOON + 1),
        ServedRow("b", "", "", NOON),
    ]
    assert await store.served_models("node_other") == []


async def test_of_too_many_models_of_one_node_the_oldest_are_forgotten(store: SqlStore) -> None:
    for id in ("node_first", "node_second"):
        await store.create_invitation(replace(invitation(), id=f"inv_{id}", secret_hash=digest(id)))
        await store.redeem_invitation(digest(id), replace(node(), id=id), NOON)
        await store.mark_node_online(id, NOON, platform="", version="")
    await store.add_served_models("node_first", ["mine"], NOON)
    for batch in range(5):
        names = [f"batch{batch}-{number}" for number in range(MAX_SERVED // 2)]
        await store.add_served_models("node_second", names, NOON + batch)
    await store.add_served_models("node_second", ["batch3-7"], NOON + 9)  # served again
    known = await store.known_models(since=0.0)
    assert len(known) == MAX_SERVED + 1
    assert {"mine", "batch4-0", "batch3-7"} <= set(known)
    assert "batch2-0" not in known


async def test_a_contested_node_is_settled_by_the_operator(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    await store.set_next_node_key("node_attic", digest("next"))
    before = await store.changes(0)
    await store.contest_node("node_attic", NOON, "192.0.2.1 and 192.0.2.2")
    await store.contest_node("node_attic", NOON + 9, "others")  # noticed before
    changes = await store.changes(before.revision)
    (changed,) = changes.nodes
    assert changed == replace(node(), contested_at=NOON, contested_by="192.0.2.1 and 192.0.2.2")
    assert changed.state == "contested"
    assert await store.settle_node("node_attic") == node()
    assert await store.settle_node("node_nobody") is None
    assert [one.state for one in (await store.changes(changes.revision)).nodes] == ["good"]


async def test_a_nodes_key_is_replaced_by_the_next_one_when_that_is_used(store: SqlStore) -> None:
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(), NOON)
    await store.confirm_node_key("node_attic", digest("next"))  # never issued
    assert await store.node("node_attic") == node()
    await store.set_next_node_key("node_attic", digest("next"))
    assert await store.node("node_attic") == replace(node(), next_key_sha256=digest("next"))
    await store.confirm_node_key("node_attic", digest("another"))
    await store.confirm_node_key("node_attic", digest("next"))
    assert await store.node("node_attic") == replace(node(), public_key_sha256=digest("next"))


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
