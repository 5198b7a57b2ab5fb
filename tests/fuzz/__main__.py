"""``python -m tests.fuzz [--seconds 60] [--target NAME] [--case NUMBER]``"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from random import Random, SystemRandom

from tests.fuzz.targets import TARGETS

BATCH = 50


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, shared evenly")
    parser.add_argument("--target", choices=sorted(TARGETS), help="only this one")
    parser.add_argument("--case", type=int, help="run this one case again")
    options = parser.parse_args()
    names = [options.target] if options.target else sorted(TARGETS)
    if options.case is not None:
        for name in names:
            TARGETS[name](Random(options.case))
        return 0
    start = SystemRandom().randrange(2**40)
    for name in names:
        run, case = TARGETS[name], start
        until = time.monotonic() + options.seconds / len(names)
        while time.monotonic() < until:
            for _ in range(BATCH):
                try:
                    run(Random(case))
                except Exception:
                    traceback.print_exc()
                    again = f"python -m tests.fuzz --target {name} --case {case}"
                    print(f"\n{name}: case {case} failed; again: {again}", file=sys.stderr)
                    return 1
                case += 1
        print(f"{name}: {case - start:,} cases, no fault found")
    return 0


sys.exit(main())
