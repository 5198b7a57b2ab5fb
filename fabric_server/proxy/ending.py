"""The end of an attempt: what the ledger and the client get, and how the engine is judged."""

from __future__ import annotations

from dataclasses import dataclass

from fabric_server.dialects.errors import ApiError, answer_timeout
from fabric_server.proxy.outcome_rules import CLIENT_GONE, Rule, rule_of_code
from protocol.errors import Code


@dataclass(slots=True)
class Ending:
    """The end of an attempt."""

    outcome: str
    """A ledger outcome."""
    code: int = Code.NONE
    reason: str = ""
    error: ApiError | None = None
    """The client's own body or key was at fault."""
    rule: Rule = CLIENT_GONE
    """The judgement of the engine."""
    to_continue: bool = False
    """The client has part of the answer, and is to get the rest from another node."""
    lost_hedge: bool = False
    """Cancelled: the other hedged attempt won."""
    status: int = 0
    """The engine's, where that is why the attempt ended."""
    timed_out: str = ""
    """The reason of a timeout, in words for a client that has part of the answer."""

    @property
    def told(self) -> ApiError:
        """The error for a client that has part of the answer, and gets no more."""
        return answer_timeout(self.timed_out) if self.timed_out else upstream_lost(self.code)


def incomplete() -> Ending:
    rule = rule_of_code(Code.ENGINE_FAILED)
    return Ending("incomplete", Code.ENGINE_FAILED, "no terminal marker", rule=rule)


def upstream_lost(code: int) -> ApiError:
    """Return the error for an answer that ended with this code of the tunnel."""
    engine = code in (Code.ENGINE_DOWN, Code.ENGINE_FAILED)
    what = "engine failed" if engine else "node was lost"
    return broken("upstream_lost", f"The {what} in the middle of the answer.")


def broken(code: str, message: str) -> ApiError:
    """Return the error for an answer of which the client has a part."""
    return ApiError(502, code, message, type="server_error")
