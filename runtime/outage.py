"""Log lines about a back end that is away: one when it goes, one when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

log = logging.getLogger("fabric.backends")

MAX_HELD = 100
"""Lines of parts that are held until it is known whether the back end is away."""


class Outage:
    """The state of one back end, store, cache or bus, as the parts of a program notice it.

    Parts that look at it again and again call ``failed`` and ``worked``: the first that fails
    begins an outage, and it ends when all of them work.  Any other part hands its line to ``note``:
    an outage explains it, so that it is for debugging then.
    """

    def __init__(
        self,
        place: str,
        *,
        meanwhile: str = "",
        remedy: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``place`` is ``the store`` or its like; ``meanwhile`` says what goes on without it and
        what does not, ``remedy`` what people can do."""
        self._place = place
        self._texts = {"meanwhile": meanwhile, "remedy": remedy}
        self._clock = clock
        self._problems: dict[str, str] = {}
        self._began = 0.0
        self.over = 0
        """Outages that are over: a part that fails as before tells it anew when this has grown."""
        self._watched = False
        """A part has looked: it will again, and soon."""
        self._held: list[tuple[logging.Logger, str, dict[str, Any]]] = []

    def __repr__(self) -> str:
        return f"<Outage of {self._place}: {self._problems or 'none'}>"

    @property
    def problem(self) -> str | None:
        """The reason in one line; None if there is no outage."""
        return next(iter(self._problems.values()), None)

    def failed(
        self, part: str, reason: str, *, state: str = "away", meanwhile: str | None = None
    ) -> None:
        """Take in that a part which goes on looking has failed.

        ``state`` and ``meanwhile`` are said instead of the usual ones if this begins the outage.
        """
        self._watched = True
        event = f"{self._place} is {state}"
        if not self._problems:
            self._began = self._clock()
            texts = self._texts if meanwhile is None else {**self._texts, "meanwhile": meanwhile}
            told = {name: text for name, text in texts.items() if text}
            log.error(event, extra={"reason": reason, **told})
        elif part not in self._problems:
            log.debug(event, extra={"part": part, "reason": reason})
        self._problems[part] = reason
        self._let_go(logging.DEBUG)

    def worked(self, part: str) -> None:
        """Take in that such a part works, perhaps again."""
        self._watched = True
        if self._problems.pop(part, None) is not None:
            if self._problems:
                log.debug(f"{self._place} is back", extra={"part": part})
            else:
                self.over += 1
                seconds = round(self._clock() - self._began, 1)
                log.info(f"{self._place} is back", extra={"seconds": seconds})
        if self._held and not self._problems:
            self._let_go(logging.WARNING)

    def left(self, part: str) -> None:
        """Take in that a part does not look any more, whether it works or not."""
        if self._problems.pop(part, None) is not None and not self._problems:
            self.over += 1
            log.debug(f"{self._place} is not looked at any more", extra={"part": part})

    def note(self, logger: logging.Logger, event: str, **fields: Any) -> None:
        """Log what has failed beside: as a warning if no outage explains it.

        The line may come a moment later, once a part has looked.
        """
        if self._problems:
            logger.debug(event, extra=fields)
        elif self._watched and len(self._held) < MAX_HELD:
            self._held.append((logger, event, fields))
        else:
            logger.warning(event, extra=fields)

    def close(self) -> None:
        """Log what is held: nobody looks any more."""
        self._watched = False
        self._let_go(logging.DEBUG if self._problems else logging.WARNING)

    def _let_go(self, level: int) -> None:
        held, self._held = self._held, []
        for logger, event, fields in held:
            logger.log(level, event, extra=fields)


class Outages(NamedTuple):
    """The outages of the back ends of which parts use more than one."""

    store: Outage
    cache: Outage


def unwatched() -> Outages:
    """Return outages for a part alone: its lines are warnings at once."""
    return Outages(Outage("the store"), Outage("the cache"))
