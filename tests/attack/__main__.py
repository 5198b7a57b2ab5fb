"""Runs the attacks and prints a table: the user beside each, memory, descriptors, processor."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.attack.attacks import ATTACKS
from tests.attack.namespace import enter_namespace, set_up_namespace
from tests.attack.stage import KEY_MEMORY, Stage, as_word, program, stage, watched

RATE = 40.0
"""Requests per second of the user beside the attack."""
FACTOR = 2.0
"""Limit of the user's p99 beside an attack, in multiples of the same user's alone."""
FLOOR = 0.010
"""Seconds; a p99 below is good whatever it is alone."""
HEADROOM = KEY_MEMORY * 3 // 2
"""Limit of the memory that an attack may cost the server, in bytes: what one key may hold, and what
the allocator makes of it."""


async def measure(on: Stage, name: str, seconds: float) -> dict[str, Any]:
    before, _ = on.sizes()
    alone = await watched(on.target, seconds / 2, RATE)
    words = (name, as_word(on.target), str(seconds + 2))
    attacker = await program("tests.attack.attacks", *words)
    await asyncio.sleep(1.0)  # until the attack is under way
    used, began = on.processor(), time.monotonic()
    beside = await watched(on.target, seconds, RATE)
    core = (on.processor() - used) / (time.monotonic() - began)
    memory, descriptors = on.sizes()
    await attacker.communicate()
    others = {code: count for code, count in beside["endings"].items() if code != "200"}
    problems = []
    if on.stack.server.code is not None:
        problems.append("the server ended")
    if on.node.code is not None:
        problems.append("the node ended")
    if beside["p99"] > max(FACTOR * alone["p99"], FLOOR):
        problems.append(f"p99 x{beside['p99'] / alone['p99']:.1f}")
    if others:
        problems.append(f"not answered: {others}")
    if memory - before > HEADROOM:
        problems.append("memory")
    return {
        "attack": name,
        "alone": alone,
        "beside": beside,
        "memory_before": before,
        "memory": memory,
        "descriptors": descriptors,
        "core": core,
        "problems": problems,
    }


def row(result: dict[str, Any]) -> str:
    alone, beside = result["alone"], result["beside"]
    return (
        f"{result['attack']:<18}{alone['p99'] * 1e3:8.1f}{beside['p50'] * 1e3:8.1f}"
        f"{beside['p99'] * 1e3:9.1f}{beside['longest'] * 1e3:9.1f}"
        f"{result['memory'] / 2**20:8.0f}{result['descriptors']:7}"
        f"{result['core'] * 100:6.0f}  "
        f"{', '.join(result['problems']) or 'ok'}"
    )


TITLE = (
    f"{'':18}{'alone':>8}{'beside the attack':>26}{'memory':>8}{'files':>7}{'core':>6}\n"
    f"{'attack':<18}{'p99 ms':>8}{'p50 ms':>8}{'p99 ms':>9}{'max ms':>9}{'MiB':>8}{'':7}{'%':>6}"
)


async def run(names: list[str], seconds: float, *, as_json: bool) -> bool:
    """Run attacks, each on a fabric of its own; return whether all was well."""
    results = []
    if not as_json:
        print(TITLE, flush=True)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fabric-attack-") as directory:
            async with stage(Path(directory)) as on:
                result = await measure(on, name, seconds)
                if result["problems"]:
                    result["log"] = on.stack.server.lines[-5:]
        results.append(result)
        if not as_json:
            print(row(result), flush=True)
    if as_json:
        print(json.dumps(results, indent=1))
    return not any(result["problems"] for result in results)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ATTACKS)}")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack (default: 8)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    unknown = set(options.names) - set(ATTACKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(ATTACKS)}")
    enter_namespace("tests.attack")
    set_up_namespace()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    names = options.names or list(ATTACKS)
    return 0 if asyncio.run(run(names, options.seconds, as_json=options.json)) else 1


if __name__ == "__main__":
    sys.exit(main())
