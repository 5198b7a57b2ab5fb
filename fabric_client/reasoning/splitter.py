"""Splits text that has both reasoning and answer, piece by piece.

    "<think>Let me see</think>42"  ->  ("reasoning", "Let me see"), ("content", "42")

Only markers are removed: the parts joined in order are the text without them, white space
included.  Text is held back only while it may be the beginning of a marker.

The stage decides which markers count:

    beginning   opening ones, and only as the first thing after white space.  The first other
                character settles the splitter: ``<think>`` in prose stays prose, and models that
                don't reason cost nothing
    inside      the closing one of the pair; the first one counts, so blocks do not nest
    harmony     all of gpt-oss's, anywhere: they are special tokens, which prose can't contain
    settled     none: a second block, or ``</think>`` without an opening, is text.  Templates that
                open the block in the prompt leave only its end in the answer; when it comes, all
                text before it has been sent

Pairs are those that models are trained to write: DeepSeek-R1, Qwen3, GLM, Phi-4, Kimi K2 and many
more (think); Seed-OSS; Magistral; Kimi-VL; OpenThinker; Gemma 4.  ``<thinking>`` and the like come
from users' prompts, and users expect them in the answer.  Granite 3.2 begins with a sentence, "Here
is my thought process:", which prose may do too.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

Channel = Literal["reasoning", "content"]
Part = tuple[Channel, str]
REASONING: Final = "reasoning"
CONTENT: Final = "content"

PAIRS = {
    "<think>": "</think>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|channel>thought\n": "<channel|>",
}
HARMONY: dict[str, Channel] = {
    "<|channel|>analysis<|message|>": REASONING,
    "<|channel|>commentary<|message|>": CONTENT,
    "<|channel|>final<|message|>": CONTENT,
    "<|channel|>final <|constrain|>json<|message|>": CONTENT,
    "<|start|>assistant": CONTENT,
    "<|end|>": CONTENT,
    "<|return|>": CONTENT,
}
"""Channel of the text behind each marker.  The head of a message to a tool is not among them: it
contains the tool's name, and stays visible."""
LONGEST = max(map(len, [*PAIRS, *PAIRS.values(), *HARMONY]))
"""Characters of the longest marker; fewer are ever held back."""


class _Stage:
    """A state of the splitter: the channel of its text, and the markers that count."""

    def __init__(self, channel: Channel, markers: dict[str, _Stage], before: str = "") -> None:
        self.channel = channel
        self.set_markers(markers, before)

    def set_markers(self, markers: dict[str, _Stage], before: str = "") -> None:
        """Set the next stage for each marker; ``before`` is a pattern of what may precede it."""
        self.next = markers
        self._reach = max(map(len, markers), default=1) - 1
        whole = "|".join(map(re.escape, markers))
        self.find = re.compile(f"{before}({whole})").search
        begun = {marker[:end] for marker in markers for end in range(1, len(marker))}
        cut = "|".join(map(re.escape, sorted(begun)))
        self._find_cut = re.compile(rf"(?:{cut})\Z").search

    def safe_end(self, text: str, start: int) -> int:
        """Return the offset from which on ``text`` may be the beginning of a marker."""
        cut = self._find_cut(text, max(start, len(text) - self._reach))
        return cut.start() if cut else len(text)


_SETTLED = _Stage(CONTENT, {})


def _harmony() -> dict[str, _Stage]:
    stages: dict[Channel, _Stage] = {name: _Stage(name, {}) for name in (REASONING, CONTENT)}
    markers = {marker: stages[channel] for marker, channel in HARMONY.items()}
    for stage in stages.values():
        stage.set_markers(markers)
    return markers


def _beginning() -> _Stage:
    harmony = {m: s for m, s in _harmony().items() if m not in ("<|end|>", "<|return|>")}
    pairs = {a: _Stage(REASONING, {b: _SETTLED}) for a, b in PAIRS.items()}
    return _Stage(CONTENT, pairs | harmony, before=r"\A\s*")


def _reached_from(first: _Stage) -> list[_Stage]:
    """Return all stages that may follow, the first included, in an order that does not change."""
    found = [first]
    for stage in found:  # which grows meanwhile
        found += [one for one in dict.fromkeys(stage.next.values()) if one not in found]
    return found


_BEGINNING = _beginning()
_STAGES = _reached_from(_BEGINNING)
_FIRST = frozenset(marker[0] for marker in _BEGINNING.next) | {""}
"""First characters of markers, and the empty text."""


def is_plain(text: str) -> bool:
    """Return True if an answer that begins with ``text`` is all content; False is undecided."""
    return text.lstrip()[:1] not in _FIRST


class Splitter:
    """Splits the text of one choice of one answer."""

    __slots__ = ("_held", "_stage")

    def __init__(self) -> None:
        self._stage = _BEGINNING
        self._held = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Stages are told apart by identity, so that another process needs its own ones."""
        return _restored, (_STAGES.index(self._stage), self._held)

    @property
    def settled(self) -> bool:
        """True if all that follows is content, and need not be fed."""
        return self._stage is _SETTLED

    def feed(self, text: str, last: bool = False) -> list[Part]:
        """Return the next parts; none is empty, and neighbours differ in their channel.

        ``last``: hold nothing back, because no more text follows.
        """
        text = self._held + text
        stage, at = self._stage, 0
        parts: list[Part] = []
        while stage is not _SETTLED and (found := stage.find(text, at)):
            _add(parts, stage.channel, text[at : found.start(1)])
            stage, at = stage.next[found[1]], found.end()
        end = len(text) if last or stage is _SETTLED else stage.safe_end(text, at)
        if stage is _BEGINNING and text[:end].strip():
            stage, end = _SETTLED, len(text)
        _add(parts, stage.channel, text[at:end])
        self._stage, self._held = stage, text[end:]
        return parts

    def settle(self) -> list[Part]:
        """Return what was held back, and treat all that follows as content."""
        if self._stage is _SETTLED:
            return []
        parts = self.feed("", last=True)
        self._stage = _SETTLED
        return parts


def _restored(stage: int, held: str) -> Splitter:
    splitter = Splitter()
    splitter._stage, splitter._held = _STAGES[stage], held
    return splitter


def _add(parts: list[Part], channel: Channel, text: str) -> None:
    if not text:
        return
    if parts and parts[-1][0] == channel:
        text = parts.pop()[1] + text
    parts.append((channel, text))
