"""The rules by which the ends of attempts are judged: one table, outcome by outcome.

Each row says what an outcome counts for the engine, whether the same request is tried elsewhere
while the client has nothing of an answer yet, and how the client is told.  Only what the client
can't have caused counts against an engine; docs/decisions/0053 has the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protocol.errors import Code


class Counts(Enum):
    """Meaning of an outcome for the engine's circuit breaker."""

    SUCCESS = "a success: ends a row of failures"
    NOTHING = "nothing"
    FAILURE = "a failure"
    SUSPICION = "a failure once another engine answers the same request, or for three accounts"
    BUSY = "nothing, but the engine gets fewer requests for a while"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    outcome: str
    counts: Counts
    elsewhere: bool = False
    """The request is tried elsewhere, while the client has nothing of an answer yet."""
    slow: bool = False
    """It counts as a slow answer, when engines are compared."""
    path_only: bool = False
    """It counts for this path of the model only: the client chose the path."""
    own_words: bool = False
    """The client gets 502 in the fabric's words: the engine's would mislead it."""

    def __repr__(self) -> str:
        return f"<Rule {self.outcome!r}: {self.counts.value}>"


def _nothing(outcome: str, *, elsewhere: bool = False, slow: bool = False) -> Rule:
    return Rule(outcome, Counts.NOTHING, elsewhere, slow)


def _failure(outcome: str, *, path_only: bool = False, own_words: bool = False) -> Rule:
    return Rule(outcome, Counts.FAILURE, True, True, path_only, own_words)


def _suspicion(outcome: str, *, elsewhere: bool = True, own_words: bool = False) -> Rule:
    return Rule(outcome, Counts.SUSPICION, elsewhere, False, True, own_words)


def _busy(outcome: str) -> Rule:
    return Rule(outcome, Counts.BUSY, True, True)


# ── the engine's statuses ─────────────────────────────────────────────────────────────────────

ANSWERED = Rule("2xx, answered to its end", Counts.SUCCESS)
_OTHER_4XX = _nothing("any other 4xx")
_OTHER_5XX = _suspicion("any other 5xx")
_STATUSES: tuple[tuple[range | tuple[int, ...], Rule], ...] = (
    (range(200, 300), ANSWERED),
    (range(300, 400), _failure("3xx", path_only=True, own_words=True)),
    (
        (401, 402, 403, 407, 421, 426),
        _failure("401, 402, 403, 407, 421, 426", path_only=True, own_words=True),
    ),
    ((404, 405, 410), _failure("404, 405, 410", path_only=True)),
    ((429,), _busy("429")),
    (
        (408, 411, 417, 431, 494, 495, 496, 497, 498, 499),
        _suspicion("408, 411, 417, 431, 494 to 499", own_words=True),
    ),
    ((505, 511), _suspicion("505, 511", own_words=True)),
    (range(400, 500), _OTHER_4XX),
    (range(500, 600), _OTHER_5XX),
)
_BY_STATUS = {
    status: rule for statuses, rule in reversed(_STATUSES) for status in statuses
}  # reversed, so that the first row wins


def rule_of_status(status: int) -> Rule:
    return _BY_STATUS.get(status, _OTHER_5XX)


# ── a node's RESET ────────────────────────────────────────────────────────────────────────────

UNKNOWN_CODE = _failure("RESET with a code that this server does not know")
_CODES: dict[int, Rule] = {
    Code.NONE: _failure("RESET none: a stop without a reason"),
    Code.CANCELLED: _failure("RESET cancelled: the node stopped by itself"),
    Code.TIMEOUT: _failure("RESET timeout, before the request's own limit"),
    Code.REFUSED: _busy("RESET refused: no slot"),
    Code.FORBIDDEN: _failure("RESET forbidden: a path that it reports", path_only=True),
    Code.ENGINE_DOWN: _failure("RESET engine_down"),
    Code.ENGINE_FAILED: _failure(
        "RESET engine_failed; an answer that is empty, cut off, not a stream, or of another length"
    ),
    Code.TOO_LARGE: _failure("RESET too_large, for a body that every node takes"),
    Code.FLOW: _failure("RESET flow"),
    Code.PROTOCOL: _failure("RESET protocol"),
    Code.CALM: _failure("RESET calm"),
    Code.DRAINING: _nothing("RESET draining: the node leaves", elsewhere=True),
    Code.SLOW_READER: _nothing("RESET slow_reader; the client reads too slowly"),
    Code.UNAUTHORISED: _failure("RESET unauthorised"),
    Code.OBSOLETE: _failure("RESET obsolete"),
    Code.SUPERSEDED: _nothing("RESET superseded: the node registered again", elsewhere=True),
    Code.LOST: _nothing("the tunnel or the node is lost", elsewhere=True, slow=True),
    Code.INTERNAL: _failure("RESET internal"),
    Code.UNKNOWN: _nothing("RESET unknown: a stream to resume", elsewhere=True, slow=True),
}


def rule_of_code(code: int) -> Rule:
    return _CODES.get(code, UNKNOWN_CODE)


# ── the server's own observations ─────────────────────────────────────────────────────────────

CLIENT_GONE = _nothing("the client has gone, or its request was cancelled")
LOST_HEDGE = _nothing("another engine was quicker (a hedge)")
REQUEST_LIMIT = _nothing(
    "the request's own time limit: x-fabric-timeout or stream_limit, or its body came too slowly"
)
SERVER_LIMIT = Rule("first_byte_timeout or idle_timeout of this server", Counts.FAILURE, slow=True)
TOO_LARGE_BODY = _suspicion("RESET too_large, for a larger body")
ERROR_EVENT = _suspicion("an error inside a stream", elsewhere=False)
NOT_CONTINUED = _nothing("it does not continue another engine's answer", elsewhere=True)
UNREAD_STREAM = _nothing(
    "a stream of a request from another server, without a mark of its end or with an error"
)

OBSERVED = (
    CLIENT_GONE,
    LOST_HEDGE,
    REQUEST_LIMIT,
    SERVER_LIMIT,
    TOO_LARGE_BODY,
    ERROR_EVENT,
    NOT_CONTINUED,
    UNREAD_STREAM,
)


def table() -> str:
    """Return the table of all rules, as Markdown."""
    statuses = [rule for _, rule in _STATUSES]
    rules = [*statuses, *_CODES.values(), UNKNOWN_CODE, *OBSERVED]
    lines = ["| outcome | counts | tried elsewhere | client gets |", "|---|---|---|---|"]
    for rule in rules:
        scope = ", for this path of the model" if rule.path_only else ""
        told = "502, our words" if rule.own_words else "as it is" if rule in statuses else "–"
        elsewhere = "yes" if rule.elsewhere else "no"
        lines.append(f"| {rule.outcome} | {rule.counts.value}{scope} | {elsewhere} | {told} |")
    return "\n".join(lines)
