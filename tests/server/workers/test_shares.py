"""A worker's share of the bounds of the whole server."""

from __future__ import annotations

from dataclasses import fields

from fabric_server.config import PREFIX, Config
from fabric_server.workers.shares import share
from runtime.flags import read, read_again


def test_the_bounds_of_the_whole_are_divided() -> None:
    whole = Config(connections=1001, node_connections=100, memory_limit=2**30, spool_limit=2**30)
    shared = share(whole, 4)
    assert (shared.connections, shared.node_connections) == (251, 25)
    assert shared.memory_limit == shared.spool_limit == 2**28
    assert shared.connections_per_address is None, "it follows from connections"


def test_everything_else_is_the_same() -> None:
    whole = Config(memory_limit=2**30)
    shared = share(whole, 2)
    changed = {
        one.name for one in fields(whole) if getattr(whole, one.name) != getattr(shared, one.name)
    }
    assert changed == {"memory_limit", "spool_limit"}


def test_a_share_of_little_is_still_allowed() -> None:
    shared = share(Config(connections=1, spool_limit=2**20, memory_limit=2**27), 64)
    assert (shared.connections, shared.spool_limit, shared.memory_limit) == (16, 2**20, 2**27)


def test_the_settings_of_a_share_can_be_read_again() -> None:
    flags = {"connections": "40"}
    whole = read(Config, PREFIX, environ={}, flags=flags, file=None)
    shared = share(whole, 2)
    assert shared.connections == 20
    assert read_again(shared).connections == 40
