"""A user of good manners beside an attack: asks steadily, and measures.

python -m tests.attack.victim TARGET SECONDS RATE      prints JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

import msgspec

from tests.attack.wire import CHAT, Target, Wire, chat, request

PATIENCE = 30.0
ORIGIN = "198.18.1.1"


async def watch(target: Target, seconds: float, rate: float) -> dict[str, object]:
    """Ask ``rate`` times a second, each eighth time on a new connection.

    Times are measured from when a request was due, so that a standstill counts for all requests
    that it delayed.
    """
    data = request(CHAT, target.keys["victim"], chat())
    times: list[float] = []
    endings: Counter[str] = Counter()
    wire: Wire | None = None
    began = time.monotonic()
    number = 0
    while (due := began + number / rate) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        number += 1
        if wire is not None and number % 8 == 0:
            wire.close()
            wire = None
        try:
            async with asyncio.timeout(PATIENCE):
                wire = wire or await Wire.open(target, origin=ORIGIN)
                status, _ = await wire.ask(data)
            endings[str(status)] += 1
        except (OSError, TimeoutError) as error:
            endings[type(error).__name__] += 1
            wire = None
        times.append(time.monotonic() - due)
    times.sort()
    return {
        "p50": times[len(times) // 2],
        "p99": times[min(len(times) - 1, int(len(times) * 0.99))],
        "longest": times[-1],
        "endings": dict(endings),
    }


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Target)
    print(json.dumps(asyncio.run(watch(given, float(sys.argv[2]), float(sys.argv[3])))))
