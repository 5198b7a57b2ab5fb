"""Streams as objects when their tunnel is cut: whoever holds one hears nothing of it."""

from __future__ import annotations

import asyncio
from random import Random

from protocol.aio.memory import MemoryTransport, connect
from protocol.aio.node import NodeStream, NodeTunnel
from protocol.aio.server import ServerTunnel
from protocol.aio.tunnel import Stream, Tunnel
from protocol.messages import Figures, Hello, RequestHead, ResponseHead
from protocol.tunnel.resume import ResumeTable
from tests.pump import ANSWER, FIGURES, HEAD, SESSION


class Handler:
    """Either side's; ``stream`` is what it gives its commands to."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.body = b""
        self.stream: Stream

    def on_head(self, head: ResponseHead) -> None:
        self.heard.append("head")

    def on_data(self, data: bytes, ended: bool) -> None:
        self.body += data
        self.stream.consumed(len(data))

    def on_end(self, figures: Figures) -> None:
        self.heard.append("end")

    def on_writable(self) -> None:
        self.heard.append("writable")

    def on_reset(self, code: int, reason: str) -> None:
        self.heard.append(f"reset {code}")


class Registration:
    """Both sides of its tunnels, and their owner."""

    def __init__(self, *, numbered: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        self.resume_table = ResumeTable()
        self.numbered = numbered
        self.count = 0
        self.works: list[Handler] = []

    def tunnel(self) -> tuple[ServerTunnel, NodeTunnel, MemoryTransport]:
        self.count += 1
        server = ServerTunnel(self, self.loop, rng=Random(1), resumes=True)
        if self.numbered:
            node = NodeTunnel(
                self,
                self.loop,
                rng=Random(2),
                accept=self.accept,
                number=self.count,
                resume_table=self.resume_table,
            )
        else:
            node = NodeTunnel(self, self.loop, rng=Random(2), accept=self.accept)
        wire, _ = connect(server, node, self.loop)
        node.hello(SESSION)
        return server, node, wire

    def accept(self, stream: NodeStream, head: RequestHead, ended: bool) -> Handler:
        work = Handler()
        work.stream = stream
        self.works.append(work)
        return work

    async def ask(self, server: ServerTunnel) -> tuple[Handler, Handler]:
        await turns()
        answer = Handler()
        answer.stream = server.open(HEAD, answer, ended=True)
        await turns()
        return answer, self.works[-1]

    def on_hello(self, tunnel: ServerTunnel, hello: Hello) -> None: ...
    def on_silence(self, tunnel: ServerTunnel) -> None: ...
    def on_pong(self, tunnel: ServerTunnel) -> None: ...
    def on_drain(self, tunnel: Tunnel, reason: str, seconds: float) -> None: ...
    def on_closed(self, tunnel: Tunnel, code: int, reason: str) -> None: ...


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_both_handlers_go_on_with_the_objects_that_they_have():
    registration = Registration()
    old, _, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    work.stream.send_head(ANSWER)
    work.stream.send(b"one ")
    await turns()
    wire.abort()
    await turns()
    work.stream.send(b"two ")
    new, end, _ = registration.tunnel()
    await turns()
    [stream] = old.suspended
    assert stream is answer.stream
    new.resume(stream)
    await turns()
    work.stream.send(b"three")
    work.stream.end(FIGURES)
    await turns()
    assert answer.body == b"one two three"
    assert answer.heard == ["head", "end"]
    assert work.heard == []
    assert not old.suspended
    assert new.connection.active == end.connection.active == 0
    assert answer.stream.handler is work.stream.handler is None


async def test_work_that_has_ended_between_tunnels_is_asked_for_and_over():
    registration = Registration()
    old, _, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    wire.abort()
    await turns()
    work.stream.send_head(ANSWER)
    work.stream.send(b"all of it")
    work.stream.end(FIGURES)
    new, _, _ = registration.tunnel()
    await turns()
    new.resume(answer.stream)
    await turns()
    assert (answer.body, answer.heard) == (b"all of it", ["head", "end"])


async def test_a_writer_that_waited_when_the_tunnel_was_cut_hears_when_to_go_on():
    registration = Registration()
    old, _, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    wire.abort()
    await turns()
    work.stream.send_head(ANSWER)
    assert not work.stream.send(bytes(300_000))
    new, _, _ = registration.tunnel()
    await turns()
    new.resume(answer.stream)
    await turns()
    assert work.heard == ["writable"]
    assert len(answer.body) == 300_000


async def test_one_given_up_between_tunnels_is_stopped_and_confirmed_on_the_next():
    registration = Registration()
    old, _, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    wire.abort()
    await turns()
    answer.stream.reset(1, "the user has gone")
    assert answer.heard == []
    new, _, _ = registration.tunnel()
    await turns()
    new.resume(answer.stream)
    await turns()
    assert work.heard == ["reset 1"]
    work.stream.confirm_reset()
    await turns()
    assert answer.heard == ["reset 0"]


async def test_one_that_is_being_stopped_when_the_tunnel_is_cut_is_confirmed_on_the_next():
    registration = Registration()
    old, _, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    answer.stream.reset(1, "the user has gone")
    await turns()
    wire.abort()
    new, end, _ = registration.tunnel()
    await turns()
    new.resume(answer.stream)
    await turns()
    work.stream.confirm_reset()
    await turns()
    assert work.heard == ["reset 1"]
    assert answer.heard == ["reset 0"]
    assert end.connection.active == 0


async def test_a_tunnel_that_only_the_server_has_lost_may_die_later():
    registration = Registration()
    old, half_open, _ = registration.tunnel()
    answer, work = await registration.ask(old)
    old.connection.lost("silent")
    old.connection.events()
    new, _, _ = registration.tunnel()
    await turns()
    new.resume(answer.stream)
    await turns()
    half_open.connection.lost("silent")
    half_open.abandon("nobody came")
    work.stream.send_head(ANSWER)
    work.stream.end(FIGURES)
    await turns()
    assert (work.heard, answer.heard) == ([], ["head", "end"])


async def test_nobody_comes_and_both_are_told():
    registration = Registration()
    old, end, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    wire.abort()
    await turns()
    assert (answer.heard, work.heard) == ([], [])
    old.abandon("no tunnel came")
    end.abandon("nobody asked")
    assert (answer.heard, work.heard) == (["reset 16"], ["reset 16"])
    assert not old.suspended


async def test_without_numbers_both_are_told_at_once():
    registration = Registration(numbered=False)
    old, _, wire = registration.tunnel()
    answer, work = await registration.ask(old)
    wire.abort()
    await turns()
    assert (answer.heard, work.heard) == (["reset 16"], ["reset 16"])
    assert not old.suspended
