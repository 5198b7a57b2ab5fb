"""The meters of Ollama's API: lines of JSON, the last of which has ``done``."""

from __future__ import annotations

import re

from fabric_server.metering.documents import decode_line
from fabric_server.metering.error_events import (
    LINE_BEGUN,
    TOO_LONG,
    is_error,
    ollama_line,
    read_error,
)
from fabric_server.metering.sse import UNREADABLE
from fabric_server.metering.usage import Usage

MAX_LINE = 4 * 1024 * 1024
"""A longer line passes in pieces, unread.  The last line of ``/api/generate`` has the whole context
as numbers, some 7 bytes for each token."""

_BEGINNING = 64
"""Bytes of a line that is too long, by which it is known for an error."""
_DONE = re.compile(rb'"done"\s*:\s*true')
_PROMPT = re.compile(rb'"prompt_eval_count"\s*:\s*(\d{1,40})(?!\d)')
_ANSWER = re.compile(rb'"eval_count"\s*:\s*(\d{1,40})(?!\d)')


class LinesMeter:
    """Meters lines of JSON (``application/x-ndjson``); whole lines are passed on at once."""

    before = 0

    def __init__(self, usage_requested: bool = True) -> None:
        self.usage = Usage()
        self.events = 0
        self.sample = b""
        self.complete = self.done = False
        self.failed = False
        self.torn = False
        self._told = False
        """An error of the engine's has been passed on."""
        self._held = bytearray()

    @property
    def aside(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        held = self._held
        end = data.rfind(b"\n") + 1
        if end:
            if held or end < len(data):
                held += data
                end += len(held) - len(data)
                data = bytes(held[:end])
                del held[:end]
            self.torn = False
            self.events += data.count(b"\n")
            return self._look(data)
        held += data
        if len(held) <= MAX_LINE:
            return b""
        if not self.torn and LINE_BEGUN.match(held[:_BEGINNING]):
            return self._cut_error()
        self.torn = True
        return self._release()

    def end(self) -> bytes:
        if not self._held:
            return b""
        self.torn = True  # the last line may lack its end, but nothing may follow it then
        return self._look(self._release())

    def _release(self) -> bytes:
        data = bytes(self._held)
        self._held.clear()
        return data

    def _look(self, lines: bytes) -> bytes:
        """Note what lines say; return them, an error without what is the node's own."""
        ended = lines.find(b"true") >= 0 and _DONE.search(lines)
        if not (ended or lines.find(b'"error"') >= 0):
            self.sample = lines
            return lines
        passed = []
        for text in lines.split(b"\n"):
            if b'"error"' in text and is_error(text):
                self.failed = True
                if not self._told:
                    self._told = True
                    passed.append(ollama_line(read_error(text).error))
            else:
                passed.append(text)
            try:
                line = decode_line(text)
            except UNREADABLE:
                continue
            if line.done:
                self.complete = self.done = True
                self.sample += lines
                self.usage = Usage(line.prompt_eval_count, line.eval_count)
        return b"\n".join(passed)

    def _cut_error(self) -> bytes:
        """Return another error for one that is too long, of whose rest nothing is passed on."""
        told, self._told, self.failed = self._told, True, True
        del self._held[_BEGINNING:]
        return b"" if told else ollama_line(TOO_LONG.error) + b"\n"


def ollama_usage(text: bytes) -> Usage | None:
    """Return the usage of an answer in one piece, or of its end, where the figures are."""
    prompt, answer = _PROMPT.findall(text), _ANSWER.findall(text)
    if not prompt and not answer:
        return None
    return Usage(int(prompt[-1]) if prompt else None, int(answer[-1]) if answer else None)
