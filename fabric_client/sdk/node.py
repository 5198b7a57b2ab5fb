"""State of the node on this machine, for its owner's programs."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fabric_client.config import Config
from fabric_client.owner import state
from fabric_client.owner.process_lock import is_running
from protocol.messages import EngineReport


class Stats(Struct, frozen=True):
    running: bool
    """Whether the node's program runs."""
    linked: bool
    """Whether it is connected to its server."""
    active: int
    """Requests in progress."""
    served: int
    """Requests answered since it started."""
    tokens: int
    """Tokens in those answers, as its engines counted them."""
    tokens_per_second: float
    """Tokens of the last minute's answers, by the time in which at least one was generated."""
    slots: int
    """Requests that its engines can serve at once."""
    active_models: list[str]
    """Models in the accelerators' memory, as far as the engines report it."""
    models: list[str]
    """All models that it serves."""
    paused: str
    """The reason why it takes no new requests; empty if it takes them."""


class Node:
    """The node with its files in ``data``; by default, where ``fabric-client`` keeps them."""

    def __init__(self, data: Path | str | None = None) -> None:
        self._data = Config().data if data is None else Path(data)

    def engines(self) -> list[EngineReport]:
        """Return the engines as last reported; empty if no node runs here."""
        now = state.read(self._data) if is_running(self._data) else None
        return [] if now is None else now.engines

    def stats(self) -> Stats:
        """Return the node's figures; zeros if it does not run."""
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
