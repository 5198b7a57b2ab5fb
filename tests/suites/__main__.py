"""``make suites``: public test suites over a real server, node and llama-server.

``suites.toml`` says which cases must pass, and why the others need not.  The suites come from
their registry packages or sources, with locked versions, into .cache/suites.

Exit codes: 0 every case that must pass has passed, 1 one has not, or the table does not fit the
suite, 2 a suite can't be had here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.lab.llama import program
from tests.suites import node_client, python_clients, responses_cases
from tests.suites.place import Place, running
from tests.suites.python_clients import Unavailable
from tests.suites.table import Outcome, Suite, Verdict, judge, suites

COLUMNS = ("suite", "version", "cases", "must pass", "passed")
WIDTHS = (22, 12, 7, 11, 8)
SHOWN = 20
WHY = 300
"""Failures of a suite, and characters of each one's reason, in the table."""


def _version(suite: Suite) -> str:
    if suite.name in python_clients.PACKAGES:
        return python_clients.version(suite.name)
    return node_client.version() if suite.name == "openai-node" else responses_cases.VERSION


def _runner(suite: Suite) -> Callable[[Place], dict[str, Outcome]]:
    if suite.name in python_clients.PACKAGES:
        return lambda place: python_clients.run(suite, place)
    return node_client.run if suite.name == "openai-node" else responses_cases.run


async def _run(chosen: Sequence[Suite], *, show: bool) -> tuple[list[Verdict], list[str]]:
    verdicts, unavailable = [], []
    with tempfile.TemporaryDirectory(prefix="suites-") as directory:
        async with running(Path(directory)) as place:
            for suite in chosen:
                print(f"running {suite.name}", file=sys.stderr, flush=True)
                try:
                    outcomes = await asyncio.to_thread(_runner(suite), place)
                except Unavailable as error:
                    unavailable.append(str(error))
                    continue
                if show:
                    for name, outcome in sorted(outcomes.items()):
                        print(f"{outcome.outcome:8} {name}  {outcome.why[:200]}", file=sys.stderr)
                verdicts.append(judge(suite, _version(suite), outcomes))
    return verdicts, unavailable


def table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as people read them."""
    lines = ["".join(word.ljust(width) for word, width in zip(COLUMNS, WIDTHS, strict=True))]
    for one in verdicts:
        row = (one.suite, one.version, one.cases, one.must_pass, one.passed)
        cells = zip(row, WIDTHS, strict=True)
        lines.append("".join(str(cell).ljust(width) for cell, width in cells).rstrip())
        lines += [f"  {count:5} need not: {reason}" for reason, count in one.reasons.items()]
        lines += [f"  passes now, could be in must_pass: {case}" for case in one.now_pass]
        failures = list(one.failures.items())
        lines += [f"  FAILED {name}: {why[:WHY]}" for name, why in failures[:SHOWN]]
        if len(failures) > SHOWN:
            lines.append(f"  FAILED {len(failures) - SHOWN} more (--json has all)")
        lines += [f"  FAILED {case}: no case has this name any more" for case in one.stale]
    return "\n".join(line.rstrip() for line in lines)


def main(words: Sequence[str] | None = None) -> int:
    known = suites()
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(known)}")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    parser.add_argument("--cases", action="store_true", help="print how each case ended")
    options = parser.parse_args(words)
    if unknown := sorted(set(options.suites) - set(known)):
        parser.error(f"there is no suite {unknown[0]!r}; there are {', '.join(known)}")
    chosen = [suite for name, suite in known.items() if name in (options.suites or known)]
    try:
        program()
    except RuntimeError as error:
        print(f"NOT RUN suites: {error}", file=sys.stderr)
        return 2
    verdicts, unavailable = asyncio.run(_run(chosen, show=options.cases))
    for text in unavailable:
        print(f"NOT RUN {text}", file=sys.stderr)
    if options.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=2))
    else:
        print(table(verdicts))
    if not all(verdict.good for verdict in verdicts):
        return 1
    return 2 if unavailable else 0


if __name__ == "__main__":
    sys.exit(main())
