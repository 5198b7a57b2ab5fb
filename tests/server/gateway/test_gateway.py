"""A request's way through the server: who gets it, what becomes of it, what is written down."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import weakref
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from fabric_server.edge.request import Request
from fabric_server.proxy.answer_writer import WHOLE_ANSWER
from fabric_server.proxy.attempt import CONFIRM_SECONDS, Attempt
from fabric_server.proxy.quantile import MIN_SAMPLES
from protocol.errors import Code
from tests.site import (
    ASK,
    CHAT,
    DONE,
    PATIENT,
    STREAM,
    Call,
    Ledger,
    ScriptedNode,
    Site,
    chunk,
    event,
    usage_chunk,
)
from tests.users import MemoryUser, request

ANSWER = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}'


def ask(site: Site, body: Any = ASK, path: str = CHAT, **headers: str) -> MemoryUser:
    """A new user who asks at once."""
    user = site.user()
    user.send(request("POST", path, body, **site.key, **headers))
    return user


async def begun(site: Site, node: ScriptedNode, body: Any = STREAM) -> tuple[MemoryUser, Call]:
    """A stream of which the first event has arrived."""
    user = ask(site, body)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel"))
    await user.until(b"Hel")
    return user, call


# ── what goes well ────────────────────────────────────────────────────────────────────────────


async def test_an_answer_comes_back_to_the_byte_and_is_written_down() -> None:
    site = Site()
    node = site.node()
    user = ask(site, content_type="application/json")
    call = await node.call()
    assert json.loads(await call.whole_body()) == ASK
    assert call.request.headers == [("content-type", "application/json")]
    assert (call.request.engine, call.request.path, call.request.attempt) == ("engine", CHAT, 1)
    call.answer(200, ANSWER)
    answer = await user.answer()
    assert (answer.status, answer.body) == (200, ANSWER)
    assert answer.headers["content-length"] == str(len(ANSWER))
    entry = await site.entry()
    assert entry.request_id == answer.headers["x-request-id"] == call.request.request_id
    assert (entry.outcome, entry.status, entry.error, entry.attempts) == ("ok", 200, None, 1)
    assert (entry.prompt_tokens, entry.completion_tokens) == (5, 7)
    assert (entry.account, entry.model, entry.stream) == ("tests", "tiny", False)
    assert (entry.node_id, entry.engine, entry.path) == ("node_1", "engine", CHAT)
    assert entry.bytes_in == len(json.dumps(ASK))
    assert entry.bytes_out == len(ANSWER)
    assert entry.first_byte_ms is not None
    assert 0 <= entry.queue_ms <= entry.first_byte_ms <= entry.total_ms
    assert site.taken() == 0


async def test_a_stream_comes_event_by_event_and_without_the_usage_that_nobody_asked_for() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    assert json.loads(await call.whole_body()) == {
        **STREAM,
        "stream_options": {"include_usage": True},
    }
    call.data(chunk("lo")[:20])
    call.data(chunk("lo")[20:] + chunk(None) + usage_chunk(5, 7) + DONE)
    call.end()
    answer = await user.answer()
    assert answer.body == chunk("Hel") + chunk("lo") + chunk(None) + DONE
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    entry = await site.entry()
    assert (entry.outcome, entry.prompt_tokens, entry.completion_tokens) == ("ok", 5, 7)
    assert entry.stream


async def test_a_user_who_asks_for_usage_gets_it() -> None:
    site = Site()
    node = site.node()
    user = ask(site, {**STREAM, "stream_options": {"include_usage": True}})
    events = [chunk("a"), chunk(None), usage_chunk(1, 2), DONE]
    (await node.call()).stream_all(*events)
    assert (await user.answer()).body == b"".join(events)
    assert (await site.entry()).completion_tokens == 2


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    for number in range(5):
        user.send(request("POST", CHAT, {**ASK, "n": number}, **site.key))
    for number in range(5):
        call = await node.call()
        assert node.idle, "a second one was begun before the first was answered"
        assert json.loads(await call.whole_body())["n"] == number
        call.answer(200, b"%d" % number)
    assert [(await user.answer()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert len({entry.request_id for entry in site.ledger}) == 5


async def test_a_request_that_closes_its_connection_is_written_down_as_what_it_was() -> None:
    site = Site()
    node = site.node()
    user = ask(site, connection="close")
    (await node.call()).answer(200, ANSWER)
    assert (await user.answer()).headers["connection"] == "close"
    await user.end()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.completion_tokens) == ("ok", 200, 7)


async def test_large_bodies_flow_both_ways_no_faster_than_they_are_taken() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    filling = b"x" * 3_000_000
    body = b'{"model":"tiny","stream":false,"messages":"%b"}' % filling
    user.send(request("POST", CHAT, body, **site.key))
    node.takes_bodies = False
    call = await node.call()
    assert call.request.body_size == len(body)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not user.reading, "more is read than the node takes"
    assert len(call.body) == 256 * 1024, "the stream's credit, and no more"
    call.take_body()
    assert await call.whole_body() == body
    answer = json.dumps({"text": "y" * 2_000_000}).encode()
    call.head(200, ("content-type", "application/json"))
    await call.all_data(answer)
    call.end()
    assert (await user.answer()).body == answer


async def test_a_large_stream_whose_model_comes_last_is_read_whole_and_patched() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    body = b'{"messages":"%b","model":"tiny","stream":true}' % (b"x" * 700_000)
    user.send(request("POST", CHAT, body, **site.key))
    call = await node.call()
    sent = await call.whole_body()
    assert call.request.body_size == len(sent)
    assert json.loads(sent) == {**json.loads(body), "stream_options": {"include_usage": True}}
    call.stream_all(chunk(None), DONE)
    await user.answer()


async def test_a_chunked_body_goes_on_without_a_length() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, **site.key, transfer_encoding="chunked"))
    start = b'{"model":"tiny","stream":true,"messages":"' + b"x" * 300_000
    user.send(b"%x\r\n%b\r\n" % (len(start), start))
    call = await node.call()
    assert call.request.body_size is None
    user.send(b'2\r\n"}\r\n0\r\n\r\n')
    assert json.loads(await call.whole_body())["stream_options"] == {"include_usage": True}
    call.stream_all(chunk(None))
    assert (await user.answer()).status == 200


async def test_the_node_that_an_ollama_tag_means_is_found() -> None:
    site = Site()
    node = site.node(["llama3:latest", "org/other:7b"], kind="ollama")
    user = ask(site, {**ASK, "model": "llama3"})
    (await node.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    listed = await user.ask("GET", "/v1/models/", **site.key)
    assert [card["id"] for card in listed.json["data"]] == ["llama3:latest", "org/other:7b"]
    for name in ("llama3", "llama3:latest", "org/other:7b", "org%2Fother%3A7b"):
        one = await user.ask("GET", f"/v1/models/{name}", **site.key)
        assert one.status == 200
        assert set(one.json) == {"id", "object", "created", "owned_by"}
    head = await user.ask("HEAD", "/v1/models/llama3", **site.key)
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0
    assert (await user.ask("GET", "/v1/models/none", **site.key)).code == "model_not_found"


# ── what the fabric itself refuses ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ("", 401, "invalid_api_key"),
        ("Bearer", 401, "invalid_api_key"),
        ("Bearer ", 401, "invalid_api_key"),
        ("Basic dXNlcjpwYXNz", 401, "invalid_api_key"),
        ("Bearer sk-fab-" + "x" * 43, 401, "invalid_api_key"),
        ("Bearer \xff\xfe", 401, "invalid_api_key"),
    ],
)
async def test_without_a_good_key_nothing_is_asked_and_nothing_written(
    header: str, status: int, code: str
) -> None:
    site = Site()
    site.node()
    answer = await site.user().ask("POST", CHAT, ASK, authorization=header)
    assert (answer.status, answer.code) == (status, code)
    assert site.ledger == []
    assert site.metrics.errors == {code: 1}


async def test_a_management_key_may_not_call_models() -> None:
    site = Site()
    answer = await site.user().ask("POST", CHAT, ASK, **site.make_key(management=True))
    assert (answer.status, answer.code) == (403, "wrong_key_kind")


async def test_a_key_for_some_models_gets_no_other_however_it_is_asked_for() -> None:
    site = Site()
    site.node(["tiny", "large"])
    key = site.make_key(models=["tiny"])
    user = site.user()
    answer = await user.ask("POST", CHAT, {**ASK, "model": "large"}, **key)
    assert (answer.status, answer.code) == (403, "model_not_allowed")
    # The last one counts for every engine; behind a body large enough to flow as well.
    for filling in (b"", b"x" * 600_000):
        body = b'{"model":"tiny","stream":false,"x":"%b","model":"large"}' % filling
        answer = await user.ask("POST", CHAT, body, **key)
        assert (answer.status, answer.code) == (403, "model_not_allowed")
    body = b'{"model":"tiny","MODEL":"large"}'  # as Ollama reads it
    assert (await user.ask("POST", CHAT, body, **key)).status == 400
    listed = await user.ask("GET", "/v1/models", **key)
    assert [card["id"] for card in listed.json["data"]] == ["tiny"]
    assert (await user.ask("GET", "/v1/models/large", **key)).status == 404
    assert {entry.outcome for entry in site.ledger} == {"refused"}


async def test_an_unknown_model_is_404_and_a_known_one_without_node_503() -> None:
    site = Site()
    node = site.node(["tiny"])
    user = site.user()
    answer = await user.ask("POST", CHAT, {**ASK, "model": "none"}, **site.key)
    assert (answer.status, answer.code, answer.error["param"]) == (404, "model_not_found", "model")
    node.leave()
    answer = await user.ask("POST", CHAT, ASK, **site.key)
    assert (answer.status, answer.code) == (503, "no_capacity")
    assert int(answer.headers["retry-after"]) >= 1
    assert [(entry.outcome, entry.status, entry.attempts) for entry in site.ledger] == [
        ("refused", 404, 0),
        ("refused", 503, 0),
    ]


async def test_paths_and_methods_that_are_not_there_say_so() -> None:
    site = Site()
    user = site.user()
    for path in ("/nothing", "/v1", "/v1/chat", "//", "/v1/modelsx", "/%2e%2e/etc", "*"):
        answer = await user.ask("GET", path)
        assert answer.status in (404, 200 if path == "//" else 404), path
    answer = await user.ask("GET", CHAT)
    assert (answer.status, answer.code, answer.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )
    for path in ("/v1/models", "/"):
        assert (await user.ask("POST", path)).status == 405
    assert (await user.ask("GET", "/")).status == 200
    assert (await user.ask("HEAD", "/")).status == 200


async def test_a_path_may_end_in_a_slash_and_have_a_query() -> None:
    site = Site()
    node = site.node()
    user = ask(site, path=CHAT + "/?a=b")
    call = await node.call()
    assert call.request.path == CHAT
    call.answer(200, ANSWER)
    assert (await user.answer()).status == 200


async def test_a_body_that_can_t_be_read_names_where() -> None:
    site = Site()
    answer = await site.user().ask("POST", CHAT, b'{"model":"tiny",,}', **site.key)
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert "byte 16" in answer.error["message"]
    assert (await site.entry()).outcome == "refused"


# ── what engines answer ───────────────────────────────────────────────────────────────────────


async def test_an_engine_s_4xx_is_the_user_s_answer_and_not_tried_elsewhere() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call = (await asyncio.wait_for(_first_call(nodes), 5))[0]
    body = b'{"error":{"message":"no such tool","type":"x","param":null,"code":null}}'
    call.answer(422, body)
    answer = await user.answer()
    assert (answer.status, answer.body) == (422, body)
    assert all(node.idle for node in nodes)
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.attempts) == ("engine_error", 422, 1)


async def _first_call(nodes: list[ScriptedNode]) -> tuple[Call, ScriptedNode]:
    """Whichever node was chosen, and the call there."""
    tasks = {asyncio.create_task(node.call()): node for node in nodes}
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    [task] = done
    return task.result(), tasks[task]


async def test_a_5xx_is_tried_once_elsewhere_under_the_same_id() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await _first_call(nodes)
    call.head(500)
    [second] = [node for node in nodes if node is not first]
    again = await second.call()
    assert again.request.request_id == call.request.request_id
    assert again.request.attempt == 2
    assert await again.whole_body() == json.dumps(ASK).encode()
    again.answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.error) == ("ok", 2, None)
    assert entry.node_id == second.node.id
    assert site.metrics.retries == 1
    assert await call.stopped() == Code.ENGINE_DOWN
    assert first.engine.active == 1, "its work may still be going on"
    call.confirm()
    await site.free()


async def test_a_5xx_passes_on_untouched_when_nobody_else_is_left() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await _first_call(nodes)
    call.answer(500, b"broken")
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(503, b"[busy]")
    answer = await user.answer()
    assert (answer.status, answer.body) == (503, b"[busy]")
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.attempts) == ("engine_error", 503, 2)


async def test_whether_somebody_else_is_left_is_asked_when_it_matters() -> None:
    site = Site()
    first, second = site.node(), site.node(slots=1)
    second.engine.active = 1  # taken by somebody
    user = ask(site)
    call = await first.call()
    second.engine.active = 0
    call.answer(500, b"broken")
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_can_have_no_body_gets_none_whatever_the_node_sends(
    status: int,
) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(status, ("content-length", "5"))
    call.data(b"oops!")
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.body) == (status, b"")
    assert (await user.ask("GET", "/")).status == 200, "the connection is in step"
    assert user.received == b""


async def test_a_redirect_passes_on_as_the_engine_s_mistake_without_its_target() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(301, ("location", "http://elsewhere.test/"), ("content-length", "0"))
    call.end()
    answer = await user.answer()
    assert answer.status == 301
    assert "location" not in answer.headers
    assert (await site.entry()).outcome == "engine_error"


async def test_only_harmless_headers_of_a_node_get_through() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(
        200,
        ("content-type", "application/json\r\nset-cookie: a=b"),
        ("content-language", "en\nx: y"),
        ("openai-processing-ms", "9000000"),
        ("retry-after", "1\0"),
        ("set-cookie", "a=b"),
        ("x-request-id", "mine"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("content-length", "9" * 5000),
        ("location", "x"),
        ("\r\nx: y", "z"),
    )
    call.data(b"{}")
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.body) == (200, b"{}")
    assert set(answer.headers) == {
        "date",
        "x-request-id",
        "x-fabric-route",
        "openai-processing-ms",
        "openai-version",
        "content-length",
    }


@pytest.mark.parametrize("length", ["-1", "1_0", "0x10", "\u0661", "", "1" * 16, "nonsense"])
async def test_a_length_that_is_none_is_ignored(length: str) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-length", length))
    call.data(ANSWER)
    call.end()
    answer = await user.answer()
    assert answer.body == ANSWER
    assert answer.headers["content-length"] == str(len(ANSWER)), "it was held whole"


@pytest.mark.parametrize("sent", [b"ab", b"x" * 40])
async def test_an_answer_of_another_length_than_announced_is_an_error(sent: bytes) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-length", "30"))
    call.data(sent)
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert (await site.entry()).outcome == "failed"


@pytest.mark.parametrize("length", [WHOLE_ANSWER + 20_000, WHOLE_ANSWER - 20_000])
async def test_a_large_answer_of_another_length_than_announced_is_cut_off(length: int) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-length", str(length + 1)))
    await call.all_data(b"x" * (WHOLE_ANSWER + 10_000))
    call.end()
    if length > WHOLE_ANSWER:  # it had begun to flow
        await user.end()
        assert user.aborted
    else:
        assert (await user.answer()).status == 502
    assert (await site.entry()).outcome == "failed"


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("length", [(), (("content-length", "30"),)])
async def test_an_answer_that_ends_before_it_began_is_tried_elsewhere(
    content_type: str, length: tuple[tuple[str, str], ...]
) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await _first_call(nodes)
    call.head(200, ("content-type", content_type), *length)
    call.end()
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200


# ── what is lost before the first byte ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "code", [Code.REFUSED, Code.ENGINE_DOWN, Code.ENGINE_FAILED, Code.DRAINING, Code.INTERNAL]
)
@pytest.mark.parametrize("after_head", [False, True])
async def test_what_a_node_gives_up_before_the_first_byte_another_answers(
    code: Code, after_head: bool
) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await _first_call(nodes)
    if after_head:
        call.head(200, ("content-type", "application/json"))
    call.fail(code)
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, second.node.id)
    assert site.taken() == 0


async def test_a_node_that_dies_before_the_first_byte_is_replaced_by_another() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    _, first = await _first_call(nodes)
    first.vanish()
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert (await site.entry()).attempts == 2
    assert first.engine.active == 0


async def test_a_node_that_loses_one_tunnel_before_the_first_byte_is_asked_again_on_another() -> (
    None
):
    site = Site()
    node = site.node()
    user = ask(site)
    await node.call()
    node.add_tunnel()
    node.cut(0)
    (await node.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert (await site.entry()).attempts == 2
    assert node.engine.active == 0


async def test_a_node_that_loses_tunnel_after_tunnel_is_asked_three_times() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    for number in range(3):
        await node.call()
        node.add_tunnel()
        node.cut(number)
    assert (await user.answer()).status == 502
    assert (await site.entry()).attempts == 3
    assert node.idle


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (Code.REFUSED, 503, "no_capacity"),
        (Code.DRAINING, 503, "no_capacity"),
        (Code.ENGINE_DOWN, 502, "upstream_error"),
        (Code.FORBIDDEN, 502, "upstream_error"),
        (Code.TIMEOUT, 504, "upstream_timeout"),
        (Code.CANCELLED, 502, "upstream_error"),
        (Code.TOO_LARGE, 502, "upstream_error"),
        (999, 502, "upstream_error"),
    ],
)
async def test_without_another_node_the_user_is_told_what_was_wrong(
    code: int, status: int, error: str
) -> None:
    site = Site()
    node = site.node()
    node.refuses = code
    user = ask(site)
    answer = await user.answer()
    assert (answer.status, answer.code) == (status, error)
    entry = await site.entry()
    assert entry.outcome == ("timeout" if code == Code.TIMEOUT else "failed")
    assert (entry.status, entry.attempts, entry.error) == (status, 1, Code.name_of(code))
    assert site.taken() == 0


async def test_a_request_is_tried_three_times_and_not_four_times() -> None:
    site = Site()
    for _ in range(4):
        site.node().refuses = Code.ENGINE_DOWN
    answer = await ask(site).answer()
    assert answer.status == 502
    assert (await site.entry()).attempts == 3


async def test_retries_never_become_the_load() -> None:
    """When everything fails, a tenth of the requests is tried again, and a few at the beginning."""
    site = Site()
    for _ in range(4):
        site.node(slots=64).refuses = Code.LOST
    for _ in range(200):
        assert (await ask(site).answer()).status == 502
    attempts = sum(entry.attempts for entry in site.ledger)
    assert 200 + 20 <= attempts <= 200 + 20 + 10


async def test_a_node_that_stalls_before_the_first_byte_is_replaced_by_one_with_room() -> None:
    site = Site(timeouts=replace(PATIENT, stall=5.0))
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await _first_call(nodes)
    site.wait(4.0)
    assert call.reset is None
    site.wait(6.0)
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    assert await call.stopped() == Code.TIMEOUT
    call.confirm()
    await site.free()
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, second.node.id)


async def test_a_node_that_stalls_is_waited_for_when_there_is_no_other() -> None:
    site = Site(timeouts=replace(PATIENT, stall=5.0, first_byte=60.0))
    node = site.node()
    user = ask(site)
    call = await node.call()
    site.wait(30.0)
    call.answer(200, ANSWER)
    assert (await user.answer()).status == 200


async def test_a_stalled_node_is_given_up_when_its_time_is_over() -> None:
    site = Site(timeouts=replace(PATIENT, stall=5.0, first_byte=60.0))
    node = site.node()
    user = ask(site)
    call = await node.call()
    site.wait(61.0)
    assert (await user.answer()).code == "upstream_timeout"
    call.confirm()
    await site.free()


async def test_an_engine_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    site = Site()
    bad, good = site.node(slots=1000), site.node(slots=1)
    bad.refuses = Code.ENGINE_DOWN
    good.engine.active = 1  # so that the bad one is asked first
    for _ in range(3):
        await ask(site).answer()
    assert not bad.engine.allows("tiny", site.loop.time())
    assert bad.engine.allows("other", site.loop.time())
    assert bad.engine.allows("tiny", site.loop.time() + 6.0)
    good.engine.active = 0
    user = ask(site)
    (await good.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert site.ledger[-1].attempts == 1


async def test_a_5xx_that_is_passed_on_is_no_success() -> None:
    site = Site()
    node = site.node()
    for _ in range(2):
        user = ask(site)
        (await node.call()).fail(Code.ENGINE_DOWN)
        await user.answer()
    user = ask(site)
    (await node.call()).answer(500, b'{"error":{}}')
    assert (await user.answer()).status == 500
    assert node.engine.allows("tiny", site.loop.time()), "it counts as no failure either"
    user = ask(site)
    (await node.call()).fail(Code.ENGINE_DOWN)
    await user.answer()
    assert not node.engine.allows("tiny", site.loop.time())


async def test_a_user_s_own_mistakes_never_make_an_engine_avoided() -> None:
    site = Site()
    node = site.node()
    for _ in range(10):
        user = ask(site)
        (await node.call()).answer(400, b'{"error":{}}')
        assert (await user.answer()).status == 400
    assert node.engine.allows("tiny", site.loop.time())
    assert node.engine.breakers == {}


async def test_a_body_that_was_not_kept_is_not_sent_twice() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = site.user()
    body = b'{"model":"tiny","stream":false,"x":"%b"}' % (b"x" * 600_000)
    user.send(request("POST", CHAT, body, **site.key)[:400_000])
    call, _ = await _first_call(nodes)
    call.fail(Code.ENGINE_DOWN)
    assert (await user.answer()).status == 502
    assert (await site.entry()).attempts == 1


# ── what is lost in the middle ────────────────────────────────────────────────────────────────


def _last_event_is_an_error(body: bytes, code: str) -> None:
    *_, last, nothing = body.split(b"\n\n")
    assert nothing == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert b"[DONE]" not in body


async def test_a_stream_lost_in_the_middle_ends_with_an_error_and_is_not_tried_again() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site, STREAM)
    call, first = await _first_call(nodes)
    call.begin_stream()
    call.data(chunk("Hel") + chunk("lo")[:9])
    await user.until(b"Hel")
    first.vanish()
    answer = await user.answer()
    assert answer.body.startswith(chunk("Hel") + b'data: {"error"')
    _last_event_is_an_error(answer.body, "upstream_lost")
    assert all(node.idle for node in nodes)
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error, entry.attempts) == ("failed", 200, "lost", 1)
    assert (await user.ask("GET", "/")).status == 200, "the connection is in step"


async def test_a_stream_whose_node_is_lost_behind_its_terminal_marker_is_whole() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + chunk(None) + usage_chunk(5, 7) + DONE)
    await user.until(DONE)
    node.vanish()
    assert (await user.answer()).body == chunk("Hel") + chunk(None) + DONE
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.completion_tokens) == ("ok", None, 7)
    assert site.taken() == 0


async def test_a_reason_to_finish_is_not_the_end_of_a_stream_whose_node_is_lost() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + chunk(None))
    await user.until(chunk(None))
    node.vanish()
    _last_event_is_an_error((await user.answer()).body, "upstream_lost")
    assert (await site.entry()).outcome == "failed"


async def test_an_event_of_which_half_has_gone_out_is_ended_before_the_error() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    await call.all_data(b"data: " + b"x" * 1_200_000)
    call.fail(Code.ENGINE_FAILED)
    _last_event_is_an_error((await user.answer()).body, "upstream_lost")


async def test_an_unstreamed_answer_lost_in_the_middle_is_asked_for_again_as_a_whole() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await _first_call(nodes)
    call.head(200, ("content-type", "application/json"), ("content-length", "100"))
    call.data(b'{"choices"')
    call.data(b":[")
    await _turns(10)
    first.vanish()
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.completion_tokens) == ("ok", 2, 7)


async def test_an_answer_too_large_to_be_kept_is_cut_when_it_is_lost_in_the_middle() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, _ = await _first_call(nodes)
    call.head(200, ("content-type", "application/json"), ("content-length", "1000000"))
    await call.all_data(b"x" * (WHOLE_ANSWER + 50_000))
    await user.until(b"xxx")
    call.fail(Code.ENGINE_FAILED)
    await user.end()
    assert user.aborted
    assert all(node.idle for node in nodes)
    assert (await site.entry()).outcome == "failed"


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_stream_that_just_ends_is_not_complete() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    call.end()
    _last_event_is_an_error((await user.answer()).body, "incomplete")
    entry = await site.entry()
    assert (entry.outcome, entry.status) == ("incomplete", 200)


async def test_an_error_that_the_engine_tells_within_its_stream_passes_and_counts() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    error = event({"error": {"message": "out of memory", "type": "server_error"}})
    call.data(error + DONE)
    call.end()
    assert (await user.answer()).body == chunk("Hel") + error + DONE
    assert (await site.entry()).outcome == "failed"


# ── who hangs up, and who is slow ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [ASK, STREAM])
@pytest.mark.parametrize("moment", ["asked", "head", "data"])
async def test_a_user_who_hangs_up_stops_the_work_and_the_slot_is_free_when_it_has_stopped(
    body: Any, moment: str
) -> None:
    site = Site()
    node = site.node()
    user = ask(site, body)
    call = await node.call()
    if moment != "asked":
        call.begin_stream()
    if moment == "data":
        call.data(chunk("Hel"))
        await user.until(b"Hel")
    user.hang_up()
    assert await call.stopped() == Code.CANCELLED
    entry = await site.entry()
    assert (entry.outcome, entry.attempts) == ("cancelled", 1)
    assert entry.status == (200 if moment == "data" else 499)
    assert node.engine.active == 1, "the engine may still be at it"
    call.confirm()
    await site.free()


async def test_a_user_who_hangs_up_when_all_has_come_had_a_whole_answer() -> None:
    """Clients close at ``[DONE]``, before the node has said that this was all."""
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + chunk(None) + usage_chunk(5, 7) + DONE)
    await user.until(DONE)
    user.hang_up()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("ok", 200, None)
    assert (entry.prompt_tokens, entry.completion_tokens) == (5, 7)
    await call.stopped()
    call.confirm()
    await site.free()


async def test_a_user_who_hangs_up_behind_an_error_in_the_stream_had_no_answer() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + event({"error": {"message": "out of memory"}}) + DONE)
    await user.until(DONE)
    user.hang_up()
    assert (await site.entry()).outcome == "cancelled"
    await call.stopped()
    call.confirm()
    await site.free()


async def test_a_user_who_hangs_up_while_waiting_leaves_the_line() -> None:
    site = Site()
    node = site.node(slots=1)
    first, second = ask(site), ask(site)
    call = await node.call()
    while not site.admission.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second.hang_up()
    call.answer(200, ANSWER)
    await first.answer()
    await site.gateway.active.wait_idle()
    assert site.admission.waiting == 0
    assert site.taken() == 0
    assert sorted(entry.outcome for entry in site.ledger) == ["cancelled", "ok"]


async def test_a_user_who_hangs_up_when_just_served_gives_the_slot_back() -> None:
    site = Site()
    node = site.node(slots=1)
    first, second = ask(site), ask(site)
    call = await node.call()
    while not site.admission.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    site.registry.release(node.engine)  # serves the second one …
    assert site.admission.waiting == 0
    second.hang_up()  # … which goes in the same turn
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert site.taken() == 0
    node.engine.active += 1  # what was given back for the first one above
    call.answer(200, ANSWER)
    assert (await first.answer()).status == 200
    assert site.taken() == 0


async def test_a_user_who_hangs_up_while_sending_stops_the_work() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    body = b'{"model":"tiny","stream":false,"x":"%b"}' % (b"x" * 600_000)
    user.send(request("POST", CHAT, body, **site.key)[:400_000])
    call = await node.call()
    user.hang_up()
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    assert (await site.entry()).outcome == "cancelled"
    await site.free()


async def test_a_body_that_breaks_off_under_way_is_the_user_s_fault() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, **site.key, transfer_encoding="chunked"))
    start = b'{"model":"tiny","stream":false,"messages":"' + b"x" * 300_000
    user.send(b"%x\r\n%b\r\n" % (len(start), start))
    call = await node.call()
    user.send(b"no chunk\r\n")
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("refused", 400, "bad_request")
    await site.free()


async def test_a_node_that_never_confirms_loses_its_tunnel() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    user.hang_up()
    await call.stopped()
    site.wait(CONFIRM_SECONDS + 1)
    await site.free()
    assert node.node.tunnels == []


async def test_a_slow_reader_s_stream_stops_and_goes_on_with_the_reader() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    user.stop_reading()
    sent = 0
    while call.data(chunk("x" * 8000)):
        sent += 1
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(user.received) <= 256 * 1024 + 1000, "more was written than the credit"
    user.read_on()
    call.data(chunk(None) + DONE)
    call.end()
    assert (await user.answer()).body == chunk("Hel") + chunk("x" * 8000) * (sent + 1) + chunk(
        None
    ) + DONE
    assert (await site.entry()).outcome == "ok"


async def test_a_user_who_does_not_read_is_cut_off() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    user.stop_reading()
    call.data(chunk("lorem"))
    await user.until(b"lorem")
    site.wait(PATIENT.slow_reader - 1)
    assert not user.closed
    site.wait(PATIENT.slow_reader + 1)
    assert user.aborted
    assert await call.stopped() == Code.SLOW_READER
    call.confirm()
    entry = await site.entry()
    assert (entry.outcome, entry.error) == ("failed", "slow_reader")
    await site.free()


async def test_no_first_byte_in_time_is_504_and_not_tried_again() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, _ = await _first_call(nodes)
    call.head(200)  # which is no byte of the answer
    await asyncio.sleep(0)
    site.wait(PATIENT.first_byte - 1)
    assert call.reset is None
    site.wait(PATIENT.first_byte + 1)
    answer = await user.answer()
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert await call.stopped() == Code.TIMEOUT
    assert all(node.idle for node in nodes)
    call.confirm()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("timeout", 504, "timeout")
    await site.free()


async def test_an_engine_that_falls_silent_is_given_up_and_one_that_goes_on_is_not() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    for part in range(1, 9):  # the clock is that of the loop: told a time, not waited for
        site.wait(PATIENT.idle * part / 4 + 1)
        call.data(chunk("."))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert call.reset is None
    while not site.ledger:
        part += 1
        site.wait(PATIENT.idle * part / 4 + 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert part == 8 + 1 + 4  # seen silent first, and then for as long as it may be
    assert await call.stopped() == Code.TIMEOUT
    _last_event_is_an_error((await user.answer()).body, "upstream_lost")
    assert (await site.entry()).outcome == "timeout"


async def test_no_answer_goes_on_for_ever() -> None:
    site = Site()
    node = site.node()
    _, call = await begun(site, node)
    step = PATIENT.idle / 4
    now = 0.0
    while call.reset is None and now < PATIENT.total + 10 * step:
        now += step
        site.wait(now + 1)
        call.data(chunk("."))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert PATIENT.total <= now + 1 <= PATIENT.total + 2 * step
    assert (await site.entry()).outcome == "timeout"


# ── waiting for a slot ────────────────────────────────────────────────────────────────────────


async def test_who_waits_is_served_in_order_and_the_line_is_bounded() -> None:
    site = Site(queue_length=3)
    node = site.node(slots=1)
    users = []
    for number in range(5):
        users.append(ask(site, {**ASK, "n": number}))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    refused = await users[4].answer()
    assert (refused.status, refused.code) == (429, "queue_share_full")
    assert refused.error["type"] == "rate_limit_error"
    assert "retry-after" in refused.headers
    for number in range(4):
        call = await node.call()
        assert json.loads(await call.whole_body())["n"] == number
        assert site.taken() == 1
        call.answer(200, ANSWER)
        assert (await users[number].answer()).status == 200
    assert site.taken() == site.admission.waiting == 0
    assert site.ledger[-1].queue_ms > 0


async def test_a_wait_that_is_too_long_ends_in_503() -> None:
    site = Site(queue_timeout=0.01)
    node = site.node(slots=1)
    first, second = ask(site), ask(site)
    call = await node.call()
    answer = await second.answer()
    assert (answer.status, answer.code) == (503, "queue_timeout")
    assert answer.headers["retry-after"] == "5", "nothing has been measured yet"
    assert site.ledger[0].queue_ms >= 10
    call.answer(200, ANSWER)
    assert (await first.answer()).status == 200
    assert site.taken() == 0


async def test_who_waits_is_served_by_a_node_that_comes() -> None:
    site = Site()
    busy = site.node(slots=1)
    first, second = ask(site), ask(site)
    await busy.call()
    while not site.admission.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    other = site.node()
    (await other.call()).answer(200, ANSWER)
    assert (await second.answer()).status == 200
    first.hang_up()


# ── nothing is left behind ────────────────────────────────────────────────────────────────────


async def test_a_finished_request_is_forgotten_without_the_garbage_collector() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    gc.collect()
    gc.disable()
    try:
        before = _count(Attempt, Request)
        for body in (ASK, STREAM) * 10:
            user.send(request("POST", CHAT, body, **site.key))
            call = await node.call()
            if body is ASK:
                call.answer(200, ANSWER)
            else:
                call.stream_all(chunk("a"), chunk(None), DONE)
            await user.answer()
            del call
        await site.gateway.active.wait_idle()
        await asyncio.sleep(0)
        assert _count(Attempt, Request) == before
    finally:
        gc.enable()


def _count(*kinds: type) -> int:
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


async def test_a_connection_that_is_gone_is_forgotten_without_the_garbage_collector() -> None:
    site = Site()
    gc.collect()
    gc.disable()
    try:
        user = site.user()
        await user.ask("GET", "/")
        user.send(b"POST / HTTP/1.1\r\nhost")
        connection = weakref.ref(user.connection)
        user.hang_up()
        del user
        await asyncio.sleep(0)
        assert connection() is None
    finally:
        gc.enable()


async def test_a_long_prompt_is_not_kept_for_as_long_as_its_answer_takes() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node, {**STREAM, "x": "x" * 200_000})
    await call.whole_body()
    call.body.clear()
    [record] = site.gateway.active.list()
    assert record.request.body.replay_buffer == b""
    assert record.request.body.buffered == 0
    user.hang_up()


async def test_a_defect_costs_its_request_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Ledger):
        def publish(self, topic: str, record: Any) -> None:
            raise RuntimeError("the bus is broken")

    site = Site(ledger=Broken())
    node = site.node()
    user = ask(site)
    node.refuses = Code.ENGINE_DOWN
    with caplog.at_level(logging.ERROR):
        answer = await user.answer()
    assert (answer.status, answer.code) == (500, "internal_error")
    assert "the bus is broken" in caplog.text
    assert site.gateway.active.count == 0
    assert (await user.ask("GET", "/")).status == 200


async def test_a_server_that_leaves_breaks_off_what_runs_and_stops_the_engines() -> None:
    site = Site()
    node = site.node()
    user, call = await begun(site, node)
    site.edge.close()
    assert user.aborted
    assert await call.stopped() == Code.CANCELLED
    await site.gateway.active.wait_idle()
    assert site.edge.connections == 0


# ── whatever happens ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_nodes_and_users_do_every_request_ends_once(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: heard.append(said))
    rng = Random(seed)
    site = Site(queue_length=8)
    site.gateway.upstream.hedging.on = seed % 2 == 1
    for _ in range(2 * MIN_SAMPLES):
        site.gateway.upstream.hedging.observe("tiny", 5.0, stream=rng.random() < 0.5)
    nodes = [site.node(slots=rng.choice([1, 2, 5])) for _ in range(3)]
    serving = [asyncio.create_task(_misbehave(node, rng)) for node in nodes]
    users = [asyncio.create_task(_use(site, rng)) for _ in range(25)]
    while not all(user.done() for user in users):
        for _ in range(20):
            await asyncio.sleep(0)
        if rng.random() < 0.1:
            rng.choice(nodes).vanish()
        for node in nodes:
            if not node.node.tunnels:
                node.add_tunnel()
        if rng.random() < 0.1:
            site.wait(rng.choice([11, 31, 70, 130, 400]))
    asked = sum([user.result() for user in users])
    await asyncio.wait_for(site.gateway.active.wait_idle(), 5)
    for _ in range(50):
        await asyncio.sleep(0)
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    for node in nodes:
        node.vanish()
    await site.free()
    ids = [entry.request_id for entry in site.ledger]
    assert len(ids) == len(set(ids)) <= asked
    assert site.admission.waiting == site.edge.connections == 0
    assert {entry.outcome for entry in site.ledger} <= {
        "ok", "refused", "engine_error", "failed", "incomplete", "cancelled", "timeout",
    }  # fmt: skip
    assert not heard
    assert not caplog.records


async def _misbehave(node: ScriptedNode, rng: Random) -> None:
    """Answers each call somehow; keeps to the protocol, and to nothing else."""
    running = set[asyncio.Task[None]]()
    while True:
        task = asyncio.create_task(_answer_somehow(await node.call(timeouts=None), rng))
        running.add(task)
        task.add_done_callback(running.discard)


async def _answer_somehow(call: Call, rng: Random) -> None:
    async def wait() -> None:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)

    await wait()
    match rng.randrange(7):
        case 0:
            call.fail(rng.choice(list(Code)))
            return
        case 1:
            call.head(rng.choice([200, 204, 301, 404, 500, 503]), ("content-length", "2"))
            await wait()
        case 2:
            pass  # never a word
        case 3 | 4:
            call.answer(200, ANSWER)
            return
        case _:
            call.begin_stream()
            for _ in range(rng.randrange(8)):
                call.data(rng.choice([chunk("x" * 3000), chunk("a")[:7], b"\n\n", b"x" * 9000]))
                await wait()
            if rng.random() < 0.6:
                call.data(chunk(None) + usage_chunk(1, 2) + DONE)
            if rng.random() < 0.7:
                call.end()
                return
    if rng.random() < 0.9:
        await call.stopped(timeouts=None)
        call.confirm()


async def _use(site: Site, rng: Random) -> int:
    """A few requests on one connection, read or not, with or without patience."""
    user = site.user()
    count = rng.randrange(1, 5)
    large = b'{"model":"tiny","stream":true,"x":"%b"}' % (b"x" * 400_000)
    for _ in range(count):
        body: Any = rng.choice([ASK, STREAM, large, {"model": "none"}, b"{"])
        failover = rng.choice(["continue", "off"])
        data = request("POST", CHAT, body, **site.key, x_fabric_failover=failover)
        user.send(data[: rng.choice([len(data), len(data), len(data) // 2])])
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        if rng.random() < 0.2:
            user.stop_reading()
        elif rng.random() < 0.3:
            user.read_on()
        if user.closed:
            break
    for _ in range(rng.randrange(300)):
        await asyncio.sleep(0)
    user.hang_up()
    return count
