"""The rules of splitting, written a second time, and texts to try them on."""

from __future__ import annotations

import re

from hypothesis import strategies as st

from fabric_client.reasoning.splitter import (
    CONTENT,
    HARMONY,
    PAIRS,
    REASONING,
    Channel,
    Part,
)

HARMONY_MARKER = re.compile("(" + "|".join(map(re.escape, HARMONY)) + ")")
MARKERS = [*PAIRS, *PAIRS.values(), *HARMONY]


def merged(parts: list[Part]) -> list[Part]:
    out: list[Part] = []
    for channel, text in parts:
        if out and out[-1][0] == channel:
            out[-1] = (channel, out[-1][1] + text)
        elif text:
            out.append((channel, text))
    return out


def expected(text: str) -> list[Part]:
    """Split a whole text by the same rules, implemented in another way."""
    begin = text.lstrip()
    space = text[: len(text) - len(begin)]
    for opening, closing in PAIRS.items():
        if begin.startswith(opening):
            inside, _, after = begin[len(opening) :].partition(closing)
            return merged([(CONTENT, space), (REASONING, inside), (CONTENT, after)])
    if begin.startswith(("<|channel|>", "<|start|>")) and HARMONY_MARKER.match(begin):
        channel: Channel = CONTENT
        parts: list[Part] = []
        for piece in HARMONY_MARKER.split(text):
            if piece in HARMONY:
                channel = HARMONY[piece]
            else:
                parts.append((channel, piece))
        return merged(parts)
    return merged([(CONTENT, text)])


pieces = st.sampled_from([*MARKERS, "<", "<|", " ", "\n", "think", "模型", "🦙", "a", "[", "◁"])
cut_markers = st.sampled_from(MARKERS).flatmap(
    lambda m: st.integers(1, len(m)).map(lambda n: m[:n])
)
texts = st.lists(pieces | cut_markers | st.text(max_size=4), max_size=12).map("".join)
deltas = texts.flatmap(
    lambda text: st.lists(st.integers(0, len(text)), max_size=12).map(
        lambda cuts: [
            text[a:b] for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True)
        ]
    )
)
