"""No answer without its ledger entry, and none on a key that was taken away."""

from __future__ import annotations

import pytest
from msgspec import Struct

from fabric_server.dialects import errors
from fabric_server.proxy.answer_writer import WHOLE_ANSWER
from protocol.errors import Code
from tests.site import (
    ANSWER,
    ASK,
    CHAT,
    DONE,
    STREAM,
    Ledger,
    Site,
    ask,
    begin_stream,
    chunk,
    turns,
)
from tests.users import MemoryUser, request


class Watchful(Ledger):
    """Keeps what the user had received when each entry came."""

    def __init__(self) -> None:
        super().__init__()
        self.user: MemoryUser
        self.received: list[bytes] = []

    def publish(self, topic: str, record: Struct) -> None:
        super().publish(topic, record)
        self.received.append(bytes(self.user.received))


class Full(Ledger):
    """Has no room for the entries of more requests."""

    full = True


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_an_announced_answer_is_in_the_ledger_before_anything_of_it_leaves(
    connection: str,
) -> None:
    ledger = Watchful()
    site = Site(ledger=ledger)
    node = site.node()
    ledger.user = user = ask(site, connection=connection)
    call = await node.call()
    call.head(200, ("content-type", "application/json"), ("content-length", str(len(ANSWER))))
    call.data(ANSWER)
    await turns(10)
    assert user.received == b"", "it waits for the node's word that it is over"
    call.end()
    assert (await user.answer()).body == ANSWER
    assert ledger.received == [b""]
    assert (await site.entry()).bytes_out == len(ANSWER)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_large_announced_answer_is_in_the_ledger_before_its_end_leaves(
    connection: str,
) -> None:
    ledger = Watchful()
    site = Site(ledger=ledger)
    node = site.node()
    ledger.user = user = ask(site, connection=connection)
    call = await node.call()
    answer = ANSWER + b" " * (WHOLE_ANSWER + 50_000)
    call.head(200, ("content-type", "application/json"), ("content-length", str(len(answer))))
    await call.all_data(answer)
    await user.until(ANSWER)
    assert len(user.received) < len(answer)
    call.end()
    assert (await user.answer()).body == answer
    assert len(ledger.received[0]) < len(answer)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_streamed_answer_is_in_the_ledger_before_its_end_leaves(connection: str) -> None:
    ledger = Watchful()
    site = Site(ledger=ledger)
    node = site.node()
    ledger.user = user = ask(site, STREAM, connection=connection)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel"))
    await user.until(b"Hel")
    call.data(chunk(None) + DONE)
    call.end()
    assert (await user.answer()).body == chunk("Hel") + chunk(None) + DONE
    assert not ledger.received[0].endswith(b"0\r\n\r\n")


async def test_a_broken_stream_is_in_the_ledger_before_the_user_is_told() -> None:
    ledger = Watchful()
    site = Site(ledger=ledger)
    node = site.node()
    ledger.user = user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel"))
    await user.until(b"Hel")
    call.fail(Code.ENGINE_FAILED)
    assert b"upstream_lost" in (await user.answer()).body
    assert b"upstream_lost" not in ledger.received[0]


async def test_an_announced_answer_whose_node_breaks_off_at_the_very_end_is_an_error() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-type", "application/json"), ("content-length", str(len(ANSWER))))
    call.data(ANSWER)
    await turns(10)
    call.fail(Code.ENGINE_FAILED)
    assert (await user.answer()).status == 502
    assert (await site.entry()).outcome == "failed"


async def test_without_room_in_the_ledger_requests_are_refused_and_asked_of_nobody() -> None:
    site = Site(ledger=Full())
    node = site.node()
    answer = await ask(site).answer()
    assert (answer.status, answer.code) == (503, "ledger_full")
    assert answer.headers["retry-after"] == "10"
    assert node.idle
    assert (await site.entry()).outcome == "refused"


# ── a key that is taken away ──────────────────────────────────────────────────────────────────


def key_id(site: Site, number: int = 0) -> str:
    return list(site.keys.rows.values())[number].id


async def test_a_stream_on_a_withdrawn_key_ends_with_an_error_and_its_engine_stops() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    site.gateway.active.cancel_key("key_of_somebody_else")
    site.gateway.active.cancel_key(key_id(site))
    answer = await user.answer()
    assert answer.body.startswith(chunk("Hel") + b'data: {"error"')
    assert b"key_withdrawn" in answer.body
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    await site.free()
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.status) == ("cancelled", "key_withdrawn", 200)


async def test_a_request_whose_answer_has_not_begun_is_refused_when_its_key_is_withdrawn() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    site.gateway.active.cancel_key(key_id(site))
    answer = await user.answer()
    assert (answer.status, answer.code) == (401, "key_withdrawn")
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    await site.free()
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.status) == ("cancelled", "key_withdrawn", 401)


@pytest.mark.parametrize("large", [False, True])
async def test_an_unstreamed_answer_under_way_is_ended_when_its_key_is_withdrawn(
    large: bool,
) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-type", "application/json"), ("content-length", "1000000"))
    await call.all_data(b"x" * (WHOLE_ANSWER + 50_000 if large else 20))
    await turns(10)
    site.gateway.active.cancel_key(key_id(site))
    if large:
        await user.end()
        assert user.aborted
    else:
        assert (await user.answer()).code == "key_withdrawn"
    assert await call.stopped() == Code.CANCELLED


async def test_who_waits_in_line_on_a_withdrawn_key_leaves_it_at_once() -> None:
    site = Site()
    node = site.node(slots=1)
    other = site.make_key()
    first = ask(site)
    call = await node.call()
    second = ask(site, authorization=other["authorization"])
    await turns(10)
    assert site.admission.waiting == 1
    site.gateway.active.cancel_key(key_id(site, 1))
    assert (await second.answer()).code == "key_withdrawn"
    assert site.admission.waiting == 0
    call.answer(200, ANSWER)
    assert (await first.answer()).status == 200
    assert node.idle
    await site.free()
    assert [entry.outcome for entry in site.ledger] == ["cancelled", "ok"]


async def test_a_body_on_a_withdrawn_key_is_not_waited_for() -> None:
    site = Site()
    user = site.user()
    user.send(request("POST", CHAT, ASK, **site.key)[:-10])
    await turns(10)
    site.gateway.active.cancel_key(key_id(site))
    assert (await user.answer()).code == "key_withdrawn"
    assert (await site.entry()).error == "key_withdrawn"


async def test_who_is_cut_when_just_given_a_slot_gives_it_back() -> None:
    site = Site()
    node = site.node(slots=1)
    other = site.make_key()
    first = ask(site)
    call = await node.call()
    second = ask(site, authorization=other["authorization"])
    await turns(10)
    call.answer(200, ANSWER)
    await first.answer()  # the slot goes to the second in this very turn
    site.gateway.active.cancel_key(key_id(site, 1))
    assert (await second.answer()).code == "key_withdrawn"
    if not node.idle:  # it was asked already
        (await node.call()).confirm()
    await site.free()


# ── the operator ends a request ───────────────────────────────────────────────────────────────


async def test_the_operator_sees_what_runs_and_ends_one_of_it() -> None:
    site = Site()
    node = site.node(slots=1)
    streaming, call = await begin_stream(site, node)
    waiting = ask(site)
    await turns(10)
    begun, queued = site.gateway.active.list()
    assert begun.choice is not None
    assert (begun.parsed.model, begun.choice.engine.node.id) == ("tiny", "node_1")
    assert queued.choice is None
    assert (begun.state, queued.state) == ("answering", "waiting")
    assert site.gateway.active.find("req_nobody") is None
    assert site.gateway.active.find(begun.request.id) is begun
    begun.cancel(errors.cancelled())
    assert begun.state == "answering", "its end is not waiting for a slot"
    assert b"cancelled_by_operator" in (await streaming.answer()).body
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    (await node.call()).answer(200, ANSWER)
    assert (await waiting.answer()).status == 200
    assert [(entry.outcome, entry.error) for entry in site.ledger] == [
        ("cancelled", "cancelled_by_operator"),
        ("ok", None),
    ]
    assert site.gateway.active.list() == []
    assert site.gateway.active.find(begun.request.id) is None, "it is over"


async def test_a_request_in_line_that_the_operator_ends_is_refused() -> None:
    site = Site()
    await begin_stream(site, site.node(slots=1))
    user = ask(site)
    await turns(10)
    site.gateway.active.list()[1].cancel(errors.cancelled())
    answer = await user.answer()
    assert (answer.status, answer.code) == (403, "cancelled_by_operator")
    assert site.admission.waiting == 0
