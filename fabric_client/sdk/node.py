"""Facts of the node that runs on this machine, for its owner's programs."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fabric_client.config import Config
from fabric_client.owner import state
from fabric_client.owner.process_lock import is_running
from protocol.messages import EngineReport


class Stats(Struct, frozen=True):
    running: bool
    """The node's program runs."""
    linked: bool
    """Its server can send it work."""
    active: int
    """Requests under way."""
    served: int
    """Requests answered since it was started."""
    tokens: int
    """Tokens that its engines counted in those answers."""
    tokens_per_second: float
    """Of the last minute's answers: tokens by the time in which any of them was being made."""
    slots: int
    """Requests that its engines answer at once."""
    active_models: list[str]
    """In the accelerator's memory now, as far as the engines tell."""
    models: list[str]
    """All that it serves."""
    paused: str
    """Why it takes nothing new; empty when it does."""


class Node:
    """The node whose files are in ``data``; without, where ``fabric-client`` keeps them."""

    def __init__(self, data: Path | str | None = None) -> None:
        self._data = Config().data if data is None else Path(data)

    def engines(self) -> list[EngineReport]:
        """What was last reported of them; empty when no node runs here."""
        now = state.read(self._data) if is_running(self._data) else None
        return [] if now is None else now.engines

    def stats(self) -> Stats:
        """A node that does not run has zeros."""
        now = state.read(self._data) if is_running(self._data) else None
        if now is None:
            return Stats(False, False, 0, 0, 0, 0.0, 0, [], [], "")
        models = [model for engine in now.engines if engine.healthy for model in engine.models]
        return Stats(
            running=True,
            linked=now.linked,
            active=now.active,
            served=now.served,
            tokens=now.tokens,
            tokens_per_second=now.tokens_per_second,
            slots=sum(engine.slots for engine in now.engines),
            active_models=sorted({model.name for model in models if model.loaded}),
            models=sorted({model.name for model in models}),
            paused=now.paused,
        )
