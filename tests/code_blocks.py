"""The code blocks of documents, for the tests that run them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = re.compile(
    r"^(?P<level>#+) +(?P<title>.*)$"
    r"|^ *```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^ *```$"
    r"|(?:^(?: {4}.*\n|\n(?= {4})))+",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A code block: where it stands, and its text without the indentation of the document."""

    document: str
    sections: tuple[str, ...]
    """Titles above it, from that of the document down to the nearest."""
    language: str
    text: str

    @property
    def first(self) -> str:
        """Its first line, by which tests name it within its section."""
        return self.text.splitlines()[0]


def blocks(document: str, section: str | None = None) -> Iterator[Block]:
    """Yield the code blocks of a document (or of a section and those below it), in order."""
    titles: list[str] = []
    for match in LINE.finditer((ROOT / document).read_text("utf-8")):
        if match["level"]:
            titles[len(match["level"]) - 1 :] = [match["title"]]
            continue
        text = match[0] if match["fenced"] is None else match["fenced"]
        text = textwrap.dedent(text).strip("\n") + "\n"
        if text.strip() and (section is None or section in titles):
            yield Block(document, tuple(titles), match["language"] or "", text)
