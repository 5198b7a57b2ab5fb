"""Problems of connected nodes are found after their time, logged once, and forgotten with them."""

from __future__ import annotations

import logging

import pytest

from fabric_server.nodes.watch import CODES, NodeWatch
from protocol.findings import CLOCK_SECONDS, NO_TUNNELS_SECONDS
from tests.site import Site

PORT = 17001


def codes(site: Site) -> dict[str, list[str]]:
    return {id: [one.code for one in found] for id, found in site.registry.findings.items()}


async def test_a_node_without_a_tunnel_is_a_problem_after_its_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    site = Site()
    site.node()
    (node,) = site.registry.nodes()
    tunnels, watch = list(node.tunnels), NodeWatch(site.registry)
    assert tunnels
    watch.check(0.0, PORT)
    node.tunnels.clear()
    for now in (100.0, 100.0 + NO_TUNNELS_SECONDS - 1):
        watch.check(now, PORT)
        assert codes(site) == {}
    for now in (100.0 + NO_TUNNELS_SECONDS, 200.0):
        watch.check(now, PORT)
        assert codes(site) == {node.id: ["no_tunnels"]}
    assert "allow TCP 17001" in site.registry.problem(node)
    node.tunnels.extend(tunnels)
    watch.check(201.0, PORT)
    assert codes(site) == {}
    assert site.registry.problem(node) == ""
    told = [one.levelname for one in caplog.records if "problem" in one.__dict__]
    assert told == ["ERROR", "INFO"]


@pytest.mark.parametrize("ahead", [CLOCK_SECONDS, -CLOCK_SECONDS, 1e9])
async def test_a_clock_that_differs_is_a_problem_that_stops_nothing(ahead: float) -> None:
    site = Site()
    site.node()
    site.node()
    first, second = site.registry.nodes()
    watch = NodeWatch(site.registry)
    watch.heartbeat(first, ahead)
    watch.heartbeat(second, ahead / abs(ahead) * (CLOCK_SECONDS - 1))
    watch.check(0.0, PORT)
    assert codes(site) == {first.id: ["clock_differs"]}
    assert first.reachable


async def test_a_node_that_drains_or_leaves_has_no_findings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    site.node()
    (node,) = site.registry.nodes()
    watch = NodeWatch(site.registry)
    watch.heartbeat(node, 3600.0)
    watch.check(0.0, PORT)
    assert codes(site) == {node.id: ["clock_differs"]}
    site.registry.remove(node)
    watch.check(1.0, PORT)
    assert codes(site) == {}
    assert set(CODES) >= {"no_tunnels", "clock_differs"}
