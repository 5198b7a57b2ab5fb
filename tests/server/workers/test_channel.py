"""The channel between parent and worker: messages, descriptors, questions, and its end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fabric_server.workers.channel import Channel, pair
from fabric_server.workers.messages import Arrived, Handed, Message, Order, Question, encode
from tests.loops import on_both_loops


class End:
    """An owner that keeps what it gets, and answers with ``answer``."""

    def __init__(self, sock: socket.socket, answer: bytes = b"") -> None:
        self.got: list[Message] = []
        self.files: list[int] = []
        self.news = asyncio.Event()
        self.gone = asyncio.Event()
        self.answer = answer
        self.channel = Channel(sock, self)

    def on_message(self, message: Message, files: Sequence[int]) -> None:
        self.got.append(message)
        self.files += files
        self.news.set()

    async def on_ask(self, what: Question) -> bytes:
        return what.encode() + self.answer

    def on_closed(self) -> None:
        self.gone.set()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.got) < count:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def ends(answer: bytes = b"") -> AsyncIterator[tuple[End, End]]:
    left, right = (End(one, answer) for one in pair())
    try:
        yield left, right
    finally:
        for end in (left, right):
            end.channel.close()
            for file in end.files:
                os.close(file)


@on_both_loops
async def test_a_socket_is_passed_on_and_goes_on_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        async with ends() as (parent, worker):
            parent.channel.send(Handed([Arrived("public", "192.0.2.7")]), [theirs.detach()])
            await worker.has(1)
            assert worker.got == [Handed([Arrived("public", "192.0.2.7")])]
            with socket.socket(fileno=worker.files.pop()) as passed:
                passed.sendall(b"here")
                assert ours.recv(16) == b"here"
        assert ours.recv(16) == b"", "no other descriptor of it is left"


@on_both_loops
async def test_what_the_kernel_has_no_room_for_follows_in_order() -> None:
    async with ends() as (parent, worker):
        count = 3000
        for number in range(count):
            files = [os.open("/dev/null", os.O_RDONLY)] if number < 500 else []
            parent.channel.send(Handed([Arrived("public", f"{number}")]), files)
        assert parent.channel.waiting, "the kernel took all of it: send more"
        await worker.has(count)
        assert [
            int(one.connections[0].address) for one in worker.got if isinstance(one, Handed)
        ] == list(range(count))
        assert len(worker.files) == 500
        assert not parent.channel.waiting


@on_both_loops
async def test_an_answer_may_be_larger_than_a_message() -> None:
    async with ends(b"x" * 3_000_000) as (parent, _):
        assert await parent.channel.ask("metrics") == b"metrics" + b"x" * 3_000_000


@on_both_loops
async def test_both_sides_may_ask_at_once() -> None:
    async with ends() as (parent, worker):
        answers = await asyncio.gather(
            parent.channel.ask("metrics"),
            worker.channel.ask("reload"),
            parent.channel.ask("reload"),
        )
        assert answers == [b"metrics", b"reload", b"reload"]


@on_both_loops
async def test_the_end_of_one_side_is_told_to_the_other_behind_what_it_has_sent() -> None:
    async with ends() as (parent, worker):
        worker.channel.send(Order("stop"))
        worker.channel.close()
        async with asyncio.timeout(10):
            await parent.gone.wait()
        assert parent.got == [Order("stop")]
        with pytest.raises(ConnectionError):
            await parent.channel.ask("metrics")


@on_both_loops
async def test_who_waits_for_an_answer_is_told_that_the_other_side_is_gone() -> None:
    async with ends() as (parent, worker):
        asking = asyncio.create_task(parent.channel.ask("metrics"))
        await asyncio.sleep(0)
        worker.channel.close()
        with pytest.raises(ConnectionError):
            await asking


@on_both_loops
async def test_what_is_sent_to_a_closed_end_is_closed_and_nothing_is_raised() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        async with ends() as (parent, worker):
            worker.channel.close()
            parent.channel.send(Handed([Arrived("public", "::1")]), [theirs.detach()])
            assert ours.recv(16) == b""


class Poor(socket.socket):
    """An end whose kernel lacks memory for the first messages, which no real one can be made to."""

    lacks = 2

    def sendmsg(self, *arguments: Any) -> int:
        if self.lacks:
            self.lacks -= 1
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return super().sendmsg(*arguments)


@on_both_loops
async def test_a_message_for_which_the_kernel_lacks_memory_is_sent_later() -> None:
    ours, theirs = pair()
    worker = End(theirs)
    parent = Channel(Poor(fileno=ours.detach()), worker)
    parent.send(Order("stop"))
    parent.send(Order("exit"))
    await worker.has(2)
    assert worker.got == [Order("stop"), Order("exit")]
    parent.close()
    worker.channel.close()


@on_both_loops
async def test_a_message_that_cannot_be_read_is_left_out_and_its_descriptors_are_closed() -> None:
    ours, theirs = socket.socketpair()
    raw, end = pair()
    worker = End(end)
    with ours, raw:
        with theirs:
            socket.send_fds(raw, [b"\xc1 not a message"], [theirs.fileno()])
        socket.send_fds(raw, [encode(Order("stop"))], [])
        await worker.has(1)
        assert worker.got == [Order("stop")]
        ours.setblocking(False)
        assert ours.recv(16) == b"", "no other descriptor of it is left"
        worker.channel.close()
