"""The response to a request whose answer is to be stored before the client has all of it."""

from __future__ import annotations

from fabric_server.dialects.errors import ApiError
from fabric_server.edge.response import Connection, Response
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.net.memory_budget import Holding

TOO_LARGE = f"it is larger than {MAX_ANSWER} bytes"
NO_MEMORY = "requests hold too much memory"


class HeldAnswer(Response):
    """Holds back an answer in one piece, or the end of a stream, until ``release``.

    So a client that has it all can use its id: it is stored by then.  An answer, or an end, of
    more than ``MAX_ANSWER`` bytes is passed on, and not stored.
    """

    __slots__ = ("_ended", "_held", "_holding", "_size", "_streamed", "given", "lost")

    def __init__(
        self, connection: Connection, holding: Holding, *, streamed: bool, given: bytes = b""
    ) -> None:
        """``holding`` counts what is held back, and ``given``."""
        super().__init__(connection)
        self.given = given
        """The texts to store with the answer; empty once the answer can't be stored any more."""
        self.lost = ""
        """Why the answer can't be stored, where that is known."""
        self._streamed = streamed
        self._holding = holding
        self._held: list[bytes] | None = []
        """None: nothing is held back any more."""
        self._size = 0
        self._ended = False

    # ── what each kind of answer decides ──────────────────────────────────────────────────────

    def find_end(self, data: bytes) -> int | None:
        """Take in a piece of a stream; return where that begins which is to be held back, and all
        after it.  None: nowhere."""
        raise NotImplementedError

    @property
    def waits(self) -> bool:
        """The answer is over, and its end is to wait for ``release``."""
        return bool(self._held)

    # ── as a response ─────────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        held = self._held
        if held is None or self.status >= 300:
            super().write(data)
        elif held or not self._streamed:
            self._hold(held, data)
        elif (end := self.find_end(data)) is None:
            super().write(data)
        else:
            super().write(data[:end])
            self._hold(held, data[end:])

    def _hold(self, held: list[bytes], data: bytes) -> None:
        held.append(data)
        self._size += len(data)
        self.bytes_out += len(data)
        if self._size > MAX_ANSWER:
            self.give_up(TOO_LARGE)
        else:
            self.count(self._size)

    def count(self, size: int) -> None:
        """Count so many bytes of the answer as held; give up when there is no memory for them."""
        try:
            self._holding.reach(len(self.given) + size)
        except ApiError:
            self.give_up(NO_MEMORY)

    def finish(self) -> None:
        if self.waits:
            self._ended = True
        else:
            self._let_go()
            super().finish()

    def abort(self) -> None:
        self._let_go()
        super().abort()

    # ── what its owner calls ──────────────────────────────────────────────────────────────────

    @property
    def held(self) -> bytes | None:
        """Return what is held back of an answer that is over; None when that can't be stored."""
        if not self._ended or self.status != 200 or self._held is None:
            return None
        return b"".join(self._held)

    def give_up(self, reason: str) -> None:
        """Pass on what is held, and hold nothing back any more: it can't be stored."""
        self.lost = self.lost or reason
        self._let_go()

    def drop(self) -> None:
        """Forget what was held back: nobody reads it."""
        self._held, self._ended = None, False
        self.forget()

    def release(self) -> None:
        """Send what was held back, to the end; call it on every path."""
        self._let_go()
        if self._ended:
            super().finish()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held:
            self.bytes_out -= self._size
            super().write(b"".join(held))
        self.forget()

    def forget(self) -> None:
        """Let go of what is kept beside what is held back, and count nothing any more."""
        self.given = b""
        self._holding.release()
