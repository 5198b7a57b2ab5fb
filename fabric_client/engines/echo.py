"""The built-in demo engine: speaks the OpenAI API, and says that it is no language model.

    python -m fabric_client.engines.echo --port 8090

It serves to try the whole path on a machine without an engine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from runtime import logs

log = logging.getLogger(__name__)

MODEL = "echo"
WORDS_PER_SECOND = 12.0
"""About as fast as a mid-sized model on a home GPU, and slow enough to read along."""

_MAX_ECHOED = 60
_BODY_LIMIT = 32 * 2**20
_WORD = re.compile(r"\S+\s*")

_encode = msgspec.json.Encoder().encode


class StreamOptions(Struct):
    include_usage: bool = False


class Part(Struct):
    type: str = "text"
    text: str | None = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None


class CompletionRequest(Struct):
    """The fields that both kinds of completion share; unknown fields are ignored."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None

    def text(self) -> str:
        raise NotImplementedError


class ChatRequest(CompletionRequest):
    messages: list[Message] = []
    max_completion_tokens: int | None = None

    def text(self) -> str:
        for message in reversed(self.messages):
            if message.role == "user" and message.content is not None:
                if isinstance(message.content, str):
                    return message.content
                return " ".join(part.text for part in message.content if part.text)
        return ""


class TextRequest(CompletionRequest):
    prompt: str | list[Any] = ""
    """Lists of prompts and of token ids are accepted; the first text is answered."""

    def text(self) -> str:
        prompt = self.prompt[0] if isinstance(self.prompt, list) and self.prompt else self.prompt
        return prompt if isinstance(prompt, str) else ""


class EchoEngine:
    """Answers at a steady pace; serve it with ``application()``."""

    def __init__(self, *, words_per_second: float = WORDS_PER_SECOND) -> None:
        """``words_per_second``: 0 is as fast as possible."""
        self._pause = 1 / words_per_second if words_per_second > 0 else 0.0
        self._ids = itertools.count(1)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok", "engine": "echo", "is_language_model": False})

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "fabric"}
        return _json({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, ChatRequest, "chat.completion")

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, TextRequest, "text_completion")

    async def _answer(
        self, request: web.Request, kind: type[CompletionRequest], object: str
    ) -> web.StreamResponse:
        try:
            completion = msgspec.json.decode(await request.read(), type=kind)
        except (ValueError, RecursionError) as error:
            return _error(400, f"The request can't be read: {error}.", "invalid_request_error")
        except web.HTTPRequestEntityTooLarge:
            return _error(413, "The request is too large.", "invalid_request_error")
        if completion.model != MODEL:
            return _error(404, f"The only model here is '{MODEL}'.", "not_found_error")
        answer = _Answer(completion, object, f"{object.partition('.')[0]}-echo-{next(self._ids)}")
        if completion.stream:
            return await self._stream(request, answer)
        for _ in answer.words:
            await asyncio.sleep(self._pause)
        return _json(answer.whole())

    async def _stream(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        try:
            for chunk in answer.chunks():
                await response.write(b"data: " + _encode(chunk) + b"\n\n")
                await asyncio.sleep(self._pause)
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except ConnectionError:
            log.debug("client disconnected", extra={"answer": answer.id})
        return response


class _Answer:
    """One answer in OpenAI's shapes; a word counts as a token."""

    def __init__(self, completion: CompletionRequest, object: str, id: str) -> None:
        self.id = id
        self._object = object
        self._is_chat = object == "chat.completion"
        self._with_usage = bool(
            completion.stream_options and completion.stream_options.include_usage
        )
        prompt = completion.text()
        words = _WORD.findall(_compose(prompt))
        limit = completion.max_tokens
        if isinstance(completion, ChatRequest) and completion.max_completion_tokens is not None:
            limit = completion.max_completion_tokens
        self.words: Sequence[str] = words if limit is None else words[: max(1, limit)]
        self._finish: Literal["stop", "length"] = "stop" if self.words == words else "length"
        self._prompt_tokens = len(prompt.split())
        self._created = int(time.time())

    def whole(self) -> dict[str, Any]:
        text = "".join(self.words)
        content = (
            {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        )
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": self._finish}
        return {**self._head(self._object), "choices": [choice], "usage": self._usage()}

    def chunks(self) -> Iterator[dict[str, Any]]:
        if self._is_chat:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}})
        for word in self.words:
            yield self._chunk({"delta": {"content": word}} if self._is_chat else {"text": word})
        yield self._chunk({"delta": {}} if self._is_chat else {"text": ""}, self._finish)
        if self._with_usage:
            yield {**self._head(self._chunk_object), "choices": [], "usage": self._usage()}

    @property
    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self._is_chat else self._object

    def _chunk(self, content: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        chunk = {**self._head(self._chunk_object), "choices": [choice]}
        return {**chunk, "usage": None} if self._with_usage else chunk

    def _head(self, object: str) -> dict[str, Any]:
        return {"id": self.id, "object": object, "created": self._created, "model": MODEL}

    def _usage(self) -> dict[str, int]:
        tokens = len(self.words)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self._prompt_tokens + tokens,
        }


def _compose(prompt: str) -> str:
    words = prompt.split()
    echoed = " ".join(words[:_MAX_ECHOED]) + (" …" if len(words) > _MAX_ECHOED else "")
    echo = f"You wrote: {echoed}" if echoed else "You wrote nothing."
    return (
        "This is the fabric's built-in echo engine: a demo, and no language model. "
        f"{echo} "
        "To get real answers, start Ollama, vLLM, llama-server or LM Studio on this machine."
    )


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=_encode(document), status=status, content_type="application/json")


def _error(status: int, message: str, type: str) -> web.Response:
    error = {"message": message, "type": type, "param": None, "code": None}
    return _json({"error": error}, status)


async def serve(engine: EchoEngine, *, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Start listening; return the runner, to ``cleanup()`` later, and the port (0: a free one)."""
    runner = web.AppRunner(engine.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner, int(runner.addresses[0][1])


async def _run(host: str, port: int, words_per_second: float) -> None:
    runner, port = await serve(EchoEngine(words_per_second=words_per_second), host=host, port=port)
    log.info("echo engine listening: a demo, no language model", extra={"host": host, "port": port})
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fabric_client.engines.echo", description=__doc__
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8090, help="0 takes any free one")
    parser.add_argument(
        "--words-per-second", type=float, default=WORDS_PER_SECOND, help="0 is without pause"
    )
    given = parser.parse_args()
    logs.configure("info")
    try:
        asyncio.run(_run(given.host, given.port, given.words_per_second))
    except KeyboardInterrupt:
        return
    except OSError as error:
        parser.exit(1, f"The echo engine can't listen on {given.host}:{given.port}: {error}.\n")


if __name__ == "__main__":
    main()
