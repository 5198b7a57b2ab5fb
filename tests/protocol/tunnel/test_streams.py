"""Credit as the receiver counts it, and bytes in their order as the sender keeps them."""

from protocol.tunnel.streams import STREAM_WINDOW, Inbound, Outbound, Stream


def sent(outbound: Outbound, *rooms: int) -> list[bytes]:
    return [bytes(outbound.take(room)) for room in rooms]


def filled(*chunks: bytes) -> Outbound:
    outbound = Outbound(STREAM_WINDOW)
    for chunk in chunks:
        outbound.add(chunk)
    return outbound


def receive(inbound: Inbound, count: int) -> bool:
    """Count bytes as a connection does; False when the peer has exceeded its credit."""
    inbound.received += count
    return inbound.received <= inbound.granted


def test_the_first_grant_is_the_window_itself():
    inbound = Inbound(1000)
    assert receive(inbound, 1000)
    assert not receive(inbound, 1)


def test_a_new_grant_is_announced_when_half_of_the_last_one_is_used():
    inbound = Inbound(1000)
    receive(inbound, 900)
    assert inbound.consume(499) is None
    assert inbound.consume(1) == 1500
    assert inbound.consume(400) is None, "1500 - 900 is more than half a window"


def test_what_is_not_consumed_is_not_granted_again():
    inbound = Inbound(1000)
    receive(inbound, 1000)
    assert inbound.consume(600) == 1600
    assert receive(inbound, 600)
    assert not receive(inbound, 1)


def test_consuming_nothing_grants_nothing():
    inbound = Inbound(1000)
    assert inbound.consume(0) is None


def test_small_chunks_that_wait_are_joined():
    outbound = filled(b"one ", b"two ", b"three")
    assert sent(outbound, 100) == [b"one two three"]
    assert outbound.queued == 0
    assert outbound.sent == 13


def test_a_chunk_is_not_split_to_fill_a_frame():
    outbound = filled(b"aaaa", b"bbbb", b"cccc")
    assert sent(outbound, 10, 10) == [b"aaaabbbb", b"cccc"]


def test_chunks_are_joined_up_to_the_last_byte_and_no_further():
    assert sent(filled(b"aaaa", b"bbb"), 7) == [b"aaaabbb"]
    assert sent(filled(b"aaaa", b"bbb"), 6, 6) == [b"aaaa", b"bbb"]


def test_a_large_chunk_goes_out_in_pieces_without_being_copied():
    outbound = filled(b"0123456789", b"next")
    first = outbound.take(4)
    assert isinstance(first, memoryview)
    assert bytes(first) == b"0123"
    assert sent(outbound, 4, 4, 4) == [b"4567", b"89", b"next"]
    assert outbound.queued == 0


def test_a_lone_chunk_goes_out_as_it_is():
    chunk = b"the very same object"
    assert filled(chunk).take(100) is chunk


def test_a_chunk_that_fits_exactly_is_one_piece():
    assert sent(filled(b"1234", b"5678"), 4, 4) == [b"1234", b"5678"]


def test_clearing_drops_what_waits_in_the_middle_of_a_chunk():
    outbound = filled(b"0123456789")
    outbound.take(3)
    outbound.clear()
    assert outbound.queued == 0
    outbound.add(b"fresh")
    assert sent(outbound, 100) == [b"fresh"]


def test_a_stream_shows_where_it_stands():
    stream = Stream(7)
    stream.outbound.add(b"abc")
    assert repr(stream) == "<Stream 7 open in=0 out=0+3>"
