"""How many tunnels a node is told to open, before they are needed."""

from __future__ import annotations

import pytest

from fabric_server.nodes.links import MOST_TUNNELS, tunnels_for
from protocol.messages import EngineReport
from protocol.tunnel.streams import MAX_STREAMS


def engines(*slots: int) -> list[EngineReport]:
    return [EngineReport(f"e{n}", "vllm", True, count, []) for n, count in enumerate(slots)]


@pytest.mark.parametrize(
    ("slots", "tunnels"), [([], 0), ([4], 1), ([192], 1), ([193], 2), ([1100], 6), ([4096] * 4, 16)]
)
def test_the_tunnels_have_streams_for_all_slots(slots: list[int], tunnels: int) -> None:
    assert tunnels_for(engines(*slots)) == tunnels
    assert tunnels == MOST_TUNNELS or tunnels * MAX_STREAMS >= sum(slots)
