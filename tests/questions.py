"""Questions with a known answer, and users who check it.

A question contains a token of its own and the length of the answer; the answer repeats the token
with a growing number.  So an answer that lacks a piece, repeats one, or has one of another request
does not pass for a complete one.

    engine.reply = reply
    seen = await ask(session, url, key, question("tok", 20, model="tiny", stream=True))
    assert seen.ending == "complete"
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.engine import Plan

DEADLINE = 90.0
Json = dict[str, Any]


def question(token: str, count: int, *, model: str, stream: bool, padding: int = 0) -> Json:
    """Return a question; ``padding`` adds so many bytes to it."""
    text = f"{token} {count} {'.' * padding}"
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}


def is_question(asked: Json) -> bool:
    """Return whether ``question`` has made it."""
    messages = asked.get("messages")
    text = messages[0]["content"] if messages else None
    return isinstance(text, str) and re.fullmatch(r"\S+ [0-9]+ \.*", text) is not None


def pieces(asked: Json) -> list[str]:
    """Return the pieces of the answer that are not in the question already."""
    first, *others = asked["messages"]
    token, count, *_ = first["content"].split(" ")
    if not others:
        return [f"{token}:{number} " for number in range(int(count))]
    [begun] = [message["content"].split() for message in others]
    return [f" {token}:{number}" for number in range(len(begun), int(count))] + [" "]


def reply(asked: Json) -> Plan:
    """Return the right answer, for a scripted engine."""
    return Plan(chunks=pieces(asked))


class Wrong(AssertionError):
    """A wrong answer that looks right to a user, or one that never ends."""


@dataclass
class Seen:
    """The outcome for the user."""

    ending: str = "unreachable"
    """``complete``; ``refused``: status and body of an error; ``broken``: an error event; ``cut``:
    the connection ended before the answer; ``unreachable``."""
    status: int = 0
    code: str = ""
    request_id: str = ""
    text: str = ""


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    key: str,
    body: Json,
    *,
    deadline: float = DEADLINE,
    on_text: Callable[[str], None] = lambda text: None,
) -> Seen:
    """Ask, and check the answer.  ``on_text`` is called with all text so far.  Raises ``Wrong``."""
    seen = Seen()
    try:
        async with asyncio.timeout(deadline):
            await _ask(session, url, key, body, seen, on_text)
    except TimeoutError:
        raise Wrong(f"no end in {deadline} s: {seen}") from None
    except (aiohttp.ClientError, ConnectionError):
        seen.ending = "cut" if seen.status else "unreachable"
        # With the status of an error, only its explanation is cut off.
    return seen


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    key: str,
    body: Json,
    seen: Seen,
    on_text: Callable[[str], None],
) -> None:
    headers = {"authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=None)
    async with session.post(url, json=body, headers=headers, timeout=timeout) as answer:
        seen.status = answer.status
        seen.request_id = answer.headers.get("x-request-id", "")
        right = "".join(pieces(body))
        if answer.status != 200:
            error = json.loads(await answer.read())["error"]
            if not (isinstance(error["code"], str) and isinstance(error["message"], str)):
                raise Wrong(f"an error of no known shape: {error}")
            seen.ending, seen.code = "refused", error["code"]
        elif body["stream"]:
            await _read_stream(answer, right, seen, on_text)
        else:
            whole = json.loads(await answer.read())
            seen.text = whole["choices"][0]["message"]["content"]
            if seen.text != right:
                raise Wrong(f"another answer: {seen}")
            seen.ending = "complete"


async def _read_stream(
    answer: aiohttp.ClientResponse, right: str, seen: Seen, on_text: Callable[[str], None]
) -> None:
    rest, done = b"", False
    async for data in answer.content.iter_any():
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):
                continue  # a comment that keeps the stream alive
            if not event.startswith(b"data: "):
                raise Wrong(f"no event: {event!r}, in {seen}")
            if seen.ending == "broken":
                raise Wrong(f"{event!r} after the error, in {seen}")
            if done:
                continue  # clients stop reading at [DONE]
            if event == b"data: [DONE]":
                done = True
                continue
            value = json.loads(event[6:])
            if "error" in value:
                seen.ending, seen.code = "broken", value["error"]["code"]
            for choice in value.get("choices", ()):
                seen.text += choice["delta"].get("content") or ""
        if not right.startswith(seen.text):
            raise Wrong(f"another answer: {seen}")
        on_text(seen.text)
        if done:
            if seen.text != right or seen.ending == "broken":
                raise Wrong(f"[DONE], and not done: {seen}")
            seen.ending = "complete"
    if rest:
        raise Wrong(f"half an event: {rest!r}, in {seen}")
    if not (done or seen.ending == "broken"):
        raise Wrong(f"silently short: {seen}")


class Crowd:
    """Users who ask one question after the other, on a kept-alive connection, without retries."""

    def __init__(self, url: str, key: str) -> None:
        self.seen: list[Seen] = []
        self._url = url
        self._key = key
        self._leaving = False
        self._changed = asyncio.Condition()

    def leave(self) -> None:
        self._leaving = True

    async def stay(self, number: int, session: aiohttp.ClientSession) -> None:
        count = number
        while not self._leaving:
            count += 1
            stream = count % 3 > 0
            asked = question(f"u{number}.{count}", 1 + count % 20, model="tiny", stream=stream)
            seen = await ask(session, self._url, self._key, asked)
            async with self._changed:
                self.seen.append(seen)
                self._changed.notify_all()

    async def answered(self, more: int) -> None:
        """Wait until so many more have an answer."""
        enough = len(self.seen) + more
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.seen) >= enough)
