"""Checks run side by side and within their time, and findings are shown and logged once."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.doctor import Check, check_disk, examine, in_thread, lines, show
from runtime.findings import (
    DAY,
    Finding,
    FindingLog,
    certificate_dates,
    descriptors,
    disk,
    ok,
    problems,
)

HOSTILE = "a\x1b[2J\r\nok    all: is well\u202e"


def bad(code: str = "broken", level: str = "FAIL") -> Finding:
    return Finding("part", level, "it is broken", code, "mend it")  # type: ignore[arg-type]


async def fine() -> Sequence[Finding]:
    return [ok("fine", "good")]


async def hang() -> Sequence[Finding]:
    await asyncio.Event().wait()
    return []


async def broken() -> Sequence[Finding]:
    raise RuntimeError(HOSTILE)


async def test_a_check_that_hangs_or_breaks_does_not_stop_the_others() -> None:
    checks = [Check("a", hang, 0.05), Check("b", broken), Check("c", fine)]
    found = await examine(checks)
    assert [one.code for one in found] == ["check_timeout", "check_failed", ""]
    assert [one.check for one in found] == ["a", "b", "fine"]


async def test_work_that_hangs_in_a_thread_is_left_behind() -> None:
    release = threading.Event()

    async def waits() -> Sequence[Finding]:
        await in_thread(release.wait)
        return []

    found = await examine([Check("driver", waits, 0.05)])
    assert found[0].code == "check_timeout"
    release.set()


def test_exit_codes_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert show([ok("a", "good"), bad(level="warn")], json=False) == 0
    assert show([ok("a", "good"), bad()], json=True) == 1
    out = capsys.readouterr().out
    told = json.loads(out[out.index("[") :])
    assert told[0] == {"check": "a", "level": "ok", "what": "good", "code": None, "remedy": None}
    assert told[1]["code"] == "broken"


def test_lines_fit_the_terminal_and_hold_nothing_raw() -> None:
    finding = Finding("part", "FAIL", f"{HOSTILE} {'long ' * 40}", "x", f"{HOSTILE} {'mend ' * 30}")
    shown = lines(finding, 80)
    assert len(shown) > 3
    assert all(len(line) <= 80 and line.isprintable() for line in shown)
    assert all(line.startswith(("FAIL  ", "      ")) for line in shown)
    assert len(lines(finding, None)) == 1


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (disk("/data", 2**40), "ok"),
        (disk("/data", 2**29), "warn"),
        (disk("/data", 0), "FAIL"),
        (descriptors(1024), "ok"),
        (descriptors(256), "warn"),
        (certificate_dates("c", 0.0, 30 * DAY, DAY, "renew"), "ok"),
        (certificate_dates("c", 0.0, 30 * DAY, 28 * DAY, "renew"), "warn"),
        (certificate_dates("c", 0.0, 30 * DAY, 30 * DAY, "renew"), "FAIL"),
        (certificate_dates("c", DAY, 30 * DAY, 0.0, "renew"), "warn"),
        (certificate_dates("c", DAY, 30 * DAY, 1.0, "renew", backdated=DAY), "ok"),
        (certificate_dates("c", DAY, 30 * DAY, -1.0, "renew", backdated=DAY), "warn"),
        (certificate_dates("c", 0.0, 600.0, 100.0, "renew"), "ok"),
    ],
)
def test_figures_are_judged(finding: Finding, level: str) -> None:
    assert finding.level == level
    assert bool(finding.code) == bool(finding.remedy) == (level != "ok")


async def test_a_full_disk_is_a_failure() -> None:
    """``/dev/full`` can't hold a directory: a place that can't be written stands for it."""
    found = await check_disk(Path("/proc"))
    assert found[0].level == "FAIL"


def test_a_problem_is_logged_once_each_way(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    known = FindingLog(logging.getLogger("fabric.test"))
    for found in ([bad()], [bad()], [bad(), bad("other", "warn")], [ok("part", "good")], []):
        known.update(found, of="node_1", fields={"node": "node_1"})
    told = [(record.levelname, record.__dict__["problem"]) for record in caplog.records]
    assert told == [
        ("ERROR", "broken"),
        ("WARNING", "other"),
        *sorted([("INFO", "broken"), ("INFO", "other")]),
    ]


def test_failures_come_first() -> None:
    found = problems([ok("a", "good"), bad("w", "warn"), bad("f")])
    assert [one.code for one in found] == ["f", "w"]
