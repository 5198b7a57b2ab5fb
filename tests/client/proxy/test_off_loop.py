"""Large bodies and answers are read in a worker, on every path, and small ones are not."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import pickletools
import re
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest

from fabric_client.proxy.preparation import OFF_LOOP, prepare, prepare_whole
from fabric_client.proxy.prepared import Prepared
from fabric_client.reasoning import ReasoningFilter
from fabric_client.translation import TranslatedRequest
from fabric_client.translation.paths import PUBLIC_PATHS, path_handlers
from protocol.errors import Code
from protocol.messages import RequestHead
from runtime.worker_process import Work
from runtime.workers import TooMuchWork, WorkerLost, Workers
from tests.client.proxy.test_odd_engines import REFUSED, STREAM, RawEngine
from tests.node_alone import NodeAlone

LONG = "x" * (OFF_LOOP + 1000)
SAID = [{"role": "user", "content": "hi"}]
FIELDS: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 9, "messages": SAID},
    "/v1/messages/count_tokens": {"messages": SAID},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/api/chat": {"messages": SAID},
    "/api/generate": {"prompt": "hi"},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": SAID},
}
KINDS = ("vllm", "ollama", "llama-server", "lm-studio", "openai")
NATIVE = {"few": ["/v1/chat/completions", "/v1/embeddings", "/tokenize"], "all": PUBLIC_PATHS}
ROWS = [
    (kind, native, path)
    for kind in KINDS
    for native in (NATIVE if kind in ("vllm", "ollama") else ["few"])
    for path, handler in sorted(path_handlers(kind, NATIVE[native]).items())
    if handler is not None
]


class CountingWorkers(Workers):
    """Workers that note what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def run(self, work: Work, pieces: Sequence[bytes], size: int) -> Any:
        self.sizes.append(size)
        return await super().run(work, pieces, size)


class FailingWorkers(Workers):
    """Workers that fail: a fake, for the ends that would take a minute or 2 GiB."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def run(self, work: Work, pieces: Sequence[bytes], size: int) -> Any:
        raise self.error


@pytest.fixture
async def raw() -> AsyncIterator[RawEngine]:
    engine = RawEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"openai=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    engine.answers(b'{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}')
    yield engine
    server.close()


@pytest.fixture
async def node(raw: RawEngine) -> AsyncIterator[NodeAlone]:
    async with NodeAlone(raw.url, reasoning=ReasoningFilter) as node:
        yield node


@pytest.fixture
def workers(node: NodeAlone) -> CountingWorkers:
    workers = node.forwarder.workers = CountingWorkers()
    return workers


def asked(path: str, text: str = "") -> dict[str, Any]:
    """Return a request whose text is part of what the model reads."""
    fields = {"model": "tiny", "stream": False, **FIELDS.get(path, {"input": "hi"})}
    fields["user"] = text
    if path.startswith("/v1/messages"):
        del fields["user"]
        fields["system"] = text
    return fields


@pytest.mark.parametrize(("kind", "native", "path"), ROWS)
async def test_a_large_body_is_read_in_a_worker_on_every_path(
    raw: RawEngine, node: NodeAlone, workers: CountingWorkers, kind: str, native: str, path: str
) -> None:
    node.engine.path_handlers = path_handlers(kind, NATIVE[native])
    small = await node.ask(path, asked(path))
    assert workers.sizes == []
    data = json.dumps(asked(path, LONG)).encode()
    large = await node.ask(path, data)
    assert workers.sizes == [len(data)]
    assert (large.reset, large.status) == (None, small.status)
    assert large.headers.keys() == small.headers.keys()
    if not raw.asked:  # its tokens are estimated on the node
        assert large.headers["x-fabric-estimated"] == "true"
        return
    assert len(raw.asked) == 2
    sizes = [len(one.partition(b"\r\n\r\n")[2]) for one in raw.asked]
    assert sizes[1] == sizes[0] or sizes[1] - sizes[0] >= len(LONG)


HOSTILE: dict[str, dict[str, Any]] = {
    "stops": {"stop_sequences": [str(one) for one in range(100_000)]},
    "stop": {"stop": [str(one) for one in range(100_000)]},
    "options": {"options": {"stop": [str(one) for one in range(100_000)]}},
    "tools": {
        "tools": [
            {"type": "function", "name": f"f{one}", "function": {"name": f"f{one}"}}
            for one in range(50_000)
        ]
    },
    "metadata": {"metadata": {str(one): one for one in range(100_000)}},
    "schema": {"text": {"format": {"type": "json_schema", "name": "a", "schema": {
        str(one): one for one in range(100_000)}}}},
    "reasoning": {"reasoning": {str(one): one for one in range(100_000)}},
    "messages": {"messages": [{"role": "user", "content": "x"}] * 50_000},
    "input": {"input": [{"role": "user", "content": "x"}] * 50_000},
    "choice": {"tool_choice": {str(one): one for one in range(100_000)}},
    "logprobs": {"top_logprobs": [1] * 100_000},
}  # fmt: skip


@pytest.mark.parametrize("shape", HOSTILE)
@pytest.mark.parametrize("path", sorted(FIELDS))
def test_what_comes_back_from_a_worker_has_few_parts(path: str, shape: str) -> None:
    handler = path_handlers("vllm", NATIVE["few"])[path]
    assert handler is not None
    head = RequestHead("req_1", "vllm", "POST", path, [], None, 60_000)
    body = json.dumps({**asked(path), **HOSTILE[shape]}).encode()
    work = pickle.dumps(
        partial(prepare_whole, partial(prepare, handler, ReasoningFilter, head), True)
    )
    prepared, _ = pickle.loads(work)(body)
    assert isinstance(prepared, Prepared)
    assert sum(1 for _ in pickletools.genops(pickle.dumps(prepared))) < 40_000


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
async def test_the_loop_goes_on_while_28_mib_are_read(
    raw: RawEngine, node: NodeAlone, path: str
) -> None:
    one = {"role": "user", "content": "x"}
    data = json.dumps({**asked(path), "messages": [one] * (28 * 2**20 // 34)}).encode()
    answer = node.open(path, data)
    turns = 0
    while not answer.figures and not answer.reset:
        turns += 1
        await asyncio.sleep(0)
    assert (answer.reset, answer.status) == (None, 200)
    assert turns > 1000


async def test_a_large_answer_is_read_in_a_worker(
    raw: RawEngine, node: NodeAlone, workers: CountingWorkers
) -> None:
    kind = "content-type: application/json"
    whole = {"choices": [{"message": {"content": LONG}, "finish_reason": "stop"}], "id": "a"}
    raw.answers(json.dumps(whole).encode(), kind)
    node.engine.path_handlers = path_handlers("openai", NATIVE["few"])
    for count, path in enumerate(
        ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat"), 1
    ):
        answer = await node.ask(path, asked(path))
        assert (answer.reset, answer.status) == (None, 200)
        assert LONG in answer.body.decode()
        assert len(workers.sizes) == count
    raw.answers(json.dumps({"error": {"message": LONG}}).encode(), kind, status="500 Bad")
    answer = await node.ask("/v1/messages", asked("/v1/messages"))
    assert (answer.status, len(workers.sizes)) == (500, count + 1)
    rows = [{"index": 0, "embedding": [0.5] * 100_000}]
    raw.answers(json.dumps({"data": rows}).encode(), kind)
    answer = await node.ask(
        "/v1/embeddings", {**asked("/v1/embeddings"), "encoding_format": "base64"}
    )
    assert (answer.status, len(workers.sizes)) == (200, count + 2)
    assert isinstance(answer.json["data"][0]["embedding"], str)
    answer = await node.ask("/api/embed", asked("/api/embed"))
    assert (answer.status, len(workers.sizes)) == (200, count + 3)
    assert answer.json["embeddings"] == [[0.5] * 100_000]


async def test_a_long_stream_needs_no_worker(
    raw: RawEngine, node: NodeAlone, workers: CountingWorkers
) -> None:
    raw.answers(STREAM.partition(b"data: [DONE]")[0] * 3000, "content-type: text/event-stream")
    answer = await node.ask("/v1/messages", {**asked("/v1/messages"), "stream": True})
    assert (answer.status, workers.sizes) == (200, [])


def said_in_stream(*texts: str) -> list[bytes]:
    """Return the events of a chat that says these texts."""
    deltas = [*({"content": text} for text in texts), {}]
    reasons = [*(None for _ in texts), "stop"]
    return [
        b"data: %b\n\n" % json.dumps({"id": "c", "choices": [one]}).encode()
        for one in (
            {"index": 0, "delta": delta, "finish_reason": reason}
            for delta, reason in zip(deltas, reasons, strict=True)
        )
    ] + [b"data: [DONE]\n\n"]


STREAMS = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat")


@pytest.mark.parametrize("events", [1, 5])
@pytest.mark.parametrize("path", STREAMS)
async def test_large_events_of_a_stream_come_whole(
    raw: RawEngine, node: NodeAlone, path: str, events: int, caplog: pytest.LogCaptureFixture
) -> None:
    body = b"".join(said_in_stream(*["x" * 500_000] * events))
    raw.answers(body, "content-type: text/event-stream")
    node.engine.path_handlers = path_handlers("openai", NATIVE["few"])
    answer = await node.ask(path, {**asked(path), "stream": True})
    assert (answer.reset, answer.status) == (None, 200)
    assert answer.body.count(b"x" * 1000) >= events * 500
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_that_ends_within_a_large_event_ends_in_a_worker(
    raw: RawEngine,
    node: NodeAlone,
    workers: CountingWorkers,
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, cut, *_ = said_in_stream("<think>Let", "x" * 500_000)
    raw.answers(first + cut[:-2], "content-type: text/event-stream")
    node.engine.path_handlers = path_handlers("openai", NATIVE["few"])
    answer = await node.ask(path, {**asked(path), "stream": True})
    assert len(workers.sizes) == 1
    assert answer.reset is None
    assert b"Let" in answer.body
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


THOUGHTS = [
    ("Hello", " there", "!"),
    ("<thi", "nk>Let me", " see</thi", "nk>42", " is it"),
    (
        "<|channel|>analysis<|mess",
        "age|>Hm<|end|><|start|>assistant<|channel|>final<|message|>4",
        "2",
    ),
]


@pytest.mark.parametrize("texts", THOUGHTS, ids=["plain", "think", "harmony"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", sorted({one for one in FIELDS if "embed" not in one}))
def test_an_answer_goes_on_in_another_process_wherever_it_is(
    path: str, stream: bool, texts: tuple[str, ...]
) -> None:
    """A worker gets a pickled filter: it must do what the filter itself would do."""
    handler = path_handlers("openai", NATIVE["few"])[path]
    if handler is None:
        handler = partial(TranslatedRequest, path)
    head = RequestHead("req_1", "openai", "POST", path, [], None, 60_000)
    body = json.dumps({**asked(path), "stream": stream}).encode()
    pieces = said_in_stream(*texts)
    if not stream:
        message = {"role": "assistant", "content": "".join(texts)}
        whole = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        text = json.dumps(whole).encode()
        pieces = [text[at : at + 20] for at in range(0, len(text), 20)]

    prepared = prepare(handler, ReasoningFilter, head, body)
    if not isinstance(prepared, TranslatedRequest):
        assert "count" in path or "input_tokens" in path, "the answer is made on the node"
        return
    assert prepared.response_filter is not None
    fresh = pickle.dumps(prepared.response_filter)
    kind = "text/event-stream" if stream else "application/json"
    for moved_at in range(len(pieces) + 1):
        here = pickle.loads(fresh)
        here.head(200, [("content-type", kind)])
        for piece in pieces[:moved_at]:
            here.feed(piece)
        there = pickle.loads(pickle.dumps(here))
        rests = [b"".join(map(one.feed, pieces[moved_at:])) + one.end() for one in (here, there)]
        assert _MADE_UP.sub(b"", rests[1]) == _MADE_UP.sub(b"", rests[0])
        assert there.decided == here.decided


_MADE_UP = re.compile(
    rb"[a-z]+_[0-9a-zA-Z]{16,}|\d{4}-\d\d-[^\"]*|\b\d{9,}(?:\.\d+)?|_duration\":\d+"
)
"""Ids and times in what translations write."""


async def test_a_request_that_takes_too_much_is_the_users_mistake(
    raw: RawEngine, node: NodeAlone
) -> None:
    node.forwarder.workers = FailingWorkers(TooMuchWork("it takes more than 60 s"))
    answer = await node.ask("/v1/messages", asked("/v1/messages", LONG))
    assert answer.status == 413
    assert "it takes more than 60 s" in answer.json["error"]["message"]
    assert (raw.asked, node.engine.active) == ([], 0)


@pytest.mark.parametrize(
    ("error", "code"), [(WorkerLost("code -9"), Code.REFUSED), (KeyError("x"), Code.INTERNAL)]
)
async def test_a_worker_that_fails_fails_one_request(
    raw: RawEngine, node: NodeAlone, error: Exception, code: Code
) -> None:
    sound = node.forwarder.workers
    node.forwarder.workers = FailingWorkers(error)
    answer = await node.ask("/v1/messages", asked("/v1/messages", LONG))
    assert answer.reset is not None
    assert answer.reset[0] == code
    assert (raw.asked, node.engine.active) == ([], 0)
    node.forwarder.workers = sound
    assert (await node.ask("/v1/messages", asked("/v1/messages", LONG))).status == 200


async def test_an_answer_whose_worker_is_lost_is_a_reset(raw: RawEngine, node: NodeAlone) -> None:
    whole = {"choices": [{"message": {"content": LONG}, "finish_reason": "stop"}], "id": "a"}
    raw.answers(json.dumps(whole).encode(), "content-type: application/json")
    for error, code in ((WorkerLost("x"), Code.INTERNAL), (TooMuchWork("x"), Code.TOO_LARGE)):
        node.forwarder.workers = FailingWorkers(error)
        answer = await node.ask("/v1/messages", asked("/v1/messages"))
        assert answer.reset is not None
        assert answer.reset[0] == code
        assert node.engine.active == 0


async def test_a_user_who_hangs_up_stops_the_work(raw: RawEngine, node: NodeAlone) -> None:
    await node.ask("/v1/messages", asked("/v1/messages", LONG))
    [pid] = node.forwarder.workers.pids
    os.kill(pid, signal.SIGSTOP)  # so that the work goes on until it is stopped
    answer = node.open("/v1/messages", asked("/v1/messages", LONG))
    async with asyncio.timeout(10):
        while not node.forwarder.workers.at_work:  # noqa: ASYNC110 - a thread gives it the work
            await asyncio.sleep(0)
    answer.stream.reset(Code.CANCELLED, "gone")
    async with asyncio.timeout(10):
        await node.forwarder.idle()
    assert node.engine.active == 0
    assert len(raw.asked) == 1
    assert (await node.ask("/v1/messages", asked("/v1/messages", LONG))).status == 200
    assert pid not in node.forwarder.workers.pids


# ── stream_options of a large body ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [10, OFF_LOOP + 1, 300_000, 3_000_000])
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/api/chat"])
async def test_an_engine_that_refuses_stream_options_gets_large_bodies_without(
    raw: RawEngine, node: NodeAlone, path: str, at_end: bool, size: int
) -> None:
    raw.refuse = (b"stream_options", REFUSED, "400 Bad Request")
    raw.answers(STREAM, "content-type: text/event-stream")
    said = {"prompt": "x" * size} if path == "/v1/completions" else {
        "messages": [{"role": "user", "content": "x" * size}]
    }  # fmt: skip
    fields: dict[str, Any] = {"model": "tiny", "stream": True, **said}
    if path != "/api/chat":  # there the translation adds it
        options = {"stream_options": {"include_usage": True}}
        fields = {**fields, **options} if at_end else {**options, **fields}
    data = json.dumps(fields).encode()
    for count in (2, 3):  # the second time at once without
        stream = node.open(path, size=len(data) if at_end else None)
        for at in range(0, len(data), 60_000):
            stream.stream.send(data[at : at + 60_000], at + 60_000 >= len(data))
        answer = await stream.over()
        assert (answer.reset, answer.status) == (None, 200)
        assert len(raw.asked) == count
        sent = json.loads(raw.asked[-1].partition(b"\r\n\r\n")[2])
        assert "stream_options" not in sent
        assert sent["stream"] is True
