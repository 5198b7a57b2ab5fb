"""Connecting to a name that has several addresses, or to a server that has several names.

What does not answer must not keep the others waiting, so attempts begin one after the other and
go on side by side (RFC 8305, "Happy Eyeballs Version 2").  uvloop has nothing of the kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

ADDRESS_DELAY_SECONDS = 0.25
"""Time before the next address of a name is tried beside the one before (RFC 8305, section 5)."""
CONNECT_SECONDS = 4.0
"""Time in which an address must answer: for the SYN, and two that follow 1 and 3 s later."""
_PATH_IS_GONE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.ETIMEDOUT}
)

T = TypeVar("T")
Address = tuple[socket.AddressFamily, Any]


class NoAnswer(TimeoutError):
    """No answer came from anywhere: the network is gone, or something on the way drops packets."""


def is_unanswered(error: BaseException) -> bool:
    """Return whether an attempt failed without anybody's answer, as it does without a network."""
    if isinstance(error, NoAnswer | socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in _PATH_IS_GONE


async def first_to_succeed(
    attempts: Iterable[Callable[[], Awaitable[T]]], delay: float, discard: Callable[[T], object]
) -> tuple[int, T]:
    """Return the number and the result of the first attempt that succeeds.

    Each begins when the one before has failed, or ``delay`` seconds after it; those that are still
    going on at the end are cancelled.  ``discard`` gets a result that is not returned, because the
    caller was cancelled meanwhile.  When all have failed, raises ExceptionGroup with the errors in
    the order of the attempts.
    """
    errors: dict[int, Exception] = {}
    won: list[tuple[int, T]] = []
    running: list[asyncio.Task[None]] = []
    changed = asyncio.Event()
    left = False

    async def run(number: int, attempt: Callable[[], Awaitable[T]]) -> None:
        try:
            result = await attempt()
        except Exception as error:
            errors[number] = error
        else:
            if left:
                discard(result)
                return
            won.append((number, result))
            for task in running:  # in the same turn of the loop: no other one can succeed now
                if task is not asyncio.current_task():
                    task.cancel()
        changed.set()

    try:
        for number, attempt in enumerate(attempts):
            running.append(asyncio.get_running_loop().create_task(run(number, attempt)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await changed.wait()
            changed.clear()
            if won:
                break
        await asyncio.gather(*running, return_exceptions=True)
    except BaseException:
        left = True  # what succeeds from here on is discarded, also if this is cancelled once more
        for task in running:
            task.cancel()
        for _, result in won:
            discard(result)
        await asyncio.gather(*running, return_exceptions=True)
        raise
    if won:
        return won[0]
    raise ExceptionGroup("no attempt has succeeded", [errors[n] for n in sorted(errors)])


async def connect(host: str, port: int) -> socket.socket:
    """Return a socket that is connected to an address of ``host``, the first one that answers.

    Raises OSError; ``NoAnswer`` when no address has answered in time.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [(family, address) for family, _, _, _, address in found]
    attempts = [partial(_connect, address) for address in families_in_turn(addresses)]
    try:
        _, sock = await first_to_succeed(attempts, ADDRESS_DELAY_SECONDS, socket.socket.close)
    except ExceptionGroup as group:
        # An answer tells more than silence, whichever address gave it.
        raise min(group.exceptions, key=is_unanswered) from None
    return sock


def families_in_turn(addresses: Sequence[Address]) -> list[Address]:
    """Return the addresses with IPv6 and IPv4 in turn, each family in its order (section 4)."""
    families = list(dict.fromkeys(family for family, _ in addresses))
    by_family = [[one for one in addresses if one[0] == family] for family in families]
    rounds = itertools.zip_longest(*by_family)
    return [address for one in rounds for address in one if address is not None]


async def _connect(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(CONNECT_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, where)
    except TimeoutError:
        sock.close()
        raise NoAnswer("timed out") from None
    except BaseException:
        sock.close()
        raise
    return sock
