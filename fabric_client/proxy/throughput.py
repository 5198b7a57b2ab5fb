"""Measures the engines' speed by the token counts in their own answers.  Pure."""

from __future__ import annotations

import re
from collections import deque

WINDOW_SECONDS = 60.0
_MAX_ANSWERS = 4096

_LAST_COUNT = re.compile(
    rb'.*"(?:completion_tokens|output_tokens|eval_count)"\s*:\s*(\d{1,15})\b', re.DOTALL
).match
"""Find the last one: ``.*`` is tried from the end backwards, where the count is near."""


def tokens_in(end: bytes) -> int:
    """Return the token count that the last bytes of an answer report, 0 if they have none."""
    found = _LAST_COUNT(end)
    return int(found[1]) if found else 0


class Throughput:
    """Tokens a second of the answers that ended within the last minute.

    Idle time does not count: tokens are divided by the time in which an answer was generated.
    """

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens counted since the start."""
        self._answers: deque[tuple[float, float, int]] = deque(maxlen=_MAX_ANSWERS)

    def add(self, tokens: int, began: float, ended: float) -> None:
        """Count an answer that has ended; times are seconds of one clock."""
        self.tokens += tokens
        if tokens:
            self._answers.append((began, ended, tokens))

    def per_second(self, now: float) -> float:
        """Return the speed, 0.0 if no answer ended within the last minute."""
        answers = self._answers
        while answers and answers[0][1] < now - WINDOW_SECONDS:
            answers.popleft()
        busy, until = 0.0, float("-inf")
        for began, ended, _ in sorted(answers):
            busy += max(0.0, ended - max(began, until))
            until = max(until, ended)
        return sum(tokens for _, _, tokens in answers) / busy if busy > 0 else 0.0
