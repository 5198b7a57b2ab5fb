"""Which addresses the server blocks in the kernel; tests/lab/test_guard.py has the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fabric_server.net.kernel_guard import (
    MAX_REPORTED,
    MAX_REPORTS,
    MAX_WAITING,
    WINDOW_SECONDS,
    KernelBlocklist,
)


class Kernel:
    """A fake of ``nft`` that works: it notes the batches."""

    def __init__(self) -> None:
        self.batches: list[str] = []
        self.came = asyncio.Event()

    async def __call__(self, command: Sequence[str], input: str) -> str:
        if input:
            self.batches.append(input)
            self.came.set()
        return "{}"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def flushed(blocklist: KernelBlocklist, kernel: Kernel) -> str:
    running = asyncio.create_task(blocklist.run())
    async with asyncio.timeout(5):
        await kernel.came.wait()
    running.cancel()
    await asyncio.wait([running])
    return kernel.batches[-1]


async def test_an_address_is_blocked_after_many_reports_within_a_minute() -> None:
    kernel, clock = Kernel(), Clock()
    blocklist = KernelBlocklist(kernel, clock)
    for _ in range(MAX_REPORTS - 1):
        blocklist.report("192.0.2.1")
        blocklist.report("192.0.2.2")
    clock.now = WINDOW_SECONDS
    blocklist.report("192.0.2.1")  # counting has begun anew
    for _ in range(MAX_REPORTS):
        blocklist.report("192.0.2.2")
    text = await flushed(blocklist, kernel)
    assert "192.0.2.2 timeout 600s" in text
    assert "192.0.2.1" not in text


async def test_what_strangers_can_make_grow_is_bounded() -> None:
    blocklist = KernelBlocklist(kernel := Kernel(), Clock())
    for number in range(2 * MAX_REPORTED):
        blocklist.report(f"2001:db8:{number:x}::1")
        blocklist.block(f"2001:db8:{number:x}::1", 60.0)
    assert blocklist.results["failed"] == 2 * MAX_REPORTED - MAX_WAITING
    text = await flushed(blocklist, kernel)
    assert text.count("timeout") == MAX_WAITING
