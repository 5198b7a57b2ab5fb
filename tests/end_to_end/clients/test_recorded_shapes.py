"""Every answer field by field against the types of the official clients, without any leniency.

The clients themselves take nearly anything.  Here what came over the wire has to be what their
types say: no field missing, none of another type.  Engines have faults of their own, which pass
through verbatim: those of an engine that was asked directly are allowed, and told in the matrix.
What the fabric makes itself, by translation, may have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import aiohttp
import anthropic.types
import ollama
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from pydantic import BaseModel, ValidationError

from tests.end_to_end.clients.matrix import KINDS, SCRIPTED
from tests.end_to_end.clients.place import MESSAGES, MODELS, PATIENCE, TOKENS, Place

CLIENT = "official types"
pytestmark = pytest.mark.asyncio(loop_scope="session")

Json = dict[str, Any]
Model = type[BaseModel]


class Shape(NamedTuple):
    endpoint: str
    body: Json
    type_of: Callable[[Json], Model]
    """Of an answer, or of one event of a stream."""
    kinds: tuple[str, ...] = KINDS
    """Nodes that can be asked."""

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


def always(model: Model) -> Callable[[Json], Model]:
    return lambda _: model


def one_of(union: Any) -> Callable[[Json], Model]:
    """The member of a client's union of events that has the event's ``type``."""
    union = get_args(union)[0]  # of Annotated
    members = {get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(union)}
    return lambda event: members[event["type"]]


CHAT: Json = {"messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0}
TEXT: Json = {"prompt": "Once", "max_tokens": TOKENS, "temperature": 0}
RESPONSE: Json = {"input": "Hi", "max_output_tokens": TOKENS, "temperature": 0}
OPTIONS: Json = {"options": {"num_predict": TOKENS, "temperature": 0}}
OPENAI_STREAM: Json = {"stream": True, "stream_options": {"include_usage": True}}
STREAM, WHOLE = {"stream": True}, {"stream": False}

SHAPES = (
    Shape("/v1/chat/completions", CHAT, always(openai.types.chat.ChatCompletion)),
    Shape(
        "/v1/chat/completions",
        {**CHAT, **OPENAI_STREAM},
        always(openai.types.chat.ChatCompletionChunk),
    ),
    Shape("/v1/completions", TEXT, always(openai.types.Completion)),
    Shape("/v1/completions", {**TEXT, **OPENAI_STREAM}, always(openai.types.Completion)),
    Shape(
        "/v1/embeddings",
        {"input": ["one", "two"]},
        always(openai.types.CreateEmbeddingResponse),
    ),
    Shape("/v1/responses", RESPONSE, always(openai.types.responses.Response)),
    Shape(
        "/v1/responses",
        {**RESPONSE, **STREAM},
        one_of(openai.types.responses.ResponseStreamEvent),
    ),
    Shape("/v1/messages", CHAT, always(anthropic.types.Message)),
    Shape("/v1/messages", {**CHAT, **STREAM}, one_of(anthropic.types.RawMessageStreamEvent)),
    Shape(
        "/v1/messages/count_tokens",
        {"messages": MESSAGES},
        always(anthropic.types.MessageTokensCount),
        ("llama-server", "vllm"),
    ),
    Shape("/api/chat", {"messages": MESSAGES, **OPTIONS, **WHOLE}, always(ollama.ChatResponse)),
    Shape("/api/chat", {"messages": MESSAGES, **OPTIONS, **STREAM}, always(ollama.ChatResponse)),
    Shape("/api/generate", {"prompt": "Once", **OPTIONS, **WHOLE}, always(ollama.GenerateResponse)),
    Shape(
        "/api/generate", {"prompt": "Once", **OPTIONS, **STREAM}, always(ollama.GenerateResponse)
    ),
    Shape("/api/embed", {"input": ["one", "two"]}, always(ollama.EmbedResponse)),
    Shape("/api/embeddings", {"prompt": "one"}, always(ollama.EmbeddingsResponse)),
    Shape("/api/show", {}, always(ollama.ShowResponse)),
)

KNOWN = {"Completion: choices.*.finish_reason literal_error"}
"""OpenAI's own streams of completions say null until the end, which the client's type, made for
whole ones, does not know."""

TRANSLATED = {("llama-server", "/v1/responses")}
"""Of the real engines' paths, those that the node doesn't relay."""

CASES = [
    pytest.param(
        shape,
        kind,
        marks=pytest.mark.cell(shape.endpoint, shape.streamed),
        id=f"{shape.endpoint}-{'streamed' if shape.streamed else 'whole'}-{kind}",
    )
    for shape in SHAPES
    for kind in shape.kinds
]


@pytest.mark.parametrize(("shape", "kind"), CASES)
async def test_an_answer_is_what_the_client_s_types_say(
    place: Place, shape: Shape, kind: str, record_property: Any
) -> None:
    status, answer = await ask(place, place.url, shape, kind)
    assert status == 200, answer
    found = faults(shape, answer)
    own: set[str] = set()
    if found and kind not in SCRIPTED and (kind, shape.endpoint) not in TRANSLATED:
        status, answer = await ask(place, place.addresses[kind], shape, kind)
        own = faults(shape, answer) if status == 200 else own
    assert not found - own
    if found:
        record_property("answer", f"ok but {len(found)} by engine")


async def test_lists_of_models_are_what_the_client_s_types_say(place: Place) -> None:
    """The lists that the server makes itself."""
    lists: list[tuple[str, Model]] = [
        ("/v1/models", Listed),
        (f"/v1/models/{MODELS['vllm']}", openai.types.Model),
        ("/api/tags", ollama.ListResponse),
        ("/api/ps", ollama.ProcessResponse),
    ]
    headers = {"authorization": f"Bearer {place.key}"}
    async with aiohttp.ClientSession(place.plain, headers=headers) as session:
        for path, model in lists:
            async with session.get(path) as answer:
                assert answer.status == 200, path
                assert not set(complaints(model, await answer.text())), path


class Listed(BaseModel):
    object: str
    data: list[openai.types.Model]


async def ask(place: Place, base: str, shape: Shape, kind: str) -> tuple[int, str]:
    connector = aiohttp.TCPConnector(ssl=place.trust())
    body = {"model": MODELS[kind], **shape.body}
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.post(
            base + shape.endpoint, json=body, headers={"authorization": f"Bearer {place.key}"}
        ) as answer,
    ):
        return answer.status, await answer.text()


def faults(shape: Shape, answer: str) -> set[str]:
    parts = list(events(answer)) if shape.streamed else [answer]
    assert parts
    found: set[str] = set()
    for part in parts:
        model = shape.type_of(json.loads(part))
        found |= {f"{model.__name__}: {complaint}" for complaint in complaints(model, part)}
    return found - KNOWN if shape.streamed else found


def events(answer: str) -> Iterator[str]:
    """Yield the events of a stream of events or lines, without OpenAI's ``[DONE]`` and without
    Anthropic's pings, which its client knows and its types leave out."""
    for line in answer.splitlines():
        data = line if line.startswith("{") else line.removeprefix("data: ")
        if data.startswith("{") and json.loads(data).get("type") != "ping":
            yield data


def complaints(model: Model, text: str) -> Iterator[str]:
    """Return the violations; all items of a list count as one, since answers differ in length."""
    try:
        model.model_validate_json(text, strict=True)
    except ValidationError as error:
        for one in error.errors():
            place = ".".join("*" if isinstance(step, int) else step for step in one["loc"])
            yield f"{place} {one['type']}"
