"""Results of jobs: responses in the format of Ollama's API, errors in that of OpenAI's."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fabric_server.dialects import errors
from fabric_server.storage.jobs import JobRow


def is_answer(body: bytes) -> bool:
    """Return whether ``answer_of`` can read the body: engines may respond with anything."""
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
    """Convert an engine's chat completion; unknown figures are left out."""
    answer = msgspec.json.decode(job.answer)
    choice = (answer.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    view: dict[str, Any] = {"response": message.get("content") or ""}
    for name in ("reasoning", "reasoning_content"):
        if message.get(name):
            view["thinking"] = message[name]
    if message.get("tool_calls"):
        view["tool_calls"] = message["tool_calls"]
    if choice.get("finish_reason"):
        view["done_reason"] = choice["finish_reason"]
    usage = answer.get("usage") or {}
    for ours, theirs in (
        ("prompt_eval_count", "prompt_tokens"),
        ("eval_count", "completion_tokens"),
    ):
        if isinstance(usage.get(theirs), int):
            view[ours] = usage[theirs]
    if job.started_at is not None and job.finished_at is not None:
        view["total_duration"] = int((job.finished_at - job.started_at) * 1e9)
    return view


def error_of(job: JobRow) -> Any:
    """Return the error of a job that has not succeeded."""
    try:
        value = msgspec.json.decode(job.answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    if isinstance(value, dict) and value.get("error"):
        return value["error"]
    text = f"The engine responded with status {job.status}."
    return msgspec.json.decode(errors.upstream_error(text).body())["error"]
