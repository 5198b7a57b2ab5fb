"""Two registrations at one engine: what each server is told, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest
from msgspec.structs import replace

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine, EngineSettings
from fabric_client.proxy.forwarder import Forwarder
from fabric_client.proxy.slots import RegistrationSlots
from fabric_client.registration.slot_reports import REPORT_SECONDS, SlotReports
from protocol.aio.node import NodeStream
from protocol.control.link import FLOOD_BYTES_PER_SECOND
from protocol.errors import Code
from protocol.messages import EngineReport, ModelReport, RequestHead, encode
from tests.engine import Plan, ScriptedEngine

BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'


class Asked:
    """A server's end of a stream, with what was said on it."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.ended = asyncio.Event()

    def send_head(self, head: object) -> None: ...
    def consumed(self, count: int) -> None: ...
    def confirm_reset(self) -> None:
        self.ended.set()

    def send(self, data: bytes) -> bool:
        return True

    def end(self, figures: object) -> None:
        self.ended.set()

    def answer(self, head: object, body: bytes, figures: object) -> None:
        self.ended.set()

    def reset(self, code: int, reason: str) -> None:
        self.code = code
        self.ended.set()


class Site:
    def __init__(self, forwarder: Forwarder, engine: Engine) -> None:
        self.forwarder = forwarder
        self.engine = engine
        self.changes = 0
        self.old = forwarder.slots.register(self._changed)
        self.new = forwarder.slots.register(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def ask(
        self, registration: RegistrationSlots, path: str = "/v1/chat/completions"
    ) -> tuple[Asked, Any]:
        asked = Asked()
        head = RequestHead("r", self.engine.name, "POST", path, [], len(BODY), 60_000)
        handler = self.forwarder.accept(registration, cast(NodeStream, asked), head, False)
        if handler is not None:
            handler.on_data(BODY, True)
        return asked, handler


@asynccontextmanager
async def site(server: ScriptedEngine, slots: int) -> AsyncIterator[Site]:
    async with aiohttp.ClientSession() as session:
        engine = Engine(session, parse_address(server.url), EngineSettings(slots=slots))
        await engine.probe()
        forwarder = Forwarder(lambda name: engine)
        yield Site(forwarder, engine)
        forwarder.close()


async def test_a_server_is_told_what_the_requests_of_another_hold() -> None:
    go_on = asyncio.Event()
    async with ScriptedEngine() as server, site(server, 2) as here:
        server.plan = Plan(hold=go_on)
        first, _ = here.ask(here.old)
        assert here.old.elsewhere() == {}
        assert here.new.elsewhere() == {here.engine.name: 1}
        [report] = here.new.adjust([here.engine.report])
        assert (report.slots, report.elsewhere) == (2, 1)
        assert here.changes == 2  # each of them was asked to look
        go_on.set()
        await first.ended.wait()
        assert here.new.elsewhere() == {}
        assert here.new.adjust([here.engine.report]) == [here.engine.report]


async def test_a_server_is_told_of_many_models_less_often() -> None:
    def shortest(models: int) -> float:
        reports = SlotReports(here.forwarder, lambda: None)
        listed = [ModelReport(f"m{number}") for number in range(models)]
        reports.adjust([EngineReport("e", "ollama", True, 1, listed)])
        return reports.seconds

    largest = ModelReport("m" * 60, 2**40, 2**17, True, ["completion", "tools"], "a" * 64)
    size = len(encode(replace(largest, quantization="Q4_K_M", family="llama", format="gguf")))
    async with ScriptedEngine() as server, site(server, 1) as here:
        assert shortest(3) == REPORT_SECONDS
        for models in (100, 400, 512, 3000):
            assert models * size / shortest(models) < FLOOD_BYTES_PER_SECOND


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_what_comes_before_its_server_has_heard_waits_for_the_slot(path: str) -> None:
    go_on = asyncio.Event()
    async with ScriptedEngine() as server, site(server, 1) as here:
        server.plan = Plan(hold=go_on)
        first, _ = here.ask(here.old)
        second, _ = here.ask(here.new, path)
        # One more than there are slots is a mistake of its own server's.
        third, refused = here.ask(here.new)
        assert (third.code, refused) == (Code.REFUSED, None)
        await server.started()
        assert (here.engine.active, here.forwarder.active, len(server.requests)) == (1, 2, 1)
        go_on.set()
        await first.ended.wait()
        await second.ended.wait()
        assert (second.code, len(server.requests), here.engine.active) == (None, 2, 0)


async def test_who_is_cancelled_while_waiting_leaves_no_trace() -> None:
    go_on = asyncio.Event()
    async with ScriptedEngine() as server, site(server, 1) as here:
        server.plan = Plan(hold=go_on)
        first, _ = here.ask(here.old)
        second, waiting = here.ask(here.new)
        waiting.on_reset(Code.CANCELLED, "the user has gone")
        assert second.ended.is_set()
        assert (here.engine.active, here.forwarder.active) == (1, 1)
        go_on.set()
        await first.ended.wait()
        assert (len(server.requests), here.engine.active) == (1, 0)
        await here.forwarder.idle()


async def test_what_a_lost_registration_left_behind_is_told_until_it_ends() -> None:
    go_on = asyncio.Event()
    async with ScriptedEngine() as server, site(server, 2) as here:
        server.plan = Plan(hold=go_on)
        first, _ = here.ask(here.old)
        here.old.close()
        assert here.new.elsewhere() == {here.engine.name: 1}
        before = here.changes
        go_on.set()
        await first.ended.wait()
        assert (here.new.elsewhere(), here.changes) == ({}, before + 1)
