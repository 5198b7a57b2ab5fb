"""Limits of keys hold over workers: ``fabric-server up --workers 2``, with a real node."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from tests.end_to_end.test_workers import by_worker, until, workers
from tests.engine import Plan, ScriptedEngine
from tests.questions import question
from tests.servers import Servers

CONNECTIONS = 8
"""Four at each worker: they go to the worker with the fewest."""


class Site:
    """A server of two workers, a node, a limited key, and clients at both workers."""

    def __init__(self, tmp_path: Path) -> None:
        self.servers = Servers(tmp_path, workers="2")
        self.engine = ScriptedEngine()
        self.sessions: list[aiohttp.ClientSession] = []
        self.exits = AsyncExitStack()
        self.key = ""

    async def begin(self, *limits: str) -> None:
        """Start all, and make a key with these limits."""
        enter = self.exits.enter_async_context
        await enter(self.servers)
        await enter(self.engine)
        await self.servers.join(self.engine.url, "attic", "--slots", "32")
        self.key = (await self.servers.command("keys", "create", "bob", *limits))["text"]
        other = await self.servers.key()
        for _ in range(CONNECTIONS):
            self.sessions.append(await enter(self.servers.session()))
            assert (await self.ask(-1, other))[0] == 200
            await self.engine.started()
        await until(
            self.servers,
            lambda all: [one["connections"]["public"] for one in all] == [CONNECTIONS // 2] * 2,
        )

    async def ask(self, number: int, key: str = "") -> tuple[int, dict[str, str]]:
        """Return status and headers of an answer over one of the connections."""
        asked = question("t", 3, model="tiny", stream=False)
        headers = {"authorization": f"Bearer {key or self.key}"}
        session, url = self.sessions[number % len(self.sessions)], self.servers.url
        async with session.post(url, json=asked, headers=headers) as answer:
            await answer.read()
            return answer.status, {name.lower(): text for name, text in answer.headers.items()}

    async def ask_all(self, count: int) -> list[tuple[int, dict[str, str]]]:
        """Ask over all connections at once, so many times in all."""
        return await asyncio.gather(*(self.ask(number) for number in range(count)))


def statuses(answers: list[tuple[int, Any]]) -> tuple[int, int]:
    """Return how many were answered, and how many refused."""
    seen = [status for status, _ in answers]
    assert set(seen) <= {200, 429}, seen
    return seen.count(200), seen.count(429)


async def test_ten_requests_a_minute_are_ten_over_both_workers(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.exits:
        await site.begin("--requests-per-minute", "10")
        status, first = await site.ask(0)
        assert (status, first["x-ratelimit-remaining-requests"]) == (200, "9")
        answers = await site.ask_all(3 * CONNECTIONS)
        # A request takes far less than the six seconds after which there is one more.
        assert statuses(answers) == (9, 3 * CONNECTIONS - 9)
        refused = next(headers for status, headers in answers if status == 429)
        assert refused["x-ratelimit-remaining-requests"] == "0"
        assert 0 < int(refused["retry-after"]) <= 6
        ended = await by_worker(site.servers, "fabric_requests_total", 'outcome="refused"')
        assert set(ended) == {"w0", "w1"}, "both have refused some"


async def test_a_limit_of_one_is_exact(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.exits:
        await site.begin("--requests-per-minute", "1")
        assert statuses(await site.ask_all(2 * CONNECTIONS)) == (1, 2 * CONNECTIONS - 1)


async def test_three_at_once_are_three_over_both_workers(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.exits:
        await site.begin("--requests-at-once", "3")
        for _ in range(2):
            hold = asyncio.Event()
            site.engine.plan = Plan(chunks=("yes",), hold=hold)
            running = []
            for number in (0, 1, 2):
                running.append(asyncio.create_task(site.ask(number)))
                await site.engine.started()
            answers = [await site.ask(number) for number in range(3, CONNECTIONS)]
            assert statuses(answers) == (0, CONNECTIONS - 3)
            assert answers[0][1]["retry-after"] == "1"
            hold.set()
            assert statuses(await asyncio.gather(*running)) == (3, 0)


async def test_tokens_that_one_worker_has_counted_are_spent_at_the_other(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.exits:
        await site.begin("--tokens-per-minute", "10")
        answered = 0
        for number in range(3 * CONNECTIONS):
            status, _ = await site.ask(number)
            answered += status == 200
        assert answered < 4, "each answer has some tokens, and at most one goes beyond the limit"
        seen = [await site.ask(number) for number in range(CONNECTIONS)]
        assert statuses(seen) == (0, CONNECTIONS)


async def test_a_killed_worker_takes_no_place_with_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.exits:
        await site.begin("--requests-at-once", "4")
        site.engine.plan = Plan(chunks=("yes",), hold=(hold := asyncio.Event()))
        running = []
        for number in range(4):
            running.append(asyncio.create_task(site.ask(number)))
            await site.engine.started()
        active = await by_worker(site.servers, "fabric_requests_active")
        lost = int(active["w1"])
        assert 0 < lost < 4, active
        assert statuses([await site.ask(5), await site.ask(6)]) == (0, 2)
        os.kill((await workers(site.servers))[1]["pid"], signal.SIGKILL)
        await until(
            site.servers, lambda all: all[1]["restarts"] == 1 and all[1]["state"] == "ready"
        )
        for number in range(lost):
            site.sessions[number] = await site.exits.enter_async_context(site.servers.session())
            running.append(asyncio.create_task(site.ask(number)))
            await site.engine.started()
        site.sessions[7] = await site.exits.enter_async_context(site.servers.session())
        assert (await site.ask(7))[0] == 429
        hold.set()
        seen = await asyncio.gather(*running, return_exceptions=True)
        whole = [one[0] for one in seen if not isinstance(one, BaseException)]
        assert whole == [200] * 4, "those that were running, and those after them"
