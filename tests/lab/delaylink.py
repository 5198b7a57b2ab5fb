"""A stand-in for `tc netem` where the kernel lacks it: an Ethernet link with a delay.

    python delaylink.py NAMESPACE:DEVICE NAMESPACE:DEVICE --delay-ms 25 [--loss-percent 1]

Makes one TAP device in each of two network namespaces and carries frames from one to the other
after a one-way delay, in order.  Prints "ready" when both are up, and ends when its standard input
does, so that it never outlives who started it.  Needs root and /dev/net/tun.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import time
from collections import deque

TUNSETIFF = 0x400454CA  # linux/if_tun.h, as the next two
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
CLONE_NEWNET = 0x40000000  # linux/sched.h
STDIN = 0
FRAME_BYTES = 65536
QUEUE_FRAMES = 20_000
READ_AT_ONCE = 64
"""Frames read from one side before the other gets its turn."""


def enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def open_tap(namespace: str, device: str) -> int:
    """A new device, up, and the file that its frames are read from and written to."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    enter(there)
    try:
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    finally:
        enter(home)
        os.close(home)
        os.close(there)
    subprocess.run(["ip", "-n", namespace, "link", "set", device, "up"], check=True)
    return tap


class Direction:
    """Frames on their way from one side to the other."""

    def __init__(self, source: int, target: int, delay: float, loss: float) -> None:
        self.source, self.target, self.delay, self.loss = source, target, delay, loss
        self.frames: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(READ_AT_ONCE):
                frame = os.read(self.source, FRAME_BYTES)
                if len(self.frames) < QUEUE_FRAMES and random.random() >= self.loss:
                    self.frames.append((time.monotonic() + self.delay, frame))

    def deliver(self) -> float:
        """Deliver due frames; return when the next one is due."""
        while self.frames and self.frames[0][0] <= time.monotonic():
            with contextlib.suppress(
                OSError
            ):  # a full or vanishing device loses it, as a wire would
                os.write(self.target, self.frames.popleft()[1])
        return self.frames[0][0] if self.frames else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", nargs=2, metavar="NAMESPACE:DEVICE")
    parser.add_argument("--delay-ms", type=float, required=True, help="one way")
    parser.add_argument("--loss-percent", type=float, default=0, help="of frames, each way")
    given = parser.parse_args()
    one, other = (open_tap(*side.split(":")) for side in given.side)
    character = given.delay_ms / 1000, given.loss_percent / 100
    directions = {
        one: Direction(one, other, *character),
        other: Direction(other, one, *character),
    }
    print("ready", flush=True)
    while True:
        due = min(direction.deliver() for direction in directions.values())
        wait = None if due == float("inf") else max(0, due - time.monotonic())
        readable, _, _ = select.select([*directions, STDIN], [], [], wait)
        if STDIN in readable:
            return
        for tap in readable:
            directions[tap].take()


if __name__ == "__main__":
    main()
