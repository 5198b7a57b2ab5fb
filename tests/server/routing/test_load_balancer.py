"""Who takes a request: the registry's candidates, and the choice among them."""

from __future__ import annotations

import sys
from collections import Counter
from random import Random
from types import FrameType
from typing import Any, NamedTuple, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.nodes.node import SHARED_STREAMS, Engine, Node
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.served_models import MAX_SERVED
from fabric_server.routing.choice import Choice
from fabric_server.routing.criteria import Requirements
from fabric_server.routing.latency import FORGET_SECONDS
from fabric_server.routing.load_balancer import (
    COMPARE_ALL,
    LoadBalancer,
    RoutingState,
    pick,
    relax_hints,
)
from fabric_server.routing.scores import MAX_LOAD_DIFFERENCE
from protocol.messages import EngineReport, ModelReport, Register, RequestHead
from protocol.tunnel.keepalive import QUIET_SECONDS
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import ServerConnection
from tests.site import ScriptedNode, Site

MODEL = "tiny"


def knows(site: Site) -> RoutingState:
    return site.admission.balancer.state


def pick_one(
    site: Site, requirements: Requirements | None = None, now: float = 0.0
) -> Choice | None:
    requirements = requirements or Requirements(MODEL)
    candidates = site.registry.candidates(requirements.model)
    return pick(candidates, requirements, site.rng, state=knows(site), now=now)


def chosen(site: Site, requirements: Requirements | None = None, now: float = 0.0) -> set[Node]:
    """Everyone that can be."""
    choices = [pick_one(site, requirements, now) for _ in range(100)]
    return {choice.engine.node for choice in choices if choice is not None}


def learn(site: Site, node: ScriptedNode, first_byte: float, rate: float = 50.0) -> None:
    latency = knows(site).latency
    latency.update(node.engine, MODEL, first_byte, rate, now=0.0)


# ── who may ───────────────────────────────────────────────────────────────────────────────────


def test_nobody_is_chosen_from_nobody() -> None:
    assert pick((), Requirements(MODEL), Random(1), state=RoutingState(), now=0.0) is None


@pytest.mark.parametrize("others", [0, 50])
async def test_full_sick_drained_unreachable_and_tried_ones_are_not_chosen(others: int) -> None:
    site = Site()
    full, sick, without_slots, draining, cut_off, tried, good = (site.node() for _ in range(7))
    full.engine.active = full.engine.slots
    site.registry.report(sick.node, [sick.report([MODEL], healthy=False)])
    site.registry.report(without_slots.node, [without_slots.report([MODEL], slots=0)])
    draining.node.draining = True
    cut_off.node.tunnels.clear()
    for _ in range(others):
        node = site.node()
        node.engine.active = node.engine.slots
    requirements = Requirements(MODEL, excluded_nodes=[tried.node.id])
    assert chosen(site, requirements) == {good.node}
    good.node.tunnels[0].drain("test", 1.0)
    assert chosen(site, requirements) == set()


def able(node: ScriptedNode, site: Site, *capabilities: str, context: int | None = None) -> None:
    model_report = ModelReport(MODEL, context_length=context, capabilities=list(capabilities))
    report = EngineReport("engine", node.kind, True, 4, [model_report])
    site.registry.report(node.node, [report])


async def test_who_says_what_it_can_do_is_asked_for_nothing_else() -> None:
    site = Site()
    blind, sees, silent = site.node(), site.node(), site.node()
    able(blind, site, "completion", "tools")
    able(sees, site, "completion", "vision")
    assert chosen(site) == {blind.node, sees.node, silent.node}
    assert chosen(site, Requirements(MODEL, capabilities=frozenset({"vision"}))) == {
        sees.node,
        silent.node,
    }
    assert chosen(site, Requirements(MODEL, capabilities=frozenset({"tools"}))) == {
        blind.node,
        silent.node,
    }
    both = Requirements(MODEL, capabilities=frozenset({"tools", "vision"}))
    assert chosen(site, both) == {silent.node}


async def test_an_embedding_model_is_one_in_either_spelling() -> None:
    site = Site()
    ollama = site.node(kind="ollama")
    able(ollama, site, "embedding")
    assert chosen(site, Requirements(MODEL, capabilities=frozenset({"embeddings"}))) == {
        ollama.node
    }
    able(ollama, site, "completion")
    assert chosen(site, Requirements(MODEL, capabilities=frozenset({"embeddings"}))) == set()


@pytest.mark.parametrize("kind", ["llama-server", "lm-studio"])
async def test_engines_that_never_tell_of_tools_are_asked_for_them(kind: str) -> None:
    site = Site()
    node = site.node(kind=kind)
    able(node, site, "completion")
    assert chosen(site, Requirements(MODEL, capabilities=frozenset({"tools"}))) == {node.node}
    assert chosen(site, Requirements(MODEL, capabilities=frozenset({"vision"}))) == set()


async def test_a_prompt_goes_where_it_fits() -> None:
    site = Site()
    short, long, silent = site.node(), site.node(), site.node()
    able(short, site, context=4096)
    able(long, site, context=32_768)
    assert chosen(site, Requirements(MODEL, tokens=4096)) == {short.node, long.node, silent.node}
    assert chosen(site, Requirements(MODEL, tokens=4097)) == {long.node, silent.node}


async def test_what_nobody_can_do_is_not_asked_for_but_all_else_is() -> None:
    site = Site()
    short, long = site.node(), site.node()
    able(short, site, "completion", context=4096)
    able(long, site, "completion", context=32_768)
    candidates = site.registry.candidates(MODEL)
    vision = frozenset({"vision"})
    for tokens, capabilities, kept in (
        (5_000, frozenset[str](), (5_000, frozenset[str]())),
        (5_000, vision, (5_000, frozenset())),
        (50_000, vision, (0, frozenset())),
    ):
        requirements = Requirements(MODEL, tokens=tokens, capabilities=capabilities)
        relax_hints(candidates, requirements)
        assert (requirements.tokens, requirements.capabilities) == kept
    able(long, site, "completion", "vision", context=32_768)
    requirements = Requirements(MODEL, tokens=50_000, capabilities=vision)
    relax_hints(site.registry.candidates(MODEL), requirements)
    assert (requirements.tokens, requirements.capabilities) == (0, vision)


# ── who is best ───────────────────────────────────────────────────────────────────────────────


async def test_of_equals_the_smallest_share_of_slots_taken_is_the_least_load() -> None:
    site = Site()
    small, large = site.node(slots=2), site.node(slots=8)
    small.engine.active, large.engine.active = 1, 3
    assert chosen(site) == {large.node}
    large.engine.active = 5
    assert chosen(site) == {small.node}


async def test_ties_are_broken_at_random_and_evenly() -> None:
    site = Site()
    nodes = [site.node() for _ in range(4)]
    choices = [pick_one(site) for _ in range(4000)]
    counts = Counter(choice.engine.node.id for choice in choices if choice)
    assert set(counts) == {node.node.id for node in nodes}
    assert all(800 < count < 1200 for count in counts.values())


async def test_of_many_all_are_chosen_evenly() -> None:
    site = Site()
    nodes = [site.node() for _ in range(COMPARE_ALL * 2)]
    choices = [pick_one(site) for _ in range(400 * len(nodes))]
    counts = Counter(choice.engine.node.id for choice in choices if choice)
    assert len(counts) == len(nodes)
    assert all(300 < count < 500 for count in counts.values())


async def test_who_answers_sooner_is_chosen_until_it_is_the_busier_one() -> None:
    site = Site()
    quick, slow = site.node(), site.node()
    learn(site, quick, 1.0)
    learn(site, slow, 2.5)
    assert chosen(site) == {quick.node}
    quick.engine.active = 2
    assert chosen(site) == {slow.node}


async def test_who_writes_faster_is_chosen_of_those_who_begin_together() -> None:
    site = Site()
    quick, slow = site.node(), site.node()
    learn(site, quick, 1.0, rate=60)
    learn(site, slow, 1.0, rate=40)
    assert chosen(site) == {quick.node}


async def test_a_model_that_is_loaded_is_worth_some_load_elsewhere_and_the_choice_tells() -> None:
    site = Site()
    cold, warm = site.node(), site.node()
    model_report = ModelReport(MODEL, loaded=False)
    site.registry.report(cold.node, [EngineReport("engine", "ollama", True, 4, [model_report])])
    warm.engine.active = 3
    assert chosen(site) == {warm.node}
    warm.engine.active = 4
    choice = pick_one(site)
    assert choice is not None
    assert (choice.engine, choice.cold_start) == (cold.engine, True)
    assert choice.route_reason.endswith("0/4 slots, cold start")


async def test_weights_make_a_node_count_as_faster_or_slower() -> None:
    site = Site()
    plain, favoured = site.node(), site.node()
    for node in (plain, favoured):
        learn(site, node, 1.0)
    knows(site).weights = {favoured.node.id: 2.0}
    assert chosen(site) == {favoured.node}
    knows(site).weights = {favoured.node.name: 0.5}
    assert chosen(site) == {plain.node}


async def test_an_idle_engine_of_which_nothing_is_known_gets_one_request_to_show() -> None:
    site = Site()
    known, new = site.node(), site.node()
    learn(site, known, 0.01)
    choice = pick_one(site)
    assert choice is not None
    assert choice == Choice(new.engine, "not known yet, 0/4 slots", report=new.engine.models[MODEL])
    new.engine.active = 1
    assert chosen(site) == {known.node}


async def test_who_failed_at_once_does_not_look_idle() -> None:
    site = Site()
    good, bad = site.node(), site.node()
    learn(site, good, 2.0)
    knows(site).latency.penalize(bad.engine, MODEL, now=0.0)
    assert chosen(site) == {good.node}
    assert chosen(site, now=FORGET_SECONDS + 1) == {good.node, bad.node}


# ── who has it in its cache ───────────────────────────────────────────────────────────────────

PREFIX = tuple(range(100, 116))
HALF = (*PREFIX[:14], -1, -2)


@pytest.mark.parametrize("others", [2, 50])
async def test_a_conversation_goes_back_to_whoever_has_it(others: int) -> None:
    site = Site()
    nodes = [site.node() for _ in range(others)]
    for node in nodes:
        learn(site, node, 1.0)
    home = nodes[1]
    knows(site).affinity.remember(PREFIX, home.engine)
    assert chosen(site, Requirements(MODEL, prefix=PREFIX)) == {home.node}
    choice = pick_one(site, Requirements(MODEL, prefix=HALF))
    assert choice == Choice(
        home.engine, "affinity 50% of the prompt, 0/4 slots", report=home.engine.models[MODEL]
    )
    other = Requirements(MODEL, prefix=tuple(-value for value in PREFIX))
    assert len(chosen(site, other)) > 1
    home.engine.active = home.engine.slots
    assert home.node not in chosen(site, Requirements(MODEL, prefix=PREFIX))
    home.engine.active = 0
    assert home.node not in chosen(
        site, Requirements(MODEL, prefix=PREFIX, excluded_nodes=[home.node.id])
    )
    home.leave()
    assert chosen(site, Requirements(MODEL, prefix=PREFIX))


@pytest.mark.parametrize("others", [2, 50])
async def test_a_cache_outweighs_load_up_to_a_margin_and_no_further(others: int) -> None:
    site = Site()
    nodes = [site.node(slots=16) for _ in range(others)]
    for node in nodes:
        learn(site, node, 1.0)
    home = nodes[0]
    knows(site).affinity.remember(PREFIX, home.engine)
    most = int(MAX_LOAD_DIFFERENCE * 16)
    for prefix, share in ((PREFIX, 1.0), (HALF, 0.5)):
        home.engine.active = int(most * share)
        assert chosen(site, Requirements(MODEL, prefix=prefix)) == {home.node}
        home.engine.active += 1
        assert home.node not in chosen(site, Requirements(MODEL, prefix=prefix))


async def test_a_cache_does_not_outweigh_that_its_engine_is_far_slower() -> None:
    site = Site()
    quick, slow = site.node(), site.node()
    learn(site, quick, 0.2, rate=100)
    learn(site, slow, 2.0, rate=10)
    knows(site).affinity.remember(PREFIX, slow.engine)
    assert chosen(site, Requirements(MODEL, prefix=PREFIX)) == {quick.node}


async def test_a_node_that_comes_back_is_remembered_by_its_cache() -> None:
    site = Site()
    home, other = site.node(), site.node()
    learn(site, home, 1.0)
    learn(site, other, 1.0)
    knows(site).affinity.remember(PREFIX, home.engine)
    again = ScriptedNode(site, home.node.id, [MODEL], 4, "vllm")
    assert chosen(site, Requirements(MODEL, prefix=PREFIX)) == {again.node}


# ── whatever happens ──────────────────────────────────────────────────────────────────────────


class Reachable(NamedTuple):
    """As much of a tunnel as is looked at for a choice."""

    connection: ServerConnection


def reachable() -> Reachable:
    connection = ServerConnection(now=0.0, rng=Random(1))
    node = NodeConnection(now=0.0, rng=Random(2))
    node.hello(b"session")
    connection.receive(b"".join(node.data_to_send()), 0.0)
    assert connection.usable
    return Reachable(connection)


def fleet(slots: list[int]) -> Registry:
    registry = Registry()
    for number, count in enumerate(slots):
        report = EngineReport("engine", "vllm", True, count, [ModelReport(MODEL)])
        register = Register(1, "0", f"name {number}", "test", [report])
        node = Node(f"node_{number}", 1, register, cast(Any, object()), 0.0)
        node.tunnels.append(cast(Any, reachable()))
        registry.add(node)
        registry.report(node, [report])
    return registry


speeds = st.floats(0.01, 60.0)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5), speeds, st.floats(0.1, 10)), min_size=1, max_size=24),
    st.integers(0, 2**32),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_no_healthy_node_is_starved_and_none_loaded_beyond_its_slots(
    nodes: list[tuple[int, float, float]], seed: int, load: float, weighted: bool
) -> None:
    """Whatever their speeds, weights and caches are: half of the requests are one conversation."""
    rng = Random(seed)
    registry = fleet([slots for slots, _, _ in nodes])
    weights = {f"node_{number}": weight for number, (_, _, weight) in enumerate(nodes)}
    router = LoadBalancer(registry.engine, rng, weights=weights if weighted else {})
    engines = registry.candidates(MODEL)
    speed = {engine: speed for engine, (_, speed, _) in zip(engines, nodes, strict=True)}
    room = sum(engine.slots for engine in engines)
    running: list[Engine] = []
    for window in range(2):
        given: Counter[Engine] = Counter()
        count = 60 * len(engines)
        for step in range(count):
            now = (window + step / count) * 2 * FORGET_SECONDS
            requirements = Requirements(MODEL, prefix=PREFIX if step % 2 else ())
            choice = router.pick(engines, requirements, now)
            if choice is None:
                assert len(running) == room, "while anybody has room, somebody is chosen"
            else:
                engine = choice.engine
                engine.active += 1
                running.append(engine)
                given[engine] += 1
                assert engine.active <= engine.slots
                assert choice.route_reason.isascii()
                assert len(choice.route_reason) <= 200
                router.state.affinity.remember(requirements.prefix, engine)
            while len(running) > load * (room - 1):
                over = running.pop(rng.randrange(len(running)))
                over.active -= 1
                router.state.latency.update(over, MODEL, speed[over], 50.0, now=now)
        assert set(given) == set(engines)


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


async def test_a_tunnel_is_filled_first_and_then_the_one_with_the_fewest_streams() -> None:
    site = Site()
    node = site.node(slots=100)
    node.add_tunnel()
    counts = []
    for _ in range(2 * SHARED_STREAMS + 10):
        tunnel = node.node.tunnel(site.loop.time())
        assert tunnel is not None
        head = RequestHead("req_1", "engine", "POST", "/", [], None, 1000)
        tunnel.connection.open_stream(head, now=site.loop.time())
        counts.append(sorted(tunnel.connection.active for tunnel in node.node.tunnels))
    assert counts[SHARED_STREAMS - 1] == [0, SHARED_STREAMS]
    assert counts[2 * SHARED_STREAMS - 1] == [SHARED_STREAMS, SHARED_STREAMS]
    assert counts[-1] == [SHARED_STREAMS + 5, SHARED_STREAMS + 5]
    first, second = node.node.tunnels
    first.drain("test", 1.0)
    assert node.node.tunnel(site.loop.time()) is second


@pytest.mark.parametrize(("quiet", "looks"), [(0.0, 1), (QUIET_SECONDS, 16)])
async def test_idle_tunnels_are_looked_at_once_after_a_silence_and_then_one(
    quiet: float, looks: int
) -> None:
    site = Site()
    node = site.node(slots=100)
    for _ in range(15):
        node.add_tunnel()
    now, asked = site.loop.time() + quiet, Counter[str]()
    assert node.node.tunnel(now) is node.node.tunnels[0]

    def notice(frame: FrameType, event: str, argument: object) -> None:
        asked[frame.f_code.co_name] += event == "call"

    sys.setprofile(notice)
    try:
        found = node.node.tunnel(now)
    finally:
        sys.setprofile(None)
    assert found is node.node.tunnels[0]
    assert (asked["active"], asked["usable"]) == (looks, 1)


async def test_a_tunnel_that_is_silent_is_not_filled() -> None:
    site = Site()
    node = site.node(slots=100)
    node.add_tunnel()
    now = site.loop.time()
    silent = node.node.tunnel(now)
    assert silent is not None
    head = RequestHead("req_1", "engine", "POST", "/", [], None, 1000)
    silent.connection.open_stream(head, now=now)
    assert node.node.tunnel(now) is silent
    assert node.node.tunnel(now + QUIET_SECONDS) not in (silent, None)


async def test_names_that_nobody_serves_are_not_remembered() -> None:
    registry = Registry()
    for number in range(1000):
        assert registry.candidates(f"model-{number}") == ()
        assert not registry.is_known(f"model-{number}")


async def test_a_node_that_invents_models_does_not_fill_the_memory() -> None:
    site = Site()
    node = site.node()
    names = [[f"m{number}-{n}" for n in range(500)] for number in range(MAX_SERVED // 500 + 5)]
    stored = [
        name for some in names for name in site.registry.report(node.node, [node.report(some)])
    ]
    assert len(stored) <= MAX_SERVED
    site.registry.report(node.node, [node.report(["tiny"])])
    known = sum(site.registry.is_known(name) for some in names for name in some)
    assert known <= MAX_SERVED


async def test_a_report_that_changes_no_model_keeps_what_is_known_of_candidates() -> None:
    """Slots and health change often; the lists of candidates are made anew only for models."""
    site = Site()
    node = site.node(["tiny"])
    before = site.registry.candidates("tiny")
    report = node.report(["tiny"])
    for changed in (report, msgspec.structs.replace(report, slots=1, healthy=False, elsewhere=1)):
        site.registry.report(node.node, [changed])
        assert site.registry.candidates("tiny") is before
    assert not before[0].healthy
    site.registry.report(node.node, [node.report(["other"])])
    assert site.registry.candidates("tiny") == ()
    assert len(site.registry.candidates("other")) == 1
    site.registry.report(node.node, [])
    assert site.registry.candidates("other") == ()


# ── where ─────────────────────────────────────────────────────────────────────────────────────


def only(*regions: str, **more: Any) -> Requirements:
    return Requirements(MODEL, regions=frozenset(regions), **more)


@pytest.mark.parametrize("others", [0, 50])
async def test_only_nodes_of_the_regions_asked_for_are_chosen(others: int) -> None:
    site = Site()
    for _ in range(others):
        site.node(region="us-east")
    west, north = site.node(region="eu-west"), site.node(region="eu-north")
    site.node(region="us-east")
    site.node()  # which does not say where it is
    assert chosen(site, only("eu-west")) == {west.node}
    assert chosen(site, only("eu-west", "eu-north")) == {west.node, north.node}
    assert chosen(site, only("eu-west", excluded_nodes=[west.node.id])) == set()
    assert chosen(site, only("eu")) == set()


async def test_a_cache_in_another_region_is_of_no_use() -> None:
    site = Site()
    near = site.node(region="eu-west")
    far = site.node(region="us-east")
    knows(site).affinity.remember(PREFIX, far.engine)
    assert chosen(site, Requirements(MODEL, prefix=PREFIX)) == {far.node}
    assert chosen(site, only("eu-west", prefix=PREFIX)) == {near.node}


async def test_what_nobody_in_the_region_can_do_is_dropped_but_never_the_region() -> None:
    site = Site()
    near, far = site.node(region="eu-west"), site.node(region="us-east")
    able(near, site, "completion")
    able(far, site, "completion", "vision")
    requirements = only("eu-west", capabilities=frozenset({"vision"}))
    relax_hints(site.registry.candidates(MODEL), requirements)
    assert (requirements.capabilities, requirements.regions) == (
        frozenset(),
        frozenset({"eu-west"}),
    )
    assert chosen(site, requirements) == {near.node}


async def test_a_region_can_be_preferred_and_a_node_of_it_spared() -> None:
    site = Site()
    west, spared, east = (site.node(region=region) for region in ("eu-west", "eu-west", "us-east"))
    for node in (west, spared, east):
        learn(site, node, 1.0)
    assert chosen(site) == {west.node, spared.node, east.node}
    knows(site).weights = {"region:eu-west": 2.0, spared.node.id: 0.5}
    assert chosen(site) == {west.node}
    knows(site).weights = {"region:eu-west": 0.5}
    assert chosen(site) == {east.node}
