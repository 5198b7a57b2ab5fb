"""Tunnels on transports while hours pass: the loop's clock is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from protocol import messages
from protocol.errors import Code
from protocol.messages import Hello
from protocol.tunnel.frames import FrameType, encode
from tests.protocol.aio.ends import (
    Counted,
    Ends,
    joined,
    turns,
)
from tests.pump import HEAD, SESSION, frames_in


class SetClock(asyncio.SelectorEventLoop):
    """A loop whose clock the test moves."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class Deaf(Counted):
    """Loses everything written to it."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.writes.append(bytes(data))


def by_hand(story: Callable[[SetClock], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        with asyncio.Runner(debug=True, loop_factory=SetClock) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, SetClock)
            loop.slow_callback_duration = float("inf")  # jumping clocks are meant
            runner.run(story(loop))

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    return test


async def later(loop: SetClock, seconds: float, step: float = 0.5) -> None:
    for _ in range(int(seconds / step)):
        loop.ahead += step
        await turns(4)


@by_hand
async def test_a_node_that_hears_only_the_request_notices_within_ten_seconds(loop):
    ends = Ends()
    transport = Deaf(ends.node_side, loop)
    transport.join(Deaf(asyncio.Protocol(), loop))
    ends.node_side.connection_made(transport)
    await turns()
    ends.node_side.data_received(encode(FrameType.OPEN, 0, 1, messages.encode(HEAD)))
    await turns()
    assert ends.node.connection.active == 1
    await later(loop, 9.5)
    assert not ends.node.connection.closed
    await later(loop, 1)
    assert ends.node_owner.heard == ["closed lost 'silent for 10 s'"]
    await turns()
    assert ends.node_side.gone.is_set()


@by_hand
async def test_a_server_that_opens_a_stream_into_the_void_notices_within_ten_seconds(loop):
    ends = Ends()
    transport = Deaf(ends.server_side, loop)
    transport.join(Deaf(asyncio.Protocol(), loop))
    ends.server_side.connection_made(transport)
    ends.server_side.data_received(
        encode(FrameType.HELLO, 0, 0, messages.encode(Hello(1, SESSION)))
    )
    await later(loop, 6)  # past the timer of the greeting
    answer = ends.ask(b"question")
    await turns()
    await later(loop, 9.5)
    assert answer.heard == []
    await later(loop, 1)
    assert answer.heard == ["reset lost"]
    assert ends.server_owner.heard[-1] == "closed lost 'silent for 16 s'"
    await turns()
    assert ends.server_side.gone.is_set()


@by_hand
async def test_an_idle_hour_over_transports_costs_some_hundred_writes(loop):
    ends = Ends()
    left, right = joined(ends)
    await later(loop, 3600, step=1.0)
    assert not ends.server.connection.closed
    assert 400 <= len(left.writes) + len(right.writes) <= 700
    ends.server.close(Code.NONE, "bye")
    await turns()


@by_hand
async def test_a_dead_idle_tunnel_is_given_up_once_and_does_not_spin(loop):
    ends = Ends()
    left, right = Deaf(ends.server_side, loop), Deaf(ends.node_side, loop)
    left.join(right)
    ends.server_side.connection_made(left)
    ends.node_side.connection_made(right)
    await later(loop, 4)
    assert ends.server_owner.heard == []
    await later(loop, 2)
    assert ends.server_owner.heard == ["closed timeout 'no HELLO in time'"]
    assert "CLOSE timeout" in str(list(frames_in(left.writes[-1]))[-1])
    await later(loop, 55)
    assert ends.node_owner.closed.is_set()
    assert ends.node_side.gone.is_set()
