"""Shares of an answer's tokens: ``analysis_tokens`` and ``final_tokens``, together
``completion_tokens``.

The engine's count is used if it has one (``completion_tokens_details.reasoning_tokens``); otherwise
the shares are estimated from the amounts of reasoning and content in the answer.
"""

from __future__ import annotations

from msgspec import Struct


class _Details(Struct, gc=False):
    reasoning_tokens: int | None = None


class Usage(Struct, gc=False):
    """The fields of an engine's ``usage`` that the shares depend on."""

    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None
    analysis_tokens: int | None = None

    def lacks_shares(self) -> bool:
        """Return whether there are tokens to share out, and the engine has not done so."""
        total = self.completion_tokens
        return total is not None and total >= 0 and self.analysis_tokens is None

    def shares(self, reasoning: int, content: int) -> dict[str, int]:
        """Return the fields to add; the amounts are in any unit, the same for both."""
        total = self.completion_tokens or 0
        details = self.completion_tokens_details
        counted = details.reasoning_tokens if details is not None else None
        if counted is None or (counted <= 0 < reasoning):  # engines that don't count report 0
            analysis = round(total * reasoning / (reasoning + content)) if reasoning else 0
        else:
            analysis = min(max(counted, 0), total)
        return {"analysis_tokens": analysis, "final_tokens": total - analysis}
