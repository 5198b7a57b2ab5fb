"""Matrix of clients, endpoints (streamed or not) and kinds of node: where the answer is good.

A cell is made of tests; it is good when all of them are:

    @cell("/v1/chat/completions", streamed=True)
    async def test_a_chat_streams(place: Place, kind: str) -> None: ...

``CLIENT`` of the test's module is the client.  ``matrix_report`` prints the matrix at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import pytest

KINDS = ("llama-server", "vllm", "openai", "ollama")
"""Of nodes, by what they front.  The second and third are scripted: one that speaks whatever vLLM
speaks, and one that knows nothing but OpenAI's chat, completions and embeddings."""
SCRIPTED = ("vllm", "openai")
REFUSED = "refused"
"""Recorded as ``answer`` by tests of what an engine can't be asked; the matrix says so."""

Test = TypeVar("Test", bound=Callable[..., object])


def cell(
    endpoint: str, *, streamed: bool = False, kinds: Sequence[str] = KINDS
) -> Callable[[Test], Test]:
    """Run the test once for each of ``kinds``."""

    def mark(test: Test) -> Test:
        marked: Test = pytest.mark.parametrize("kind", kinds)(test)
        return pytest.mark.cell(endpoint, streamed)(marked)

    return mark


class Row(NamedTuple):
    client: str
    endpoint: str
    streamed: bool


@dataclass
class Cell:
    good: int = 0
    bad: int = 0
    notes: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        if self.bad:
            return f"{self.bad} of {self.good + self.bad} FAILED"
        return ", ".join(sorted(self.notes)) or "ok"


class Matrix:
    def __init__(self) -> None:
        self.cells: dict[Row, dict[str, Cell]] = {}

    def add(self, row: Row, kind: str, good: bool, notes: Sequence[str]) -> None:
        cell = self.cells.setdefault(row, {}).setdefault(kind, Cell())
        cell.good += good
        cell.bad += not good
        cell.notes.update(notes)

    def lines(self) -> Iterator[str]:
        head = ("client", "endpoint", "answer", *KINDS)
        rows = [
            (
                row.client,
                row.endpoint,
                "streamed" if row.streamed else "whole",
                *(str(cells.get(kind, "")) for kind in KINDS),
            )
            for row, cells in sorted(self.cells.items())
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for line in (head, *rows):
            yield "  ".join(map(str.ljust, line, widths)).rstrip()
