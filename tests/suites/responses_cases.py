"""Questions of Open Responses to ``/v1/responses``, asked over the place.

The first seven are those of the specification's compliance suite (openresponses.org, its source
archive is in no registry); the further ten are our own and take up what else it describes.  Each
answer, and each event of a stream, must have the required fields of ``tests/open_responses.py``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.open_responses import problems_of_response, problems_of_stream
from tests.suites.place import MODEL, SCRIPTED, Place
from tests.suites.table import PASSED, Outcome

VERSION = "2026-04-24"
SECONDS = 60.0
"""That one case may take."""
Json = dict[str, Any]
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/"
    "iZk9HQAAAABJRU5ErkJggg=="
)
WEATHER: Json = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a place",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
        "required": ["city"],
    },
}
CALL: Json = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "get_weather",
    "arguments": '{"city":"Bern"}',
}
RESULT: Json = {"type": "function_call_output", "call_id": "call_1", "output": "Rain"}
FORMAT: Json = {
    "type": "json_schema",
    "name": "answer",
    "schema": {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    },
    "strict": True,
}


def said(content: Any, role: str = "user", **more: Any) -> Json:
    return {"type": "message", "role": role, "content": content, **more}


@dataclass(frozen=True)
class Case:
    fields: Json
    stream: bool = False
    check: Callable[[Json], bool] = lambda answer: bool(answer["output"])
    """Of the answer, beyond the required fields."""
    path: str = "/v1/responses"
    model: str = MODEL
    goes_on: bool = False
    """Whether it goes on from a stored response, which is asked for before."""
    resource: bool = True
    """Whether the answer is a response, whose fields are known."""


def completed(answer: Json) -> bool:
    return bool(answer["output"]) and answer["status"] == "completed"


def calls(answer: Json) -> bool:
    return any(
        item["type"] == "function_call" and item["name"] == "get_weather"
        for item in answer["output"]
    )


def boolean(answer: Json) -> bool:
    text = answer["output"][-1]["content"][0]["text"]
    return isinstance(json.loads(text)["sure"], bool)


WEATHER_ASKED = said("What is the weather like in Bern?")
CASES: dict[str, Case] = {
    "basic-response": Case({"input": [said("Say hello in exactly 3 words.")]}, check=completed),
    "streaming-response": Case({"input": [said("Count to 5.")]}, stream=True, check=completed),
    "system-prompt": Case(
        {"input": [said("You are a pirate.", "system"), said("Say hello.")]}, check=completed
    ),
    "tool-calling": Case(
        {"input": [WEATHER_ASKED], "tools": [WEATHER]}, model=SCRIPTED, check=calls
    ),
    "tool-calling-streaming": Case(
        {"input": [WEATHER_ASKED], "tools": [WEATHER]}, stream=True, model=SCRIPTED, check=calls
    ),
    "image-input": Case(
        {
            "input": [
                said(
                    [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PNG},
                    ]
                )
            ]
        },
        model=SCRIPTED,
        check=completed,
    ),
    "multi-turn": Case(
        {
            "input": [
                said("I am Alice."),
                said("Hello Alice!", "assistant", phase="final_answer"),
                said("Who am I?"),
            ]
        },
        check=completed,
    ),
    "required-tool": Case(
        {"input": [WEATHER_ASKED], "tools": [WEATHER], "tool_choice": "required"},
        model=SCRIPTED,
        check=calls,
    ),
    "required-tool-streaming": Case(
        {"input": [WEATHER_ASKED], "tools": [WEATHER], "tool_choice": "required"},
        stream=True,
        model=SCRIPTED,
        check=calls,
    ),
    "tool-round-trip": Case({"input": [WEATHER_ASKED, CALL, RESULT], "tools": [WEATHER]}),
    "json-schema": Case({"input": "Are you sure?", "text": {"format": FORMAT}}, check=boolean),
    "instructions": Case(
        {
            "input": "Say hello.",
            "instructions": "You are a pirate.",
            "metadata": {"a": "b"},
            "temperature": 0.5,
            "top_p": 0.9,
        },
        check=lambda answer: (
            answer["instructions"] == "You are a pirate."
            and answer["metadata"] == {"a": "b"}
            and answer["temperature"] == 0.5
            and answer["top_p"] == 0.9
        ),
    ),
    "incomplete": Case(
        {"input": "Tell me about Python.", "max_output_tokens": 1},
        check=lambda answer: (
            answer["status"] == "incomplete"
            and answer["incomplete_details"]["reason"] == "max_output_tokens"
            and answer["completed_at"] is None
        ),
    ),
    "input-tokens": Case(
        {"input": "Hello you"},
        path="/v1/responses/input_tokens",
        resource=False,
        check=lambda answer: answer["input_tokens"] > 0,
    ),
    "previous-response": Case({"input": "And then?"}, goes_on=True),
    "background": Case({"input": "Say hello.", "background": True}),
    "compact": Case({"input": [said("I am Alice.")]}, path="/v1/responses/compact", resource=False),
}


def run(place: Place) -> dict[str, Outcome]:
    """Ask everything, and return how each case ended."""
    return asyncio.run(_run(place))


async def _run(place: Place) -> dict[str, Outcome]:
    headers = {"authorization": f"Bearer {place.key}"}
    limit = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(place.url, headers=headers, timeout=limit) as session:
        return {name: await _ask(session, case) for name, case in CASES.items()}


async def _ask(session: aiohttp.ClientSession, case: Case) -> Outcome:
    body = {"model": case.model, **case.fields, **({"stream": True} if case.stream else {})}
    try:
        if case.goes_on:
            first = {"model": case.model, "input": "Tell me about Python.", "store": True}
            async with session.post(case.path, json=first) as response:
                body["previous_response_id"] = (await response.json())["id"]
        async with session.post(case.path, json=body) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        return Outcome("failed", repr(error))
    if response.status != 200:
        return Outcome("failed", f"{response.status}: {text[:300]}")
    problems: list[str] = []
    if case.stream:
        lines = text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        problems = problems_of_stream(events)
        answer = events[-1]["response"]
    else:
        answer = json.loads(text)
    if case.resource:
        problems += problems_of_response(answer)
    if not problems and not case.check(answer):
        problems = [f"not what was asked for: {json.dumps(answer)[:300]}"]
    return Outcome("failed", "; ".join(problems)) if problems else Outcome(PASSED)
