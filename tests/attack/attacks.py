"""What strangers and users do to the fabric; each attack comes from one address or one key.

python -m tests.attack.attacks NAME TARGET SECONDS
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tests.attack.wire import CHAT, Target, Wire, anybody, chat, head, request

Attack = Callable[[Target], Awaitable[None]]
MIB = 2**20
BIG = 30 * MIB
"""Bytes of a large body, below the default limit."""

ATTACKS: dict[str, Attack] = {}
"""All attacks of clients, by name; the first line of each one's docstring describes it."""


def attack(run: Attack) -> Attack:
    ATTACKS[run.__name__.replace("_", "-")] = run
    return run


async def crowd(count: int, one: Callable[[int], Awaitable[None]]) -> None:
    """Do ``one`` again and again, ``count`` at once, whatever the server does about it."""

    async def again(number: int) -> None:
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                await one(number)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(again(number))


async def ask_all(target: Target, *requests: bytes) -> None:
    """Ask one after the other on one connection."""
    wire = await Wire.open(target)
    try:
        for data in requests:
            await wire.ask(data)
    finally:
        wire.close()


async def hold(wire: Wire) -> None:
    """Wait until the server ends the connection."""
    with contextlib.suppress(OSError):
        while await wire.reader.read(65_536):
            pass
    wire.close()


# ── work on the loop ──────────────────────────────────────────────────────────────────────────


def _body(fields: str) -> bytes:
    return b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}],%b}' % (
        fields.encode()
    )


@attack
async def stream_options(target: Target) -> None:
    """A stream_options of 30 MB, full of what regular expressions find hard"""
    body = _body('"stream_options":{"x":"%s"}' % ("(a+)+[.*" * (BIG // 8)))
    data = request(CHAT, target.keys["attacker"], body)
    await crowd(1, lambda _: ask_all(target, data))


@attack
async def decoys(target: Target) -> None:
    """A body of 8 MB with a hundred thousand decoys of stream_options"""
    decoy = '{"stream_options":{"include_usage":false}}'
    many = ",".join([decoy] * (8 * MIB // len(decoy)))
    fields = f'"metadata":[{many}],"stream_options":{{"include_usage":false}}'
    data = request(CHAT, target.keys["attacker"], _body(fields))
    await crowd(1, lambda _: ask_all(target, data))


@attack
async def many_members(target: Target) -> None:
    """A body of 16 MB with two million members"""
    fields = ",".join(f'"k{number}":0' for number in range(MIB))
    data = request(CHAT, target.keys["attacker"], _body(fields))
    await crowd(1, lambda _: ask_all(target, data))


@attack
async def nesting(target: Target) -> None:
    """A body of 16 MB that is nested eight million deep"""
    data = request(CHAT, target.keys["attacker"], _body('"x":' + "[" * (16 * MIB)))
    await crowd(1, lambda _: ask_all(target, data))


@attack
async def dribbles(target: Target) -> None:
    """Four bodies of 30 MB that arrive in small pieces, their model at the end"""
    piece = b'"' + b"x" * 1021 + b'",'

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        try:
            wire.writer.write(head(CHAT, target.keys["attacker"], BIG) + b'{"messages":[')
            for _ in range(BIG // len(piece)):
                wire.writer.write(piece)
                await wire.writer.drain()
        finally:
            wire.close()

    await crowd(4, one)


@attack
async def pipelines(target: Target) -> None:
    """A thousand requests in one write, for a path that does not exist"""
    data = request("/nothing", target.keys["attacker"]) * 1000

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        try:
            wire.writer.write(data)
            for _ in range(1000):
                await wire.answer()
        finally:
            wire.close()

    await crowd(2, one)


@attack
async def headers(target: Target) -> None:
    """A hundred headers of 300 bytes in each request, one byte at a time at the end"""
    lines = [f"X-{number}: {'y' * 290}" for number in range(95)]
    data = request("/v1/models", target.keys["attacker"], None, *lines)
    await crowd(4, lambda _: ask_all(target, *[data] * 20))


@attack
async def media_urls(target: Target) -> None:
    """Eight URLs of images in each request, all in networks of others' homes"""
    parts = [
        {"type": "image_url", "image_url": {"url": f"http://192.168.1.{number}/{number}"}}
        for number in range(8)
    ]
    message = {"role": "user", "content": parts}
    data = request(CHAT, target.keys["attacker"], {"model": "tiny", "messages": [message]})
    await crowd(4, lambda _: ask_all(target, *[data] * 20))


# ── connections and memory ────────────────────────────────────────────────────────────────────


def _more_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _gather_connections(
    target: Target, count: int, use: Callable[[Wire], Awaitable[None]]
) -> None:
    """Open connections one after the other up to ``count``, and use each for as long as it is."""
    tls, gate = anybody(), asyncio.Semaphore(16)

    async def one(_: int) -> None:
        async with gate:
            wire = await Wire.open(target, tls=tls)
        await use(wire)

    await crowd(count, one)


@attack
async def idle_connections(target: Target) -> None:
    """Three thousand TLS connections that say nothing, and a server of 1,024 descriptors"""
    _more_descriptors()
    await _gather_connections(target, 3000, hold)


@attack
async def options_holders(target: Target) -> None:
    """Two thousand connections without a key, each with an OPTIONS every few seconds"""
    _more_descriptors()
    ask = request(CHAT, "", method="OPTIONS")

    async def use(wire: Wire) -> None:
        try:
            while True:
                await wire.ask(ask)
                await asyncio.sleep(5)
        finally:
            wire.close()

    await _gather_connections(target, 2000, use)


@attack
async def handshakes(target: Target) -> None:
    """Sixteen clients that do TLS handshakes and nothing else"""

    async def one(_: int) -> None:
        (await Wire.open(target)).close()

    await crowd(16, one)


@attack
async def held_bodies(target: Target) -> None:
    """Sixty bodies of 30 MB whose model never comes"""
    piece = b'"' + b"x" * (MIB - 4) + b'",'

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        try:
            wire.writer.write(head(CHAT, target.keys["attacker"], BIG + MIB) + b'{"messages":[')
            for _ in range(30):
                wire.writer.write(piece)
                await wire.writer.drain()
            await hold(wire)
        finally:
            wire.close()

    await crowd(60, one)


@attack
async def slow_readers(target: Target) -> None:
    """Fifty long answers whose client does not read"""
    data = request(CHAT, target.keys["attacker"], chat(text="word " * 5000, stream=True))

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        try:
            wire.writer.write(data)
            await asyncio.sleep(5)  # what the attack consists of
        finally:
            wire.close()

    await crowd(50, one)


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


@attack
async def wrong_keys(target: Target) -> None:
    """Keys of the right form that do not exist, as fast as they are refused"""
    example = target.keys["attacker"]

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        try:
            while True:
                guess = example[:-16] + secrets.token_hex(8)
                await wire.ask(request(CHAT, guess, chat()))
        finally:
            wire.close()

    await crowd(16, one)


@attack
async def no_keys(target: Target) -> None:
    """Requests without a key, as fast as they are refused"""
    data = request(CHAT, "", chat())
    await crowd(16, lambda _: ask_all(target, *[data] * 100))


@attack
async def api_wrong_keys(target: Target) -> None:
    """Management keys that do not exist, at the API port"""
    example = target.keys["boss"]

    async def one(_: int) -> None:
        wire = await Wire.open(target, "api")
        try:
            while True:
                guess = example[:-16] + secrets.token_hex(8)
                await wire.ask(request("/api/v1/nodes", guess))
        finally:
            wire.close()

    await crowd(8, one)


@attack
async def wrong_invitations(target: Target) -> None:
    """Invitations that do not exist, as fast as they are refused"""

    async def one(_: int) -> None:
        wire = await Wire.open(target, "api")
        try:
            while True:
                guess = {"secret": secrets.token_urlsafe(32), "csr": "x" * 4000, "name": "x"}
                await wire.ask(request("/api/v1/enrol", "", guess))
        finally:
            wire.close()

    await crowd(8, one)


@attack
async def impatient_guesses(target: Target) -> None:
    """Keys that do not exist, each on a connection of its own that waits for no answer"""
    example = target.keys["attacker"]

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        wire.writer.write(request(CHAT, example[:-16] + secrets.token_hex(8), chat()))
        await wire.writer.drain()
        wire.close()

    await crowd(16, one)


# ── one user against the others ───────────────────────────────────────────────────────────────


@attack
async def own_deadlines(target: Target) -> None:
    """Deadlines of the user's own that no engine can meet"""
    data = request(CHAT, target.keys["attacker"], chat("slow"), "X-Fabric-Timeout: 0.05")
    await crowd(8, lambda _: ask_all(target, data))


@attack
async def hang_ups(target: Target) -> None:
    """Requests whose client hangs up at once"""
    data = request(CHAT, target.keys["attacker"], chat("slow", stream=True))

    async def one(_: int) -> None:
        wire = await Wire.open(target)
        wire.writer.write(data)
        await wire.writer.drain()
        wire.close()

    await crowd(8, one)


@attack
async def priority(target: Target) -> None:
    """Two hundred requests of high priority at once"""
    data = request(CHAT, target.keys["attacker"], chat("slow"), "X-Fabric-Priority: high")
    await crowd(200, lambda _: ask_all(target, data))


@attack
async def second_model(target: Target) -> None:
    """A second model behind a large body"""
    padding = "x" * (300 * 1024)
    body = json.dumps(chat(text=padding)).encode()[:-1] + b',"model":"other"}'
    data = request(CHAT, target.keys["attacker"], body)
    await crowd(2, lambda _: ask_all(target, data))


async def main(name: str, target: Target, seconds: float) -> None:
    os.nice(19)  # the machine's time belongs to the fabric and the user, as if this were elsewhere
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ATTACKS[name](target)


def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore what connections say that were ended at once."""


if __name__ == "__main__":
    runner = asyncio.Runner()
    runner.get_loop().set_exception_handler(unhandled)
    given = msgspec.json.decode(sys.argv[2], type=Target)
    runner.run(main(sys.argv[1], given, float(sys.argv[3])))
    os._exit(0)  # without a farewell to thousands of connections
