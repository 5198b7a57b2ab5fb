"""Any bytes in any pieces give the same messages on a link."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from protocol import messages
from protocol.control.link import Link, LinkClosed
from tests.protocol.pieces import broken, cuts, pieces_of, unhurried

LINK_MESSAGES = [
    messages.encode(message)
    for message in (
        messages.Ping(1),
        messages.Pong(2),
        messages.Tunnels(3),
        messages.Leaving("restarting", 1.0),
        messages.Refused(13, "revoked", False),
        messages.Registered("node_1", 1, b"s", 17001, 2, 15.0),
        messages.Engines([messages.EngineReport("e", "openai", True, 1, [])]),
    )
]
link_traffic = st.one_of(
    st.binary(max_size=100),
    st.lists(st.sampled_from(LINK_MESSAGES) | st.binary(max_size=30), max_size=10)
    .map(lambda parts: b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    .flatmap(broken),
)


@unhurried
@given(data=link_traffic, sizes=cuts)
def test_a_link_hears_the_same_in_any_pieces(data, sizes):
    whole, cut = (Link(now=0.0, rng=Random(1)) for _ in range(2))
    whole.receive(data, 1.0)
    for piece in pieces_of(data, sizes):
        cut.receive(piece, 1.0)
    events = whole.events()
    assert cut.events() == events
    assert b"".join(cut.data_to_send()) == b"".join(whole.data_to_send())
    assert [isinstance(event, LinkClosed) for event in events].count(True) == int(whole.closed)
    assert not whole.closed or isinstance(events[-1], LinkClosed)
