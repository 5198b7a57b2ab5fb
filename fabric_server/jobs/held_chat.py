"""The answer to a chat that is to be stored: what of it passes is collected."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_server.edge.response import Connection
from fabric_server.jobs.chat_objects import AskedChat
from fabric_server.jobs.collected_chat import CollectedChat
from fabric_server.jobs.held_answer import HeldAnswer
from fabric_server.metering.sse import UNREADABLE
from fabric_server.metering.usage import Usage
from fabric_server.net.memory_budget import Holding
from fabric_server.proxy.request_record import RequestRecord

NOT_JSON = "it is no JSON object"
_LAST = re.compile(rb"(?:^|[\r\n])(data: ?\[DONE\])")
"""The last event; inside a text line ends are escaped."""
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class HeldChat(HeldAnswer):
    """Holds back an answer in one piece, or the last event of a stream."""

    __slots__ = ("_collected", "metadata", "record", "shown")

    def __init__(
        self, connection: Connection, holding: Holding, record: RequestRecord, asked: AskedChat
    ) -> None:
        super().__init__(connection, holding, streamed=record.parsed.stream, given=asked.messages)
        self.shown = asked.shown
        """Fields of the request that are shown with the answer."""
        self.metadata = asked.metadata
        self.record = record
        self._collected = CollectedChat()

    def find_end(self, data: bytes) -> int | None:
        self._collected.add(data)
        if self._collected.lost:
            self.give_up(self._collected.lost)
        else:
            self.count(self._collected.size)
        found = None if self._held is None else _LAST.search(data)
        return None if found is None else found.start(1)

    @property
    def waits(self) -> bool:
        return self._held is not None and self.record.outcome == "ok"

    def count(self, size: int) -> None:
        super().count(len(self.shown) + len(self.metadata) + size)

    def forget(self) -> None:
        super().forget()
        self.shown, self._collected = b"", CollectedChat()  # the record makes a circle with this

    @property
    def size(self) -> int:
        """Return about how many bytes an answer that is over has."""
        return self._collected.size + self._size

    def answer(self) -> dict[str, Any] | None:
        """Return the fields of the chat completion; None when there is none, or no whole one."""
        data = self.held
        if data is None:
            return None
        if self._streamed:
            usage = self.record.usage
            return self._collected.completion(usage if type(usage) is Usage else None)
        try:
            return dict(_decode(data))
        except UNREADABLE:
            self.lost = NOT_JSON
            return None
