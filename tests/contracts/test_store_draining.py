"""What every store remembers of a node that the operator drains, and of why one is not asked."""

from __future__ import annotations

import pytest

from fabric_server.storage.rows import NodeRow
from fabric_server.storage.store import SqlStore
from tests.contracts.samples import NOON, digest, invitation, node


@pytest.fixture
async def attic(store: SqlStore) -> NodeRow:
    await store.create_invitation(invitation(name="the attic"))
    await store.redeem_invitation(digest("secret"), node(), NOON)
    found = await store.node("node_attic")
    assert found is not None
    return found


async def test_draining_is_a_change_and_outlasts_registrations(
    store: SqlStore, attic: NodeRow
) -> None:
    assert (attic.draining, attic.state) == (False, "good")
    before = await store.revision()
    drained = await store.set_node_draining(attic.id, True)
    assert drained == node(draining=True)
    assert drained is not None and drained.state == "draining"
    assert (await store.changes(before)).nodes == [drained]
    assert await store.next_epoch(attic.id) == 1
    await store.mark_node_online(attic.id, NOON + 1, platform="linux", version="2")
    found = await store.node(attic.id)
    assert found is not None and found.draining

    before = await store.revision()
    undrained = await store.set_node_draining(attic.id, False)
    assert undrained is not None and not undrained.draining
    assert (await store.changes(before)).nodes == [undrained]


async def test_a_node_that_is_unknown_is_not_drained(store: SqlStore) -> None:
    assert await store.set_node_draining("node_nobody", True) is None


async def test_a_revoked_node_is_revoked_whether_it_drains_or_not(
    store: SqlStore, attic: NodeRow
) -> None:
    await store.set_node_draining(attic.id, True)
    revoked = await store.revoke_node(attic.id, NOON)
    assert revoked is not None and revoked.state == "revoked"


async def test_the_last_registration_says_why_a_node_is_not_asked(
    store: SqlStore, attic: NodeRow
) -> None:
    before = await store.revision()
    for _ in range(2):
        await store.next_epoch(attic.id)
    await store.set_node_problem(attic.id, 2, "paused: on battery")
    await store.set_node_problem(attic.id, 1, "no engine")  # late
    found = await store.node(attic.id)
    assert found is not None and found.problem == "paused: on battery"
    assert await store.revision() == before  # nobody has to forget anything
    await store.set_node_problem(attic.id, 2, "")
    found = await store.node(attic.id)
    assert found is not None and found.problem == ""


async def test_an_invitation_tells_the_name_that_it_wishes(store: SqlStore, attic: NodeRow) -> None:
    found = await store.invitation(digest("secret"))
    assert found is not None and (found.name, found.node_id) == ("the attic", attic.id)
    await store.create_invitation(invitation("other"))
    assert await store.invitation(digest("other")) == invitation("other")
    assert await store.invitation(digest("unknown")) is None
