"""How fast this node's engines are, by what they counted in their own answers.  Pure."""

from __future__ import annotations

import re
from collections import deque

WINDOW_SECONDS = 60.0
_MAX_ANSWERS = 4096

_COUNT = re.compile(rb'"(?:completion_tokens|output_tokens|eval_count)"\s*:\s*(\d{1,15})\b')


def tokens_in(end: bytes) -> int:
    """What the engine says that its answer was, by the answer's last bytes; 0 when it does not."""
    counts = _COUNT.findall(end)
    return int(counts[-1]) if counts else 0


class Throughput:
    """Tokens a second of the answers that ended within the last minute.

    Divided by the time in which at least one of them was being made, so that an idle node is as
    fast as it was.
    """

    def __init__(self) -> None:
        self.tokens = 0
        """All that were counted."""
        self._answers: deque[tuple[float, float, int]] = deque(maxlen=_MAX_ANSWERS)

    def add(self, tokens: int, began: float, ended: float) -> None:
        """An answer has ended; times are seconds of one clock."""
        self.tokens += tokens
        if tokens:
            self._answers.append((began, ended, tokens))

    def per_second(self, now: float) -> float:
        """0.0 when nothing was answered within the last minute."""
        answers = self._answers
        while answers and answers[0][1] < now - WINDOW_SECONDS:
            answers.popleft()
        busy, until = 0.0, float("-inf")
        for began, ended, _ in sorted(answers):
            busy += max(0.0, ended - max(began, until))
            until = max(until, ended)
        return sum(tokens for _, _, tokens in answers) / busy if busy > 0 else 0.0
