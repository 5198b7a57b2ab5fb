"""A request's way through the server: who gets it, what is refused, what is written down."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.site import (
    ANSWER,
    ASK,
    CHAT,
    DONE,
    STREAM,
    Site,
    ask,
    begin_stream,
    chunk,
    usage_chunk,
)
from tests.users import request

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
    user, call = await begin_stream(site, node)
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
    await site.queued(1)
    other = site.node()
    (await other.call()).answer(200, ANSWER)
    assert (await second.answer()).status == 200
    first.hang_up()
