"""URLs of media in requests: fetched by the server, or refused, before an engine sees any."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric_server.gateway import media as limits
from fabric_server.gateway.media import MAX_FETCHES_PER_KEY, MAX_URLS, Media, Setting
from fabric_server.net.fetcher import Fetcher
from fabric_server.net.memory_budget import BudgetLimits, MemoryBudget
from tests.media_server import PDF, PNG, WAV, MediaServer, Names, loopback_only, page
from tests.site import ANSWER, CHAT, Site
from tests.users import MemoryUser, request

MESSAGES = "/v1/messages"
PNG64 = base64.b64encode(PNG).decode()
HOME = "http://192.168.1.1/cgi?reboot"


@pytest.fixture
async def server() -> AsyncIterator[MediaServer]:
    async with MediaServer() as server:
        yield server


def site(setting: Setting = "fetch", **properties: Any) -> Site:
    names = Names(["127.0.0.1"])
    return Site(media=Media(Fetcher(names, loopback_only), setting), **properties)


def send(
    site: Site, body: object, path: str = CHAT, key: dict[str, str] | None = None
) -> MemoryUser:
    user = site.user()
    user.send(request("POST", path, body, **(key or site.key)))
    return user


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*parts: object) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}]}


def source(url: str, type: str = "image") -> dict[str, Any]:
    return {"type": type, "source": {"type": "url", "url": url}}


async def engine_gets(body: object, path: str = CHAT, kind: str = "vllm") -> Any:
    """Send a body, and return it as an engine gets it."""
    here = site()
    node = here.node(kind=kind, paths=[path])
    user = send(here, body, path)
    call = await node.call()
    got = json.loads(await call.whole_body())
    call.answer(200, ANSWER)
    assert (await user.answer()).status == 200
    return got


async def refusal(body: object, path: str = CHAT, here: Site | None = None) -> Any:
    here = here or site()
    if not here.nodes:
        here.node(paths=[path])
    answer = await send(here, body, path).answer()
    assert answer.status == 400
    entry = (await settled(here))[-1]
    assert (entry.outcome, entry.error, entry.attempts) == ("refused", "media_refused", 0)
    return answer.json


async def settled(here: Site) -> Any:
    async with asyncio.timeout(5):
        await here.gateway.active.wait_idle()
    return here.ledger


# ── fetching ──────────────────────────────────────────────────────────────────────────────────


async def test_an_engine_gets_data_in_place_of_urls(server: MediaServer) -> None:
    text = {"type": "text", "text": f"what is {server.url()}?"}
    got = await engine_gets(chat(text, part(server.url()), part("data:,"), part(server.url())))
    data = part(f"data:image/png;base64,{PNG64}")
    assert got == chat(text, data, part("data:,"), data)
    assert len(server.asked) == 1  # of two that are the same, one is fetched


async def test_anthropics_sources_become_data(server: MediaServer) -> None:
    content = [
        source(server.url()),
        source(server.url("/a.pdf"), "document"),
        source(server.url("/a.txt"), "document"),
        {"type": "tool_result", "tool_use_id": "t", "content": [source(server.url())]},
    ]
    got = await engine_gets({**chat(*content), "max_tokens": 5}, MESSAGES)
    image = {"type": "base64", "media_type": "image/png", "data": PNG64}
    pdf = base64.b64encode(PDF).decode()
    first, second, third, fourth = got["messages"][0]["content"]
    assert first == {"type": "image", "source": image}
    assert second["source"] == {"type": "base64", "media_type": "application/pdf", "data": pdf}
    assert third["source"] == {"type": "text", "media_type": "text/plain", "data": "Grüße"}
    assert fourth["content"] == [{"type": "image", "source": image}]


async def test_files_and_sounds_become_data(server: MediaServer) -> None:
    file = {"type": "input_file", "file_url": server.url("/a.pdf"), "filename": "a.pdf"}
    image = {"type": "input_image", "image_url": server.url()}
    body = {"model": "tiny", "input": [{"role": "user", "content": [file, image]}]}
    got = await engine_gets(body, "/v1/responses")
    assert got["input"][0]["content"] == [
        {
            "type": "input_file",
            "file_data": f"data:application/pdf;base64,{base64.b64encode(PDF).decode()}",
            "filename": "a.pdf",
        },
        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG64}"},
    ]
    sound = {"type": "audio_url", "audio_url": {"url": server.url("/a.wav")}}
    got = await engine_gets(chat(sound))
    wav = base64.b64encode(WAV).decode()
    assert got == chat({"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{wav}"}})


async def test_a_large_body_that_names_media_is_read_whole(server: MediaServer) -> None:
    here = site()
    node = here.node()
    text = {"type": "text", "text": "x" * 300_000}
    body = json.dumps({"stream": True, **chat(part(server.url()), text, part(server.url()))})
    head, rest = request("POST", CHAT, body.encode(), **here.key).split(b"\r\n\r\n", 1)
    user = here.user()
    user.send(head + b"\r\n\r\n" + rest[:290_000])
    await until(lambda: here.gateway.active.count == 1)
    user.send(rest[290_000:])
    call = await node.call()
    got = json.loads(await call.whole_body())
    data = part(f"data:image/png;base64,{PNG64}")
    assert got["messages"] == chat(data, text, data)["messages"]
    call.answer(200, ANSWER)
    assert (await user.answer()).status == 200


async def test_a_stream_and_its_usage_go_on_as_before(server: MediaServer) -> None:
    got = await engine_gets({**chat(part(server.url())), "stream": True})
    assert got["stream_options"] == {"include_usage": True}
    assert got["messages"][0]["content"] == [part(f"data:image/png;base64,{PNG64}")]


async def test_second_fields_are_fetched_as_well(server: MediaServer) -> None:
    here = site()
    node = here.node()
    url = json.dumps(server.url())
    body = f'{{"model":"tiny","image_url":{url},"image_url":{url},"image\\u005furl":{url}}}'
    send(here, body.encode())
    call = await node.call()
    data = f'"data:image/png;base64,{PNG64}"'
    assert await call.whole_body() == body.replace(url, data).encode()


@pytest.mark.parametrize(
    "path", ["/page", "/lie.png", "/truth.html", "/a.svg", "/list.m3u8", "/a.wav", "/a.txt"]
)
async def test_what_is_no_image_does_not_reach_the_engine(server: MediaServer, path: str) -> None:
    error = (await refusal(chat(part(server.url(path)))))["error"]
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert server.url(path) in error["message"]
    assert "content-type" in error["message"]


async def test_stores_of_objects_need_not_know_the_type(server: MediaServer) -> None:
    got = await engine_gets(chat(part(server.url("/bare.png"))))
    assert got == chat(part(f"data:image/png;base64,{PNG64}"))


async def test_nothing_is_fetched_without_a_key_or_over_its_limit(server: MediaServer) -> None:
    here = site()
    here.node()
    body = chat(part(server.url()))
    wrong = {"authorization": "Bearer sk-fab-wrong"}
    assert (await send(here, body, key=wrong).answer()).status == 401
    others = here.make_key(models=["other"])
    assert (await send(here, body, key=others).answer()).status == 403
    limited = here.make_key(requests_per_minute=1)
    first = send(here, chat("a"), key=limited)
    (await here.nodes[0].call()).answer(200, ANSWER)
    assert (await first.answer()).status == 200
    assert (await send(here, body, key=limited).answer()).status == 429
    assert server.asked == []


# ── refusals ──────────────────────────────────────────────────────────────────────────────────


async def test_each_dialect_says_it_in_its_own_shape() -> None:
    error = (await refusal(chat(part(HOME))))["error"]
    assert error["code"] == "media_refused"
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert "192.168.1.1 is not an address of the public internet" in error["message"]
    told = await refusal({**chat(source(HOME)), "max_tokens": 5}, MESSAGES)
    assert told["type"] == "error"
    assert told["error"]["type"] == "invalid_request_error"
    assert HOME in told["error"]["message"]
    told = await refusal({"model": "tiny", "prompt": "a", "images": [HOME]}, "/api/generate")
    assert HOME in told["error"]
    assert "base64" in told["error"]
    told = await refusal({"model": "tiny", "input": [{"image_url": HOME}]}, "/v1/responses")
    assert HOME in told["error"]["message"]


@pytest.mark.parametrize("path", ["/none", "/loop", "/home"])
async def test_what_can_not_be_fetched_is_named(server: MediaServer, path: str) -> None:
    server.redirect("/loop", "/loop")
    server.redirect("/home", HOME)
    error = (await refusal(chat("a", part(server.url(path)))))["error"]
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert server.url(path) in error["message"]


async def test_a_request_has_a_bounded_number_of_urls(server: MediaServer) -> None:
    urls = [part(server.url(f"/{number}.png")) for number in range(MAX_URLS + 1)]
    for number in range(MAX_URLS):
        server.pages[f"/{number}.png"] = server.pages["/a.png"]
    await refusal(chat(*urls))
    assert server.asked == []
    got = await engine_gets(chat(*urls[:MAX_URLS]))
    assert got == chat(*[part(f"data:image/png;base64,{PNG64}")] * MAX_URLS)
    assert server.most_at_once <= MAX_FETCHES_PER_KEY


async def test_a_key_fetches_a_bounded_number_at_once_and_others_do_not_wait(
    server: MediaServer,
) -> None:
    here = site()
    node = here.node(slots=8)
    server.wait = asyncio.Event()
    server.pages |= {f"/{number}.png": server.pages["/a.png"] for number in range(8)}
    users = [send(here, chat(part(server.url(f"/{number}.png")))) for number in range(6)]
    await until(lambda: server.at_once == MAX_FETCHES_PER_KEY)
    users.append(send(here, chat(part(server.url("/7.png"))), key=here.make_key()))
    await until(lambda: server.at_once == MAX_FETCHES_PER_KEY + 1)
    server.wait.set()
    for _ in users:
        (await node.call()).answer(200, ANSWER)
    assert [(await user.answer()).status for user in users] == [200] * 7
    assert server.most_at_once == MAX_FETCHES_PER_KEY + 1


async def test_bytes_are_bounded_for_the_request_and_for_all(
    server: MediaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/b.png"] = lambda: page(PNG + b"b", "image/png")
    both = chat(part(server.url()), part(server.url("/b.png")))
    monkeypatch.setattr(limits, "MAX_BYTES", 2 * len(PNG))
    assert "together" in (await refusal(both))["error"]["message"]
    monkeypatch.setattr(limits, "MAX_BYTES", 2 * len(PNG) + 1)
    await engine_gets(both)
    here = site(memory=MemoryBudget(BudgetLimits(2**20, 2**20)))
    here.node()
    server.pages["/big.png"] = lambda: page(PNG + bytes(2**20), "image/png")
    monkeypatch.setattr(limits, "MAX_BYTES", 2**22)
    answer = await send(here, chat(part(server.url("/big.png")))).answer()
    assert (answer.status, answer.code) in ((429, "too_much_in_flight"), (503, "overloaded"))
    assert "retry-after" in answer.headers
    assert (await send_and_answer(here, chat(part(server.url())))) == 200
    assert here.memory.held == 0


async def send_and_answer(here: Site, body: object) -> int:
    user = send(here, body)
    (await here.nodes[0].call()).answer(200, ANSWER)
    return (await user.answer()).status


async def test_what_is_slow_is_refused(
    server: MediaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    server.wait = asyncio.Event()
    error = (await refusal(chat(part(server.url()))))["error"]
    assert "did not come within" in error["message"]
    server.wait.set()


async def test_a_user_who_hangs_up_ends_the_fetch(server: MediaServer) -> None:
    here = site()
    here.node()
    server.wait = asyncio.Event()
    user = send(here, chat(part(server.url())))
    await until(lambda: server.at_once == 1)
    user.hang_up()
    (entry,) = await settled(here)
    assert entry.outcome == "cancelled"
    server.wait.set()


@pytest.mark.parametrize("setting", ["data", "off"])
async def test_the_operator_can_forbid_urls_or_all_media(
    server: MediaServer, setting: Setting
) -> None:
    here = site(setting)
    node = here.node()
    await refusal(chat(part(server.url())), here=here)
    assert server.asked == []
    assert await send_and_answer(here, chat("a", {"type": "text", "text": server.url()})) == 200
    data = {**chat({"type": "image", "source": {"type": "base64", "data": PNG64}}), "image": PNG64}
    for body in (chat(part("data:,")), data):
        if setting == "off":
            assert "takes no images" in (await refusal(body, here=here))["error"]["message"]
        else:
            user = send(here, body)
            call = await node.call()
            assert json.loads(await call.whole_body()) == body
            call.answer(200, ANSWER)
            assert (await user.answer()).status == 200


async def test_results_are_counted(server: MediaServer) -> None:
    here = site()
    here.gateway.media = Media(
        Fetcher(Names(["127.0.0.1"]), loopback_only), "fetch", here.metrics.media
    )
    node = here.node()
    await refusal(chat(part(HOME)), here=here)
    await refusal(chat(part(server.url("/none"))), here=here)
    assert node is not None
    assert await send_and_answer(here, chat(part(server.url()))) == 200
    assert here.metrics.media == {"refused": 1, "failed": 1, "fetched": 1}


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is in a server's counters
            await asyncio.sleep(0.001)
