"""The guard of the server's own memory, and the memory that it takes for granted."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from fabric_server.config import Config
from fabric_server.dialects.errors import ApiError
from fabric_server.net.machine_memory import memory_limit, resident
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.net.memory_guard import MemoryGuard, return_free_memory

MIB = 2**20


def test_above_the_limit_no_request_begins_until_it_is_well_below() -> None:
    budget, used, returned = MemoryBudget(), [0], []
    guard = MemoryGuard(
        budget, 1000, used=lambda: used[0], give_back=lambda: returned.append(used[0])
    )
    for now, closed in ((899, False), (901, True), (850, True), (801, True), (799, False)):
        used[0] = now
        guard.check()
        assert budget.closed is closed, now
    assert returned == [901, 850, 801, 799]
    used[0] = 2000
    guard.check()
    with pytest.raises(ApiError) as refused:
        budget.admit()
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.retry_after == 2.0
    assert budget.refused["process"] == 1


def test_what_is_only_kept_by_the_allocator_closes_nothing_for_long() -> None:
    budget, used = MemoryBudget(), [950]

    def give_back() -> None:
        used[0] = 100

    guard = MemoryGuard(budget, 1000, used=lambda: used[0], give_back=give_back)
    guard.check()
    budget.admit()


def test_where_the_system_does_not_tell_nothing_is_refused() -> None:
    budget = MemoryBudget()
    MemoryGuard(budget, 1, used=lambda: None).check()
    budget.admit()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_this_process_has_is_seen() -> None:
    return_free_memory()  # of other tests
    before = resident()
    assert before is not None
    with mmap.mmap(-1, 64 * MIB) as memory:
        memory.write(b"x" * 64 * MIB)
        return_free_memory()
        assert (resident() or 0) - before > 48 * MIB
    return_free_memory()
    assert (resident() or 0) - before < 32 * MIB


def test_the_limit_is_that_of_the_container(tmp_path: Path) -> None:
    machine = memory_limit(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == machine
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    assert memory_limit(tmp_path) == 64 * MIB
    assert Config(memory_limit=512 * MIB).memory() == 512 * MIB
    limits = Config(memory_limit=512 * MIB).budget_limits()
    assert limits.in_all == 128 * MIB
    assert limits.per_key == 64 * MIB
