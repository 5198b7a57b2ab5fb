"""The table of cases, ``suites.toml``: which must pass, and why the others need not.

A case that is in ``others`` has a reason; every further one has to be in ``must_pass``.  One that
is in neither is a failure: the suite has grown, and somebody has to decide.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

TABLE = Path(__file__).with_name("suites.toml")
PASSED = "passed"


@dataclass(frozen=True)
class Outcome:
    """How one case ended: ``passed``, ``failed``, ``skipped`` or ``not run``."""

    outcome: str
    why: str = ""


@dataclass(frozen=True)
class Others:
    """Cases that need not pass, and why."""

    cases: Sequence[str]
    reason: str
    run: bool
    """Whether they are run all the same, so that it is seen when they begin to pass."""


@dataclass(frozen=True)
class Suite:
    name: str
    about: str
    must_pass: Sequence[str]
    others: Sequence[Others]

    @property
    def not_run(self) -> list[str]:
        return [case for group in self.others if not group.run for case in group.cases]


@dataclass(frozen=True)
class Verdict:
    """What a run of a suite came to, against its table."""

    suite: str
    version: str
    cases: int
    must_pass: int
    passed: int
    """Of those that must."""
    failures: Mapping[str, str]
    """Cases that must pass and did not, or that the table does not know, and why."""
    reasons: Mapping[str, int]
    """How many cases each reason excuses."""
    now_pass: Sequence[str]
    """Patterns of others whose cases have all passed: they could be in ``must_pass``."""
    stale: Sequence[str]
    """Patterns that no case fits; failures, too."""

    @property
    def good(self) -> bool:
        return not self.failures and not self.stale and self.must_pass > 0


def suites() -> dict[str, Suite]:
    """Return the suites of the table, by name."""
    with TABLE.open("rb") as file:
        document = tomllib.load(file)
    return {
        name: Suite(
            name,
            entry["about"],
            entry["must_pass"],
            [Others(**{"run": True, **group}) for group in entry.get("others", ())],
        )
        for name, entry in document.items()
    }


def judge(suite: Suite, version: str, outcomes: Mapping[str, Outcome]) -> Verdict:
    """Compare the outcomes of a run with the table."""
    failures: dict[str, str] = {}
    reasons: Counter[str] = Counter()
    must = passed = 0
    fitting: dict[str, list[str]] = {case: [] for group in suite.others for case in group.cases} | {
        case: [] for case in suite.must_pass
    }
    for name, outcome in sorted(outcomes.items()):
        excuse = next((group for group in suite.others if _first(group.cases, name)), None)
        if excuse is not None:
            reasons[excuse.reason] += 1
            fitting[_first(excuse.cases, name) or ""].append(outcome.outcome)
            continue
        required = _first(suite.must_pass, name)
        if required is None:
            failures[name] = f"in no row of {TABLE.name} ({outcome.outcome} {outcome.why})"
            continue
        must += 1
        fitting[required].append(outcome.outcome)
        if outcome.outcome == PASSED:
            passed += 1
        else:
            failures[name] = f"{outcome.outcome}: {outcome.why}"
    excuses = [case for group in suite.others for case in group.cases]
    now_pass = [case for case in excuses if fitting[case] and set(fitting[case]) == {PASSED}]
    stale = [case for case, found in fitting.items() if not found]
    count = len(outcomes)
    return Verdict(
        suite.name, version, count, must, passed, failures, dict(reasons), now_pass, stale
    )


def _first(patterns: Iterable[str], name: str) -> str | None:
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
