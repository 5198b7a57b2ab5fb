"""The log of what operators change: in the store, whichever program or server did it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from fabric_server.storage.rows import Changes

log = logging.getLogger("fabric.changes")

MAX_LINES = 20
"""Lines of keys, and of nodes, for one reading of the store: disabling an account changes all its
keys."""


class ChangeLog:
    """A listener of ``ChangeFeed``: logs the state of each key and node that was changed.

    Who changed it is not in the store; the API logs that itself, with the field ``by``.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def on_changes(self, changes: Changes) -> None:
        if changes.everything:
            log.warning(
                "the store was put back from a backup: all keys and nodes are read again",
                extra={"keys": len(changes.keys), "nodes": len(changes.nodes)},
            )
            return
        now = self._clock()
        for key in changes.keys[:MAX_LINES]:
            log.info(
                "a key was changed",
                extra={"key": key.id, "account": key.account, "state": key.state(now)},
            )
        for node in changes.nodes[:MAX_LINES]:
            log.info(
                "a node was changed",
                extra={"node": node.id, "label": node.name, "state": node.state},
            )
        more = max(0, len(changes.keys) - MAX_LINES) + max(0, len(changes.nodes) - MAX_LINES)
        if more:
            log.info("more keys or nodes were changed", extra={"count": more})
