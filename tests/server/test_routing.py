"""Who takes a request: the registry's candidates, and the choice among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from random import Random
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.nodes import MOST_SERVED, Node, Registry
from fabric_server.routing import choose
from protocol.messages import RequestHead
from tests.site import ScriptedNode, Site


def test_nobody_is_chosen_from_nobody() -> None:
    assert choose((), Random(1)) is None


async def test_the_smallest_share_of_slots_taken_is_the_least_load() -> None:
    site = Site()
    small, large = site.node(slots=2), site.node(slots=8)
    small.engine.active, large.engine.active = 1, 3
    assert chosen(site) == {large.node}
    large.engine.active = 5
    assert chosen(site) == {small.node}


async def test_ties_are_broken_at_random_and_evenly() -> None:
    site = Site()
    nodes = [site.node() for _ in range(4)]
    counts = Counter(
        engine.node.id
        for _ in range(4000)
        if (engine := choose(site.registry.candidates("tiny"), site.rng))
    )
    assert set(counts) == {node.node.id for node in nodes}
    assert all(800 < count < 1200 for count in counts.values())


async def test_full_sick_drained_unreachable_and_excluded_ones_are_not_chosen() -> None:
    site = Site()
    full, sick, without_slots, draining, cut_off, excluded, good = (site.node() for _ in range(7))
    full.engine.active = full.engine.slots
    site.registry.report(sick.node, [sick.report(["tiny"], healthy=False)])
    site.registry.report(without_slots.node, [without_slots.report(["tiny"], slots=0)])
    draining.node.draining = True
    cut_off.node.tunnels.clear()
    assert chosen(site, {excluded.node.id}) == {good.node}
    good.node.tunnels[0].drain("test", 1.0)
    assert chosen(site, {excluded.node.id}) == set()


def chosen(site: Site, exclude: Collection[str] = ()) -> set[Node]:
    """Everyone that can be."""
    candidates = site.registry.candidates("tiny")
    choices = [choose(candidates, site.rng, exclude) for _ in range(100)]
    return {engine.node for engine in choices if engine is not None}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=6))
def test_whoever_is_chosen_has_room_and_nobody_has_less_to_do(
    engines: list[tuple[int, int, bool]],
) -> None:
    candidates = [Fixed(active, slots, reachable) for active, slots, reachable in engines]
    able = [one for one in candidates if one.has_room]
    best: Any = choose(cast(Any, candidates), Random(1))
    if not able:
        assert best is None
        return
    assert best in able
    assert best.active / best.slots == min(one.active / one.slots for one in able)


class Fixed:
    """As much of an engine as the choice may look at."""

    def __init__(self, active: int, slots: int, reachable: bool) -> None:
        self.active, self.slots = active, slots
        self.has_room = reachable and active < slots
        self.node = self
        self.id = "node"


# ── whose models they are ─────────────────────────────────────────────────────────────────────


async def test_a_name_without_tag_means_latest_only_where_ollama_has_it() -> None:
    site = Site()
    ollama = site.node(["a:latest", "b:7b"], kind="ollama")
    vllm = site.node(["a", "c:latest"])

    def serving(model: str) -> set[Node]:
        return {engine.node for engine in site.registry.candidates(model)}

    assert serving("a") == {ollama.node, vllm.node}
    assert serving("a:latest") == {ollama.node}
    assert serving("b") == set()
    assert serving("b:7b") == {ollama.node}
    assert serving("c") == set()
    assert serving("c:latest") == {vllm.node}


async def test_what_changes_is_seen_at_once() -> None:
    site = Site()
    registry = site.registry
    node = site.node(["a"])
    assert len(registry.candidates("a")) == 1
    registry.report(node.node, [node.report(["b"])])
    assert registry.candidates("a") == ()
    assert registry.is_known("a")
    assert len(registry.candidates("b")) == 1
    assert list(registry.models()) == ["b"]
    registry.remove(node.node)
    assert registry.candidates("b") == ()
    assert registry.is_known("b")
    assert not registry.is_known("c")


async def test_an_engine_that_stays_keeps_count_of_its_work() -> None:
    site = Site()
    node = site.node(["a"])
    node.engine.active = 2
    site.registry.report(node.node, [node.report(["a", "b"], slots=9)])
    assert (node.engine.active, node.engine.slots) == (2, 9)


async def test_a_newer_registration_is_not_touched_by_the_end_of_an_older_one() -> None:
    site = Site()
    registry = site.registry
    older = site.node(["a"]).node
    newer = ScriptedNode(site, older.id, ["a"], 4, "vllm").node
    assert registry.node(older.id) is newer
    assert registry.by_session(older.session) is None
    assert registry.by_session(newer.session) is newer
    assert not registry.remove(older)
    assert registry.node(older.id) is newer
    assert [engine.node for engine in registry.candidates("a")] == [newer]
    assert not older.reachable
    assert registry.remove(newer)
    assert registry.nodes() == ()


async def test_the_tunnel_with_the_fewest_streams_is_used() -> None:
    site = Site()
    node = site.node(slots=100)
    node.add_tunnel()
    for _ in range(10):
        tunnel = node.node.tunnel()
        assert tunnel is not None
        head = RequestHead("req_1", "engine", "POST", "/", [], None, 1000)
        tunnel.connection.open_stream(head, now=site.loop.time())
    assert [tunnel.connection.active for tunnel in node.node.tunnels] == [5, 5]
    node.node.tunnels[0].drain("test", 1.0)
    assert node.node.tunnel() is node.node.tunnels[1]


async def test_names_that_nobody_serves_are_not_remembered() -> None:
    registry = Registry()
    for number in range(1000):
        assert registry.candidates(f"model-{number}") == ()
        assert not registry.is_known(f"model-{number}")


async def test_a_node_that_invents_models_does_not_fill_the_memory() -> None:
    site = Site()
    node = site.node()
    for number in range(MOST_SERVED // 500 + 5):
        names = [f"m{number}-{n}" for n in range(500)]
        site.registry.report(node.node, [node.report(names)])
    assert len(node.node.served) <= MOST_SERVED
