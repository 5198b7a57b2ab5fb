"""The holders of each node's key: two programs that register with the same one are noticed.

Each run of a node has a random instance id, which its registrations carry.  One process after the
other is a restart, and one process at several addresses a moved laptop.  But an instance that comes
back after another one has registered is alive beside it: the key was copied.

    A  A  B  B  B      a restart
    A  B  A            two holders

A node of an older release has no instance id.  Its address stands for it, and must come back
several times within minutes, because a home may have two ways to the internet.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from protocol.token_bucket import TokenBucket

MAX_NODES = 10_000
MAX_HOLDERS = 64
"""Holders that are remembered of one node: more than can register between two tries of another."""
FORGET_SECONDS = 86_400.0
RETURNS, RETURN_SECONDS = 3, 600.0
"""So many returns of an address within that time are no accident."""
BURST, PER_SECOND = 30.0, 0.2
"""Registrations of one node: a token bucket.  A node that can't stay waits longer by itself."""


@dataclass(slots=True)
class _History:
    budget: TokenBucket
    holders: OrderedDict[str, tuple[str, float]] = field(default_factory=OrderedDict)
    """Address and time of each holder's last registration, in their order."""
    returns: list[float] = field(default_factory=list)


class KeyHolders:
    """The latest registrations of each node.  ``now`` is in event-loop seconds."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, _History] = OrderedDict()

    def wait(self, node_id: str, now: float) -> float:
        """Count an attempt to register; return the seconds that the node must wait, mostly 0."""
        budget = self._history(node_id, now).budget
        if budget.level(now) >= 1:
            budget.take(1, now)
            return 0.0
        return budget.seconds_until(1, now)

    def register(
        self, node_id: str, instance: str, address: str, now: float
    ) -> tuple[str, str] | None:
        """Record a registration; return the addresses of two holders if there seem to be two.

        Nothing is remembered of the node then: the operator decides, and it begins anew.
        """
        history = self._history(node_id, now)
        holders = history.holders
        while holders and next(iter(holders.values()))[1] < now - FORGET_SECONDS:
            holders.popitem(last=False)
        holder = f"instance {instance}" if instance else f"address {address}"
        last = next(reversed(holders), holder)
        if holder in holders and holder != last:
            history.returns = [at for at in history.returns if at > now - RETURN_SECONDS]
            history.returns.append(now)
            if instance or len(history.returns) >= RETURNS:
                other = holders[last][0]
                holders.clear()
                history.returns.clear()
                return other, address
        holders[holder] = address, now
        holders.move_to_end(holder)
        if len(holders) > MAX_HOLDERS:
            holders.popitem(last=False)
        return None

    def forget(self, node_id: str) -> None:
        """Forget the holders of a node's key."""
        history = self._nodes.get(node_id)
        if history is not None:
            history.holders.clear()
            history.returns.clear()

    def _history(self, node_id: str, now: float) -> _History:
        history = self._nodes.get(node_id)
        if history is None:
            history = self._nodes[node_id] = _History(TokenBucket(BURST, PER_SECOND, now))
            if len(self._nodes) > MAX_NODES:
                self._nodes.popitem(last=False)
        self._nodes.move_to_end(node_id)
        return history
