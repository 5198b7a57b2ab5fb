"""A scripted engine: a fake, for the faults a real engine cannot be made to show on request.

It is no language model.  It answers with what its `Plan` says, when and as far as the plan says,
and remembers what it was asked and who hung up on it.  What a real engine can show is tested
with llama-server (tests/lab/llama.py).

    async with ScriptedEngine() as engine:
        engine.plan = Plan(chunks=("Hel", released, "lo"), cut_after=2)
        ...                                    # let the node ask it
        request = await engine.started()       # the next one not yet waited for
        await request.aborted(timeout=1)       # the caller hung up before the answer's end
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from types import TracebackType
from typing import Any, NoReturn, Self

from aiohttp import web

Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How one inference request is answered.  The default is a good answer of three chunks."""

    chunks: Sequence[str | bytes | asyncio.Event] = ("Hello", ",", " world")
    """Text becomes an event of the dialect, bytes go out as they are, an Event is waited for."""
    status: int = 200
    """Other than 200: `error` is the whole answer."""
    error: object = None
    """Bytes as they are, anything else as JSON.  None: an error of OpenAI's shape."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the answer's."""
    usage: tuple[int, int] | None = None
    """Prompt and completion tokens reported.  None: 7, and the number of text chunks."""
    hold: asyncio.Event | None = None
    """Nothing is answered before it is set."""
    hold_body: asyncio.Event | None = None
    """The request's body is not read before it is set."""
    first_byte_delay: float = 0
    """Seconds before the answer's first byte, real time.  Prefer `hold`."""
    gap: float = 0
    """Seconds between chunks, real time.  Prefer events in `chunks`."""
    refuse: bool = False
    """The connection is dropped with no byte answered."""
    cut_after: int | None = None
    """The connection is dropped when so many chunks are out; 0 is right after the head.  An Event
    that follows in `chunks` is waited for first.  The same holds for `stall_after`."""
    stall_after: int | None = None
    """Nothing more is sent when so many chunks are out, until the caller hangs up."""
    finish: bool = True
    """False: the stream ends in good order, but with neither finish_reason nor [DONE]."""
    reasoning: str = ""
    """What a chat thinks before its text, told as vLLM does."""
    tools: Sequence[tuple[str, Json]] = ()
    """Names and arguments of the calls that a chat asks for after its text."""


@dataclass(eq=False)
class Request:
    """One inference request as it arrived, and what became of it."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes = field(default=b"", repr=False)
    sent: int = 0
    """Bytes of body written to the connection so far (its buffers may still hold some)."""
    outcome: str | None = None
    """None while running; "answered", "aborted" by the caller, "cut" or "stopped" by the engine,
    "failed" by a mistake of the test's plan, which is in ``ScriptedEngine.errors``."""
    _ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    _http: web.Request | None = field(default=None, repr=False)

    @property
    def json(self) -> Json:
        """Of a form its fields, and of its files their bytes."""
        kind = self.headers.get("Content-Type", "")
        value: Json = (
            form(kind, self.body) if kind.startswith("multipart/") else json.loads(self.body)
        )
        return value

    @property
    def id(self) -> str:
        """The request's id at its server."""
        return self.headers.get("X-Request-ID", "")

    @property
    def hung_up(self) -> bool:
        """The connection has ended, whatever the engine makes of it."""
        return self._http is not None and self._http.transport is None

    async def ended(self, timeout: float = 5) -> str:
        """Waits for the outcome, at most `timeout` seconds (then TimeoutError)."""
        async with asyncio.timeout(timeout):
            await self._ended.wait()
        assert self.outcome is not None
        return self.outcome

    async def aborted(self, timeout: float = 5) -> None:
        """Returns when the caller has hung up; fails when the request ended otherwise."""
        outcome = await self.ended(timeout)
        assert outcome == "aborted", f"{self.path} was {outcome}, not aborted"

    def _end(self, outcome: str) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._ended.set()


class ScriptedEngine:
    """Listens on a port of its own while entered; `stop` and `start` keep the port.

    `probes` holds the JSON answers to GET requests by path and may be changed at any time; a
    callable is asked each time, and a status code instead of JSON answers an error.  Inference
    requests take their plan from `plans` while there are any, then from `plan`.
    """

    def __init__(
        self,
        models: Sequence[str] = ("tiny",),
        *,
        ollama: bool = False,
        digest: str = "0" * 64,
        more: Mapping[str, Dialect] | None = None,
    ) -> None:
        """``digest`` is what an Ollama tells of each model; ``more`` is spoken besides chat,
        completions and embeddings, by path."""
        self._dialects = {**DIALECTS, **(more or {})}
        self.plan = Plan()
        self.plans: deque[Plan] = deque()
        self.requests: list[Request] = []
        self.errors: list[Exception] = []
        """What plans and replies have raised: mistakes of a test."""
        self.reply: Callable[[Json], Plan] | None = None
        """Makes the plan from what is asked, where there is one."""
        self.probes: dict[str, object] = {}
        self.probed: list[str] = []
        """Paths of the GET requests so far."""
        self.ollama = ollama
        self.digest = digest
        self.models = models
        self.port = 0
        self._arrived: asyncio.Queue[Request] = asyncio.Queue()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def models(self) -> Sequence[str]:
        return self._models

    @models.setter
    def models(self, names: Sequence[str]) -> None:
        self._models = names
        self.probes["/v1/models"] = {
            "object": "list",
            "data": [{"id": n, "object": "model", "created": 0, "owned_by": "test"} for n in names],
        }
        if self.ollama:
            rows = [
                {"name": n, "model": n, "size": 1_000_000, "digest": self.digest, "details": {}}
                for n in names
            ]
            self.probes["/"] = b"Ollama is running"
            self.probes["/api/version"] = {"version": "0.13.5"}
            self.probes["/api/tags"] = {"models": rows}
            self.probes["/api/ps"] = {"models": rows[:1]}
            self.probes["/api/show"] = {}

    async def started(self, timeout: float = 5) -> Request:
        """The oldest request not yet returned by this method, as soon as its body is in."""
        async with asyncio.timeout(timeout):
            return await self._arrived.get()

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/{path:.*}", self._probe)
        app.router.add_post("/{path:.*}", self._infer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Dies: no port, and every connection is dropped."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for request in self.requests:
            request._end("stopped")
        assert runner.server is not None
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _probe(self, http: web.Request) -> web.Response:
        self.probed.append(http.path)
        refused = self._refused_by_ollama(http)
        answer = refused or self.probes.get(http.path, 404)
        if callable(answer):
            answer = answer()
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        if isinstance(answer, int):
            return web.json_response({"error": {"message": "scripted"}}, status=answer)
        return web.json_response(answer)

    def _refused_by_ollama(self, http: web.Request) -> int | None:
        """Ollama on loopback answers 403 to a foreign Host and to a foreign Origin."""
        local = (http.url.host or "") in ("127.0.0.1", "localhost", "::1")
        return 403 if self.ollama and (not local or "Origin" in http.headers) else None

    async def _infer(self, http: web.Request) -> web.StreamResponse:
        if http.path in self.probes and http.path not in self._dialects:
            return await self._probe(http)
        plan = self.plans.popleft() if self.plans else self.plan
        request = Request(http.method, http.path, http.headers.copy(), _http=http)
        self.requests.append(request)
        try:
            if plan.hold_body:
                await plan.hold_body.wait()
            request.body = await self._read(http)
            if self.reply is not None:
                plan = self.reply(request.json)
            self._arrived.put_nowait(request)
            answer = await self._answer(http, request, plan)
            await answer.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            request._end("aborted")
            raise
        except Exception as error:
            self.errors.append(error)
            request._end("failed")
            raise
        request._end("answered")
        return answer

    async def _read(self, http: web.Request) -> bytes:
        return await http.read()

    async def _answer(self, http: web.Request, request: Request, plan: Plan) -> web.StreamResponse:
        if plan.hold:
            await plan.hold.wait()
        await asyncio.sleep(plan.first_byte_delay)
        if plan.refuse:
            await drop(http, request)
        status = self._refused_by_ollama(http) or plan.status
        dialect = self._dialects.get(http.path)
        if dialect is None:
            status = 404
        if status != 200 or dialect is None:
            return await self._whole(http, request, plan, status, error_body(plan, status))
        asked = request.json
        if asked.get("stream"):
            return await self._stream(http, request, plan, dialect)
        return await self._whole(http, request, plan, 200, dialect.whole(asked, plan))

    async def _whole(
        self, http: web.Request, request: Request, plan: Plan, status: int, body: bytes
    ) -> web.StreamResponse:
        """An answer in one piece; `cut_after` and `stall_after` count as 0 or as its middle."""
        head = {"Content-Type": "application/json", **plan.headers}
        response = web.StreamResponse(status=status, headers=head)
        response.content_length = len(body)
        await response.prepare(http)
        limit = plan.stall_after if plan.cut_after is None else plan.cut_after
        part = body if limit is None else body[: len(body) // 2 if limit else 0]
        await response.write(part)
        request.sent += len(part)
        await self._stop_as_planned(http, request, plan, limit)
        return response

    async def _stream(
        self, http: web.Request, request: Request, plan: Plan, dialect: Dialect
    ) -> web.StreamResponse:
        head = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **plan.headers}
        response = web.StreamResponse(headers=head)
        await response.prepare(http)
        done = 0
        async for event in dialect.events(request.json, plan):
            await self._stop_as_planned(http, request, plan, done)
            await response.write(event)
            request.sent += len(event)
            done += 1
            await asyncio.sleep(plan.gap)
        await self._stop_as_planned(http, request, plan, done)
        return response

    async def _stop_as_planned(
        self, http: web.Request, request: Request, plan: Plan, done: int | None
    ) -> None:
        if done is not None and done == plan.cut_after:
            await drop(http, request)
        if done is not None and done == plan.stall_after:
            await asyncio.Event().wait()


UNREAD = b'{"model":"","messages":[]}'
"""What a large body becomes that a ``BusyEngine`` does not keep."""


class BusyEngine(ScriptedEngine):
    """An engine for crowds: ``requests`` has those under way only, and large bodies are dropped, as
    by an engine that parses in another thread."""

    large = 2**20
    """Bytes from which a body is dropped as it comes; ``UNREAD`` takes its place."""

    async def _read(self, http: web.Request) -> bytes:
        self.requests = [one for one in self.requests if one.outcome is None]
        while not self._arrived.empty():
            self._arrived.get_nowait()
        pieces: list[bytes] = []
        size = 0
        async for piece in http.content.iter_any():
            size += len(piece)
            if size < self.large:
                pieces.append(piece)
            else:
                pieces.clear()
        return b"".join(pieces) if size < self.large else UNREAD


async def drop(http: web.Request, request: Request) -> NoReturn:
    request._end("cut")
    assert http.transport is not None
    http.transport.abort()
    await asyncio.Event().wait()  # aiohttp cancels the handler of a lost connection
    raise AssertionError


def form(kind: str, body: bytes) -> Json:
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
    )
    fields: Json = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        fields[str(name)] = content if part.get_filename() else content.decode()
    return fields


def error_body(plan: Plan, status: int) -> bytes:
    if isinstance(plan.error, bytes):
        return plan.error
    shape = {"message": f"scripted error {status}", "type": "scripted", "param": None, "code": None}
    return json.dumps(plan.error if plan.error is not None else {"error": shape}).encode()


def text_of(plan: Plan) -> str:
    return "".join(chunk for chunk in plan.chunks if isinstance(chunk, str))


def usage_of(plan: Plan) -> Json:
    prompt, completion = plan.usage or (7, sum(isinstance(c, str) for c in plan.chunks))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def sse(value: Json) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@dataclass(frozen=True)
class Dialect:
    """How one path says things."""

    kind: str
    piece: Callable[[str | None], Json]
    """Text of a stream's event (None: the last one) to what its choice carries."""
    full: Callable[[str], Json]

    def _frame(self, asked: Json, choices: list[Json], suffix: str = "") -> Json:
        head = {"id": "scripted-1", "object": self.kind + suffix, "created": 1_700_000_000}
        return {**head, "model": asked.get("model"), "choices": choices}

    def whole(self, asked: Json, plan: Plan) -> bytes:
        choice = {"index": 0, **self.full(text_of(plan)), "finish_reason": "stop"}
        self._complete(choice, plan)
        return json.dumps({**self._frame(asked, [choice]), "usage": usage_of(plan)}).encode()

    def _complete(self, choice: Json, plan: Plan) -> None:
        """Adds what is more than text."""

    def _before(self, plan: Plan) -> list[Json]:
        """Pieces of a stream that come before its text."""
        return []

    def _after(self, plan: Plan) -> list[Json]:
        return []

    async def events(self, asked: Json, plan: Plan) -> AsyncIterator[bytes]:
        suffix = ".chunk" if self.kind == "chat.completion" else ""

        def event(piece: Json, finish: str | None = None) -> bytes:
            choice = {"index": 0, **piece, "finish_reason": finish}
            return sse(self._frame(asked, [choice], suffix))

        for piece in self._before(plan):
            yield event(piece)
        for chunk in plan.chunks:
            if isinstance(chunk, asyncio.Event):
                await chunk.wait()
            elif isinstance(chunk, bytes):
                yield chunk
            else:
                yield event(self.piece(chunk))
        for piece in self._after(plan):
            yield event(piece)
        if not plan.finish:
            return
        yield event(self.piece(None), "tool_calls" if self._after(plan) else "stop")
        if (asked.get("stream_options") or {}).get("include_usage"):
            yield sse({**self._frame(asked, [], suffix), "usage": usage_of(plan)})
        yield b"data: [DONE]\n\n"


class Chat(Dialect):
    def _complete(self, choice: Json, plan: Plan) -> None:
        if plan.reasoning:
            choice["message"]["reasoning"] = plan.reasoning
        if plan.tools:
            calls = [{key: call[key] for key in call if key != "index"} for call in calls_of(plan)]
            choice["message"]["tool_calls"] = calls
            choice["finish_reason"] = "tool_calls"

    def _before(self, plan: Plan) -> list[Json]:
        return [{"delta": {"reasoning": plan.reasoning}}] if plan.reasoning else []

    def _after(self, plan: Plan) -> list[Json]:
        """Each call begins with its name; its arguments come in two pieces."""
        deltas = []
        for call in calls_of(plan):
            index, function = call["index"], call["function"]
            arguments = function["arguments"]
            half = len(arguments) // 2
            deltas.append({**call, "function": {**function, "arguments": ""}})
            for part in (arguments[:half], arguments[half:]):
                deltas.append({"index": index, "function": {"arguments": part}})
        return [{"delta": {"tool_calls": [delta]}} for delta in deltas]


def calls_of(plan: Plan) -> list[Json]:
    return [
        {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(plan.tools)
    ]


VECTOR = (0.25, -0.5, 1.0)


class Embeddings(Dialect):
    def whole(self, asked: Json, plan: Plan) -> bytes:
        given = asked.get("input")
        tokens = isinstance(given, list) and all(isinstance(one, int) for one in given)
        count = len(given) if isinstance(given, list) and not tokens else 1
        vector: object = VECTOR
        if asked.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
        rows = [
            {"object": "embedding", "index": index, "embedding": vector} for index in range(count)
        ]
        usage = {"prompt_tokens": 7 * count, "total_tokens": 7 * count}
        answer = {"object": "list", "model": asked.get("model"), "data": rows, "usage": usage}
        return json.dumps(answer).encode()


DIALECTS = {
    "/v1/chat/completions": Chat(
        "chat.completion",
        piece=lambda text: {"delta": {} if text is None else {"content": text}},
        full=lambda text: {"message": {"role": "assistant", "content": text}},
    ),
    "/v1/completions": Dialect(
        "text_completion",
        piece=lambda text: {"text": text or ""},
        full=lambda text: {"text": text},
    ),
    "/v1/embeddings": Embeddings("list", piece=lambda _: {}, full=lambda _: {}),
}
