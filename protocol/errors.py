"""Error codes of streams and connections, the same on the wire, in logs and in the ledger."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Reason of an end, 16 bits in RESET and CLOSE; an unknown number stays a number."""

    NONE = 0  # an orderly end
    CANCELLED = 1  # the client has gone
    TIMEOUT = 2  # a deadline of the sender has passed
    REFUSED = 3  # the node has no slot or does not know the engine; nothing was done
    FORBIDDEN = 4  # method and path are not on the node's allow-list
    ENGINE_DOWN = 5  # the engine could not be reached, or died before its first byte
    ENGINE_FAILED = 6  # the engine died in the middle of its answer
    TOO_LARGE = 7  # a head, body or answer over its limit
    FLOW = 8  # more was sent than credit allowed
    PROTOCOL = 9  # bytes that the specification does not allow
    CALM = 10  # a flood of frames that do no work
    DRAINING = 11  # going away; ask again elsewhere
    SLOW_READER = 12  # the receiver did not read for too long
    UNAUTHORISED = 13  # identity, session or epoch not accepted
    OBSOLETE = 14  # no protocol version in common
    SUPERSEDED = 15  # a newer registration of the same node took over
    LOST = 16  # the connection went silent or was cut; never sent, only reported
    INTERNAL = 17  # a defect on the side that sends it
    UNKNOWN = 18  # the stream to resume is not here, or not any more

    @classmethod
    def name_of(cls, number: int) -> str:
        """Return the name used in logs and the ledger; ``code-99`` for an unknown number."""
        try:
            return cls(number).name.lower()
        except ValueError:
            return f"code-{number}"


class FabricError(Exception):
    """Base class of the exceptions that this package raises."""


class LocalError(FabricError):
    """Misuse of the protocol by this side: a defect in the caller, nothing was sent."""


class RemoteError(FabricError):
    """Refusal or failure of the other side, with its ``code`` and ``reason``."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        name = Code.name_of(self.code)
        return f"{name}: {self.reason}" if self.reason else name
