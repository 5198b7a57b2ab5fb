"""Messages between servers: what is written is read, and what is not one is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.routing.choice import forwarded_head, forwarded_requirements
from fabric_server.routing.criteria import EngineTerms, Priority, Requirements
from fabric_server.routing.variants import BegunAnswer, WantedVariant
from protocol import mesh, messages
from protocol.mesh import (
    DigestUpdate,
    ForwardedRequest,
    ForwardedResponse,
    Granted,
    HomeEngine,
    Queued,
    Unpacker,
    WaitMessage,
)
from protocol.messages import UNREADABLE, ModelReport, RequestHead, ResponseHead

HEAD = RequestHead("req_1", "", "POST", "/v1/chat/completions", [("accept", "*/*")], 7, 60_000, 2)


def test_requirements_arrive_as_they_were() -> None:
    begun = BegunAnswer("ollama", ModelReport("tiny", digest="ab" * 32))
    terms = EngineTerms(frozenset({"vllm"}), WantedVariant("q4", "ab"), begun)
    asked = Requirements(
        "tiny",
        "key_1",
        Priority.HIGH,
        frozenset({"tools"}),
        terms,
        frozenset({"eu"}),
        (1, 2**32 - 1),
        900,
        excluded_nodes=["node_1", "w1/eu#node_2"],
        path="/v1/chat/completions",
    )
    payload = messages.encode(forwarded_head(HEAD, asked))
    head = messages.decoder(ForwardedRequest).decode(payload)
    told = forwarded_requirements(head)
    assert told.stays
    assert told.excluded_nodes == ["node_1", "node_2"]
    told.excluded_nodes, told.terms = asked.excluded_nodes, terms
    assert told == asked
    assert (head.request_id, head.headers, head.body_size, head.attempt) == (
        HEAD.request_id,
        HEAD.headers,
        7,
        2,
    )


def test_a_node_reads_the_heads_of_servers_as_its_own() -> None:
    payload = messages.encode(forwarded_head(HEAD, Requirements("tiny", path=HEAD.path)))
    assert messages.decoder(RequestHead).decode(payload).path == HEAD.path
    told = messages.encode(ForwardedResponse(200, [], "node_1", "ollama"))
    assert messages.decoder(ResponseHead).decode(told) == ResponseHead(200, [])


@given(st.lists(st.integers(0, 2**40), max_size=8), st.integers(1, 16))
def test_messages_cut_anywhere_are_read_whole(positions: list[int], size: int) -> None:
    sent: list[WaitMessage] = [Queued(position) for position in positions]
    sent.append(Granted("row-1"))
    stream = b"".join(map(mesh.pack, sent))
    unpacker, found = Unpacker[WaitMessage](WaitMessage), list[WaitMessage]()
    for start in range(0, len(stream), size):
        found += unpacker.feed(stream[start : start + size])
    assert found == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_unreadable(data: bytes) -> None:
    unpacker = Unpacker[DigestUpdate](DigestUpdate)
    with contextlib.suppress(*UNREADABLE):
        assert all(isinstance(one, DigestUpdate) for one in unpacker.feed(data))


def test_a_length_over_the_limit_is_refused_before_its_message_has_come() -> None:
    with pytest.raises(ValueError, match="over its limit"):
        Unpacker[WaitMessage](WaitMessage, limit=100).feed(b"\x00\x00\x00\x65")


def test_a_row_has_more_slots_than_an_engine_may_have_but_not_any_number() -> None:
    decode = messages.decoder(HomeEngine).decode
    row = HomeEngine("row-1", "vllm", True, slots=50_000, models=[], nodes=1_000)
    assert decode(messages.encode(row)) == row
    over = HomeEngine("row-1", "vllm", True, slots=mesh.MAX_SLOTS + 1, models=[])
    with pytest.raises(UNREADABLE):
        decode(messages.encode(over))
