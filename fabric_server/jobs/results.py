"""How the end of a job is told: its answer in the words of Ollama's API, its error in OpenAI's."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fabric_server.dialects import errors
from fabric_server.storage.jobs import JobRow


def is_answer(body: bytes) -> bool:
    """Whether ``answer_of`` can read it; engines are other people's programs."""
    try:
        msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


class _Message(Struct):
    content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct):
    message: _Message | None = None


class _Answer(Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None


def answer_of(job: JobRow) -> dict[str, Any]:
    """What of an engine's answer is told; figures that are not known are left out."""
    answer = msgspec.json.decode(job.answer)
    choice = (answer.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    told: dict[str, Any] = {"response": message.get("content") or ""}
    for name in ("reasoning", "reasoning_content"):
        if message.get(name):
            told["thinking"] = message[name]
    if message.get("tool_calls"):
        told["tool_calls"] = message["tool_calls"]
    if choice.get("finish_reason"):
        told["done_reason"] = choice["finish_reason"]
    usage = answer.get("usage") or {}
    for ours, theirs in (
        ("prompt_eval_count", "prompt_tokens"),
        ("eval_count", "completion_tokens"),
    ):
        if isinstance(usage.get(theirs), int):
            told[ours] = usage[theirs]
    if job.started_at is not None and job.finished_at is not None:
        told["total_duration"] = int((job.finished_at - job.started_at) * 1e9)
    return told


def error_of(job: JobRow) -> Any:
    """The error of a job that has not succeeded, in OpenAI's shape."""
    try:
        value = msgspec.json.decode(job.answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    if isinstance(value, dict) and value.get("error"):
        return value["error"]
    words = f"The engine answered {job.status}."
    return msgspec.json.decode(errors.upstream_error(words).body())["error"]
