"""Work for the processes of ``test_workers``, which find it by its name."""

from __future__ import annotations

import json
import os
import signal
import time


def count(body: bytes) -> tuple[int, bytes]:
    return len(body), body[::-1]


def read(body: bytes) -> tuple[int, bytes]:
    return len(json.loads(body)), b""


def pid(body: bytes) -> tuple[int, bytes]:
    return os.getpid(), b""


def refuse(body: bytes) -> tuple[int, bytes]:
    raise ValueError(body.decode())


def swallow_memory(body: bytes) -> tuple[int, bytes]:
    return len(bytearray(8 * 2**30)), b""


def die(body: bytes) -> tuple[int, bytes]:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0, b""


def take_long(body: bytes) -> tuple[int, bytes]:
    """Write this process's id to the named file, and work until it is killed."""
    with open(body.decode(), "w") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        time.process_time()


def speak(body: bytes) -> tuple[int, bytes]:
    print("libraries print, too")
    return 1, b"said"
