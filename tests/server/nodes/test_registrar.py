"""Who may register, with a real store: known nodes, not too often, and one holder of a key."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_server.nodes.key_holders import BURST
from fabric_server.nodes.registrar import CONTESTED, Admitted, Presented, Refusal, Registrar
from fabric_server.storage.connect import open_store
from fabric_server.storage.store import SqlStore
from protocol import messages
from protocol.errors import Code
from protocol.messages import Register
from tests.contracts.samples import NOON, digest, invitation, node

KEY, NEXT, COPIED = digest("key"), digest("next"), digest("copied")
HOME, ELSEWHERE = "192.0.2.1", "203.0.113.9"


@pytest.fixture
async def store() -> AsyncIterator[SqlStore]:
    store = await open_store("sqlite://")
    await store.create_invitation(invitation())
    await store.redeem_invitation(digest("secret"), node(public_key_sha256=KEY), NOON)
    yield store
    await store.close()


class Gate:
    """A registrar, and a clock that goes on by a minute with each registration."""

    def __init__(self, store: SqlStore) -> None:
        self.now = 0.0
        self.registrar = Registrar(store, now=lambda: self.now)

    async def admit(
        self,
        instance: str = "a",
        address: str = HOME,
        *,
        key: bytes = KEY,
        node_id: str = "node_attic",
        wait: float = 60.0,
        **changes: Any,
    ) -> Admitted | Refusal:
        self.now += wait
        ends = time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(time.time() + 1000))
        register = Register(
            version=messages.VERSION,
            release="1",
            name="n",
            platform="p",
            engines=[],
            instance=instance,
            **changes,
        )
        return await self.registrar.admit(
            Presented(node_id, {"notAfter": ends}, key, address), register
        )


async def test_each_registration_gets_the_next_epoch(store: SqlStore) -> None:
    gate = Gate(store)
    for epoch in (1, 2, 3):
        admitted = await gate.admit()
        assert isinstance(admitted, Admitted)
        assert admitted.epoch == epoch


async def test_unknown_and_revoked_nodes_are_refused_for_good(store: SqlStore) -> None:
    gate = Gate(store)
    for unknown in (await gate.admit(node_id="node_b"), await gate.admit(node_id="")):
        assert isinstance(unknown, Refusal)
        assert not unknown.again
    await store.revoke_node("node_attic", NOON)
    revoked = await gate.admit()
    assert isinstance(revoked, Refusal)
    assert (revoked.code, revoked.again) == (Code.UNAUTHORISED, False)


async def test_a_node_that_registers_all_the_time_costs_the_store_nothing(store: SqlStore) -> None:
    gate = Gate(store)
    answers = [await gate.admit(f"run{n}", wait=0.01) for n in range(200)]
    refused = [one for one in answers if isinstance(one, Refusal)]
    assert len(refused) >= 200 - BURST - 1
    assert all(one.code == Code.CALM and one.again for one in refused)
    row = await store.node("node_attic")
    assert row is not None and row.epoch == 200 - len(refused)
    assert isinstance(await gate.admit("later"), Admitted)


async def test_a_copied_key_is_contested_until_the_operator_settles_it(
    store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(store)
    assert isinstance(await gate.admit("honest", HOME), Admitted)
    assert isinstance(await gate.admit("thief", ELSEWHERE), Admitted)
    with caplog.at_level(logging.ERROR):
        refused = await gate.admit("honest", HOME)
    assert refused == Refusal(Code.UNAUTHORISED, CONTESTED)
    assert HOME not in CONTESTED  # a thief learns nothing of the home
    assert "two machines use the key" in caplog.text
    row = await store.node("node_attic")
    assert row is not None
    assert row.state == "contested"
    assert row.contested_by == f"{ELSEWHERE} and {HOME}"
    assert gate.registrar.conflicts == 1
    for who, where in (("thief", ELSEWHERE), ("honest", HOME), ("another", ELSEWHERE)):
        assert await gate.admit(who, where) == refused
    assert gate.registrar.conflicts == 1  # told once
    await store.settle_node("node_attic")
    assert isinstance(await gate.admit("honest", HOME), Admitted)
    assert isinstance(await gate.admit("honest", HOME), Admitted)
    assert isinstance(await gate.admit("thief", ELSEWHERE), Admitted)
    assert await gate.admit("honest", HOME) == refused


async def test_two_holders_are_noticed_also_by_way_of_another_worker(store: SqlStore) -> None:
    first, second = Gate(store), Gate(store)
    for worker, other in ((first, second), (second, first)):
        worker.registrar.on_registered = lambda *about, other=other: other.registrar.note_elsewhere(
            about[0], *about[2:]
        )
    for gate, who, where in ((first, "honest", HOME), (second, "thief", ELSEWHERE)):
        assert isinstance(await gate.admit(who, where), Admitted)
        gate.registrar.on_registered("node_attic", 1, who, where)  # as ``Links`` does
    refused = Refusal(Code.UNAUTHORISED, CONTESTED)
    assert await first.admit("honest", HOME) == refused
    for gate in (first, second):  # as the change in the store tells them
        gate.registrar.forget("node_attic")
    await store.settle_node("node_attic")
    assert isinstance(await second.admit("honest", HOME), Admitted), "it begins anew"


async def test_a_contested_node_can_be_revoked(store: SqlStore) -> None:
    gate = Gate(store)
    for who in ("a", "b", "a"):
        await gate.admit(who)
    row = await store.revoke_node("node_attic", NOON)
    assert row is not None and row.state == "revoked"
    refused = await gate.admit("a")
    assert isinstance(refused, Refusal)
    assert not refused.again


# ── keys that are replaced ────────────────────────────────────────────────────────────────────


async def test_both_keys_are_good_until_the_new_one_is_used_and_then_only_that(
    store: SqlStore,
) -> None:
    gate = Gate(store)
    await store.set_next_node_key("node_attic", NEXT)
    assert isinstance(await gate.admit(key=KEY), Admitted)
    assert isinstance(await gate.admit(key=NEXT), Admitted)
    refused = await gate.admit(key=KEY)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.again) == (Code.UNAUTHORISED, False)
    assert "replaced by a newer one" in refused.reason
    assert gate.registrar.replaced_keys == 1
    assert isinstance(await gate.admit(key=NEXT), Admitted)


@pytest.mark.parametrize("key", [COPIED, b""])
async def test_a_certificate_for_any_other_key_is_refused(store: SqlStore, key: bytes) -> None:
    gate = Gate(store)
    await store.set_next_node_key("node_attic", NEXT)
    assert isinstance(await gate.admit(key=key), Refusal)


async def test_a_thief_who_is_quick_to_replace_the_key_is_contested_all_the_same(
    store: SqlStore,
) -> None:
    gate = Gate(store)
    await gate.admit("honest", HOME)
    await gate.admit("thief", ELSEWHERE)
    await store.set_next_node_key("node_attic", COPIED)
    await gate.admit("thief", ELSEWHERE, key=COPIED)
    assert await gate.admit("honest", HOME) == Refusal(Code.UNAUTHORISED, CONTESTED)


async def test_a_key_that_was_not_used_yet_is_void_once_the_node_is_contested(
    store: SqlStore,
) -> None:
    gate = Gate(store)
    await gate.admit("honest", HOME)
    await gate.admit("thief", ELSEWHERE)
    await store.set_next_node_key("node_attic", COPIED)
    await gate.admit("honest", HOME)
    await store.settle_node("node_attic")
    assert isinstance(await gate.admit("thief", ELSEWHERE, key=COPIED), Refusal)
    assert isinstance(await gate.admit("honest", HOME), Admitted)
