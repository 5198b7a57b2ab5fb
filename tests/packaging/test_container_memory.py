"""The memory that ``docker/compose.yaml`` gives the server, and what the server makes of it.

The kernel ends a container at its limit.  The server's guard has to refuse new requests before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric_server.config import Config
from fabric_server.net.machine_memory import memory_limit
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.net.memory_guard import STOP_SHARE, MemoryGuard

DOCKER = Path(__file__).parents[2] / "docker"
MIB = 2**20
UNITS = {"k": 2**10, "m": MIB, "g": 2**30}
BASE = 100 * MIB
"""What a server with backends has before its first request, generously (docs/operations.md)."""
KERNEL = 16 * MIB
"""What the kernel counts for the container beside the process: sockets, page tables."""


def files() -> list[Path]:
    texts = {path: path.read_text() for path in DOCKER.rglob("*.y*ml")}
    # Files that are read over another one leave the limit as it is.
    found = [path for path, text in texts.items() if "services:" in text and "image:" in text]
    assert found
    return found


def services(path: Path) -> dict[str, str]:
    """Return the text of each service of a compose file."""
    text = path.read_text().split("\nservices:\n")[1]
    text = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    parts = re.split(r"^  ([a-z]+):\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def size(text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg])b?", text)
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]


def limit_of(service: str) -> int:
    [found] = re.findall(r"^    mem_limit: (\S+)", service, re.MULTILINE)
    return size(found)


def in_memory(service: str) -> int:
    """Return how much a service's file systems in memory may take of its limit."""
    return sum(map(size, re.findall(r"size=(\d+[kmg])", service)))


def servers() -> Iterator[tuple[str, str]]:
    for path in files():
        for name, service in services(path).items():
            if "FABRIC_SERVER_CONFIG" in service:
                yield f"{path.name}: {name}", service


SERVERS = dict(servers())


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_each_container_has_a_limit(path: Path) -> None:
    for name, service in services(path).items():
        assert limit_of(service) > in_memory(service), name


@pytest.fixture(params=SERVERS)
def service(request: pytest.FixtureRequest) -> str:
    return SERVERS[request.param]


@pytest.fixture
def seen(service: str, tmp_path: Path) -> int:
    """The limit as the server sees it within the container."""
    (tmp_path / "memory.max").write_text(f"{limit_of(service)}\n")
    return memory_limit(tmp_path)


def test_a_compose_file_leaves_the_bounds_to_the_server(service: str) -> None:
    for setting in ("MEMORY_LIMIT", "BODIES_LIMIT", "BODIES_LIMIT_PER_KEY", "BODY_LIMIT"):
        assert f"FABRIC_SERVER_{setting}:" not in service


def test_the_guard_refuses_requests_before_the_container_is_full(service: str, seen: int) -> None:
    limit = limit_of(service)
    assert seen <= limit
    spare = limit - in_memory(service) - KERNEL
    for used, closed in ((BASE, False), (spare, True)):
        budget = MemoryBudget()
        MemoryGuard(budget, seen, used=lambda used=used: used, give_back=lambda: None).check()
        assert budget.closed is closed, used


def test_what_requests_may_hold_leaves_room_below_the_guard(seen: int) -> None:
    config = Config(address="fabric.example", memory_limit=seen)
    limits = config.budget_limits()
    assert BASE + limits.in_all < seen * STOP_SHARE
    assert config.body_limit < limits.per_key <= limits.in_all
