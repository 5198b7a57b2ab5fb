"""The kernel's guard, in namespaces: who floods is dropped, others go on, nothing else changes."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import pytest

from fabric_server.net.guard_rules import remove_text
from fabric_server.net.kernel_guard import GuardProblem, KernelBlocklist, match_xdp, run_program
from tests.lab.guarded import GuardLab
from tests.lab.netlab import in_namespace

pytestmark = pytest.mark.skipif(
    GuardLab.why_not() is not None, reason=f"no namespaces with nft: {GuardLab.why_not()}"
)


@pytest.fixture
def lab() -> Iterator[GuardLab]:
    with GuardLab() as lab:
        yield lab


def until_dropped(lab: GuardLab, more_than: int) -> int:
    """Wait until the kernel has dropped more connections, and return how many."""
    for _ in range(1000):
        if (dropped := lab.status().dropped_over_rate) > more_than:
            return dropped
    raise AssertionError("nothing is dropped")


def test_a_flood_from_one_address_is_dropped_in_the_kernel_and_others_go_on(lab: GuardLab) -> None:
    lab.install(rate=5, burst=10)
    flood = lab.flood(lab.attacker)
    until_dropped(lab, 0)
    assert lab.connect(lab.victim, 8)[0] > 0
    lab.stop(flood)
    # Two addresses of one /64 count as one.
    floods = [lab.flood(one, 20) for one in lab.attackers6]
    until_dropped(lab, lab.status().dropped_over_rate)
    assert lab.connect(lab.victim6, 8)[0] > 0
    for one in floods:
        lab.stop(one)


def test_trusted_addresses_are_never_dropped(lab: GuardLab) -> None:
    lab.install(rate=1, burst=1, trusted=[lab.victim])
    assert lab.connect(lab.victim, 30)[0] > 0
    assert lab.is_dropped(lab.attacker, 30)


def test_reinstalling_replaces_the_rules_and_removing_leaves_nothing_but_others(
    lab: GuardLab,
) -> None:
    others = "table ip others {\n\tchain c {\n\t\tcounter accept\n\t}\n}\n"
    lab.on_server(["nft", "-f", "-"], others)
    listing = ["nft", "-s", "list", "ruleset"]
    before = lab.on_server(listing)
    usual = ("--public-port", "18080", "--api-port", "18081")
    planned = lab.guard("install", *usual, "--rate", "5", "--dry-run")["rules"]
    assert lab.on_server(listing) == before
    lab.on_server(["nft", "-f", "-"], planned)
    first = lab.status()
    assert (first.ports, first.rate, first.burst) == ((18080, 18081), 5, 250)
    lab.on_server(
        ["nft", "-f", "-"], "add element inet fabric_guard blocked4 { 9.9.9.9 timeout 1h }\n"
    )
    ports = ("--public-port", "8443", "--api-port", "18081")
    second = lab.guard("install", *ports, "--rate", "7", "--trust", "10.0.0.0/8")
    assert (second["ports"], second["rate"]) == ([8443, 18081], 7)
    assert list(second["blocked"]) == ["9.9.9.9"]
    assert second["trusted"] == ["10.0.0.0/8"]
    assert lab.guard("remove") == {"installed": False}
    assert lab.on_server(listing) == before
    lab.on_server(["nft", "-f", "-"], remove_text())  # there is nothing to remove
    assert lab.on_server(listing) == before


async def run_there(lab: GuardLab, command: Sequence[str], input: str) -> str:
    return await run_program(in_namespace(lab.server, command), input)


async def test_the_servers_throttles_feed_the_blocklist(lab: GuardLab) -> None:
    lab.install()
    blocklist = KernelBlocklist(lambda command, input: run_there(lab, command, input))
    assert lab.connect(lab.attacker, 1)[0] > 0
    running = asyncio.create_task(blocklist.run())
    for address in (lab.attacker, lab.attackers6[0], "127.0.0.1", "::1", "nonsense"):
        blocklist.block(address, 3600.0)
    async with asyncio.timeout(10):
        while not blocklist.results:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert blocklist.results == {"blocked": 2}
    assert set(lab.status().blocked) == {lab.attacker, "fd78:0:0:1::"}
    assert lab.is_dropped(lab.attacker, 1)
    assert lab.is_dropped(lab.attackers6[1], 1)  # of the same /64
    assert lab.connect(lab.victim, 1)[0] > 0
    assert lab.connect(lab.victim6, 1)[0] > 0
    assert lab.status().dropped_blocked >= 2


async def test_without_the_table_nothing_happens_and_the_log_says_so_once(
    lab: GuardLab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    blocklist = KernelBlocklist(lambda command, input: run_there(lab, command, input))
    running = asyncio.create_task(blocklist.run())
    blocklist.block(lab.attacker, 3600.0)
    async with asyncio.timeout(10):
        while not blocklist.results:  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert blocklist.results == {"failed": 1}
    told = [one.message for one in caplog.records if one.name == "fabric.guard"]
    assert told == ["nothing is blocked in the kernel"]


async def test_xdp_drops_what_is_blocked_and_forgets_what_has_expired(lab: GuardLab) -> None:
    if shutil.which("xdp-filter") is None:
        pytest.skip("xdp-filter is missing; install xdp-tools")
    script = """
        mount -t bpf bpf /sys/fs/bpf || exit 3
        xdp-filter load api -m skb -p allow -f ipv4 || exit 3
        echo ready; read -r _; xdp-filter unload api
    """
    holder = subprocess.Popen(  # noqa: ASYNC220 - it begins at once
        in_namespace(lab.server, ["sh", "-c", script]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            pytest.skip("this kernel takes no XDP programs")

        async def run_beside(command: Sequence[str], input: str) -> str:
            # xdp-filter keeps its maps in the bpf file system, which the holder has mounted.
            return await run_program(
                ["nsenter", "-t", str(holder.pid), "-n", "-m", *command], input
            )

        assert lab.connect(lab.attacker, 1)[0] > 0
        await match_xdp(run_beside, [lab.attacker, "9.9.9.9", "2a00::"])
        assert lab.is_dropped(lab.attacker, 1)
        assert lab.connect(lab.victim, 1)[0] > 0
        await match_xdp(run_beside, ["9.9.9.9"])
        assert lab.connect(lab.attacker, 1)[0] > 0
    finally:
        holder.communicate(b"\n")


async def test_a_program_that_is_missing_or_fails_is_a_problem() -> None:
    with pytest.raises(GuardProblem, match="is not installed"):
        await run_program(["no-such-program"])
    with pytest.raises(GuardProblem, match="failed"):
        await run_program(["false"])
    assert json.loads(await run_program(["cat"], "[1]")) == [1]
