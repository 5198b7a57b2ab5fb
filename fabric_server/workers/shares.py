"""A worker's share of what the settings give the whole server."""

from __future__ import annotations

import dataclasses

from fabric_server.config import Config

_BOUNDS = {
    "connections": 16,
    "connections_per_address": 4,
    "node_connections": 4,
    "memory_limit": 128 * 2**20,
    "bodies_limit": 2**20,
    "spool_limit": 2**20,
}
"""Settings that bound a server, and the least that a worker gets."""


def share(settings: Config, count: int) -> Config:
    """Return the settings of one of so many workers: bounds of the whole are divided by them.

    The API port's connections are the first worker's alone, and a queue's bounds are those of the
    engines that a worker has.
    """
    values = {name: getattr(settings, name) for name in _BOUNDS}
    values["memory_limit"] = settings.memory()
    shares = {
        name: max(-(-value // count), _BOUNDS[name])
        for name, value in values.items()
        if value is not None
    }
    shared = dataclasses.replace(settings, **shares)
    for hidden, value in vars(settings).items():  # where they come from, for the next reading
        if hidden.startswith("_"):
            object.__setattr__(shared, hidden, value)
    return shared
