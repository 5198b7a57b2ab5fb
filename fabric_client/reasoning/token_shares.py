"""How many of an answer's tokens were reasoning: ``analysis_tokens`` and ``final_tokens``, which
together are ``completion_tokens``.

As the engine counts them, where it tells (``completion_tokens_details.reasoning_tokens``).  Else it
is estimated from how much of the answer was seen to be which.
"""

from __future__ import annotations

from msgspec import Struct


class _Details(Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(Struct, gc=False):
    """What an engine tells in ``usage``, as far as it matters here."""

    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None
    analysis_tokens: int | None = None

    @property
    def lacks_shares(self) -> bool:
        """There is something to share out, and nobody has."""
        total = self.completion_tokens
        return total is not None and total >= 0 and self.analysis_tokens is None

    def shares(self, reasoning: int, content: int) -> dict[str, int]:
        """The figures to add, from amounts of either, in whatever unit."""
        total = self.completion_tokens or 0
        details = self.completion_tokens_details
        counted = details.reasoning_tokens if details is not None else None
        if counted is None or (counted <= 0 < reasoning):  # 0 is also said by who does not count
            analysis = round(total * reasoning / (reasoning + content)) if reasoning else 0
        else:
            analysis = min(max(counted, 0), total)
        return {"analysis_tokens": analysis, "final_tokens": total - analysis}
