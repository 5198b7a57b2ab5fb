"""Bodies, answers and streams for every path of the public port."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fabric_server.dialects.endpoints import ENDPOINTS, SHOW
from fabric_server.dialects.error_formats import Dialect
from tests.site import DONE, Site, chunk, usage_chunk
from tests.streams import LINES as OLLAMA_LINES
from tests.streams import MESSAGES, RESPONSES, SPOKEN
from tests.users import Answer, MemoryUser, request

BOUNDARY = "xxBOUNDARYxx"


FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(**fields: str) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    return (
        "".join([*parts, file, "\r\n"]).encode() + b"RIFF\x00\xff\r\n" + f"--{BOUNDARY}--".encode()
    )


def asked(
    path: str, stream: bool | None = None, model: str = "tiny"
) -> tuple[bytes, dict[str, str]]:
    """A body for this path, and its headers."""
    if ENDPOINTS[path].form:
        more = {} if stream is None else {"stream": str(stream).lower()}
        return form(model=model, **more), {"content_type": FORM}
    body: dict[str, Any] = {"model": model, "messages": [], "prompt": "x", "input": "x"}
    return json.dumps(body if stream is None else {**body, "stream": stream}).encode(), {}


WHOLE: dict[str, Any] = {"answer": 1, "usage": {"input_tokens": 5, "output_tokens": 7}}


OLLAMA_WHOLE = {"done": True, "prompt_eval_count": 5, "eval_count": 7}


UNCOUNTED = (
    *("/v1/messages/count_tokens", "/v1/responses/input_tokens"),
    *("/tokenize", "/detokenize", "/v1/audio/speech"),
)


RELAYED = [path for path, endpoint in ENDPOINTS.items() if endpoint is not SHOW]


STREAMS = {
    "/v1/chat/completions": [chunk("a"), chunk(None), usage_chunk(5, 7), DONE],
    "/v1/completions": [chunk("a"), chunk(None), usage_chunk(5, 7), DONE],
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/audio/transcriptions": SPOKEN,
    "/v1/audio/translations": SPOKEN,
    "/api/chat": OLLAMA_LINES,
    "/api/generate": OLLAMA_LINES,
}


STREAMED = [path for path in RELAYED if ENDPOINTS[path].streams]


def parts_of(path: str) -> list[bytes]:
    return STREAMS[ENDPOINTS[path].path]


def site_with(path: str, **more: Any) -> tuple[Site, Any]:
    site = Site(**more)
    return site, site.node(["tiny"], paths=[ENDPOINTS[path].path])


def ask(site: Site, path: str, stream: bool | None = None, **headers: str) -> MemoryUser:
    body, more = asked(path, stream)
    user = site.user()
    user.send(request("POST", path, body, **{**site.key, **more, **headers}))
    return user


def assert_error(path: str, answer: Answer, status: int, code: str, type: str) -> str:
    """The error in the shape of its dialect, field by field; returns its words."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    return assert_shape(ENDPOINTS[path].dialect, answer.json, answer.headers, code, type)


def assert_shape(dialect: Dialect, said: Any, headers: Any, code: str, type: str) -> str:
    if dialect is Dialect.OLLAMA:
        told = {"error": said["error"]}
        # Ollama's program shows nothing else of a 401.
        assert said == (
            told | {"status": said["error"]} if type == "authentication_error" else told
        )
        assert "request-id" not in headers
        words = said["error"]
    elif dialect is Dialect.ANTHROPIC:
        assert list(said) == ["type", "error", "request_id"]
        assert said["type"] == "error"
        assert list(said["error"]) == ["type", "message"]
        assert said["error"]["type"] == type
        assert said["request_id"] == headers["request-id"] == headers["x-request-id"]
        words = said["error"]["message"]
    else:
        assert list(said) == ["error"]
        assert list(said["error"]) == ["message", "type", "param", "code"]
        assert said["error"]["code"] == code
        words = said["error"]["message"]
    assert isinstance(words, str)
    assert words
    return words


async def user_turn() -> None:

    for _ in range(5):
        await asyncio.sleep(0)
