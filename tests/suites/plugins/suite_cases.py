"""A plugin for pytest in a suite's own environment: what runs, and how each case ended.

``SUITE_NOT_RUN`` is a JSON list of patterns of cases that are counted but not run; the file
``SUITE_CASES`` gets a JSON object of each case's outcome.  A case's name is that of pytest without
the folder, with ``:`` before the parameters, as brackets mean something in patterns.
"""

from __future__ import annotations

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

FOLDER = "tests/api_resources/"
outcomes: dict[str, dict[str, str]] = {}


def name_of(nodeid: str) -> str:
    return nodeid.removeprefix(FOLDER).replace("[", ":").removesuffix("]")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    patterns = json.loads(os.environ["SUITE_NOT_RUN"])
    kept, left = [], []
    for item in items:
        name = name_of(item.nodeid)
        (left if any(fnmatchcase(name, one) for one in patterns) else kept).append(item)
    for item in left:
        outcomes[name_of(item.nodeid)] = {"outcome": "not run", "why": ""}
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = name_of(report.nodeid)
    known = outcomes.get(name)
    if known is None or (known["outcome"] == "passed" and report.outcome != "passed"):
        why = str(report.longrepr).strip().rpartition("\n")[2] if report.longrepr else ""
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message.partition("\n")[0] if crash is not None else why
        outcomes[name] = {"outcome": report.outcome, "why": why}


def pytest_sessionfinish() -> None:
    Path(os.environ["SUITE_CASES"]).write_text(json.dumps(outcomes))
