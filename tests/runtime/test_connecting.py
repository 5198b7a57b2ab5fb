"""Attempts that begin one after the other and go on side by side."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator

import pytest

from runtime.connecting import (
    NoAnswer,
    connect,
    families_in_turn,
    first_to_succeed,
    is_unanswered,
)
from tests.loops import on_both_loops

LONG = 60.0


def ignore(result: object) -> None:
    """Take a result that nobody waits for."""


@contextlib.contextmanager
def silent_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port whose queue of new connections is full, so that the kernel drops further ones."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((host, 0))
        listening.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="other kernels refuse instead")


@on_both_loops
async def test_the_next_begins_after_the_delay_and_the_first_that_succeeds_wins() -> None:
    begun: list[int] = []
    cancelled = asyncio.Event()

    async def hangs() -> str:
        begun.append(0)
        try:
            await asyncio.sleep(LONG)
        finally:
            cancelled.set()
        return "too late"

    async def succeeds() -> str:
        begun.append(1)
        return "won"

    async def unneeded() -> str:
        begun.append(2)
        return "never"

    assert await first_to_succeed([hangs, succeeds, unneeded], 0.05, ignore) == (1, "won")
    assert begun == [0, 1]
    assert cancelled.is_set(), "nothing goes on behind the caller's back"


@on_both_loops
async def test_the_next_begins_at_once_when_one_has_failed() -> None:
    async def fails() -> str:
        raise ConnectionRefusedError("nobody here")

    async def succeeds() -> str:
        return "won"

    async with asyncio.timeout(LONG / 2):
        assert await first_to_succeed([fails, succeeds], LONG, ignore) == (1, "won")


@on_both_loops
async def test_one_that_takes_long_may_still_win() -> None:
    go = asyncio.Event()

    async def slow() -> str:
        await go.wait()
        return "the first after all"

    async def fails() -> str:
        go.set()
        raise OSError("no")

    assert await first_to_succeed([slow, fails], 0.01, ignore) == (0, "the first after all")


@on_both_loops
async def test_two_that_are_ready_at_once_give_one_result() -> None:
    go = asyncio.Event()
    kept: list[int] = []

    def attempt(number: int) -> object:
        async def run() -> int:
            if number == 2:
                go.set()
            await go.wait()
            kept.append(number)
            return number

        return run

    attempts = [attempt(number) for number in range(3)]
    number, result = await first_to_succeed(attempts, 0.0, ignore)  # type: ignore[misc]
    assert kept == [number] == [result]


@on_both_loops
async def test_all_errors_are_told_in_the_order_of_the_attempts() -> None:
    async def late() -> str:
        await asyncio.sleep(0.05)
        raise OSError("first")

    async def early() -> str:
        raise ValueError("second")

    with pytest.raises(ExceptionGroup) as caught:
        await first_to_succeed([late, early], 0.01, ignore)
    assert [str(error) for error in caught.value.exceptions] == ["first", "second"]


@on_both_loops
async def test_a_result_that_comes_when_its_caller_is_cancelled_is_discarded() -> None:
    async def attempt() -> str:
        race.cancel()
        return "won"

    late: list[str] = []
    race = asyncio.ensure_future(first_to_succeed([attempt], LONG, late.append))
    with pytest.raises(asyncio.CancelledError):
        await race
    assert late == ["won"]


@on_both_loops
@pytest.mark.parametrize("turns_to_succeed", [0, 1, 3])
async def test_in_whatever_turn_its_caller_is_cancelled_no_result_is_lost(
    turns_to_succeed: int,
) -> None:
    for turns in range(20):
        made: list[object] = []
        discarded: list[object] = []

        async def attempt(made: list[object] = made) -> object:
            for _ in range(turns_to_succeed):
                await asyncio.sleep(0)
            made.append(object())
            return made[-1]

        race = asyncio.create_task(first_to_succeed([attempt, attempt], 0.0, discarded.append))
        for _ in range(turns):
            await asyncio.sleep(0)
        race.cancel()
        [returned] = await asyncio.gather(race, return_exceptions=True)
        for _ in range(10):
            await asyncio.sleep(0)
        kept = [] if isinstance(returned, BaseException) else [returned[1]]
        assert discarded + kept == made, f"cancelled in turn {turns}"


async def test_whoever_cancels_the_race_cancels_the_attempts() -> None:
    ended = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.sleep(LONG)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await first_to_succeed([hangs], 0.01, ignore)
    assert ended.is_set()


def test_families_take_turns_and_keep_their_order() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, "a"), (six, "b"), (six, "c"), (four, "d")]
    assert families_in_turn(found) == [(six, "a"), (four, "d"), (six, "b"), (six, "c")]
    assert families_in_turn([]) == []


@on_both_loops
async def test_a_port_is_reached_by_whichever_address_of_a_name_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with await connect("localhost", port) as sock:  # also ::1, where nothing listens
            assert sock.getpeername() == ("127.0.0.1", port)


@on_both_loops
async def test_a_refusal_is_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as caught:
        await connect("127.0.0.1", port)
    assert not is_unanswered(caught.value)


@only_linux
async def test_silence_is_no_answer() -> None:
    with silent_port() as port, pytest.raises(NoAnswer) as caught:
        await connect("127.0.0.1", port)
    assert is_unanswered(caught.value)


@on_both_loops
async def test_a_name_that_nobody_resolves_is_no_answer() -> None:
    with pytest.raises(socket.gaierror) as caught:
        await connect("gone.invalid", 1)
    assert is_unanswered(caught.value)
