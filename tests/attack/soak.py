"""Chaos and attacks together: everything is killed and cut off while attackers do their worst.

python -m tests.attack.soak [--seconds 600] [--seed 1] [--streams 100]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random, SystemRandom

from tests import chaos
from tests.attack.attacks import ATTACKS
from tests.attack.engine import reply
from tests.attack.namespace import enter_namespace, set_up_namespace
from tests.attack.stage import as_word, program
from tests.attack.wire import HOST, Target
from tests.engine import Json, Plan
from tests.stack import Alone

SECONDS = 10.0
"""Of each attack, one after the other."""


class Attackers:
    """One attack after the other, in an order by chance (``chaos.Others``)."""

    def __init__(self, rng: Random) -> None:
        self.done: Counter[str] = Counter()
        self._rng = rng

    def reply(self, asked: Json) -> Plan:
        return reply(asked)

    async def run(self, stack: Alone, manager: str) -> None:
        """Attack until cancelled."""
        key = (await stack.command("keys", "create", "attacker"))["text"]
        target = Target(stack.ports, {"attacker": key, "boss": manager})
        while True:
            for name in self._rng.sample(list(ATTACKS), len(ATTACKS)):
                words = (name, as_word(target), str(SECONDS))
                process = await program("tests.attack.attacks", *words)
                try:
                    await process.communicate()
                finally:
                    if process.returncode is None:
                        with suppress(ProcessLookupError):
                            process.kill()
                        await process.wait()
                self.done[name] += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(2**31))
    parser.add_argument("--streams", type=int, default=100)
    options = parser.parse_args()
    enter_namespace("tests.attack.soak")
    set_up_namespace()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    print(f"again: --seed {options.seed} --streams {options.streams}", flush=True)
    attackers = Attackers(Random(options.seed))
    with tempfile.TemporaryDirectory(prefix="fabric-soak-") as directory:
        work = chaos.run(
            Path(directory),
            seconds=options.seconds,
            seed=options.seed,
            streams=options.streams,
            host=f"127.0.0.1,{HOST}",
            beside=attackers,
        )
        try:
            print(asyncio.run(work))
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        finally:
            print(f"attacks: {dict(attackers.done)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
