"""``python -m tests.fuzz [--seconds 60] [--target NAME] [--file INPUT]``"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from random import Random, SystemRandom

from tests.fuzz.corpus import KEPT, Corpus, write
from tests.fuzz.targets import TARGETS, Target


def fuzz(
    name: str, target: Target, *, seconds: float, seed: int, kept: Path = KEPT, least: int = 1
) -> int:
    """Run the target on inputs for a while; return how many there were.

    Raises what the target raises.  The input is in a file then, as a note to the exception says.
    """
    corpus, rng = Corpus(name, target.seeds, kept), Random(seed)
    waiting = [] if target.numbered else list(corpus.inputs)
    until, count = time.monotonic() + seconds, 0
    while waiting or count < least or time.monotonic() < until:
        if target.numbered:
            data = str(seed + count).encode()
        else:
            data = waiting.pop() if waiting else corpus.make(rng)
        try:
            result = target.run(data)
        except Exception as error:
            file = write(kept / "found", data)
            error.add_note(f"again: python -m tests.fuzz --target {name} --file {file}")
            raise
        if not target.numbered:
            corpus.note(data, result)
        count += 1
    return count


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, shared evenly")
    parser.add_argument("--target", choices=sorted(TARGETS), help="only this one")
    parser.add_argument("--file", type=Path, help="run this one input again, of --target")
    parser.add_argument("--corpus", type=Path, default=KEPT, help="where inputs are kept")
    options = parser.parse_args(words)
    if options.file is not None:
        if options.target is None:
            parser.error("--file needs --target.")
        TARGETS[options.target].run(options.file.read_bytes())
        print("no fault found")
        return 0
    names = [options.target] if options.target else sorted(TARGETS)
    failed = 0
    for name in names:
        seconds, seed = options.seconds / len(names), SystemRandom().randrange(2**40)
        try:
            count = fuzz(name, TARGETS[name], seconds=seconds, seed=seed, kept=options.corpus)
            print(f"{name}: {count:,} inputs, no fault found", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
